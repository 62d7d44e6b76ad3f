"""The simulator: arbitrary histories end under Corral's policies, and what it counts adds up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.policy.settings import ControlConfig
from controller.simulate.density import Cell, by_count, densest, physical_limit
from controller.simulate.engine import Simulation
from controller.simulate.plan import Plan, PlannedCall, Schedule, Step
from controller.simulate.policies import Policy, peak_of, policy
from controller.simulate.report import Report
from tests.unit.cli_support import corral

MIB = 1 << 20
GIB = 1 << 30
FRAMEWORK = 50 * MIB


def a_plan(*calls: tuple[float, list[tuple[float, int]]], seconds: float = 20.0, name: str = "p") -> Plan:
    """Calls as (begin, [(seconds that a step lasts, MiB)])."""
    planned = []
    for number, (start, parts) in enumerate(calls):
        at, steps = 0.0, []
        for lasts, size in parts:
            steps.append(Step(at, size * MIB, 0.0))
            at += lasts
        planned.append(PlannedCall(number, start, "Bash", "test", "pytest", Schedule(tuple(steps), at)))
    return Plan(name, seconds, Schedule((Step(0.0, FRAMEWORK, 0.0),), seconds), tuple(planned))


@st.composite
def plans(draw: st.DrawFn) -> list[Plan]:
    made = []
    for number in range(draw(st.integers(1, 6))):
        start, calls = 0.0, []
        for _ in range(draw(st.integers(0, 5))):
            start += draw(st.floats(0, 3))
            parts = draw(st.lists(st.tuples(st.floats(0.05, 3), st.integers(0, 900)), min_size=1, max_size=5))
            calls.append((start, parts))
            if draw(st.booleans()):
                start += sum(lasts for lasts, _ in parts)
        end = max([begin + sum(lasts for lasts, _ in parts) for begin, parts in calls], default=0.0)
        made.append(a_plan(*calls, seconds=end + draw(st.floats(0.1, 2)), name=f"p{number}"))
    return made


@settings(max_examples=60, deadline=None)
@given(plans(), st.sampled_from(["corral", "daemon"]))
def test_every_history_comes_to_its_end_and_no_agent_is_lost(made: list[Plan], name: str) -> None:
    """Whatever the calls do, in a host that holds each of them alone: every frozen call is thawed or ended within its
    bound, every call ends, and no agent's own process is killed; on a dense host, and with a daemon's settings."""
    config = replace(policy(name, made).config, hold_max=5.0)
    report = Simulation(made, policy(name, made, config), memory=1400 * MIB).run()
    assert report.traces_ended == len(made)
    assert report.calls_ended == sum(len(p.calls) for p in made)
    assert report.agents_lost == 0
    assert report.calls_oom_killed == 0
    assert report.memory_peak <= 1400 * MIB
    assert max(report.held_seconds, default=0.0) <= config.hold_max + 1.0
    assert len(report.slow_downs) == len(made)
    assert min(report.slow_downs) >= 1.0 - 1e-4


@settings(max_examples=15, deadline=None)
@given(plans())
def test_the_same_run_twice_is_the_same(made: list[Plan]) -> None:
    runs = [Simulation(made, policy("corral", made), memory=1400 * MIB).run() for _ in range(2)]
    for run in runs:
        run.real_seconds = 0.0
    assert runs[0] == runs[1]


@settings(max_examples=30, deadline=None)
@given(plans())
def test_an_empty_host_slows_nobody_down(made: list[Plan]) -> None:
    """With room for all, a policy changes nothing; and what was used is what was recorded."""
    for name in ("corral", "daemon", "oracle", "none"):
        report = Simulation(made, policy(name, made), memory=64 * GIB).run()
        assert report.mean_slow_down == pytest.approx(1.0, abs=1e-3)
        assert report.lost_nothing
        assert report.memory_peak <= sum(most_at_once(p) for p in made)


def most_at_once(made: Plan) -> int:
    """As peak_of, but where one part grows at the very moment at which another ends, both count."""
    parts = [(0.0, made.framework)] if made.framework is not None else []
    edges: list[tuple[float, int]] = []
    for start, schedule in [*parts, *((c.start, c.schedule) for c in made.calls)]:
        before = 0
        for step in schedule.steps:
            edges.append((round(start + step.at, 6), step.nbytes - before))
            before = step.nbytes
        edges.append((round(start + schedule.end, 6), -before))
    total = most = 0
    for _, change in sorted(edges, key=lambda edge: (edge[0], -edge[1])):
        total += change
        most = max(most, total)
    return most


BURST = (1.0, [(1.0, 100), (4.0, 700), (1.0, 100)])


def test_two_bursts_take_turns_under_control_and_kill_each_other_without() -> None:
    both = [a_plan(BURST, name="a"), a_plan(BURST, name="b")]
    controlled = Simulation(both, policy("corral", both), memory=GIB).run()
    assert controlled.lost_nothing
    assert controlled.calls_braked == 2
    assert 1.0 < controlled.mean_slow_down < 1.5
    left_alone = Simulation(both, policy("none", both), memory=GIB).run()
    assert left_alone.calls_oom_killed > 0


def test_with_a_daemons_settings_nobody_is_stopped_before_memory_gets_short() -> None:
    both = [a_plan(BURST, name="a"), a_plan(BURST, name="b")]
    roomy = Simulation(both, policy("daemon", both), memory=4 * GIB).run()
    assert roomy.calls_braked == 0
    assert roomy.mean_slow_down == pytest.approx(1.0, abs=1e-3)
    tight = Simulation(both, policy("daemon", both), memory=GIB).run()
    assert tight.calls_braked > 0
    assert tight.calls_oom_killed == 0


def uses(*sizes: int) -> Plan:
    """An agent without calls that uses so many MiB, each size for 4 s."""
    steps = tuple(Step(4.0 * index, size * MIB, 0.0) for index, size in enumerate(sizes))
    return Plan("g", 4.0 * len(sizes), Schedule(steps, 4.0 * len(sizes)), ())


@pytest.mark.parametrize("name", ["corral", "daemon"])
def test_a_lone_call_waits_for_memory_that_agents_give_back(name: str) -> None:
    """It was killed and begun again without end: nobody else ran who could have freed any."""
    made = [a_plan((1.0, [(1.0, 20), (3.0, 200)]), name="a"), uses(880, 880, 100)]
    report = Simulation(made, policy(name, made), memory=GIB).run()
    assert report.lost_nothing
    assert report.traces_ended == 2
    assert 2.0 < max(report.held_seconds) < 10.0


def test_a_call_that_the_host_cannot_hold_is_given_up_in_the_end() -> None:
    made = [a_plan((1.0, [(1.0, 900)]), name="a")]
    config = ControlConfig(hold_max=0.5)
    report = Simulation(made, policy("corral", made, config), memory=600 * MIB).run()
    assert (report.traces_ended, report.calls_ended, report.calls_given_up) == (1, 0, 1)
    assert not report.lost_nothing


def test_reservations_queue_whole_agents() -> None:
    both = [a_plan(BURST, name="a"), a_plan(BURST, name="b")]
    assert peak_of(both[0]) == 750 * MIB
    for name in ("max", "oracle"):
        report = Simulation(both, policy(name, both), memory=GIB).run()
        assert report.seconds == pytest.approx(40.0, abs=0.1)
        assert report.lost_nothing


def test_an_agent_that_outgrows_the_host_is_lost_and_counted() -> None:
    grows = Plan("g", 4.0, Schedule((Step(0.0, MIB, 0.0), Step(2.0, 600 * MIB, 0.0)), 4.0), ())
    report = Simulation([grows, grows], Policy(name="none"), memory=GIB, repeat=True, agents=2, seconds=8.0).run()
    assert report.agents_lost > 0


def test_overlapping_calls_keep_their_own_clocks() -> None:
    plan = a_plan((1.0, [(6.0, 100)]), (2.0, [(2.0, 300), (2.0, 50)]), seconds=10.0)
    report = Simulation([plan], policy("corral", [plan]), memory=GIB).run()
    assert report.calls_ended == 2
    assert report.seconds == pytest.approx(10.0, abs=1e-3)


def test_counts_by_hand() -> None:
    small, large = a_plan(seconds=10.0), a_plan((0.0, [(10.0, 150)]), seconds=10.0)
    assert by_count([small, large], 1000 * MIB, 1.0) == 5.0
    assert by_count([small, large], 1000 * MIB, None) == 8.0
    assert physical_limit([small, large], 1000 * MIB) == 8.0


def test_the_densest_is_found_by_halving() -> None:
    def cell(agents: int) -> Cell:
        report = Report(policy="x", agents=agents, memory=1)
        report.slow_downs = [1.0 if agents <= 11 else 1.3]
        return Cell(agents=agents, reports=(report,))

    fits, cells = densest(cell, most=40)
    assert fits == 11
    assert len(cells) <= 6
    assert densest(cell, most=40, first=20)[0] == 0


TRACE = {
    "schema": "agentcg-compact-v1",
    "dataset": "made",
    "task": "up",
    "t": [0.0, 1.0, 2.0, 3.0],
    "mem_mb": [100.0, 400.0, 200.0, 100.0],
    "cpu_cores": [0.1, 0.5, 0.2, 0.0],
    "tools": [[0.5, 2.5, "Bash", "test", "pytest"]],
}


async def test_the_command(tmp_path: Path) -> None:
    trace = tmp_path / "t.json"
    trace.write_text(json.dumps(TRACE))
    done = await corral("simulate", str(trace), str(trace), "--memory", "2G", "--policy", "corral", "--json")
    assert done.code == 0, done.err
    [run] = json.loads(done.out)["runs"]
    assert (run["policy"], run["agents"], run["calls_ended"], run["agents_lost"]) == ("corral", 2, 2, 0)
    table = await corral("simulate", str(trace), "--memory", "2G", "--policy", "none", "--policy", "oracle")
    assert (table.code, table.out.count("\n")) == (0, 3)
    assert "OOM" in table.out


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--memory", "lots"], 2, "--memory"),
        (["--memory", "1K"], 2, "less than 1 MiB"),
        (["--memory", "8G", "--speed", "nan"], 2, "--speed"),
        (["--memory", "8G", "--agents", "5000"], 2, "--agents"),
    ],
)
async def test_wrong_options(tmp_path: Path, options: list[str], code: int, said: str) -> None:
    trace = tmp_path / "t.json"
    trace.write_text(json.dumps(TRACE))
    done = await corral("simulate", str(trace), *options)
    assert (done.code, said in done.err) == (code, True), done.err


async def test_no_trace(tmp_path: Path) -> None:
    done = await corral("simulate", str(tmp_path / "none"), "--memory", "8G")
    assert (done.code, "no such file" in done.err) == (5, True)
