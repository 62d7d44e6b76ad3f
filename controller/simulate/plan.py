"""From a trace to schedules for corral-replay. Pure.

The recording knows the whole container's memory and CPU; the split between the agent's framework and its tools is ours:

- the framework holds the first ``base`` bytes, always, and everything while no tool runs;
- what exceeds that during tool intervals is held by the tools' processes, in equal parts where intervals overlap;
- CPU during tool intervals is the tools', in equal parts; otherwise the framework's.

So at every moment the parts add up to the recording. A sample holds until the next one.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from controller.simulate.trace import ToolCall, Trace

MB: Final = 1_000_000  # the traces' megabytes are decimal
SHORTEST: Final = 0.001  # seconds, after speeding up: an interval of nothing still starts and ends a process


@dataclass(frozen=True, slots=True)
class Step:
    """From ``at`` (seconds after the process's start) on: so many bytes, so many cores."""

    at: float
    nbytes: int
    cores: float


@dataclass(frozen=True, slots=True)
class Schedule:
    steps: tuple[Step, ...]
    end: float  # seconds

    @property
    def peak_bytes(self) -> int:
        return max((step.nbytes for step in self.steps), default=0)

    @property
    def core_seconds(self) -> float:
        ends = [*(step.at for step in self.steps[1:]), self.end]
        return sum(step.cores * (end - step.at) for step, end in zip(self.steps, ends, strict=True))

    def text(self) -> str:
        """As corral-replay reads it: microseconds, bytes, thousandths of a core."""
        lines = [f"{round(s.at * 1e6)} {s.nbytes} {round(s.cores * 1000)}" for s in self.steps]
        return "\n".join([*lines, f"{round(self.end * 1e6)} end", ""])


@dataclass(frozen=True, slots=True)
class PlannedCall:
    number: int
    start: float  # seconds after the replay's start
    tool: str
    call_class: str
    command: str
    schedule: Schedule


@dataclass(frozen=True, slots=True)
class Plan:
    name: str
    seconds: float
    framework: Schedule | None
    calls: tuple[PlannedCall, ...]


def plan(
    trace: Trace,
    *,
    speed: float,
    scale: float = 1.0,
    base_bytes: int = 185 * MB,
    only_tools: bool = False,
    most_calls: int | None = None,
) -> Plan:
    """``speed`` divides every time, ``scale`` multiplies every size. CPU is left: the same cores for a shorter time."""
    tools = [_clamped(tool, trace.seconds) for tool in trace.tools]
    edges = sorted({*trace.times, *(t.start for t in tools), *(t.end for t in tools)})
    starts = sorted(tool.start for tool in tools)
    ends = sorted(tool.end for tool in tools)

    def running(at: float) -> int:
        return bisect.bisect_right(starts, at) - bisect.bisect_right(ends, at)

    def total(at: float) -> tuple[int, float]:
        index = max(0, bisect.bisect_right(trace.times, at) - 1)
        return round(trace.memory_mb[index] * MB * scale), trace.cores[index]

    def framework_at(at: float) -> tuple[int, float]:
        nbytes, cores = total(at)
        return (min(nbytes, base_bytes), 0.0) if running(at) else (nbytes, cores)

    def share_at(at: float) -> tuple[int, float]:
        nbytes, cores = total(at)
        parts = max(1, running(at))
        return max(0, nbytes - base_bytes) // parts, cores / parts

    calls = []
    for number, tool in enumerate(tools[:most_calls]):
        inner = edges[bisect.bisect_right(edges, tool.start) : bisect.bisect_left(edges, tool.end)]
        steps = _steps(((at - tool.start) / speed, *share_at(at)) for at in (tool.start, *inner))
        length = max(SHORTEST, (tool.end - tool.start) / speed)
        calls.append(
            PlannedCall(
                number,
                tool.start / speed,
                tool.tool,
                tool.kind or tool.tool.lower(),
                tool.command,
                Schedule(steps, length),
            )
        )
    whole = trace.seconds / speed
    framework = (
        None if only_tools else Schedule(_steps((at / speed, *framework_at(at)) for at in edges), max(SHORTEST, whole))
    )
    return Plan(trace.name, whole, framework, tuple(calls))


def _clamped(tool: ToolCall, seconds: float) -> ToolCall:
    """Inside the recording: what began before its first sample begins with it, what outlives it ends with it."""
    start = min(max(0.0, tool.start), seconds)
    return ToolCall(start, min(max(start, tool.end), seconds), tool.tool, tool.kind, tool.command)


def _steps(points: Iterable[tuple[float, int, float]]) -> tuple[Step, ...]:
    """Points as steps, without those that change nothing."""
    steps: list[Step] = []
    for at, nbytes, cores in points:
        if not steps or (steps[-1].nbytes, steps[-1].cores) != (nbytes, cores):
            steps.append(Step(at, nbytes, cores))
    return tuple(steps)


def percentile(values: list[float], share: float) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
