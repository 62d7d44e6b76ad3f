"""The kernel side where eBPF is not to be had: the process connector and taskstats in its place.

Forks, execs and exits come as events, and what a task used comes as a record when it ends; both are of the whole host,
and each is charged to the registered group that its task is in. A child is born into its parent's group, so that one
reading of /proc/PID/cgroup, at the first sight of a process, serves all of its descendants. The two queues are read
one after the other: a record whose fork has not been read yet waits for the next round.

What this cannot do is said in ``problems``: no brake, no network, no gates; and a queue that overflows loses counts.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from bpf import BpfError, Counters, Event, ExecEvent, NetworkPolicy, NotRegistered, TooManyCalls, Unavailable
from bpf.types import MAX_CALLS
from controller.processes import procfs
from controller.processes.errors import NetlinkError, NoTaskStats
from controller.processes.events import Kind, ProcessEvents, ProcEvent
from controller.processes.group import Naming, command_of, path_of, threads
from controller.processes.stats import NOTHING, EndedTask, TaskStats, TaskUse

log = structlog.get_logger("corral.netlink")

_ROUND: Final = 512  # events, and records, that one wake-up reads: some 10 ms at worst
_CATCH_UP: Final = 65_536  # that a question reads at most: more than both queues hold
_WAITING: Final = 16_384  # records whose fork has not been read, kept for one more round
_EXECS_TOLD: Final = 64  # of each call, as the eBPF side does
_EVENTS_KEPT: Final = 4096
_IDLE_LOOKS: Final = 32  # groups without a known task that one round looks at

_LACKING: Final = "no in-kernel brake, no network bytes, no network policy, no device gate"


@dataclass(slots=True)
class _Task:
    """A thread that is in a registered group. ``baseline``: what it had used before it came there."""

    cgroup_id: int
    baseline: TaskUse = NOTHING
    harvested: bool = False
    waits_for_exec: bool = False  # seen in the group before it called exec there


@dataclass(slots=True)
class _Call:
    path: str  # of its directory in the v2 hierarchy
    shown: str  # the same as /proc/PID/cgroup has it
    since: int  # CLOCK_MONOTONIC nanoseconds of its registration: earlier events are not the call's
    members: int = 0  # tasks that are known to be in it
    ended: TaskUse = NOTHING
    floor: TaskUse = NOTHING
    forks: int = 0
    execs: int = 0
    exits: int = 0


class NetlinkSide:
    """See controller/backends/kernelside.py. Thresholds, network policies and GPU grants are taken and have no effect:
    ``parts`` lacks them, so that the host refuses intents which ask for them."""

    def __init__(
        self,
        *,
        cgroup: Path,
        on_event: Callable[[Event], None],
        because: BpfError,
        events: ProcessEvents,
        stats: TaskStats | None,
        stats_problem: str = "",
    ) -> None:
        self._root = str(cgroup)
        self._naming = Naming(self._root)
        self._on_event = on_event
        self._because = because
        self._events = events
        self._stats = stats
        self._stats_problem = stats_problem
        self._calls: dict[int, _Call] = {}
        self._by_path: dict[str, int] = {}
        self._idle: dict[int, _Call] = {}  # without a known task: one may have been moved in
        self._tasks: dict[int, _Task] = {}
        self._gone: dict[int, _Task] = {}  # ended, their record perhaps not read yet
        self._unclaimed: list[EndedTask] = []  # records of tasks that are not known (yet)
        self._to_tell: list[Event] = []
        self._lost = 0
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        for fd in (self._wake, events.fileno(), *([stats.fileno()] if stats is not None else [])):
            self._epoll.register(fd, select.EPOLLIN)

    @classmethod
    def open(cls, *, cgroup: Path, on_event: Callable[[Event], None], because: BpfError) -> NetlinkSide:
        """``cgroup``: our root directory in the v2 hierarchy. ``because``: why eBPF is not to be had; it is raised
        again, from the reason, where the process connector is not to be had either."""
        try:
            events = ProcessEvents()
        except NetlinkError as err:
            raise because from err
        try:
            stats, problem = TaskStats(), ""
        except NoTaskStats as err:
            stats, problem = None, str(err)
        return cls(cgroup=cgroup, on_event=on_event, because=because, events=events, stats=stats, stats_problem=problem)

    # What works ----------------------------------------------------------------------------------------------------

    @property
    def parts(self) -> frozenset[str]:
        return frozenset({"lifecycle"} if self._stats is None else {"lifecycle", "accounting"})

    @property
    def problems(self) -> tuple[str, ...]:
        found = [
            f"no eBPF ({self._because}); the process connector and taskstats stand in: {_LACKING}",
            "without eBPF, bytes are rounded down to KiB for each task, and a call's counters begin anew when the"
            " daemon restarts",
        ]
        if self._stats is None:
            found.append(f"no faults, bytes, run-queue wait and switches per call: {self._stats_problem}")
        if self._lost:
            found.append(
                f"the kernel dropped process events or records {self._lost} times: forks, execs, exits and what"
                " short-lived processes used are too low"
            )
        return tuple(found)

    # Calls ---------------------------------------------------------------------------------------------------------

    def register(
        self,
        cgroup_id: int,
        *,
        notify: int | None = None,
        brake: int | None = None,
        network: NetworkPolicy = NetworkPolicy.ANY,
        gpu: bool = False,
        memory_cgroup: int | None = None,
    ) -> None:
        """Begin to count. Of processes that are in the group already, all that they ever used counts."""
        if cgroup_id in self._calls:
            return
        if len(self._calls) >= MAX_CALLS:
            raise TooManyCalls(f"group {cgroup_id}: {MAX_CALLS} are registered", remedy="forget calls that have ended")
        path = path_of(self._root, cgroup_id)
        if path is None:
            raise NotRegistered(
                f"group {cgroup_id} is not below {self._root}", remedy="give the inode of its v2 directory"
            )
        call = _Call(path=path, shown=self._naming.shown(path), since=time.monotonic_ns())
        self._calls[cgroup_id] = call
        self._by_path[call.shown] = cgroup_id
        self._idle[cgroup_id] = call
        for tid in threads(path):
            self._know(tid, _Task(cgroup_id))
        # its first process is moved in next, and may live for less than a millisecond: have a look soon
        os.eventfd_write(self._wake, 1)

    def arm(self, cgroup_id: int, *, notify: int | None, brake: int | None) -> None:
        self._call(cgroup_id)

    def set_network(self, cgroup_id: int, policy: NetworkPolicy) -> None:
        self._call(cgroup_id)

    def pace(self, cgroup_id: int, rate: int | None) -> None:
        """Nothing here acts on packets: ``parts`` has no "network", and nobody asks."""

    def paced(self) -> set[int]:
        return set()

    def trace_disk(self, on: bool) -> None:
        raise Unavailable("netlink does not tell of writes that fail", remedy="load eBPF: see corral doctor")

    def forget(self, cgroup_id: int) -> None:
        call = self._calls.pop(cgroup_id, None)
        if call is None:
            return
        self._by_path.pop(call.shown, None)
        self._idle.pop(cgroup_id, None)
        for known in (self._tasks, self._gone):
            for tid in [tid for tid, task in known.items() if task.cgroup_id == cgroup_id]:
                del known[tid]

    def registered(self) -> set[int]:
        return set(self._calls)

    def settle(self, cgroup_id: int) -> None:
        """Book what the live tasks used so far to this group for good, before they are moved out of it."""
        call = self._call(cgroup_id)
        self._catch_up()
        for tid in threads(call.path):
            if self._stats is not None and (use := self._stats.use(tid)) is not None:
                task = self._tasks.get(tid)
                call.ended = call.ended.plus(use.beyond(task.baseline if task is not None else use))
            self._unknow(tid)

    # Counters ------------------------------------------------------------------------------------------------------

    def counters(self, cgroup_id: int, *, live: bool = True) -> Counters | None:
        """Values never fall. The tasks that ended until now are in it."""
        call = self._calls.get(cgroup_id)
        if call is None:
            return None
        self._catch_up()
        return self._read(cgroup_id, call, live=live)

    def all_counters(self) -> dict[int, Counters]:
        self._catch_up()
        return {cgroup_id: self._read(cgroup_id, call, live=True) for cgroup_id, call in self._calls.items()}

    def _read(self, cgroup_id: int, call: _Call, *, live: bool) -> Counters:
        use = call.ended
        if live and self._stats is not None:
            for tid in threads(call.path):
                if (now := self._stats.use(tid)) is not None:
                    use = use.plus(self._since_it_came(cgroup_id, tid, now))
        use = call.floor = TaskUse._make(map(max, use, call.floor))
        return Counters(
            faults=use.faults,
            major_faults=use.major_faults,
            read_bytes=use.read,
            written_bytes=use.written,
            disk_read_bytes=use.disk_read,
            disk_written_bytes=use.disk_written,
            run_wait_nsec=use.run_wait,
            switches=use.switches,
            forks=call.forks,
            execs=call.execs,
            exits=call.exits,
        )

    def _since_it_came(self, cgroup_id: int, tid: int, now: TaskUse) -> TaskUse:
        task = self._tasks.get(tid)
        if task is None or task.cgroup_id != cgroup_id:
            # it was moved in and has not called exec since: its past is not the call's
            self._know(tid, _Task(cgroup_id, baseline=now))
            return NOTHING
        return NOTHING if task.harvested else now.beyond(task.baseline)

    # Events --------------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._epoll.fileno()

    def drain(self) -> int:
        """Reads what waits, a bounded part of it, and hands exec events on. What ``on_event`` raises is raised here
        when all have been handed over, in an ExceptionGroup."""
        count = self._round(_ROUND)
        with contextlib.suppress(BlockingIOError):  # set when a question in between left something to tell
            os.eventfd_read(self._wake)
        told, self._to_tell = self._to_tell, []
        failures: list[Exception] = []
        for event in told:
            try:
                self._on_event(event)
            except Exception as err:  # the events behind it are handed over first, then all of it is raised
                failures.append(err)
        if failures:
            raise ExceptionGroup("events of the process connector could not be handled", failures)
        return count

    def close(self) -> None:
        if self._wake < 0:
            return
        self._epoll.close()
        os.close(self._wake)
        self._wake = -1
        self._events.close()
        if self._stats is not None:
            self._stats.close()

    def _catch_up(self) -> None:
        """Reads both queues to their end, so that an answer is of now. Events are told by the next ``drain``."""
        had = len(self._to_tell)
        self._round(_CATCH_UP)
        if len(self._to_tell) > had:
            os.eventfd_write(self._wake, 1)

    def _round(self, most: int) -> int:
        self._look_at_idle()
        events = self._read_events(most)
        ended = self._read_records(most)
        lost = self._events.lost + (self._stats.lost if self._stats is not None else 0)
        if lost > self._lost:
            if self._lost == 0:
                log.warning("the kernel dropped process events; counts of this host are too low from here on")
            self._lost = lost
            self._look_again()
        return events + ended

    def _read_events(self, most: int) -> int:
        for count in range(most):
            event = self._events.read()
            if event is None:
                self._claim_waiting()
                return count
            self._on_proc(event)
        return most

    def _read_records(self, most: int) -> int:
        if self._stats is None:
            self._gone.clear()
            return 0
        for count in range(most):
            ended = self._stats.read()
            if ended is None:
                # a record is sent before the exit event: those of all whose exit was read have been read now
                self._gone.clear()
                return count
            if not self._harvest(ended) and len(self._unclaimed) < _WAITING:
                self._unclaimed.append(ended)
        return most

    def _claim_waiting(self) -> None:
        """Every fork has been read: what is unclaimed still is of tasks outside of the calls."""
        waiting, self._unclaimed = self._unclaimed, []
        for ended in waiting:
            self._harvest(ended)

    def _harvest(self, ended: EndedTask) -> bool:
        task = self._tasks.get(ended.tid) or self._gone.get(ended.tid)
        if task is None:
            return False
        call = self._calls.get(task.cgroup_id)
        if call is not None and not task.harvested:
            task.harvested = True
            call.ended = call.ended.plus(ended.use.beyond(task.baseline))
        return True

    def _on_proc(self, event: ProcEvent) -> None:
        if not self._calls:
            return  # an idle daemon spends nothing on what the rest of the host does
        match event.kind:
            case Kind.FORK:
                self._forked(event)
            case Kind.EXEC:
                self._execed(event)
            case Kind.EXIT:
                self._exited(event)

    def _forked(self, event: ProcEvent) -> None:
        # of a new thread the kernel names the parent of its process, not the thread that made it
        thread = event.child_tid != event.child_pid
        tid, pid = (event.child_pid, event.child_pid) if thread else (event.tid, event.pid)
        parent = self._tasks.get(tid)
        cgroup_id = parent.cgroup_id if parent is not None else self._group_of(pid)
        if cgroup_id is None or event.at < self._calls[cgroup_id].since:
            return
        self._know(event.child_tid, _Task(cgroup_id))
        if not thread:
            self._calls[cgroup_id].forks += 1

    def _execed(self, event: ProcEvent) -> None:
        """Where it is is asked again: a call's first process is moved just before it calls exec."""
        task = self._tasks.get(event.pid)
        path = procfs.v2_path(event.pid)
        # gone already: it is taken to have stayed where it was born
        born = task.cgroup_id if task is not None else None
        cgroup_id = self._by_path.get(path) if path is not None else born
        if cgroup_id is None:
            self._unknow(event.pid)
            return
        call = self._calls[cgroup_id]
        if event.at < call.since:
            return
        # What it used before is little (it is a launcher's child), what it used since may be much: all of it counts.
        # A process that came in by itself, and was seen before it called exec, is the exception.
        if task is None or task.cgroup_id != cgroup_id or task.waits_for_exec:
            self._know(event.pid, _Task(cgroup_id))
        call.execs += 1
        if call.execs <= _EXECS_TOLD and len(self._to_tell) < _EVENTS_KEPT:
            self._to_tell.append(_exec_event(cgroup_id, event))

    def _exited(self, event: ProcEvent) -> None:
        task = self._unknow(event.tid)
        if task is None:
            return
        if event.tid == event.pid:
            call = self._calls.get(task.cgroup_id)
            if call is not None:
                call.exits += 1
        if not task.harvested:
            self._gone[event.tid] = task

    def _look_again(self) -> None:
        """After a loss: what is in the groups now is known again, what is not is forgotten (numbers are used again)."""
        before, self._tasks = self._tasks, {}
        for cgroup_id, call in self._calls.items():
            call.members = 0
            self._idle[cgroup_id] = call
            for tid in threads(call.path):
                task = before.get(tid)
                same = task is not None and task.cgroup_id == cgroup_id
                self._know(tid, task if task is not None and same else _Task(cgroup_id))

    def _look_at_idle(self) -> None:
        """A process that was just moved in has told nothing yet. Its past is not the call's: unless it calls exec in
        a moment, as a launcher's child does, what it used until now is its baseline."""
        for cgroup_id, call in list(self._idle.items())[:_IDLE_LOOKS]:
            for tid in threads(call.path):
                use = self._stats.use(tid) if self._stats is not None else None
                self._know(tid, _Task(cgroup_id, baseline=use or NOTHING, waits_for_exec=True))

    # Inside --------------------------------------------------------------------------------------------------------

    def _know(self, tid: int, task: _Task) -> None:
        self._unknow(tid)
        self._tasks[tid] = task
        self._calls[task.cgroup_id].members += 1
        self._idle.pop(task.cgroup_id, None)

    def _unknow(self, tid: int) -> _Task | None:
        task = self._tasks.pop(tid, None)
        if task is not None and (call := self._calls.get(task.cgroup_id)) is not None:
            call.members -= 1
            if call.members == 0:
                self._idle[task.cgroup_id] = call
        return task

    def _group_of(self, pid: int) -> int | None:
        path = procfs.v2_path(pid)
        return self._by_path.get(path) if path is not None else None

    def _call(self, cgroup_id: int) -> _Call:
        call = self._calls.get(cgroup_id)
        if call is None:
            raise NotRegistered(f"group {cgroup_id} is not registered", remedy="register it first")
        return call


def _exec_event(cgroup_id: int, event: ProcEvent) -> ExecEvent:
    comm, path, parent, uid = command_of(event.pid)
    return ExecEvent(cgroup_id=cgroup_id, at_nsec=event.at, pid=event.pid, ppid=parent, uid=uid, comm=comm, path=path)
