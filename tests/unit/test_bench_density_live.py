"""What the live density bench plays, and how it reckons an agent's slow-down."""

from __future__ import annotations

import pytest

from agentd.cli.replay.player import AgentClock
from controller.simulate.plan import Plan, PlannedCall, Schedule, Step
from controller.simulate.report import Report
from tests.bench.density_live import Agent, Live, _row, _still, _summarise, rest_of
from tests.bench.result import Result

PLAN = Plan(
    "one",
    10.0,
    Schedule((Step(0.0, 100, 0.5), Step(4.0, 200, 0.0), Step(8.0, 50, 1.0)), 10.0),
    tuple(
        PlannedCall(number, start, "Bash", "bash", "", Schedule((Step(0.0, 7, 2.0),), 1.0))
        for number, start in enumerate((1.0, 5.0, 9.0))
    ),
)


def test_an_agent_that_begins_in_the_middle_holds_what_it_held_there() -> None:
    rest = rest_of(PLAN, 5.0)
    assert rest.seconds == 5.0
    assert rest.framework == Schedule((Step(0.0, 200, 0.0), Step(3.0, 50, 1.0)), 5.0)
    assert [(call.number, call.start) for call in rest.calls] == [(1, 0.0), (2, 4.0)]
    assert rest_of(PLAN, 0.0) is PLAN


def test_no_cpu_is_burnt_and_memory_is_left_as_it_is() -> None:
    still = _still(PLAN)
    assert still.framework is not None
    assert [(step.nbytes, step.cores) for step in still.framework.steps] == [(100, 0.0), (200, 0.0), (50, 0.0)]
    assert {step.cores for call in still.calls for step in call.schedule.steps} == {0.0}


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        # it stands at 4 s of its plan: 8 s for 4
        (Agent(index=0, plan=PLAN, begun_at=0.0, clock=AgentClock(zero=99.0, began=100.0, stands_at=4.0)), 2.0),
        # 1 s of the 8 went into starting its processes, which is the bench's own
        (Agent(index=0, plan=PLAN, begun_at=0.0, since=100.0, clock=AgentClock(zero=101.0, began=101.0)), 1.0),
        # one plan is done, the next is being set up since 106
        (Agent(index=0, plan=PLAN, begun_at=0.0, done=3.0, since=106.0), 2.0),
        # one plan is done, and the next waits for its reservation: that is its policy's
        (Agent(index=0, plan=PLAN, begun_at=0.0, done=2.0), 4.0),
        (Agent(index=0, plan=PLAN, begun_at=0.0), float("inf")),
    ],
)
def test_slow_down_is_time_over_what_was_done(agent: Agent, expected: float) -> None:
    assert agent.slow_down(100.0, 108.0) == pytest.approx(expected)


def test_a_cell_fits_only_with_nothing_lost() -> None:
    simulated = Report(policy="corral", agents=33, memory=1)
    fitting = _row("corral", 33, 1, Live(slow_downs=[1.0, 1.2], memory=[1 << 20]), simulated)
    assert fitting["fits"] is True
    lost = Live(slow_downs=[1.0], memory=[1], agents_lost=1)
    killed = Live(slow_downs=[1.0], memory=[1])
    killed.killed["ladder"] += 1
    slow = Live(slow_downs=[1.3], memory=[1])
    rows = [_row("corral", 33, 1, live, simulated) for live in (lost, killed, slow)]
    assert [row["fits"] for row in rows] == [False, False, False]
    result = Result(rows=[fitting, *rows])
    _summarise(result)
    assert result.summary["agents_lost"].met is False
    assert result.summary["verdicts_alike"].value == 0.25
    assert result.summary["corral_33_calls_killed"].value == 0.25


def test_an_agent_that_got_nothing_done_has_no_slow_down_and_its_cell_does_not_fit() -> None:
    simulated = Report(policy="oracle", agents=30, memory=1)
    result = Result(rows=[_row("oracle", 30, 1, Live(slow_downs=[1.0, float("inf")], memory=[1]), simulated)])
    assert result.rows[0]["fits"] is False
    _summarise(result)
    assert result.summary["oracle_30_slow_down"].value is None
    assert "got nothing done" in result.notes[0]
