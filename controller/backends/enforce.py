"""The backend that enforces: a cgroup of its own for every call, and eBPF beside it where it loads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog

from bpf import BpfError, BrakeEvent, Counters, DeniedEvent, Event, ExecEvent, NotifyEvent, OomEvent
from bpf.lineage import Lineage
from controller import stalls
from controller.backend import (
    CallRecord,
    CallRef,
    Found,
    KernelProof,
    Listener,
    Sampled,
    Squeezed,
    Whose,
)
from controller.backends.fulldisk import FullDisk, device_of
from controller.backends.groups import Groups
from controller.backends.kernelside import KernelSide
from controller.backends.leaf import Leaf, first_to_go, network_policy, usage_of
from controller.backends.records import encode
from controller.backends.rootlock import lock_root
from controller.backends.squeezing import Squeezer, under_squeeze
from controller.backends.watching import Watching
from controller.cgroup import (
    CgroupFileError,
    Group,
    GroupBusy,
    GroupEvent,
    GroupEventKind,
    GroupKind,
    MemoryEvents,
    NoSuchGroup,
    NoSuchProcess,
    Tree,
)
from controller.cgroup.pressure import PressureTrigger
from controller.model import (
    CallId,
    ControllerError,
    Grant,
    Intent,
    Squeeze,
    Tripwire,
    Usage,
)
from controller.scheduling import Scheduling

log = structlog.get_logger("corral.enforce")

_ADOPT_PASSES = 16
_NOTHING_COUNTED = Counters()


def _limit_met(events: MemoryEvents) -> bool:
    """Whether reclaim could not help at the group's own limit; v1 tells only that an allocation met it."""
    return bool(events.oom if events.oom is not None else events.max)


OpenKernel = Callable[[Path, Callable[[Event], None]], KernelSide]
"""Loads the kernel side for a root directory of the v2 hierarchy. Raises BpfError when nothing of it can be had."""


