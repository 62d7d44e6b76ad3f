"""The backend that only observes: no cgroups, no limits; process trees, what they use, and signals to end them.

For hosts without root or without a cgroup tree that can be written. Everything is read from /proc by one pass for all
calls, and an end is told by a pidfd; in between a timer looks again, often while a call is young and ever more seldom,
so that little of what short processes used is missed. Nothing here outlives the daemon: a restarted one begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Final

import structlog

from controller.backend import (
    CallRecord,
    CallRef,
    Found,
    KernelProof,
    Listener,
    Sampled,
    SessionRecord,
    Squeezed,
    Whose,
)
from controller.backends.treeusage import usage_of, usec
from controller.model import (
    CallId,
    ControllerError,
    Grant,
    Intent,
    Limits,
    NotAllowed,
    NotFound,
    SessionId,
    Squeeze,
    TenantId,
    TenantView,
    Tripwire,
    Usage,
    WrongState,
)
from controller.processes import procfs
from controller.processes.tree import ZERO, Forest, Tree, Use, open_pidfd, ticks_now, waiter_of

log = structlog.get_logger("corral.observe")

_VARIABLE: Final = b"CORRAL_CALL"  # set by the launcher to the call's id
_SHORTEST: Final = 0.05  # seconds between two looks
_LONGEST: Final = 1.0
_SHARE: Final = 20.0  # a look costs at most one part in so many of the time
_FRESH: Final = 0.005  # seconds for which a look answers further questions
_SAMPLE_FRESH: Final = 0.02
_REMEDY: Final = "run agentd as root on a host with cgroup v2; corral doctor says what is missing"


@dataclass(slots=True, eq=False)
class _Call:
    ref: CallRef
    tree: Tree
    begun: float  # time.monotonic()
    populated: bool = False
    doomed: bool = False
    pidfd: int | None = None


@dataclass(slots=True, eq=False)
class _Session:
    """``own``: its agent's processes, and what outlived its calls."""

    tenant_id: TenantId
    own: Tree
    calls: dict[CallId, _Call] = field(default_factory=dict)


