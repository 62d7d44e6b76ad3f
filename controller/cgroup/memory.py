"""The memory controller.

The event counters are the group's own, without its descendants': on v2 from memory.events.local (5.2), as v1 counts
them. So ``oom`` names the group whose limit was hit, ``oom_kill`` the group whose process died.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from controller.cgroup import files, knobs
from controller.cgroup.errors import NoSuchGroup
from controller.model import UNLIMITED, Limits

_PAGE: Final = 4096
_MAX: Final = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEvents:
    """Counts since the group was made. None: this host does not count it.

    ``max``: times that an allocation met the limit (v1: failcnt); ``oom``: times that reclaim could not help (v2);
    ``oom_kill``: processes of this group that the OOM killer ended, at whichever limit.
    """

    oom_kill: int
    max: int | None = None
    oom: int | None = None
    high: int | None = None
    low: int | None = None
    oom_group_kill: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes and counts, exact, of the group and its descendants (``events``: its own). ``peak`` is None before 5.19 on
    v2."""

    current: int
    peak: int | None
    events: MemoryEvents


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStat(MemoryUse):
    """What it adds comes from memory.stat, which the kernel brings up to date every 2 s, or when 64 changes for each
    CPU have come together (mm/memcontrol.c: memcg_vmstats_needs_flush)."""

    anon: int
    file: int
    faults: int
    major_faults: int


class Memory(Protocol):
    """One class for each kind of hierarchy; ``directory`` is the group's directory in the one that has the knobs."""

    def apply(self, directory: str, limits: Limits) -> list[str]:
        """Write what is set; what is soft and cannot be had is said in the notes returned."""

    def limits(self, directory: str) -> Limits: ...
    def current(self, directory: str) -> int: ...
    def peak(self, directory: str) -> int | None: ...
    def cache(self, directory: str) -> int:
        """Page cache of files, of the group and its descendants: what reclaim takes first. Not shared memory. Bytes,
        as current as ``stat``."""

    def reclaim(self, directory: str, nbytes: int) -> None:
        """Have the kernel take back about so much, page cache first; it may take its time. Raises KernelRefused where
        it got less, KnobMissing before 5.19 on v2."""

    def reset_peak(self, directory: str) -> bool:
        """Whether the kernel can begin the peak anew, for every reader."""

    def events(self, directory: str) -> MemoryEvents: ...
    def use(self, directory: str) -> MemoryUse: ...
    def stat(self, directory: str) -> MemoryStat: ...
    def oom_group(self, directory: str, on: bool) -> str | None:
        """Kill the group as a whole at an OOM; a note where the kernel cannot."""


class MemoryV2:
    """memory.max, memory.high, memory.low, memory.oom.group."""

    def apply(self, directory: str, limits: Limits) -> list[str]:
        # High before max: where both come down, reclaim gets its chance before the hard limit kills.
        for name, value, least in (
            ("memory.low", limits.memory_low, 0),
            ("memory.high", limits.memory_high, _PAGE),
            ("memory.max", limits.memory_max, _PAGE),
        ):
            if value is None:
                continue
            path = f"{directory}/{name}"
            knobs.whole(path, name, value, low=least, high=_MAX, unit="bytes")
            # Protection that is lifted is none at all, not all of it.
            # And the daemon does not wait while the kernel brings a group below a new memory.high.
            files.write(path, knobs.text(value, "0" if name == "memory.low" else "max"), wait=name != "memory.high")
        return []

    def limits(self, directory: str) -> Limits:
        return Limits(
            memory_max=_number(f"{directory}/memory.max"),
            memory_high=_number(f"{directory}/memory.high"),
            memory_low=_number(f"{directory}/memory.low"),
        )

    def current(self, directory: str) -> int:
        return _number(f"{directory}/memory.current")

    def cache(self, directory: str) -> int:
        return _cache(f"{directory}/memory.stat", b"inactive_file", b"active_file")

    def reclaim(self, directory: str, nbytes: int) -> None:
        files.write(f"{directory}/memory.reclaim", str(nbytes))

    def peak(self, directory: str) -> int | None:
        path = f"{directory}/memory.peak"
        data = files.read_optional(path, 32)
        return files.parse_number(data, path) if data else None

    def reset_peak(self, directory: str) -> bool:
        # 6.12 can reset memory.peak, but only as seen through the descriptor that wrote to it.
        return False

    def events(self, directory: str) -> MemoryEvents:
        path = f"{directory}/memory.events.local"
        data = files.read_optional(path, 256)
        if data is None:
            path = f"{directory}/memory.events"
            data = files.read(path)
        return parse_events_v2(data, path)

    def use(self, directory: str) -> MemoryUse:
        return MemoryUse(current=self.current(directory), peak=self.peak(directory), events=self.events(directory))

    def stat(self, directory: str) -> MemoryStat:
        path = f"{directory}/memory.stat"
        values = files.parse_flat(files.read(path, files.LARGE), path)
        return MemoryStat(
            current=self.current(directory),
            peak=self.peak(directory),
            events=self.events(directory),
            anon=files.key_of(values, b"anon", path),
            file=files.key_of(values, b"file", path),
            faults=files.key_of(values, b"pgfault", path),
            major_faults=files.key_of(values, b"pgmajfault", path),
        )

    def oom_group(self, directory: str, on: bool) -> str | None:
        files.write(f"{directory}/memory.oom.group", "1" if on else "0")
        return None


