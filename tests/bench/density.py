"""How many agents fit on a host of 8 GiB: recorded agents, back to back from random starts at ten times their speed, in
the simulator, under Corral's policies and under what people do today.

A number of agents fits when no agent is lost, no call is killed and the mean slow-down is at most 1.2. The live runs of
the cells at the edge are bench density-live's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from controller.simulate.density import by_count, densest, physical_limit
from controller.simulate.density import measure as measure_cell
from controller.simulate.plan import MB, Plan, plan
from controller.simulate.policies import policy
from controller.simulate.trace import TraceError, read_trace
from tests.bench.harness import BenchError, Context
from tests.bench.result import REPOSITORY, Figure, Result

MEMORY: Final = 8 << 30
SPEED: Final = 10.0
SLOW_DOWN: Final = 1.2
TRACES: Final = "CORRAL_TRACES"
HELD_OUT: Final = 100  # added to the seeds: those that no setting of the policies was chosen by
RANGES: Final = {"max": (1, 8), "p95": (1, 24), "oracle": (16, 36), "none": (8, 36), "corral": (28, 38)}


async def measure(context: Context) -> Result:
    plans = read_plans()
    seeds = list(range(1, 1 + context.count(full=3, quick=1)))
    seconds = 60.0 if context.quick else 200.0
    result = Result(runs=len(seeds), mode="simulated")
    limit = physical_limit(plans, MEMORY)
    result.notes.append(
        f"{len(plans)} traces at {SPEED:g}x in virtual time, {seconds:g} s a run; the learner starts knowing nothing"
    )
    found: dict[str, int] = {}
    searches = [(name, name, seeds) for name in RANGES]
    searches.append(("corral", "corral, held out", [seed + HELD_OUT for seed in seeds]))
    for policy_name, name, used in searches:
        first, most = RANGES[policy_name]
        context.say(f"policy {name}: {first} to {most} agents")
        chosen = policy(policy_name, plans)
        fits, cells = densest(
            lambda agents, chosen=chosen, used=used: measure_cell(  # type: ignore[misc]  # the loop's own
                plans, chosen, memory=MEMORY, agents=agents, seconds=seconds, seeds=used
            ),
            first=first,
            most=most,
            slow_down=SLOW_DOWN,
        )
        found[name] = fits
        for cell in cells:
            for seed, report in zip(used, cell.reports, strict=True):
                result.rows.append(
                    {
                        "policy": name,
                        "agents": cell.agents,
                        "seed": seed,
                        "slow_down": report.mean_slow_down,
                        "agents_lost": report.agents_lost,
                        "calls_oom_killed": report.calls_oom_killed,
                        "calls_killed": sum(report.calls_killed.values()),
                        "brakes": report.brakes,
                        "calls_ended": report.calls_ended,
                        "memory_mean_bytes": report.memory_mean,
                        "times_faster": report.times_faster,
                    }
                )
    ours = found["corral"]
    at_edge = [row for row in result.rows if row["policy"] == "corral" and row["agents"] == ours]
    faster = [float(row["times_faster"] or 0) for row in at_edge]
    result.summary = {
        "physical_limit": Figure(value=limit, unit="agents"),
        "agents": Figure(value=ours, unit="agents"),
        "fraction_of_limit": Figure(value=ours / limit, unit="ratio"),
        "agents_held_out": Figure(value=found["corral, held out"], unit="agents"),
        "fraction_of_limit_held_out": Figure(value=found["corral, held out"] / limit, unit="ratio"),
        "ratio_over_max": Figure(value=_ratio(ours, found["max"]), unit="ratio"),
        "ratio_over_oracle": Figure(value=_ratio(ours, found["oracle"]), unit="ratio"),
        "ratio_over_max_count": Figure(value=ours / by_count(plans, MEMORY, 1.0), unit="ratio"),
        "ratio_over_oracle_count": Figure(value=ours / by_count(plans, MEMORY, None), unit="ratio"),
        "agents_lost": Figure(value=sum(int(row["agents_lost"] or 0) for row in at_edge), unit="count", at_most=0),
        "calls_killed": Figure(
            value=sum(int(row["calls_killed"] or 0) + int(row["calls_oom_killed"] or 0) for row in at_edge),
            unit="count",
            at_most=0,
        ),
        "slow_down": Figure(
            value=sum(float(row["slow_down"] or 0) for row in at_edge) / len(at_edge) if at_edge else None,
            unit="ratio",
            at_most=SLOW_DOWN,
        ),
        "times_faster": Figure(value=min(faster, default=None), unit="ratio", samples=faster),
        **{f"agents_{name}": Figure(value=found[name], unit="agents") for name in RANGES if name != "corral"},
    }
    return result


def read_plans(*, scale: float = 1.0, base_bytes: int = 185 * MB) -> list[Plan]:
    """The traces of the directory that CORRAL_TRACES names, else of shared/traces beside the checkout. BenchError."""
    folder = Path(os.environ.get(TRACES) or REPOSITORY.parent / "shared" / "traces" / "compact")
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise BenchError(f"no traces in {folder}; set {TRACES} to a directory of agentcg-compact-v1 files")
    try:
        return [plan(read_trace(path), speed=SPEED, scale=scale, base_bytes=base_bytes) for path in paths]
    except TraceError as err:
        raise BenchError(str(err)) from err


def _ratio(ours: int, theirs: int) -> float | None:
    return ours / theirs if theirs else None
