"""One group: a directory in the v2 hierarchy and, on hybrid hosts, its twins in those that carry limits."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from enum import StrEnum

from controller.cgroup import core, files, membership
from controller.cgroup.cpu import CpuStat, parse_cpu_stat
from controller.cgroup.errors import CgroupFileError, GroupBusy, GroupExists, KnobMissing, NoSuchGroup
from controller.cgroup.io import IoStat
from controller.cgroup.layout import Layout
from controller.cgroup.memory import MemoryEvents
from controller.cgroup.pids import PidsStat
from controller.cgroup.stat import FastStat, GroupStat, GroupUse
from controller.model import UNLIMITED, CallId, Limits, SessionId, TenantId


class GroupKind(StrEnum):
    ROOT = "root"
    DAEMON = "daemon"
    TENANT = "tenant"
    SESSION = "session"
    AGENT = "agent"
    LEFT = "left"
    WAIT = "wait"
    CALLS = "calls"
    CALL = "call"

    @property
    def inner(self) -> bool:
        """Whether groups of this kind hold groups, and so (no internal processes) no processes."""
        return self in (GroupKind.ROOT, GroupKind.TENANT, GroupKind.SESSION, GroupKind.CALLS)


class Group:
    """Made by Tree; nothing exists before ``create``. Methods raise the errors of controller.cgroup.errors.

    ``relative``: path below each hierarchy's mount. ``tenant_id``, ``session_id``, ``call_id``: whose group it is.
    """

    __slots__ = ("_id", "_layout", "_v2", "call_id", "kind", "relative", "session_id", "tenant_id")

    def __init__(
        self,
        layout: Layout,
        kind: GroupKind,
        relative: str,
        *,
        tenant_id: TenantId | None = None,
        session_id: SessionId | None = None,
        call_id: CallId | None = None,
    ) -> None:
        self._layout = layout
        self._v2 = f"{layout.v2}/{relative}"
        self._id = 0
        self.kind = kind
        self.relative = relative
        self.tenant_id = tenant_id
        self.session_id = session_id
        self.call_id = call_id

    def __repr__(self) -> str:
        return f"Group({self.relative!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Group) and other._v2 == self._v2

    def __hash__(self) -> int:
        return hash(self._v2)

    @property
    def path(self) -> str:
        """The v2 directory."""
        return self._v2

    @property
    def id(self) -> int:
        """The cgroup's id: the inode number of its v2 directory, as eBPF reports it. Raises NoSuchGroup."""
        if not self._id:
            self._id = files.inode(self._v2)
        return self._id

    def directory(self, controller: str) -> str | None:
        """Where a controller's knobs of this group are (or would be); None where the host has no such controller."""
        found: tuple[str, object] | None = {
            "memory": self._layout.memory,
            "cpu": self._layout.cpu,
            "pids": self._layout.pids,
            "io": self._layout.io,
        }[controller]
        return f"{found[0]}/{self.relative}" if found else None

    # -- making and removing

    def create(self, limits: Limits | None = None, *, exist_ok: bool = False) -> tuple[str, ...]:
        """Make the group, missing parents included, and set its limits. Returns the notes of ``set``.

        When it fails, what it made is removed again. Raises GroupExists unless ``exist_ok``.
        """
        layout = self._layout
        made: list[str] = []
        try:
            for mount in (layout.v2, *layout.eager):
                try:
                    self._make(mount)
                except GroupExists:
                    if not exist_ok:
                        raise
                else:
                    made.append(mount)
            return self._set(limits, fresh=layout.v2 in made) if limits is not None else ()
        except CgroupFileError:
            if layout.v2 in made:  # then the lazily made twins cannot be older than the group
                made = [layout.v2, *layout.eager, *layout.lazy_in_use]
            for mount in reversed(made):
                with contextlib.suppress(CgroupFileError):  # the first error is the one to tell
                    files.remove_directory(f"{mount}/{self.relative}")
            raise

    def _make(self, mount: str) -> None:
        try:
            self._layout.make(mount, self.relative, inner=self.kind.inner)
        except NoSuchGroup:
            # a parent was removed between the look and the mkdir, by the reaper of another call: once more
            self._layout.make(mount, self.relative, inner=self.kind.inner)

    def exists(self) -> bool:
        return files.is_directory(self._v2)

    def delete(self, *, recursive: bool = False) -> None:
        """Remove the group everywhere; nothing to do where it is gone. Raises GroupBusy while something is in it.

        The v2 directory goes last, so that what could not be removed is still found by ``Tree.find``.
        """
        layout = self._layout
        if recursive and self.exists() and self.populated():  # or empty groups would go before the busy one is met
            raise GroupBusy(
                self._v2, "processes are in it or below it", remedy="end or move them first; `pids(recursive=True)`"
            )
        for mount in (*layout.lazy_in_use, *layout.eager, layout.v2):
            directory = f"{mount}/{self.relative}"
            if recursive:
                files.remove_below(directory)
            files.remove_directory(directory)
        self._id = 0

    # -- limits

    def set(self, limits: Limits) -> tuple[str, ...]:
        """Write the limits that are set (None: untouched). Returns what could not be had, each in one sentence.

        A hard limit (memory_max, pids_max, cpu_max, io_max) that cannot be had raises KnobMissing; soft ones (weights,
        memory_high, memory_low) are noted. On v2 a memory_max below what is in use makes the kernel kill; on v1 it
        raises GroupBusy. Several limits are written one after the other: what was written before an error stays.
        """
        return self._set(limits, fresh=False)

    def _set(self, limits: Limits, *, fresh: bool) -> tuple[str, ...]:
        layout = self._layout
        notes: list[str] = []
        if limits.memory_max is not None or limits.memory_high is not None or limits.memory_low is not None:
            if layout.memory:
                mount, memory = layout.memory
                notes += memory.apply(f"{mount}/{self.relative}", limits)
            else:
                self._cannot("memory", limits.memory_max, (limits.memory_high, limits.memory_low), notes)
        if limits.pids_max is not None:
            if layout.pids:
                mount, pids = layout.pids
                notes += pids.apply(f"{mount}/{self.relative}", limits)
            else:
                self._cannot("pids", limits.pids_max, (), notes)
        if limits.cpu_max is not None or limits.cpu_weight is not None:
            if layout.cpu is None:
                self._cannot("cpu", limits.cpu_max, (limits.cpu_weight,), notes)
            elif self._twin(layout.cpu[0], needed=_any(limits.cpu_max, limits.cpu_weight), fresh=fresh):
                mount, cpu = layout.cpu
                notes += cpu.apply(f"{mount}/{self.relative}", limits)
        if limits.io_weight is not None or limits.io_max is not None:
            self._set_io(limits, notes, fresh=fresh)
        return tuple(notes)

    def _set_io(self, limits: Limits, notes: list[str], *, fresh: bool) -> None:
        if self._layout.io is None:
            self._cannot("io", limits.io_max, (limits.io_weight,), notes)
            return
        mount, io = self._layout.io
        if limits.io_weight is not None and (reason := io.without_effect()) is not None:
            notes.append(reason)  # and no twin is made for nothing
            limits = replace(limits, io_weight=None)
            if limits.io_max is None:
                return
        if self._twin(mount, needed=_any(limits.io_weight, limits.io_max), fresh=fresh):
            notes += io.apply(f"{mount}/{self.relative}", limits)

    def limits(self) -> Limits:
        """What is in force on this group itself, as read back. None where the host has no such knob, or (CPU and I/O on
        hybrid hosts) where nothing was ever set."""
        layout = self._layout
        merged = Limits()
        for found in (layout.memory, layout.pids, layout.cpu, layout.io):
            if found is not None:
                mount, controller = found
                if mount in layout.lazy and not files.is_directory(f"{mount}/{self.relative}"):
                    continue
                merged = merged.merged(controller.limits(f"{mount}/{self.relative}"))
        return merged

    def oom_group(self, on: bool) -> tuple[str, ...]:
        """At an OOM, kill all processes of the group, not one. A note on hybrid hosts, where the kernel cannot."""
        if self._layout.memory is None:
            return ("memory.oom.group is not set: this host has no memory controller",)
        mount, memory = self._layout.memory
        note = memory.oom_group(f"{mount}/{self.relative}", on)
        return (note,) if note else ()

    def _cannot(self, controller: str, hard: float | None, soft: tuple[int | None, ...], notes: list[str]) -> None:
        if hard is not None and hard != UNLIMITED:
            raise KnobMissing(
                self._v2,
                f"no {controller} controller: the limit cannot be enforced",
                value=str(hard),
                remedy="delegate the controller to Corral's group; `corral doctor` says why it is missing",
            )
        if any(value not in (None, UNLIMITED) for value in soft):
            notes.append(f"{controller} limits are not set: this host has no {controller} controller for Corral")

    def _twin(self, mount: str, *, needed: bool, fresh: bool) -> bool:
        """Whether the group has a directory in ``mount``; made, with its parents, when needed.

        Every process of the tree is in the nearest twin at or above its group: a new twin takes over what is below it.
        ``fresh``: the group itself was made just now and holds nothing.
        """
        layout = self._layout
        if mount not in layout.lazy or files.is_directory(f"{mount}/{self.relative}"):
            return True
        if not needed:
            return False
        top = layout.make_all(mount, self.relative)
        if top is not None and not (fresh and top == self.relative):
            membership.fill_twin(layout, mount, top)
        return True

    # -- processes

    def move(self, pid: int, pidfd: int | None = None) -> None:
        """Move a process (all of its threads) into the group, in every hierarchy.

        When that fails half way, it is taken back to where it was. ``pidfd`` of the process: the kernel moves by
        number, so should the process have ended and its number belong to another by then, that one is taken back, too.
        Raises NoSuchProcess, NoSuchGroup, NotPermitted.
        """
        membership.move(self._layout, self.relative, pid, pidfd)

    def pids(self, *, recursive: bool = False) -> list[int]:
        """Processes of the group (and of those below it). They may be gone when this returns."""
        return core.processes_below(self._v2) if recursive else core.processes(self._v2)

    def populated(self) -> bool:
        """Whether a live process is in the group or below it."""
        return core.core_state(self._v2).populated

    def freeze(self) -> None:
        """Ask for it; ``is_frozen`` (or the Watcher's FROZEN) says when every process has stopped."""
        core.set_frozen(self._v2, True)

    def thaw(self) -> None:
        core.set_frozen(self._v2, False)

    def is_frozen(self) -> bool:
        return core.core_state(self._v2).frozen

    def kill(self) -> None:
        """SIGKILL to all of the group and below, frozen or not. The Watcher's EMPTY says when they are gone."""
        core.kill(self._v2)

    # -- figures

    def page_cache(self) -> int:
        """Bytes of it that the kernel gives back before anything else; 0 where memory is not accounted."""
        if self._layout.memory is None:
            return 0
        mount, memory = self._layout.memory
        return memory.cache(f"{mount}/{self.relative}")

    def reclaim(self, nbytes: int) -> None:
        """Asks the kernel to take back page cache. Blocks until it has tried: not for an event loop."""
        if self._layout.memory is not None:
            mount, memory = self._layout.memory
            memory.reclaim(f"{mount}/{self.relative}", nbytes)

    def memory_now(self) -> int | None:
        """What it uses, bytes; None without a memory controller. One small file."""
        if self._layout.memory is None:
            return None
        mount, memory = self._layout.memory
        return memory.current(f"{mount}/{self.relative}")

    def fast_stat(self) -> FastStat:
        """CPU and memory alone: three small files."""
        path = f"{self._v2}/cpu.stat"
        values = files.parse_flat(files.read(path), path)
        now = peak = None
        if self._layout.memory is not None:
            mount, memory = self._layout.memory
            directory = f"{mount}/{self.relative}"
            now, peak = memory.current(directory), memory.peak(directory)
        return FastStat(
            cpu_usec=files.key_of(values, b"usage_usec", path),
            cpu_user_usec=files.key_of(values, b"user_usec", path),
            cpu_system_usec=files.key_of(values, b"system_usec", path),
            memory_now=now,
            memory_peak=peak,
        )

    def use(self) -> GroupUse:
        """What it has used in the end, some eight files: without memory.stat and pids.peak."""
        layout, v2 = self._layout, self._v2
        return GroupUse(
            cpu=self._cpu_stat(),
            memory=layout.memory[1].use(f"{layout.memory[0]}/{self.relative}") if layout.memory else None,
            pids=self._pids_stat(with_peak=False),
            io=self._io_stat(),
            cpu_pressure=files.read_pressure(f"{v2}/cpu.pressure"),
            memory_pressure=files.read_pressure(f"{v2}/memory.pressure"),
            io_pressure=files.read_pressure(f"{v2}/io.pressure"),
        )

    def stat(self) -> GroupStat:
        """Everything, about ten files: for screens, and a call's end. For a loop there is ``fast_stat``."""
        layout, v2 = self._layout, self._v2
        return GroupStat(
            cpu=self._cpu_stat(),
            memory=layout.memory[1].stat(f"{layout.memory[0]}/{self.relative}") if layout.memory else None,
            pids=self._pids_stat(with_peak=True),
            io=self._io_stat(),
            cpu_pressure=files.read_pressure(f"{v2}/cpu.pressure"),
            memory_pressure=files.read_pressure(f"{v2}/memory.pressure"),
            io_pressure=files.read_pressure(f"{v2}/io.pressure"),
        )

    def _cpu_stat(self) -> CpuStat:
        layout = self._layout
        path = f"{self._v2}/cpu.stat"
        cpu = parse_cpu_stat(files.read(path), path)
        if layout.cpu is None or layout.cpu[0] not in layout.lazy_in_use:
            return cpu
        throttled = layout.cpu[1].throttled(f"{layout.cpu[0]}/{self.relative}")
        if throttled is None:
            return cpu
        return replace(cpu, throttled_periods=throttled[0], throttled_usec=throttled[1])

    def _pids_stat(self, *, with_peak: bool) -> PidsStat | None:
        if self._layout.pids is None:
            return None
        mount, pids = self._layout.pids
        return pids.stat(f"{mount}/{self.relative}", with_peak=with_peak)

    def _io_stat(self) -> IoStat | None:
        layout = self._layout
        if layout.io is None or (layout.io[0] in layout.lazy and layout.io[0] not in layout.lazy_in_use):
            return None
        return layout.io[1].stat(f"{layout.io[0]}/{self.relative}")

    def memory_events(self) -> MemoryEvents | None:
        """The group's own counters of its memory limit and of OOM kills; None without a memory controller."""
        if self._layout.memory is None:
            return None
        mount, memory = self._layout.memory
        return memory.events(f"{mount}/{self.relative}")

    def memory_id(self) -> int | None:
        """The inode number of the group's directory in the hierarchy of the memory controller; None without one."""
        directory = self.directory("memory")
        return files.inode(directory) if directory is not None else None

    def memory_is_v1(self) -> bool:
        return self._layout.memory is not None and self._layout.memory[0] != self._layout.v2

    def pids_max_events(self) -> int | None:
        """Forks refused at this group's pids_max; None without a pids controller."""
        if self._layout.pids is None:
            return None
        mount, pids = self._layout.pids
        return pids.max_events(f"{mount}/{self.relative}")

    def reset_peak(self) -> bool:
        """Begin the memory peak anew; False where the kernel cannot (v2)."""
        if self._layout.memory is None:
            return False
        mount, memory = self._layout.memory
        return memory.reset_peak(f"{mount}/{self.relative}")

    # -- the record that survives a crash of the daemon

    def get_xattr(self) -> bytes | None:
        """The record that ``set_xattr`` left on the v2 directory; None when there is none."""
        return core.get_attribute(self._v2, self._layout.attribute)

    def set_xattr(self, record: bytes) -> None:
        """Keep a record with the group, for as long as it exists: at most 64 KiB (ValueRefused beyond)."""
        core.set_attribute(self._v2, self._layout.attribute, record)


def _any(*values: float | None) -> bool:
    """Whether anything is limited: lifting what was never set needs no twin."""
    return any(value not in (None, UNLIMITED) for value in values)
