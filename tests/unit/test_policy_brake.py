"""What users rely on when the brake has stopped calls: one round over held calls."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.config import HostConfig
from controller.forecast import UNKNOWN
from controller.model import CallId, OnPressure, SessionId, TenantId
from controller.policy.rounds import decide
from controller.state import CallFacts, Stage, State, Step, StepKind, TenantFacts

MIB = 1 << 20
CONFIG = HostConfig().control()
TENANTS = [TenantId(f"t-{n}") for n in range(3)]

sizes = st.integers(1, 4096).map(lambda n: n * MIB)


def held(name: str, usage: int = 100 * MIB, **changes: object) -> CallFacts:
    """A call that was stopped at its threshold a second ago."""
    facts: dict[str, object] = {
        "id": CallId(name),
        "tenant_id": TENANTS[0],
        "session_id": SessionId("s-0"),
        "stage": Stage.HELD,
        "asked_at": 1.0,
        "begun_at": 1.0,
        "held_since": 99.0,
        "usage": usage,
        "granted": usage,
        "promised": usage,
        "need": replace(UNKNOWN, claim=usage, likely=usage, typical=usage),
    }
    return CallFacts(**(facts | changes))  # type: ignore[arg-type]  # a table of one type would say less


def host(*calls: CallFacts, free: int, room: int | None = None) -> State:
    """``free`` bytes on the host; ``room`` under the ceiling of the first tenant (None: no ceiling)."""
    used = sum(c.usage for c in calls)
    mine = sum(c.reserved for c in calls if c.tenant_id == TENANTS[0])
    tenants = {TENANTS[0]: TenantFacts(id=TENANTS[0], memory_max=None if room is None else mine + room)}
    return State(at=100.0, capacity=used + free, reserve=64 * MIB, tenants=tenants, calls=calls)


def answers(state: State) -> dict[str, Step]:
    return {s.call_id: s for s in decide(state, CONFIG) if s.kind in {StepKind.RAISE, StepKind.HOLD, StepKind.KILL}}


def kinds(state: State) -> dict[str, StepKind]:
    return {call_id: step.kind for call_id, step in answers(state).items()}


@st.composite
def rounds(draw: st.DrawFn) -> State:
    calls = []
    for number in range(draw(st.integers(0, 8))):
        usage = draw(sizes)
        calls.append(
            held(
                f"c-{number}",
                tenant_id=draw(st.sampled_from(TENANTS)),
                priority=draw(st.integers(0, 3)),
                usage=usage,
                promised=draw(st.sampled_from([0, usage, 2 * usage])),
                hard_limit=draw(st.none() | st.integers(usage, 2 * usage)),
                held_since=100.0 - draw(st.floats(0, 2 * CONFIG.hold_max)),
                on_pressure=draw(st.sampled_from([OnPressure.WAIT, OnPressure.DEGRADE, OnPressure.FAIL_FAST])),
            )
        )
    room = draw(st.none() | st.integers(0, 1024).map(lambda n: n * MIB))
    return host(*calls, free=draw(st.integers(0, 2048)) * MIB, room=room)


@settings(deadline=None)
@given(rounds())
def test_no_more_is_given_than_there_is(state: State) -> None:
    calls = {c.id: c for c in state.calls}
    found = answers(state)
    given_away = freed = 0
    for step in found.values():
        call = calls[step.call_id]
        if step.kind is StepKind.RAISE:
            assert step.brake > call.usage, "or it would be stopped again at once"
            assert call.hard_limit is None or step.brake <= call.hard_limit
            given_away += step.brake - call.usage
        elif step.kind is StepKind.KILL:
            freed += call.usage
    assert given_away <= state.unused + freed + int(state.reserve * CONFIG.champion_reserve)


@settings(deadline=None)
@given(rounds())
def test_nobody_is_held_past_the_bound_and_who_asked_to_fail_fast_does(state: State) -> None:
    for step in answers(state).values():
        call = next(c for c in state.calls if c.id == step.call_id)
        if call.on_pressure is OnPressure.FAIL_FAST:
            assert step.kind is StepKind.KILL
        if call.held_since is not None and state.at - call.held_since >= CONFIG.hold_max:
            assert step.kind is not StepKind.HOLD


@settings(deadline=None)
@given(rounds())
def test_somebody_gets_to_his_end(state: State) -> None:
    """Where nothing runs, not all are held; and of several patient ones without a limit not all are ended."""
    found = kinds(state)
    assert not found or set(found.values()) != {StepKind.HOLD}
    patient = [
        c
        for c in state.calls
        if c.on_pressure is OnPressure.WAIT
        and c.hard_limit is None
        and state.at - (c.held_since or 0) < CONFIG.hold_max
    ]
    if len(patient) == len(state.calls) > 1:
        assert set(found.values()) != {StepKind.KILL}


def test_of_calls_that_are_all_held_the_last_in_order_makes_room() -> None:
    calls = [held("c-high", priority=60), held("c-old"), held("c-young", begun_at=2.0)]
    found = kinds(host(*calls, free=8192 * MIB, room=0))
    assert found == {"c-high": StepKind.HOLD, "c-old": StepKind.HOLD, "c-young": StepKind.KILL}


def test_a_call_waits_for_one_that_was_just_resumed() -> None:
    found = kinds(host(held("c-a"), held("c-b"), free=8192 * MIB, room=64 * MIB))
    assert found == {"c-a": StepKind.RAISE, "c-b": StepKind.HOLD}


def test_room_does_not_go_past_a_higher_priority_that_waits_for_it() -> None:
    running = replace(held("c-run"), stage=Stage.RUNNING, held_since=None)
    found = kinds(host(held("c-high", priority=90), held("c-low"), running, free=8192 * MIB, room=8 * MIB))
    assert found == {"c-high": StepKind.HOLD, "c-low": StepKind.HOLD}


def test_a_threshold_that_was_raised_meanwhile_is_kept() -> None:
    step = answers(host(held("c-a", promised=900 * MIB), free=8192 * MIB))["c-a"]
    assert (step.kind, step.brake) == (StepKind.RAISE, 900 * MIB)


def test_a_small_call_gets_up_to_its_hard_limit_too() -> None:
    small = held("c-a", usage=8 * MIB, promised=8 * MIB, hard_limit=16 * MIB)
    step = answers(host(small, free=8192 * MIB))["c-a"]
    assert (step.kind, step.brake) == (StepKind.RAISE, 15 * MIB)


def test_at_its_hard_limit_waiting_cannot_help() -> None:
    step = answers(host(held("c-a", usage=250 * MIB, hard_limit=256 * MIB), free=8192 * MIB))["c-a"]
    assert (step.kind, step.code) == (StepKind.KILL, "hard_limit")
    assert step.reason == "used 250 MiB of its hard limit of 256 MiB: waiting cannot help"


def test_charges_taken_back_while_it_stood_are_no_room() -> None:
    """Each of two calls was given the tenant's last 4 MiB, in rounds of their own, and the kernel ended one."""
    stopped = held("c-a", usage=100 * MIB - 200 * 1024, granted=100 * MIB, promised=100 * MIB)
    assert kinds(host(stopped, free=8192 * MIB, room=4 * MIB)) == {"c-a": StepKind.KILL}


def test_who_gave_memory_back_goes_on_to_the_same_threshold() -> None:
    step = answers(host(held("c-a", usage=80 * MIB, granted=100 * MIB), free=8192 * MIB, room=30 * MIB))["c-a"]
    assert (step.kind, step.brake) == (StepKind.RAISE, 100 * MIB)


def test_nothing_is_taken_from_others_for_what_a_calls_own_limit_keeps_from_it() -> None:
    other = replace(held("c-run"), stage=Stage.RUNNING, held_since=None, granted=900 * MIB, promised=900 * MIB)
    bound = held("c-a", usage=192 * MIB, hard_limit=256 * MIB, tenant_id=TENANTS[1])
    state = replace(host(other, bound, free=8192 * MIB), capacity=1200 * MIB)
    assert {s.kind for s in decide(state, CONFIG)} == {StepKind.RAISE}