class Enforcer(Groups):
    """See controller.backend.Backend. ``tree`` may have been prepared already."""

    def __init__(self, tree: Tree, open_kernel: OpenKernel, scheduling: Scheduling | None = None) -> None:
        super().__init__(tree, scheduling)
        self._open_kernel = open_kernel
        self._squeezer = Squeezer(self._pace, lambda: "network" in self._parts)
        self._missing: list[str] = [*tree.host.problems]
        self._full_disk: FullDisk | None = None
        self._watching: Watching | None = None
        self._stalls: PressureTrigger | None = None
        self._listener: Listener | None = None
        self._lock: int | None = None
        self._leaves: dict[CallId, Leaf] = {}
        self._by_cgroup: dict[int, Leaf] = {}
        self._round: dict[int, Counters] = {}

    # --- what this host can do ---------------------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        return self._tree.mode

    @property
    def enforces(self) -> bool:
        return True

    @property
    def can_brake(self) -> bool:
        return "tripwire" in self._parts

    @property
    def can_gate_network(self) -> bool:
        return "gates" in self._parts

    @property
    def missing(self) -> tuple[str, ...]:
        problem = self._full_disk.problem if self._full_disk is not None else ""
        return (*self._missing, *self._unset.values(), *([problem] if problem else ()), *self._scheduling.problems)

    def lineage(self) -> Lineage | None:
        """Processes of attached sessions as the kernel side tells of them; None: the process connector must do."""
        open_lineage = getattr(self._kernel, "lineage", None)
        return open_lineage() if open_lineage is not None else None

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self, listener: Listener) -> Found:
        self._listener = listener
        self._missing += self._tree.prepare()
        self._lock = lock_root(Path(self._tree.root.path))
        if not self._tree.in_own_unit():
            self._tree.enter_own_leaf()
        self._watching = Watching(self._on_group)
        try:
            self._kernel = self._open_kernel(Path(self._tree.root.path), self._on_event)
        except BpfError as err:
            self._missing.append(
                f"no eBPF, and nothing that stands in for it: {err} (no brake, no network policy; bytes, forks and "
                "execs per call are not known)"
            )
        else:
            self._missing += self._kernel.problems
            asyncio.get_running_loop().add_reader(self._kernel.fileno(), self._kernel.drain)
        self._full_disk = FullDisk(self._kernel)
        self._stalls = stalls.watch(listener.on_pressure)
        for problem in self._missing:
            log.warning("this host cannot do everything", missing=problem)
        return self.find(self._kernel)

    def stop(self) -> None:
        self._scheduling.stop()
        if self._stalls is not None:
            self._stalls.close()
        if self._kernel is not None:
            asyncio.get_running_loop().remove_reader(self._kernel.fileno())
            self._kernel.close()
        if self._full_disk is not None:
            self._full_disk.close()
        if self._watching is not None:
            self._watching.close()
        self._tree.leave_own_leaf()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- calls -------------------------------------------------------------------------------------------------------

    def add_call(self, ref: CallRef, intent: Intent, grant: Grant) -> str:
        group = self._tree.call(ref.tenant_id, ref.session_id, ref.call_id)
        group.create(grant.limits)
        try:
            group.oom_group(True)
            leaf = Leaf(ref=ref, group=group, cgroup_id=group.id, limits=grant.limits)
            if self._kernel is not None:
                self._register(leaf, intent, grant.tripwire)
                self._pace(group, grant.limits.egress_max)
            if self._full_disk is not None:
                self._full_disk.begin()
        except (ControllerError, BpfError) as err:
            if self._kernel is not None:
                self._kernel.forget(group.id)
            group.delete()
            if isinstance(err, BpfError):
                raise ControllerError(f"the call cannot be watched: {err}", remedy="see corral doctor") from err
            raise
        self._know(leaf)
        if self._watching is not None:
            self._watching.add_new(leaf)
        return group.relative

    def _register(self, leaf: Leaf, intent: Intent, tripwire: Tripwire) -> None:
        if self._kernel is not None:
            self._kernel.register(
                leaf.cgroup_id,
                notify=tripwire.notify,
                brake=tripwire.brake,
                network=network_policy(intent),
                gpu=intent.gpu,
                memory_cgroup=leaf.group.memory_id(),
            )

    def _know(self, leaf: Leaf) -> None:
        self._leaves[leaf.ref.call_id] = leaf
        self._by_cgroup[leaf.cgroup_id] = leaf

    def remember(self, ref: CallRef, record: CallRecord) -> None:
        leaf = self._leaf(ref)
        leaf.group.set_xattr(encode(record))
        self._scheduling.call(leaf.cgroup_id, record.call)

    def adopt_call(self, ref: CallRef, record: CallRecord) -> None:
        group = self._tree.call(ref.tenant_id, ref.session_id, ref.call_id)
        view = record.call
        leaf = Leaf(ref=ref, group=group, cgroup_id=group.id, limits=view.grant.limits, squeeze=view.squeeze)
        leaf.device = device_of(record.main_pid) if record.main_pid else 0
        if self._kernel is not None and leaf.cgroup_id not in self._kernel.registered():
            # the kernel side was not there, or is new: thresholds are armed again, its counters begin now
            self._register(leaf, view.intent, view.grant.tripwire)
        self._squeezer.restore(leaf)
        self._scheduling.call(leaf.cgroup_id, view)
        self._know(leaf)
        if self._watching is not None:
            self._watching.add(leaf)

    def place(self, ref: CallRef, pid: int, pidfd: int | None = None) -> None:
        leaf = self._leaf(ref)
        leaf.group.move(pid, pidfd)
        leaf.device = leaf.device or device_of(pid)
        first_to_go(pid)

    def limit_call(self, ref: CallRef, grant: Grant, intent: Intent) -> tuple[str, ...]:
        leaf = self._leaf(ref)
        limits = grant.limits.merged(under_squeeze(leaf, grant.limits))
        notes = leaf.group.set(limits)
        self._pace(leaf.group, limits.egress_max)
        leaf.limits = grant.limits
        if self._kernel is not None:
            self._kernel.arm(leaf.cgroup_id, notify=grant.tripwire.notify, brake=grant.tripwire.brake)
            self._kernel.set_network(leaf.cgroup_id, network_policy(intent))
        return notes

    def arm(self, ref: CallRef, tripwire: Tripwire) -> None:
        leaf = self._leaf(ref)
        if self._kernel is not None:
            self._kernel.arm(leaf.cgroup_id, notify=tripwire.notify, brake=tripwire.brake)

    def squeeze(self, ref: CallRef, squeeze: Squeeze | None) -> Squeezed:
        return self._squeezer.apply(self._leaf(ref), squeeze)

    def freeze(self, ref: CallRef) -> None:
        self._leaf(ref).group.freeze()

    def thaw(self, ref: CallRef, stopped: Iterable[int]) -> None:
        group = self._leaf(ref).group
        here = set(group.pids())
        for pid in stopped:
            if pid in here:
                # frozen, it cannot end and be another: the number is still the process that was stopped
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        group.thaw()

    def resume(self, ref: CallRef, pid: int) -> None:
        if pid in self._leaf(ref).group.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def kill(self, ref: CallRef) -> None:
        self._leaf(ref).group.kill()

    def pids(self, ref: CallRef) -> Sequence[int]:
        leaf = self._leaves.get(ref.call_id)
        if leaf is None:
            return ()
        try:
            return leaf.group.pids()
        except NoSuchGroup:
            return ()

    def occupied(self, ref: CallRef) -> bool:
        leaf = self._leaves.get(ref.call_id)
        try:
            # since Linux 6.19 a task that has ended is in no list any more, but leaves its group only a moment later
            return leaf is not None and leaf.group.populated()
        except NoSuchGroup:
            return False

    def usage(self, ref: CallRef, *, empty: bool = False) -> Usage:
        leaf = self._leaf(ref)
        counters = None
        if self._kernel is not None:
            # a pass over the host's tasks is not needed for a leaf that has none
            counters = self._kernel.counters(leaf.cgroup_id, live=not empty and leaf.group.populated())
        # what memory.stat has beside, eBPF has counted: and at an end it is on the path of the next call
        leaf.stat = leaf.group.use() if empty and "accounting" in self._parts else leaf.group.stat()
        leaf.counters = counters
        return usage_of(leaf.stat, counters, self._parts)

    def ended(self, ref: CallRef) -> None:
        leaf = self._leaves.get(ref.call_id)
        if leaf is not None and self._watching is not None:
            self._watching.remove(leaf)

    def memory(self, ref: CallRef) -> int:
        return self._leaf(ref).group.fast_stat().memory_now or 0

    def page_cache(self, ref: CallRef) -> int:
        return self._leaf(ref).group.page_cache()

    def reclaim(self, ref: CallRef, nbytes: int) -> None:
        self._leaf(ref).group.reclaim(nbytes)

    def begin_round(self) -> None:
        self._scheduling.tick()
        if self._watching is not None:
            self._watching.round()
        if self._full_disk is not None:
            self._full_disk.round(calls=bool(self._leaves))
        self._round = self._kernel.all_counters() if self._kernel is not None and self._leaves else {}

    def sample(self, refs: Sequence[CallRef], *, full: bool) -> Sampled:
        sampled = Sampled()
        for ref in refs:
            leaf = self._leaves.get(ref.call_id)
            if leaf is None:
                continue
            try:
                stat = leaf.group.stat() if full else leaf.group.fast_stat()
            except CgroupFileError:
                continue  # it ended between the list and the look
            if self._watching is not None:
                self._watching.check(leaf.group)  # counters that this kernel does not notify of
            sampled.usage[ref.call_id] = usage_of(stat, self._round.get(leaf.cgroup_id), self._parts)
        return sampled

    def proof(self, ref: CallRef, *, measured: bool = False) -> KernelProof:
        """Whose limit it was: the group's whose own counter says that an allocation met it, from the leaf upwards."""
        leaf = self._leaves.get(ref.call_id)
        if leaf is None:
            return KernelProof()
        try:
            stat = leaf.stat if measured and leaf.stat is not None else leaf.group.stat()
        except CgroupFileError:
            return KernelProof()
        counters = leaf.counters if measured else None
        if counters is None and self._kernel is not None:
            counters = self._kernel.counters(leaf.cgroup_id, live=False)
        counted = counters if counters is not None else _NOTHING_COUNTED
        disk = ""
        if self._full_disk is not None:
            disk = (self._full_disk.in_words if counted.no_space else self._full_disk.hint)(leaf.device)
        own = tenant = host = 0
        at_root = False
        memory = stat.memory
        if memory is not None and (kills := memory.events.oom_kill):
            if _limit_met(memory.events):
                own = kills
            elif self._met_above(ref):
                tenant = kills
            else:
                host = kills
                at_root = self._met(self._tree.root)
        return KernelProof(
            oom_kills=own,
            oom_tenant_kills=tenant,
            oom_host_kills=host,
            oom_at_root=at_root,
            pids_refused=stat.pids.max_events if stat.pids is not None else 0,
            connects_refused=counted.denied_connects,
            no_space=counted.no_space,
            full_disk=disk,
            packets_held=counted.paced_packets,
        )

    def _met_above(self, ref: CallRef) -> bool:
        groups = (self._tree.session(ref.tenant_id, ref.session_id), self._tree.tenant(ref.tenant_id))
        return any(self._met(group) for group in groups)

    @staticmethod
    def _met(group: Group) -> bool:
        """Whether an allocation met the limit of this very group and reclaim could not help."""
        try:
            events = group.memory_events()
        except CgroupFileError:
            return False
        return events is not None and _limit_met(events)

    def adopt_leftovers(self, ref: CallRef) -> int:
        leaf = self._leaf(ref)
        left = self._tree.left(ref.tenant_id, ref.session_id)
        moved: set[int] = set()
        if self._kernel is not None:
            self._kernel.settle(leaf.cgroup_id)  # what they used in the call stays the call's
        for _ in range(_ADOPT_PASSES):
            pids = leaf.group.pids()
            if not pids:
                return len(moved)
            left.create(exist_ok=True)
            for pid in pids:
                with contextlib.suppress(NoSuchProcess):
                    left.move(pid)
                    moved.add(pid)
        raise ControllerError(
            f"the processes of {leaf.group.path} multiply faster than they can be moved",
            remedy="they are ended instead",
        )

    def remove_call(self, ref: CallRef) -> bool:
        leaf = self._leaves.get(ref.call_id)
        if leaf is None:
            return True
        if self._watching is not None:
            self._watching.remove(leaf)
        try:
            leaf.group.delete()
        except GroupBusy:
            return False
        if self._kernel is not None:
            self._kernel.forget(leaf.cgroup_id)
        self._scheduling.forget(leaf.cgroup_id)
        self._leaves.pop(ref.call_id, None)
        self._by_cgroup.pop(leaf.cgroup_id, None)
        return True

    def whose(self, pid: int) -> Whose:
        group = self._tree.locate(pid)
        if group is None or group.session_id is None:
            return Whose()
        return Whose(group.session_id, group.call_id if group.kind is GroupKind.CALL else None)

    def _leaf(self, ref: CallRef) -> Leaf:
        leaf = self._leaves.get(ref.call_id)
        if leaf is None:
            raise NoSuchGroup(ref.call_id, "the call has no leaf", remedy="it has ended")
        return leaf

    # --- events ------------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        leaf = self._by_cgroup.get(event.cgroup_id)
        listener = self._listener
        if listener is None:
            return
        if leaf is None:
            session_id = self._agents.session_of(event.cgroup_id)
            if session_id is not None and isinstance(event, NotifyEvent):
                listener.on_agent_grew(session_id)
            return
        call_id = leaf.ref.call_id
        match event:
            case BrakeEvent():
                latency = (time.monotonic_ns() - event.at_nsec) / 1e9
                listener.on_braked(call_id, event.tgid, event.usage, event.threshold, latency)
            case NotifyEvent():
                listener.on_notice(call_id, event.usage, event.threshold)
            case OomEvent():
                pass  # the group's own counter is the proof, and comes by the watcher
            case DeniedEvent():
                if event.address:
                    listener.on_connect_refused(call_id, f"{event.address} port {event.port}")
            case ExecEvent():
                listener.on_exec(call_id, event.pid, event.ppid, event.path)

    def _on_group(self, ref: CallRef, event: GroupEvent) -> None:
        listener = self._listener
        if listener is None:
            return
        match event.kind:
            case GroupEventKind.EMPTY:
                listener.on_empty(ref.call_id)
            case GroupEventKind.OOM_KILL:
                listener.on_oom(ref.call_id, event.count)
            case GroupEventKind.PIDS_MAX:
                listener.on_pids_refused(ref.call_id, event.count)
            case GroupEventKind.GONE:
                log.warning("somebody else removed the leaf of a call", call=ref.call_id)
                listener.on_empty(ref.call_id)
            case _:
                pass  # frozen and thawed: we did that; limits that were met: the counters have them
