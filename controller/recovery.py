"""After a restart: what an earlier daemon left in the tree is taken over, and nothing of it is lost.

A call whose leaf is populated goes on; its launcher comes back by itself (RESUME) and gets ``restart_grace`` for that.
A call whose leaf is empty ended while nobody watched: its launcher, which knows the exit status, gets the same time to
say so, and then the call is settled from what the kernel still counts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from controller.backend import CallRecord, CallRef, Found
from controller.effects import Past
from controller.endings import Endings
from controller.holds import Holds
from controller.model import Action, CallId, ControllerError, Decision, NotAllowed, SessionId
from controller.registry import Call, Session, Tenant
from controller.sessions import Sessions
from controller.shared import Shared

log = structlog.get_logger("corral.recovery")

_STOPPED_LOOK = 1.0  # seconds after the start; events that waited in the kernel are read in the first milliseconds


class Recovery:
    def __init__(self, shared: Shared, sessions: Sessions, holds: Holds, endings: Endings, past: Past) -> None:
        self._shared = shared
        self._sessions = sessions
        self._holds = holds
        self._endings = endings
        self._past = past
        self._closed: dict[SessionId, Session] = {}  # sessions that were closed, but whose leaves still stand
        self._missed: set[CallId] = set()  # launchers that have not come back yet

    def take_over_tenants(self, found: Found) -> None:
        for view in found.tenants:
            if view.name in self._shared.registry.by_name:
                log.warning("two groups of one tenant; the second is left alone", tenant=view.name, group=view.id)
                continue
            self._shared.registry.add_tenant(
                Tenant(
                    id=view.id,
                    name=view.name,
                    uids=frozenset(),
                    limits=view.limits,
                    priority=view.priority,
                    max_calls=None,
                    max_sessions=None,
                )
            )

    def take_over(self, found: Found) -> None:
        for name in found.strange:
            log.warning("a group below our root has no record that can be read; it is left alone", group=name)
        for record in found.sessions:
            if record.session.tenant_id in self._shared.registry.tenants:
                session = self._sessions.adopt(record)
                if session.closing:
                    self._closed[session.id] = session
        for call in found.calls:
            self._take_over_call(call)
        self._closed.clear()
        if self._missed:
            log.info("calls of an earlier daemon go on", calls=len(self._missed))
            loop = asyncio.get_running_loop()
            loop.call_later(_STOPPED_LOOK, self._look_for_stopped, tuple(self._missed))
            loop.call_later(self._shared.config.restart_grace, self._grace_is_over)

    def _take_over_call(self, record: CallRecord) -> None:
        view = record.call
        registry = self._shared.registry
        session = registry.sessions.get(view.session_id) or self._closed.get(view.session_id)
        if session is None:
            log.warning("a call's session is not known; its leaf is left alone", call=view.id)
            return
        call = Call(
            ref=CallRef(view.tenant_id, view.session_id, view.id),
            session=session,
            parent_id=view.parent_id,
            command=view.command,
            intent=view.intent,
            grant=view.grant,
            begun_at=view.begun_at,
            held_since=view.held_since,
            held_seconds=view.held_seconds,
            brakes=view.brakes,
            squeeze=view.squeeze,
            squeezed_seconds=record.squeezed_seconds,
            usage=view.usage,
            cgroup=view.cgroup,
            recognition=view.recognition,
            main_pid=record.main_pid,
            launcher=record.launcher,
            launcher_pid=record.launcher_pid,
            populated=record.main_pid != 0,
            begun=True,
            asked_at=view.begun_at,
            promised=_promised(record),
            unbraked=record.unbraked,
            trimmed=record.trimmed,
            memory=view.usage.memory_now or 0,
        )
        try:
            self._shared.backend.adopt_call(call.ref, record)
            if self._past.has_ended(call.id):
                self._endings.remove(call)  # all is on disk but for the leaf's removal
                return
            call.decisions = _merged(self._past.decisions(call.id), record.decisions)
            call.killed_as = record.killed_as
            if not record.held:
                # frozen, but not yet on record as held when the earlier daemon died: who wanted it frozen asks again
                self._shared.backend.thaw(call.ref, ())
            if "brake" in record.held:
                # which processes were stopped is not known any more: every stopped one of the leaf is resumed
                call.stopped = set(self._shared.backend.pids(call.ref))
            registry.add_call(call)
            call.tenant.running += 1
            # the earlier daemon may have died before the ledger had the beginning; writing it twice does no harm
            self._shared.journal.call_begun(view)
            self._holds.adopt(call, set(record.held))
            self._endings.watch_deadline(call)
            if call.killed_as is not None:
                self._endings.kill_again(call)
        except ControllerError as err:
            log.error("a call of an earlier daemon could not be taken over", call=view.id, error=str(err))
            return
        self._missed.add(call.id)

    def _look_for_stopped(self, adopted: Sequence[CallId]) -> None:
        """By now the events of brakes that acted while no daemon ran have come. Should one have been lost, its
        processes stand stopped past the threshold, and nobody else would ever resume them."""
        for call_id in adopted:
            call = self._shared.registry.calls.get(call_id)
            if call is None or call.held_by or call.ending or (brake := call.grant.tripwire.brake) is None:
                continue
            with contextlib.suppress(ControllerError):  # it ends at this moment
                usage = self._shared.backend.memory(call.ref)
                if usage < brake:
                    continue
                for pid in self._shared.backend.pids(call.ref):
                    if _state_and_parent(pid)[0] == "T":
                        self._holds.braked(call, pid, usage, brake, 0.0)

    def resume(self, call_id: CallId, uid: int, launcher_pid: int, tell_acted: Callable[[], None]) -> Call:
        """A launcher is back. Only the session's own user (or root) may speak for a call."""
        call = self._shared.registry.call(call_id)
        if uid not in {0, call.session.uid}:
            raise NotAllowed(f"call {call_id} is another user's", remedy="resume your own calls")
        self._missed.discard(call_id)
        call.tell_acted = tell_acted
        call.launcher = True
        call.launcher_pid = launcher_pid or call.launcher_pid
        if any(d.action is not Action.ADVISE for d in call.decisions):
            tell_acted()  # while it was away, or by the earlier daemon: telling twice does no harm
        return call

    def _grace_is_over(self) -> None:
        for call_id in self._missed:
            call = self._shared.registry.calls.get(call_id)
            if call is None or call.outcome is not None or call.ending:
                continue
            with contextlib.suppress(ControllerError):
                if not self._shared.backend.occupied(call.ref):
                    self._endings.emptied(call)
                    continue
            if call.launcher and not _is_parent(call.launcher_pid, call.main_pid):
                log.warning("the launcher of a call is gone; the call is ended", call=call.id)
                self._endings.launcher_lost(call)
        self._missed.clear()


def _promised(record: CallRecord) -> int:
    """An earlier version armed thresholds for what was declared alone."""
    return record.promised if record.promised is not None else record.call.grant.tripwire.brake or 0


def _merged(ledger: Sequence[Decision], leaf: Sequence[Decision]) -> list[Decision]:
    """What the ledger has, and what the leaf remembers that the earlier daemon did not get to write."""
    known = {(d.at, d.action, d.policy) for d in ledger}
    return [*ledger, *(d for d in leaf if (d.at, d.action, d.policy) not in known)]


def _is_parent(parent: int, child: int) -> bool:
    """Whether ``child`` lives and ``parent`` is still its parent: a dead launcher's child has been given away."""
    return _state_and_parent(child)[1] == parent


def _state_and_parent(pid: int) -> tuple[str, int]:
    """As in proc_pid_stat(5); ("", -1) of a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[1])
    except (OSError, ValueError, IndexError):
        return "", -1
