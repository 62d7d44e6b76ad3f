"""How a leaf is squeezed and let go: knob by knob, so that what one host lacks costs that knob alone.

What is in force is always a function of two things that the leaf's record remembers, the grant and the squeeze. So an
undo needs no memory of what was there before, and a daemon that finds the leaf (``restore``) makes the kernel say what
the record says, wherever between the two its predecessor died.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from controller.backend import Squeezed
from controller.backends.leaf import Leaf
from controller.cgroup import Group, NoSuchGroup
from controller.model import ControllerError, Limits, Squeeze, squeezed

_KNOBS: Final = {  # of a Squeeze, and the limit that it lowers
    "memory_high": "memory_high",
    "cpu_max": "cpu_max",
    "cpu_weight": "cpu_weight",
    "io_weight": "io_weight",
    "egress_bytes_per_second": "egress_max",
}


class Squeezer:
    """``pace`` sets the egress rate of a group; ``paces``: whether this host can."""

    def __init__(self, pace: Callable[[Group, int | None], None], paces: Callable[[], bool]) -> None:
        self._pace = pace
        self._paces = paces

    def apply(self, leaf: Leaf, squeeze: Squeeze | None) -> Squeezed:
        """Raises NoSuchGroup. See controller.backend.Backend.squeeze."""
        notes: list[str] = []
        applied = squeeze
        want = squeezed(leaf.limits, squeeze)
        for knob, limit in _KNOBS.items():
            taken = squeeze is not None and getattr(squeeze, knob) is not None
            if not taken and (leaf.squeeze is None or getattr(leaf.squeeze, knob) is None):
                continue  # it is as granted
            cannot = self._write(leaf, limit, want)
            if cannot and applied is not None and taken:
                applied = applied.without(knob)
            notes += cannot
        leaf.squeeze = applied if applied is not None and not applied.takes_nothing else None
        return Squeezed(leaf.squeeze, tuple(notes))

    def restore(self, leaf: Leaf) -> None:
        """Makes the kernel say what the leaf's record says. What a host has not was not in force before either."""
        want = squeezed(leaf.limits, leaf.squeeze)
        for limit in _KNOBS.values():
            self._write(leaf, limit, want)

    def _write(self, leaf: Leaf, limit: str, want: Limits) -> list[str]:
        """Why it could not be had; empty: it is in force."""
        if limit == "memory_high" and leaf.group.memory_is_v1():
            return ["memory_high is not set: this host's memory controller is cgroup v1, which has no such limit"]
        if limit == "egress_max" and not self._paces():
            return ["egress is not slowed: this host does not load the eBPF programs that see packets"]
        try:
            if limit == "egress_max":
                self._pace(leaf.group, want.egress_max)
                return []
            notes = leaf.group.set(replace(Limits(), **{limit: getattr(want, limit)}))
        except NoSuchGroup:
            raise
        except ControllerError as err:
            return [f"{limit} is not set: {err}"]
        # a quota that v1 lowered to the one above it is a quota all the same
        return [] if limit == "cpu_max" else list(notes)


def under_squeeze(leaf: Leaf, granted: Limits) -> Limits:
    """What a new grant must leave alone while the leaf is squeezed; nothing where it is not."""
    if leaf.squeeze is None:
        return Limits()
    want = squeezed(granted, leaf.squeeze)
    taken = {limit for knob, limit in _KNOBS.items() if getattr(leaf.squeeze, knob) is not None}
    return replace(Limits(), **{limit: getattr(want, limit) for limit in taken})
