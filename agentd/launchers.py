"""What the daemon does for launchers: who they are, and their calls' way through the host.

A launcher's session is, in this order: the one of its token (bound to the uid that opened it), the one it names (if
it is the same user's), the one inside whose cgroup it runs, and else one that is opened for its user and closed with
its last call. The first three are proven by the kernel or by a secret; the last gives no more than its user has anyway.
"""

from __future__ import annotations

import contextlib

import structlog

from agentd.broker import Ended, Granted, Link, Peer
from agentd.wire import Begin
from controller.backend import Whose
from controller.cgroup import files
from controller.host import Host
from controller.model import (
    CallId,
    ControllerError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    SessionId,
)
from controller.registry import Session

_log = structlog.get_logger("corral.launchers")


class Launchers:
    """A broker's handler."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def begin(self, peer: Peer, begin: Begin, link: Link) -> Granted:
        if peer.pid == 0:
            raise NotAllowed(
                "the caller's process cannot be seen from here (another pid namespace)",
                remedy="run the launcher on the host, or register the container as a session",
            )
        where = self._host.whose(peer.pid)
        session = self._session(peer, begin, where)
        parent = where.call_id if where.session_id == session.id and where.call_id in session.calls else None
        call = self._host.prepare(session.id, intent=begin.intent, argv=begin.argv, parent_id=parent)
        wait = self._host.begin_now(call)
        if wait is not None:
            link.queued(wait.eta, wait.message)
            call.tell_queued = link.queued  # again, whenever the estimate has changed much
            await self._host.wait_turn(call, wait)
        self._host.place(call, peer.pid, _parent_of(peer.pid), link.acted, pidfd=peer.pidfd)
        return Granted(call_id=call.id, enforced=call.grant.enforced, notes=call.grant.notes)

    async def ended(self, call_id: str, wait_status: int, want: bool) -> Ended:
        if not want:
            # nobody waits for the answer: the outcome follows in its own time
            call = self._host.registry.calls.get(CallId(call_id))
            if call is not None:
                call.tell_acted = None
                self._host.endings.main_exited(call, wait_status)
            return Ended(reason="")
        outcome = await self._host.end(CallId(call_id), wait_status)
        return Ended(
            reason=outcome.reason.value,
            paragraph=outcome.summary,
            suggestions=outcome.suggestions,
            notes=self._host.parting_notes(outcome.call_id),
        )

    async def hung_up(self, call_id: str) -> None:
        self._host.hung_up(CallId(call_id))

    async def resume(self, peer: Peer, call_id: str, link: Link) -> None:
        if peer.pidfd_pid is not None and self._host.whose(peer.pidfd_pid).call_id != call_id:
            raise NotAllowed(
                f"process {peer.pidfd_pid} is not of call {call_id}",
                field="call",
                value=call_id,
                remedy="resume a call with the process that began it",
            )
        self._host.recovery.resume(CallId(call_id), peer.uid, peer.pid, link.acted)

    async def open_session(self, peer: Peer, tenant: str, name: str) -> tuple[str, str]:
        sessions = self._host.sessions
        if not tenant:
            found = sessions.tenant_of_uid(peer.uid)
            if found is None:
                raise _no_tenant(peer.uid)
            tenant = found.name
        if tenant not in self._host.registry.by_name and peer.uid != 0:
            # which tenants there are is not every user's business
            raise NotAllowed(
                f"user {peer.uid} may not open sessions of tenant {tenant[:63]!r}",
                field="tenant",
                value=tenant,
                remedy="use a tenant of yours, or leave the tenant out",
            )
        sessions.check_may_open(self._host.registry.tenant(tenant), peer.uid)
        view, token = self._host.open_session(tenant=tenant, name=name, uid=peer.uid, labels={})
        return view.id, token

    async def close_session(self, peer: Peer, token: str, kill: bool) -> None:
        await self._host.close_session(self._by_token(peer, token).id, kill=kill)

    async def enter(self, peer: Peer, session_id: str | None, token: str | None) -> None:
        """Only before its first call may a process come in from outside: one that is inside a call stays in it."""
        session = self._by_token(peer, token) if token else self._named(peer, session_id or "", Whose())
        where = self._host.whose(peer.pid)
        if where.session_id is not None and (where.session_id != session.id or where.call_id is not None):
            raise NotAllowed(
                "the caller runs inside another session or a call already",
                field="session",
                value=session.id,
                remedy="enter a session from outside of every other",
            )
        self._host.enter_session(session.id, peer.pid)

    # --- who ---------------------------------------------------------------------------------------------

    def _session(self, peer: Peer, begin: Begin, where: Whose) -> Session:
        if begin.token:
            session = self._by_token(peer, begin.token)
            if begin.session and begin.session != session.id:
                raise InvalidRequest(
                    "the token is of another session",
                    field="session",
                    value=begin.session,
                    remedy="give the session or its token, not two different ones",
                )
            return session
        if begin.session:
            return self._named(peer, begin.session, where)
        if where.session_id is not None:
            inside = self._host.registry.sessions.get(where.session_id)
            if inside is not None and not inside.closing:
                return inside
        return self._of_user(peer.uid)

    def _by_token(self, peer: Peer, token: str) -> Session:
        session = self._host.sessions.authenticate(token)
        if peer.uid not in {0, session.uid}:
            raise NotAllowed(
                f"the token is of a session of user {session.uid}, the caller is user {peer.uid}",
                field="token",
                remedy="open a session of your own (corral session open)",
            )
        return session

    def _named(self, peer: Peer, session_id: str, where: Whose) -> Session:
        """Ids are no secrets: a session that is only named must be the caller's own."""
        session = self._host.registry.sessions.get(SessionId(session_id))
        if session is None or (peer.uid not in {0, session.uid} and where.session_id != session.id):
            raise NotFound(
                f"no session {session_id[:40]!r} of user {peer.uid}",
                field="session",
                value=session_id,
                remedy="corral session list shows yours; open one with corral session open",
            )
        return session

    def _of_user(self, uid: int) -> Session:
        """One session for each user who never opened one, for as long as it has calls."""
        tenant = self._host.sessions.tenant_of_uid(uid)
        if tenant is None:
            raise _no_tenant(uid)
        for session in tenant.sessions.values():
            if not session.managed and session.uid == uid and not session.closing:
                return session
        view, _ = self._host.open_session(tenant=tenant.name, name=f"user-{uid}", uid=uid, labels={}, managed=False)
        return self._host.registry.session(view.id)


def _no_tenant(uid: int) -> NotAllowed:
    return NotAllowed(
        f"user {uid} belongs to no tenant",
        remedy="name the user in a tenant's uids, or set default_tenant.policy to a tenant",
    )


def _parent_of(pid: int) -> int:
    """The launcher of a waiting child; 0 when it is gone."""
    with contextlib.suppress(ControllerError, ValueError, IndexError):
        stat = files.read(f"/proc/{pid}/stat")
        return int(stat.rpartition(b")")[2].split(None, 2)[1])
    return 0
