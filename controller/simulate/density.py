"""How many agents fit: the largest number, back to back over recorded traces, that a policy runs with nothing lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controller.simulate.engine import Simulation
from controller.simulate.plan import Plan
from controller.simulate.policies import Policy, peak_of
from controller.simulate.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number of agents under one policy, over some seeds."""

    agents: int
    reports: tuple[Report, ...]

    @property
    def slow_down(self) -> float:
        """The mean over all agents of all seeds."""
        values = [value for report in self.reports for value in report.slow_downs]
        return sum(values) / len(values) if values else 1.0

    @property
    def lost(self) -> int:
        """Agents lost, and calls killed by the kernel or by the policy."""
        return sum(r.agents_lost + r.calls_oom_killed + sum(r.calls_killed.values()) for r in self.reports)

    def holds(self, slow_down: float) -> bool:
        return self.lost == 0 and self.slow_down <= slow_down


def measure(
    plans: Sequence[Plan], policy: Policy, *, memory: int, agents: int, seconds: float, seeds: Sequence[int]
) -> Cell:
    """``seconds`` of virtual time, once for each seed."""
    reports = tuple(
        Simulation(plans, policy, memory=memory, agents=agents, repeat=True, seconds=seconds, seed=seed).run()
        for seed in seeds
    )
    return Cell(agents=agents, reports=reports)


def densest(
    cell: Callable[[int], Cell], *, most: int, first: int = 1, slow_down: float = 1.2
) -> tuple[int, list[Cell]]:
    """The largest number of agents from ``first`` to ``most`` that holds, and every cell that was looked at.

    By bisection: it takes for granted that more agents are never easier. 0: not even ``first`` holds."""
    seen: dict[int, Cell] = {}

    def holds(agents: int) -> bool:
        if agents not in seen:
            seen[agents] = cell(agents)
        return seen[agents].holds(slow_down)

    low, high = first - 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return (low if low >= first else 0), [seen[agents] for agents in sorted(seen)]


def physical_limit(plans: Sequence[Plan], memory: int) -> float:
    """Agents that would fit if memory could be cut to measure at every moment: memory over the mean use of a trace."""
    area = sum(_area(plan) for plan in plans)
    return memory / (area / sum(plan.seconds for plan in plans))


def by_count(plans: Sequence[Plan], memory: int, share: float | None) -> float:
    """Agents that fit by a plain count: memory over the ``share`` quantile of peaks; None: over their mean (each its
    own, known beforehand)."""
    peaks = sorted(peak_of(plan) for plan in plans)
    if share is None:
        return memory / (sum(peaks) / len(peaks))
    return memory / peaks[min(len(peaks) - 1, int(share * len(peaks)))]


def _area(plan: Plan) -> float:
    """Byte-seconds of the agent and its calls."""
    schedules = [plan.framework] if plan.framework is not None else []
    total = 0.0
    for schedule in [*schedules, *(call.schedule for call in plan.calls)]:
        ends = [*(step.at for step in schedule.steps[1:]), schedule.end]
        total += sum(step.nbytes * (end - step.at) for step, end in zip(schedule.steps, ends, strict=True))
    return total
