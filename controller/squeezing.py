"""How a leaf is squeezed and let go: knob by knob, so that what one host lacks costs that knob alone.

What is in force is always a function of two things that the leaf's record remembers, the grant and the squeeze. So an
undo needs no memory of what was there before, and a daemon that finds the leaf (``restore``) makes the kernel say what
the record says, wherever between the two its predecessor died.
"""

from __future__ import annotations

from dataclasses import replace

from controller.backend import Squeezed
from controller.cgroup import CgroupFileError, NoSuchGroup
from controller.leaf import Leaf
from controller.model import Limits, Squeeze, squeezed

_CGROUP_KNOBS = ("memory_high", "cpu_max", "cpu_weight", "io_weight")


def apply(leaf: Leaf, squeeze: Squeeze | None) -> Squeezed:
    """Raises NoSuchGroup. See controller.backend.Backend.squeeze."""
    notes: list[str] = []
    applied = squeeze
    want = squeezed(leaf.limits, squeeze)
    for name in _CGROUP_KNOBS:
        taken = squeeze is not None and getattr(squeeze, name) is not None
        if not taken and (leaf.squeeze is None or getattr(leaf.squeeze, name) is None):
            continue  # it is as granted
        cannot = _write(leaf, name, want)
        if cannot and applied is not None and taken:
            applied = applied.without(name)
        notes += cannot
    leaf.squeeze = applied if applied is not None and not applied.takes_nothing else None
    return Squeezed(leaf.squeeze, tuple(notes))


def restore(leaf: Leaf) -> None:
    """Makes the kernel say what the leaf's record says. What a host has not was not in force before either."""
    want = squeezed(leaf.limits, leaf.squeeze)
    for name in _CGROUP_KNOBS:
        _write(leaf, name, want)


def under_squeeze(leaf: Leaf, granted: Limits) -> Limits:
    """What a new grant must leave alone while the leaf is squeezed; nothing where it is not."""
    if leaf.squeeze is None:
        return Limits()
    want = squeezed(granted, leaf.squeeze)
    return replace(
        Limits(), **{name: getattr(want, name) for name in _CGROUP_KNOBS if getattr(leaf.squeeze, name) is not None}
    )


def _write(leaf: Leaf, name: str, want: Limits) -> list[str]:
    """Why it could not be had; empty: it is in force."""
    if name == "memory_high" and leaf.group.memory_is_v1():
        return ["memory_high is not set: this host's memory controller is cgroup v1, which has no such limit"]
    try:
        notes = leaf.group.set(replace(Limits(), **{name: getattr(want, name)}))
    except NoSuchGroup:
        raise
    except CgroupFileError as err:
        return [f"{name} is not set: {err}"]
    # a quota that v1 lowered to the one above it is a quota all the same
    return [] if name == "cpu_max" else list(notes)
