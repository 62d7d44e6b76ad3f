"""After a restart: what an earlier daemon left in the tree is taken over, and nothing of it is lost.

A call whose leaf is populated goes on; its launcher comes back by itself (RESUME) and gets ``restart_grace`` for that.
A call whose leaf is empty ended while nobody watched: its launcher, which knows the exit status, gets the same time to
say so, and then the call is settled from what the kernel still counts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import structlog

from controller.backend import CallRecord, CallRef, Found
from controller.endings import Endings
from controller.holds import Holds
from controller.model import CallId, ControllerError, NotAllowed
from controller.registry import Call, Tenant
from controller.sessions import Sessions
from controller.shared import Shared

log = structlog.get_logger("corral.recovery")


class Recovery:
    def __init__(self, shared: Shared, sessions: Sessions, holds: Holds, endings: Endings) -> None:
        self._shared = shared
        self._sessions = sessions
        self._holds = holds
        self._endings = endings
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
                self._sessions.adopt(record)
        for call in found.calls:
            self._take_over_call(call)
        if found.calls:
            log.info("calls of an earlier daemon go on", calls=len(found.calls))
            asyncio.get_running_loop().call_later(self._shared.config.restart_grace, self._grace_is_over)

    def _take_over_call(self, record: CallRecord) -> None:
        view = record.call
        registry = self._shared.registry
        session = registry.sessions.get(view.session_id)
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
            usage=view.usage,
            cgroup=view.cgroup,
            main_pid=record.main_pid,
            launcher=record.launcher,
            launcher_pid=record.launcher_pid,
            populated=record.main_pid != 0,
        )
        try:
            self._shared.backend.adopt_call(call.ref, record)
            if "brake" in record.held:
                # which processes were stopped is not known any more: every stopped one of the leaf is resumed
                call.stopped = set(self._shared.backend.pids(call.ref))
            registry.add_call(call)
            call.tenant.running += 1
            # the earlier daemon may have died before the ledger had the beginning; writing it twice does no harm
            self._shared.journal.call_begun(view)
            self._holds.adopt(call, set(record.held))
        except ControllerError as err:
            log.error("a call of an earlier daemon could not be taken over", call=view.id, error=str(err))
            return
        self._missed.add(call.id)

    def resume(self, call_id: CallId, uid: int, launcher_pid: int, tell_acted: Callable[[], None]) -> Call:
        """A launcher is back. Only the session's own user (or root) may speak for a call."""
        call = self._shared.registry.call(call_id)
        if uid not in {0, call.session.uid}:
            raise NotAllowed(f"call {call_id} is another user's", remedy="resume your own calls")
        self._missed.discard(call_id)
        call.tell_acted = tell_acted
        call.launcher = True
        call.launcher_pid = launcher_pid or call.launcher_pid
        return call

    def _grace_is_over(self) -> None:
        for call_id in self._missed:
            call = self._shared.registry.calls.get(call_id)
            if call is None or call.outcome is not None or call.ending:
                continue
            with contextlib.suppress(ControllerError):
                if not self._shared.backend.pids(call.ref):
                    self._endings.emptied(call)
                    continue
            if call.launcher and not _is_parent(call.launcher_pid, call.main_pid):
                log.warning("the launcher of a call is gone; the call is ended", call=call.id)
                self._endings.launcher_lost(call)
        self._missed.clear()


def _is_parent(parent: int, child: int) -> bool:
    """Whether ``child`` lives and ``parent`` is still its parent: a dead launcher's child has been given away."""
    try:
        stat = Path(f"/proc/{child}/stat").read_text(encoding="ascii", errors="replace")
        return int(stat.rpartition(")")[2].split()[1]) == parent
    except (OSError, ValueError, IndexError):
        return False
