"""The policies that the simulator compares, by name.

``corral`` is the daemon's own: controller.policy.rounds.decide, the same function, with every call under a threshold,
as on a dense host; ``daemon`` is the same with the settings that a daemon has (controller.config). The others are what
people do today: reserve memory for a whole agent before it starts (the largest peak that was ever seen, the 95th
percentile of peaks, or its own peak, which only an oracle knows), or control nothing and let the kernel's OOM killer
decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from controller.config import HostConfig
from controller.policy.rounds import decide
from controller.policy.settings import ControlConfig
from controller.simulate.plan import Plan, percentile
from controller.state import State, Step

Decide = Callable[[State, ControlConfig], list[Step]]
Reserve = Callable[[Plan], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """``decide`` None: calls are not controlled. ``reserve`` None: agents start at once; else the bytes that must be
    unreserved before one starts. ``host_reserve``: share of the memory that calls are not given."""

    name: str
    decide: Decide | None = None
    reserve: Reserve | None = None
    config: ControlConfig = field(default_factory=ControlConfig)
    host_reserve: float = 0.05


NAMES = ("corral", "daemon", "max", "p95", "oracle", "none")


def policy(name: str, plans: Sequence[Plan], config: ControlConfig | None = None) -> Policy:
    """Raises KeyError for a name that is not in NAMES. ``plans``: the traces of which peaks are known beforehand."""
    peaks = [peak_of(plan) for plan in plans]
    match name:
        case "corral":
            return Policy(name=name, decide=decide, config=config or ControlConfig())
        case "daemon":
            return Policy(name=name, decide=decide, config=config or HostConfig().control())
        case "max":
            largest = max(peaks)
            return Policy(name=name, reserve=lambda _: largest)
        case "p95":
            high = int(percentile([float(p) for p in peaks], 0.95) or 0)
            return Policy(name=name, reserve=lambda _: high)
        case "oracle":
            return Policy(name=name, reserve=peak_of)
        case "none":
            return Policy(name=name)
        case _:
            raise KeyError(name)


def peak_of(plan: Plan) -> int:
    """The most that the agent and its calls use at once, in bytes. The parts of a plan add up to the recording, so
    this is the recorded peak."""
    edges: list[tuple[float, int]] = []
    schedules = [(0.0, plan.framework)] if plan.framework is not None else []
    for start, schedule in [*schedules, *((c.start, c.schedule) for c in plan.calls)]:
        before = 0
        for step in schedule.steps:
            edges.append((round(start + step.at, 6), step.nbytes - before))
            before = step.nbytes
        edges.append((round(start + schedule.end, 6), -before))
    total = most = 0
    # moments are the same if they are within a microsecond: they were computed in different ways
    for _, change in sorted(edges):  # at one moment falls come before rises: what one part gives the other takes
        total += change
        most = max(most, total)
    return most