class MemoryV1:
    """memory.limit_in_bytes. Swap (memsw) is left alone, as memory.swap.max is on v2."""

    def apply(self, directory: str, limits: Limits) -> list[str]:
        notes = []
        for name, wanted in (("memory_high", limits.memory_high), ("memory_low", limits.memory_low)):
            if wanted not in (None, UNLIMITED):
                notes.append(f"{name} is not set: this host's memory controller is cgroup v1, which has no such limit")
        if limits.memory_max is not None:
            path = f"{directory}/memory.limit_in_bytes"
            knobs.whole(path, "memory_max", limits.memory_max, low=_PAGE, high=_MAX, unit="bytes")
            files.write(path, knobs.text(limits.memory_max, "-1"))
        return notes

    def limits(self, directory: str) -> Limits:
        return Limits(memory_max=_number(f"{directory}/memory.limit_in_bytes"))

    def current(self, directory: str) -> int:
        return _number(f"{directory}/memory.usage_in_bytes")

    def cache(self, directory: str) -> int:
        return _cache(f"{directory}/memory.stat", b"total_inactive_file", b"total_active_file")

    def reclaim(self, directory: str, nbytes: int) -> None:
        # all that can be had, without swapping: mm/memcontrol-v1.c, mem_cgroup_force_empty
        files.write(f"{directory}/memory.force_empty", "0")

    def peak(self, directory: str) -> int | None:
        return _number(f"{directory}/memory.max_usage_in_bytes")

    def reset_peak(self, directory: str) -> bool:
        files.write(f"{directory}/memory.max_usage_in_bytes", "0")
        return True

    def events(self, directory: str) -> MemoryEvents:
        path = f"{directory}/memory.oom_control"
        return parse_events_v1(files.read(path, 256), path, _number(f"{directory}/memory.failcnt"))

    def use(self, directory: str) -> MemoryUse:
        return MemoryUse(current=self.current(directory), peak=self.peak(directory), events=self.events(directory))

    def stat(self, directory: str) -> MemoryStat:
        path = f"{directory}/memory.stat"
        values = files.parse_flat(files.read(path, files.LARGE), path)
        return MemoryStat(
            current=self.current(directory),
            peak=self.peak(directory),
            events=self.events(directory),
            anon=files.key_of(values, b"total_rss", path),
            file=files.key_of(values, b"total_cache", path),  # shared memory too, as "file" has it on v2
            faults=files.key_of(values, b"total_pgfault", path),
            major_faults=files.key_of(values, b"total_pgmajfault", path),
        )

    def oom_group(self, directory: str, on: bool) -> str | None:
        if not files.is_directory(directory):
            raise NoSuchGroup(directory, "no such group", remedy="create it first")
        if not on:
            return None
        return (
            "memory.oom.group is not set: cgroup v1 kills one process at an OOM; the daemon ends the rest of the call"
        )


def parse_events_v2(data: bytes, path: str) -> MemoryEvents:
    """memory.events(.local). ``oom_kill`` must be there (4.13); the others came later or are left out as None."""
    values = files.parse_flat(data, path)
    return MemoryEvents(
        oom_kill=files.key_of(values, b"oom_kill", path),
        max=values.get(b"max"),
        oom=values.get(b"oom"),
        high=values.get(b"high"),
        low=values.get(b"low"),
        oom_group_kill=values.get(b"oom_group_kill"),
    )


def parse_events_v1(data: bytes, path: str, failcnt: int) -> MemoryEvents:
    """memory.oom_control (``oom_kill`` since 4.13) and memory.failcnt."""
    values = files.parse_flat(data, path)
    return MemoryEvents(oom_kill=files.key_of(values, b"oom_kill", path), max=failcnt)


def _cache(path: str, *names: bytes) -> int:
    values = files.parse_flat(files.read(path, files.LARGE), path)
    return sum(files.key_of(values, name, path) for name in names)


def _number(path: str) -> int:
    return files.parse_number(files.read(path, 32), path)
