"""Limits: what the kernel is told. ``None`` leaves a knob untouched; ``UNLIMITED`` lifts it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, TypeVar

UNLIMITED: Final = -1
MIN_IO: Final = 64 * 1024  # bytes a second: less would hold up what others wait for, such as a journal
MIN_EGRESS: Final = 1024  # bytes a second: below it a connection does not come about
MAX_RATE: Final = 1 << 40

_CONTROLLER_OF: Final = {
    "memory_max": "memory",
    "memory_high": "memory",
    "memory_low": "memory",
    "cpu_max": "cpu",
    "cpu_weight": "cpu",
    "pids_max": "pids",
    "io_weight": "io",
    "io_max": "io",
    "egress_max": "egress",  # no cgroup controller: eBPF, where its network part is loaded
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one group. Bytes, cores (1.5 = one and a half CPUs), weights 1 to 10,000 (100 = default), processes."""

    memory_max: int | None = None  # hard: beyond it the kernel reclaims, then kills
    memory_high: int | None = None  # unified hosts: beyond it allocations are slowed
    memory_low: int | None = None  # unified hosts: protected from reclaim below it
    cpu_max: float | None = None
    cpu_weight: int | None = None
    pids_max: int | None = None
    io_weight: int | None = None
    io_max: int | None = None  # bytes a second that are read, and that are written, of each disk
    egress_max: int | None = None  # bytes a second of packets that leave, loopback included

    def merged(self, other: Limits) -> Limits:
        """These limits, with every field that ``other`` sets taken from it."""
        values = {f.name: getattr(other, f.name) for f in fields(other) if getattr(other, f.name) is not None}
        return Limits(**{f.name: values.get(f.name, getattr(self, f.name)) for f in fields(self)})

    def lacking(self, controllers: frozenset[str]) -> dict[str, str]:
        """Limits that are set and whose controller is not among ``controllers``: field → controller."""
        return {
            name: controller
            for name, controller in _CONTROLLER_OF.items()
            if controller not in controllers and getattr(self, name) not in (None, UNLIMITED)
        }

    def only(self, controllers: frozenset[str]) -> Limits:
        """These limits without those of other controllers, which are left untouched."""
        kept = {name: getattr(self, name) for name, controller in _CONTROLLER_OF.items() if controller in controllers}
        return Limits(**kept)

    def tightened(self, other: Limits) -> Limits:
        """The tighter of both in every ceiling: no authority loosens another's limit. Weights take ``other``'s."""
        return Limits(
            memory_max=_tighter(self.memory_max, other.memory_max),
            memory_high=_tighter(self.memory_high, other.memory_high),
            memory_low=_tighter(self.memory_low, other.memory_low),
            cpu_max=_tighter(self.cpu_max, other.cpu_max),
            cpu_weight=other.cpu_weight if other.cpu_weight is not None else self.cpu_weight,
            pids_max=_tighter(self.pids_max, other.pids_max),
            io_weight=other.io_weight if other.io_weight is not None else self.io_weight,
            io_max=_tighter(self.io_max, other.io_max),
            egress_max=_tighter(self.egress_max, other.egress_max),
        )


_N = TypeVar("_N", int, float)


def _tighter(a: _N | None, b: _N | None) -> _N | None:
    if a is None or a == UNLIMITED:
        return b if b is not None else a
    if b is None or b == UNLIMITED:
        return a
    return min(a, b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tripwire:
    """Thresholds on a call's own memory use, in bytes, kept by the eBPF side. ``None``: not armed."""

    notify: int | None = None  # past it: an event
    brake: int | None = None  # past it: the faulting process is stopped in the kernel, and an event
