"""Squeeze: what was taken from a running call until pressure goes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from controller.model.limits import UNLIMITED, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Squeeze:
    """A call that is slowed, not stopped. ``None``: that resource is left alone.

    ``memory_high`` bytes; ``cpu_weight`` and ``io_weight`` 1 to 10,000 (100 = default), which count against the other
    calls of the same session alone, as weights do; ``cpu_max`` cores, which holds against everybody;
    ``egress_bytes_per_second`` of packets that leave. ``since`` unix seconds, ``reason`` one sentence for a person.
    """

    since: float = 0.0
    memory_high: int | None = None
    cpu_weight: int | None = None
    cpu_max: float | None = None
    io_weight: int | None = None
    egress_bytes_per_second: int | None = None
    reason: str = ""

    @property
    def takes_nothing(self) -> bool:
        return all(getattr(self, name) is None for name in KNOBS)

    def without(self, name: str) -> Squeeze:
        values: dict[str, Any] = {name: None}
        return replace(self, **values)


KNOBS = tuple(f.name for f in fields(Squeeze) if f.name not in ("since", "reason"))


def squeezed(granted: Limits, squeeze: Squeeze | None) -> Limits:
    """The limits of a call under ``squeeze``, of those that a squeeze may touch: the tighter of both, and what the
    grant says (UNLIMITED where it says nothing) where the squeeze leaves a resource alone. The others stay None."""
    asked = squeeze if squeeze is not None else Squeeze()
    taken = Limits(
        memory_high=asked.memory_high,
        cpu_max=asked.cpu_max,
        cpu_weight=_lower(asked.cpu_weight, granted.cpu_weight),
        io_weight=_lower(asked.io_weight, granted.io_weight),
        egress_max=asked.egress_bytes_per_second,
    )
    base = Limits(
        memory_high=_lifted(granted.memory_high),
        cpu_max=granted.cpu_max if granted.cpu_max is not None else float(UNLIMITED),
        cpu_weight=_lifted(granted.cpu_weight),
        io_weight=_lifted(granted.io_weight),
        egress_max=_lifted(granted.egress_max),
    )
    return base.tightened(taken)


def _lifted(value: int | None) -> int:
    return value if value is not None else UNLIMITED


def _lower(weight: int | None, granted: int | None) -> int | None:
    """A weight that squeezes: never above what the grant gives (the kernel's default, 100, where it says nothing)."""
    if weight is None:
        return None
    return min(weight, granted if granted not in (None, UNLIMITED) else 100)