class Observer:
    """See controller.backend.Backend. ``missing``: why this host only observes, in words for every screen."""

    mode = "observe"
    enforces = False
    can_brake = False
    can_gate_network = False
    controllers: frozenset[str] = frozenset()

    def __init__(self, missing: tuple[str, ...]) -> None:
        self.missing = missing
        self._listener: Listener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._forest = Forest(_VARIABLE)
        self._tenants: dict[TenantId, Use] = {}  # what calls and sessions that are gone had used
        self._sessions: dict[SessionId, _Session] = {}
        self._calls: dict[CallId, _Call] = {}

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self, listener: Listener) -> Found:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        for problem in self.missing:
            log.warning("this host cannot do everything", missing=problem)
        return Found()

    def stop(self) -> None:
        for call in self._calls.values():
            self._unwatch(call)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop = None
        self._listener = None

    # --- tenants and sessions ----------------------------------------------------------------------------------------

    def add_tenant(self, tenant: TenantView) -> tuple[str, ...]:
        self._tenants.setdefault(tenant.id, ZERO)
        return _not_in_force(tenant.limits)

    def tenant_memory(self, tenant_id: TenantId) -> int | None:
        self._look(_SAMPLE_FRESH)
        return sum(tree.rss for tree in self._trees_of(tenant_id))

    def tenant_cache(self, tenant_id: TenantId) -> int:
        return 0

    def tenant_cpu_usec(self, tenant_id: TenantId) -> int:
        self._look(_SAMPLE_FRESH)
        use = self._tenants.get(tenant_id, ZERO)
        for tree in self._trees_of(tenant_id):
            use = use.plus(tree.use())
        return usec(use.user + use.system)

    def shelter_agents(self, tenant_id: TenantId, sessions: Iterable[SessionId], tenant: bool) -> None:
        pass  # reclaim is the kernel's own

    def remove_tenant(self, tenant_id: TenantId) -> None:
        self._tenants.pop(tenant_id, None)

    def add_session(self, record: SessionRecord) -> None:
        session = record.session
        own = Tree(begun=ticks_now())
        self._forest.add(own)
        self._sessions[session.id] = _Session(session.tenant_id, own)

    def update_session(self, record: SessionRecord) -> None:
        """Nothing is kept: a restarted daemon knows no session."""
        self._session(record.session.id)

    def limit_session(self, tenant_id: TenantId, session_id: SessionId, limits: Limits) -> tuple[str, ...]:
        self._session(session_id)
        return _not_in_force(limits)

    def enter_session(self, tenant_id: TenantId, session_id: SessionId, pid: int) -> None:
        self._forest.place(self._session(session_id).own, _living(pid))

    def watch_agent(self, tenant_id: TenantId, session_id: SessionId, within: int) -> None:
        pass  # the kernel tells nothing

    def keep_device_filter(self, tenant_id: TenantId, session_id: SessionId, group: str) -> None:
        pass  # nothing is moved

    def hold_process(self, tenant_id: TenantId, session_id: SessionId, pid: int) -> bool:
        return False

    def held_processes(self, tenant_id: TenantId, session_id: SessionId) -> Sequence[int]:
        return ()

    def agent_pids(self, tenant_id: TenantId, session_id: SessionId) -> Sequence[int]:
        session = self._sessions.get(session_id)
        return [member.pid for member in session.own.alive] if session is not None else ()

    def session_pids(self, tenant_id: TenantId, session_id: SessionId) -> int:
        session = self._sessions.get(session_id)
        if session is None:
            return 0
        self._look(_FRESH)
        return sum(len(tree.alive) for tree in _all_trees(session))

    def kill_session(self, tenant_id: TenantId, session_id: SessionId) -> None:
        session = self._session(session_id)
        for call in session.calls.values():
            call.doomed = True
        self._kill(f"session {session_id}", _all_trees(session))

    def remove_session(self, tenant_id: TenantId, session_id: SessionId) -> bool:
        session = self._sessions.get(session_id)
        if session is None:
            return True
        if session.calls or self._forest.refresh(session.own):
            return False
        self._look(_FRESH)
        if session.own.alive:
            return False
        self._charge(session.tenant_id, session.own)
        self._forest.remove(session.own)
        del self._sessions[session_id]
        return True

    # --- calls -------------------------------------------------------------------------------------------------------

    def add_call(self, ref: CallRef, intent: Intent, grant: Grant) -> str:
        session = self._session(ref.session_id)
        tree = Tree(marker=ref.call_id.encode(), begun=ticks_now())
        call = _Call(ref, tree, time.monotonic())
        self._forest.add(tree)
        self._calls[ref.call_id] = session.calls[ref.call_id] = call
        return ""

    def remember(self, ref: CallRef, record: CallRecord) -> None:
        """Nothing is kept, but who waits for the main process: the use that its launcher took over is exact."""
        tree = self._call(ref).tree
        if record.launcher and record.launcher_pid and tree.waiter is None:
            tree.waiter = waiter_of(record.launcher_pid)

    def adopt_call(self, ref: CallRef, record: CallRecord) -> None:
        self.add_call(ref, record.call.intent, record.call.grant)
        if record.main_pid:
            self.place(ref, record.main_pid)

    def place(self, ref: CallRef, pid: int, pidfd: int | None = None) -> None:
        call = self._call(ref)
        stat = _living(pid)
        if pidfd is not None and _has_ended(pidfd):
            raise _gone(pid)
        self._forest.place(call.tree, stat)
        if not call.tree.main:
            call.tree.main, call.tree.uid = pid, procfs.owner(pid)
        call.populated = True
        self._watch(call)
        self._look_later()

    def limit_call(self, ref: CallRef, grant: Grant, intent: Intent) -> tuple[str, ...]:
        """An intent that asks for a limit was refused before it came here; what is left are the host's defaults."""
        self._call(ref)
        return _not_in_force(grant.limits)

    def arm(self, ref: CallRef, tripwire: Tripwire) -> None:
        """There is no threshold here: it can_brake nothing."""

    def squeeze(self, ref: CallRef, squeeze: Squeeze | None) -> Squeezed:
        self._call(ref)
        return Squeezed(None, ("this host only observes, it cannot slow a call",) if squeeze is not None else ())

    def freeze(self, ref: CallRef) -> None:
        raise _cannot_hold(ref)

    def thaw(self, ref: CallRef, stopped: Iterable[int]) -> None:
        raise _cannot_hold(ref)

    def resume(self, ref: CallRef, pid: int) -> None:
        raise _cannot_hold(ref)

    def kill(self, ref: CallRef) -> None:
        call = self._call(ref)
        call.doomed = True
        self._kill(f"call {ref.call_id}", [call.tree])

    def pids(self, ref: CallRef) -> Sequence[int]:
        call = self._calls.get(ref.call_id)
        if call is None:
            return ()
        # one that is known and has ended may have left another behind
        if not self._forest.refresh(call.tree) or time.monotonic() - self._forest.looked_at > _SHORTEST:
            self._look(0.0)
        return [member.pid for member in call.tree.alive]

    def occupied(self, ref: CallRef) -> bool:
        return bool(self.pids(ref))

    def ended(self, ref: CallRef) -> None:
        """The forest goes on following its processes until it is removed."""

    def usage(self, ref: CallRef, *, empty: bool = False) -> Usage:
        call = self._call(ref)
        self._look(0.0)
        return usage_of(call.tree)

    def memory(self, ref: CallRef) -> int:
        call = self._call(ref)
        self._look(_FRESH)
        return call.tree.rss

    def page_cache(self, ref: CallRef) -> int:
        return 0

    def reclaim(self, ref: CallRef, nbytes: int) -> None:
        """There is none here that could be told from the host's."""

    def begin_round(self) -> None:
        """One pass over /proc serves the whole round."""
        self._look(_SAMPLE_FRESH)

    def sample(self, refs: Sequence[CallRef], *, full: bool) -> Sampled:
        """As the last look saw them, which the timer keeps young. All costs the same here: it is always ``full``."""
        sampled = Sampled()
        if refs:
            self._look(_LONGEST)
        for ref in refs:
            call = self._calls.get(ref.call_id)
            if call is not None:
                sampled.usage[ref.call_id] = usage_of(call.tree)
        return sampled

    def proof(self, ref: CallRef, *, measured: bool = False) -> KernelProof:
        """Nothing is proven here: the kernel keeps such records by cgroup."""
        return KernelProof()

    def adopt_leftovers(self, ref: CallRef) -> int:
        call = self._call(ref)
        own = self._session(ref.session_id).own
        self._look(0.0)
        left = call.tree.alive
        for member in left:
            self._forest.move(member, own)
        self._tell_soon(call)
        return len(left)

    def remove_call(self, ref: CallRef) -> bool:
        call = self._calls.get(ref.call_id)
        if call is None:
            return True
        if self.pids(ref):
            return False
        self._unwatch(call)
        self._charge(ref.tenant_id, call.tree)
        self._forest.remove(call.tree)
        del self._calls[ref.call_id]
        self._session(ref.session_id).calls.pop(ref.call_id, None)
        return True

    def whose(self, pid: int) -> Whose:
        """By parentage alone: an environment is the process's own word."""
        tree = self._forest.proven_tree(pid)
        if tree is None:
            return Whose()
        for session_id, session in self._sessions.items():
            if tree is session.own:
                return Whose(session_id)
            for call_id, call in session.calls.items():
                if tree is call.tree:
                    return Whose(session_id, call_id)
        return Whose()

    # --- looking -----------------------------------------------------------------------------------------------------

    def _look(self, fresh: float) -> None:
        """Unless the last look is at most ``fresh`` seconds old."""
        if time.monotonic() - self._forest.looked_at > fresh:
            self._forest.look()
            for call in self._calls.values():
                self._tell_soon(call)

    def _look_later(self) -> None:
        if self._loop is None or self._timer is not None or not self._calls:
            return
        age = time.monotonic() - max(call.begun for call in self._calls.values())
        pause = max(_SHORTEST, min(_LONGEST, age / 8), self._forest.cost * _SHARE)
        self._timer = self._loop.call_later(pause, self._look_on_time)

    def _look_on_time(self) -> None:
        self._timer = None
        self._look(0.0)
        for call in self._calls.values():
            if call.doomed and call.tree.alive:  # born while the others were being ended
                with contextlib.suppress(ControllerError):  # said when it was first tried
                    self._kill(f"call {call.ref.call_id}", [call.tree])
        self._look_later()

    # --- the end of a call -------------------------------------------------------------------------------------------

    def _watch(self, call: _Call) -> None:
        """One process of the call at a time, the oldest: when it ends, a look says whether there are others."""
        if self._loop is None or call.pidfd is not None:
            return
        for member in sorted(call.tree.alive, key=lambda m: m.start):
            try:
                pidfd = open_pidfd(member)
            except OSError as err:  # no descriptor left: the timer's looks will tell
                log.warning("a call's end will be noticed late", call=call.ref.call_id, error=str(err))
                return
            if pidfd is not None:
                call.pidfd = pidfd
                self._loop.add_reader(pidfd, self._ended, call)
                return

    def _unwatch(self, call: _Call) -> None:
        if call.pidfd is None:
            return
        if self._loop is not None:
            self._loop.remove_reader(call.pidfd)
        os.close(call.pidfd)
        call.pidfd = None

    def _ended(self, call: _Call) -> None:
        self._forest.catch_main(call.tree)
        self._unwatch(call)
        self._look(0.0)
        self._watch(call)

    def _tell_soon(self, call: _Call) -> None:
        """From the loop, not from within whatever asked: as the kernel's own events come."""
        if call.populated and not call.tree.alive and self._loop is not None:
            self._loop.call_soon(self._tell_empty, call)

    def _tell_empty(self, call: _Call) -> None:
        if call.populated and not call.tree.alive and self._listener is not None:
            call.populated = False
            self._unwatch(call)
            self._listener.on_empty(call.ref.call_id)

    def _kill(self, what: str, trees: list[Tree]) -> None:
        refused = self._forest.kill(trees)
        self._look_later()
        for call in self._calls.values():
            self._tell_soon(call)
        if refused:
            raise NotAllowed(
                f"{what}: {len(refused)} processes run as another user and were not ended ({refused[:8]})",
                remedy="run agentd as root",
            )

    # --- small things ------------------------------------------------------------------------------------------------

    def _call(self, ref: CallRef) -> _Call:
        call = self._calls.get(ref.call_id)
        if call is None:
            raise NotFound(f"call {ref.call_id} is not observed", remedy="it has ended")
        return call

    def _session(self, session_id: SessionId) -> _Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise NotFound(f"session {session_id} is not observed", remedy="it was closed; open another")
        return session

    def _trees_of(self, tenant_id: TenantId) -> list[Tree]:
        return [tree for s in self._sessions.values() if s.tenant_id == tenant_id for tree in _all_trees(s)]

    def _charge(self, tenant_id: TenantId, tree: Tree) -> None:
        if tenant_id in self._tenants:
            self._tenants[tenant_id] = self._tenants[tenant_id].plus(tree.use())


def _all_trees(session: _Session) -> list[Tree]:
    return [session.own, *(call.tree for call in session.calls.values())]


def _living(pid: int) -> procfs.ProcStat:
    stat = procfs.read_stat(pid)
    if stat is None or not stat.alive:
        raise _gone(pid)
    return stat


def _gone(pid: int) -> NotFound:
    return NotFound(f"process {pid} has ended", field="pid", value=str(pid), remedy="start it again")


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _not_in_force(limits: Limits) -> tuple[str, ...]:
    asked = ", ".join(f.name for f in fields(limits) if getattr(limits, f.name) is not None)
    return (f"{asked}: not in force, this host only observes",) if asked else ()


def _cannot_hold(ref: CallRef) -> WrongState:
    return WrongState(
        f"call {ref.call_id} cannot be held: this host only observes, it has no freezer",
        field="call_id",
        value=ref.call_id,
        remedy=_REMEDY,
    )
