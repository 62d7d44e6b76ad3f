"""The command ``simulate``: what a policy would do with recorded agents on a host of a given size, in virtual time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from agentd.cli.context import Context
from agentd.cli.errors import EXIT_FAILED, EXIT_OK, UsageError
from agentd.cli.plain import Plain
from agentd.cli.replay.trace import read_trace
from agentd.cli.table import Cell, Column
from agentd.units import UnitError, parse_size
from controller.policy.text import human_bytes, human_seconds
from controller.simulate.engine import Simulation
from controller.simulate.plan import Plan, percentile, plan
from controller.simulate.policies import policy
from controller.simulate.report import Report

MAX_AGENTS: Final = 4096
COLUMNS: Final = (
    Column(title="POLICY"),
    Column(title="AGENTS", right=True),
    Column(title="TOOK", right=True, rank=1),
    Column(title="SLOWER", right=True),
    Column(title="CALLS", right=True, rank=1),
    Column(title="BRAKED", right=True, rank=1),
    Column(title="HELD P99", right=True, rank=2),
    Column(title="WAITED P99", right=True, rank=2),
    Column(title="KILLED", right=True),
    Column(title="OOM", right=True),
    Column(title="LOST", right=True),
    Column(title="PEAK", right=True, rank=1),
)


def simulate(context: Context) -> int:
    """Exit 0 when no agent was lost and no call killed under any of the policies, else 1."""
    args = context.args
    memory = _memory(args.memory)
    speed = _number("--speed", args.speed, 0.1, 1000)
    names = list(dict.fromkeys(args.policy or ["corral"]))
    plans = [plan(read_trace(Path(path)), speed=speed) for path in args.traces]
    reports = [_run(name, plans, memory, args) for name in names]
    if context.json:
        context.emit({"memory_bytes": memory, "runs": [plain(report) for report in reports]})
    else:
        context.table(COLUMNS, [row(report) for report in reports])
    return EXIT_OK if all(report.lost_nothing for report in reports) else EXIT_FAILED


def _run(name: str, plans: list[Plan], memory: int, args: Any) -> Report:
    agents: int | None = args.agents
    if agents is not None and agents > MAX_AGENTS:
        raise UsageError(f"--agents {agents}", remedy=f"at most {MAX_AGENTS}")
    seconds = _number("--for", args.seconds, 1, 1e6) if agents is not None else math.inf
    return Simulation(
        plans,
        policy(name, plans),
        memory=memory,
        agents=agents,
        repeat=agents is not None,
        seconds=seconds,
        seed=args.seed,
    ).run()


def _memory(text: str) -> int:
    try:
        memory = parse_size(text)
    except UnitError as err:
        raise UsageError(f"--memory: {err}") from None
    if memory < 1 << 20:
        raise UsageError(f"--memory {text!r} is less than 1 MiB", remedy="give a size such as 8G")
    return memory


def _number(option: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text.removesuffix("x"))
    except ValueError:
        value = math.nan
    if not low <= value <= high:  # NaN as well
        raise UsageError(f"{option} {text!r} is out of range", remedy=f"{low:g} to {high:g}")
    return value


def plain(report: Report) -> dict[str, Plain]:
    """For JSON: seconds of virtual time, bytes, counts. ``slow_down`` is null where an agent got nothing done."""
    slow = report.mean_slow_down
    return {
        "policy": report.policy,
        "agents": report.agents,
        "seconds": report.seconds,
        "slow_down": slow if math.isfinite(slow) else None,
        "traces_ended": report.traces_ended,
        "calls_ended": report.calls_ended,
        "agents_lost": report.agents_lost,
        "calls_oom_killed": report.calls_oom_killed,
        "calls_killed": dict(report.calls_killed),
        "calls_given_up": report.calls_given_up,
        "lost_seconds": report.lost_seconds,
        "brakes": report.brakes,
        "calls_braked": report.calls_braked,
        "held_p99_seconds": percentile(report.held_seconds, 0.99),
        "waited_p99_seconds": percentile(report.waited_seconds, 0.99),
        "memory_mean_bytes": report.memory_mean,
        "memory_peak_bytes": report.memory_peak,
        "rounds": report.rounds,
        "times_faster": report.times_faster,
    }


def row(report: Report) -> list[Cell | str]:
    killed = sum(report.calls_killed.values())
    texts = (
        report.policy,
        str(report.agents),
        human_seconds(report.seconds),
        f"{report.mean_slow_down:.2f}x",
        str(report.calls_ended),
        str(report.calls_braked),
        human_seconds(percentile(report.held_seconds, 0.99) or 0.0),
        human_seconds(percentile(report.waited_seconds, 0.99) or 0.0),
        str(killed),
        str(report.calls_oom_killed),
        str(report.agents_lost),
        human_bytes(report.memory_peak),
    )
    return list(texts)
