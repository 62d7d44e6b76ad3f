"""Properties of the brake's policy, over arbitrary rounds."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.config import CallConfig
from controller.model import CallId, TenantId
from controller.policy.brake import Braked, Headroom, Judgement, Verdict, judge

MIB = 1 << 20
CONFIG = CallConfig()
TENANTS = [TenantId(f"t-{n}") for n in range(3)]

sizes = st.integers(1 * MIB, 4096 * MIB)
rooms = st.integers(-512 * MIB, 2048 * MIB)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[Braked], Headroom]:
    calls = []
    for number in range(draw(st.integers(0, 8))):
        brake = draw(sizes)
        calls.append(
            Braked(
                call_id=CallId(f"c-{number}"),
                tenant_id=draw(st.sampled_from(TENANTS)),
                priority=draw(st.integers(0, 3)),
                usage=max(0, brake + draw(st.integers(-2 * MIB, 2 * MIB))),
                brake=brake,
                hard_limit=draw(st.none() | st.integers(brake, 2 * brake)),
                held_seconds=draw(st.floats(0, 2 * CONFIG.hold_max)),
                fail_fast=draw(st.booleans()),
                running_siblings=draw(st.integers(0, 1)),
            )
        )
    ceilings = draw(st.dictionaries(st.sampled_from(TENANTS), st.integers(0, 1024 * MIB)))
    return calls, Headroom(host=draw(rooms), tenants=ceilings, host_others_running=draw(st.booleans()))


def by_id(calls: list[Braked]) -> dict[CallId, Braked]:
    return {call.call_id: call for call in calls}


def given_away(call: Braked, judgement: Judgement) -> int:
    return judgement.brake - call.usage if judgement.verdict is Verdict.RAISE else 0


@given(rounds())
def test_every_call_gets_one_judgement_and_the_same_one_again(case: tuple[list[Braked], Headroom]) -> None:
    calls, headroom = case
    judgements = judge(calls, headroom, CONFIG)
    assert sorted(j.call_id for j in judgements) == sorted(c.call_id for c in calls)
    assert judge(list(reversed(calls)), headroom, CONFIG) == judgements


@given(rounds())
def test_no_more_is_given_than_there_is(case: tuple[list[Braked], Headroom]) -> None:
    calls, headroom = case
    total = 0
    of_tenant: defaultdict[TenantId, int] = defaultdict(int)
    for judgement in judge(calls, headroom, CONFIG):
        call = by_id(calls)[judgement.call_id]
        amount = given_away(call, judgement)
        total += amount
        of_tenant[call.tenant_id] += amount
        if call.hard_limit is not None and amount:
            assert judgement.brake <= call.hard_limit
    assert total <= max(0, headroom.host)
    for tenant, room in headroom.tenants.items():
        assert of_tenant[tenant] <= room


@given(rounds())
def test_a_raise_lets_the_call_go_on_and_never_lowers_its_threshold(case: tuple[list[Braked], Headroom]) -> None:
    calls, headroom = case
    for judgement in judge(calls, headroom, CONFIG):
        call = by_id(calls)[judgement.call_id]
        if judgement.verdict is not Verdict.RAISE:
            assert judgement.brake == call.brake
        elif call.usage >= call.brake:
            assert judgement.brake > call.usage
            assert judgement.evidence["new_brake_bytes"] == judgement.brake


@given(rounds())
def test_bounds(case: tuple[list[Braked], Headroom]) -> None:
    """Nobody is held past the bound, and who asked to fail fast fails fast."""
    calls, headroom = case
    for judgement in judge(calls, headroom, CONFIG):
        call = by_id(calls)[judgement.call_id]
        if call.fail_fast:
            assert judgement.verdict is Verdict.KILL
        if call.held_seconds >= CONFIG.hold_max:
            assert judgement.verdict is not Verdict.HOLD


@settings(max_examples=300)
@given(rounds())
def test_no_room_goes_past_a_higher_priority_that_waits_for_it(case: tuple[list[Braked], Headroom]) -> None:
    calls, headroom = case
    judgements = judge(calls, headroom, CONFIG)
    waiting: list[Braked] = []
    for judgement in judgements:
        call = by_id(calls)[judgement.call_id]
        if judgement.verdict is Verdict.RAISE:
            assert not [w for w in waiting if w.priority > call.priority and w.tenant_id == call.tenant_id]
        elif judgement.verdict is Verdict.HOLD:
            waiting.append(call)


@settings(max_examples=300)
@given(rounds())
def test_somebody_of_every_tenant_gets_to_his_end(case: tuple[list[Braked], Headroom]) -> None:
    """The progress guarantee: where nothing else of a tenant runs, its braked calls are neither all held (nobody would
    ever free anything) nor all ended for lack of room."""
    calls, headroom = case
    if headroom.host_others_running:
        return
    judgements = {j.call_id: j for j in judge(calls, headroom, CONFIG)}
    held = [c for c in calls if judgements[c.call_id].verdict is Verdict.HOLD]
    if held and not any(c.running_siblings for c in calls):
        assert any(judgements[c.call_id].verdict is not Verdict.HOLD for c in calls)
    for tenant in TENANTS:
        mine = [c for c in calls if c.tenant_id == tenant]
        patient = [c for c in mine if not c.fail_fast and c.hard_limit is None and c.held_seconds < CONFIG.hold_max]
        if len(patient) == len(mine) > 1:
            assert any(judgements[c.call_id].verdict is not Verdict.KILL for c in mine)


def _braked(name: str, **changes: object) -> Braked:
    facts: dict[str, object] = {
        "call_id": CallId(name),
        "tenant_id": TENANTS[0],
        "priority": 50,
        "usage": 100 * MIB,
        "brake": 100 * MIB,
        "hard_limit": None,
        "held_seconds": 0.0,
        "fail_fast": False,
        "running_siblings": 0,
    }
    return Braked(**(facts | changes))  # type: ignore[arg-type]  # a table of one type would say less


def _verdicts(calls: list[Braked], room: int) -> dict[str, Verdict]:
    headroom = Headroom(host=8192 * MIB, tenants={TENANTS[0]: room}, host_others_running=False)
    return {j.call_id: j.verdict for j in judge(calls, headroom, CONFIG)}


def test_of_calls_that_are_all_held_the_last_in_order_makes_room() -> None:
    calls = [_braked("c-high", priority=60), _braked("c-old", held_seconds=9.0), _braked("c-young")]
    assert _verdicts(calls, 0) == {"c-high": Verdict.HOLD, "c-old": Verdict.HOLD, "c-young": Verdict.KILL}


def test_a_call_waits_for_one_that_was_just_resumed() -> None:
    assert _verdicts([_braked("c-a"), _braked("c-b")], 64 * MIB) == {"c-a": Verdict.RAISE, "c-b": Verdict.HOLD}


def test_a_threshold_that_was_raised_meanwhile_is_kept() -> None:
    headroom = Headroom(host=8192 * MIB, tenants={}, host_others_running=False)
    [judgement] = judge([_braked("c-a", brake=900 * MIB)], headroom, CONFIG)
    assert (judgement.verdict, judgement.brake) == (Verdict.RAISE, 900 * MIB)


def test_a_small_call_gets_up_to_its_hard_limit_too() -> None:
    headroom = Headroom(host=8192 * MIB, tenants={}, host_others_running=False)
    [judgement] = judge([_braked("c-a", usage=8 * MIB, brake=8 * MIB, hard_limit=16 * MIB)], headroom, CONFIG)
    assert (judgement.verdict, judgement.brake) == (Verdict.RAISE, 15 * MIB)


def test_charges_taken_back_while_it_stood_are_no_room() -> None:
    """Each of two calls was given the tenant's last 4 MiB, in rounds of their own, and the kernel ended one."""
    assert _verdicts([_braked("c-a", usage=100 * MIB - 200 * 1024)], 4 * MIB) == {"c-a": Verdict.KILL}


def test_who_gave_memory_back_goes_on_to_the_same_threshold() -> None:
    headroom = Headroom(host=8192 * MIB, tenants={TENANTS[0]: 30 * MIB}, host_others_running=False)
    [judgement] = judge([_braked("c-a", usage=80 * MIB)], headroom, CONFIG)
    assert (judgement.verdict, judgement.brake) == (Verdict.RAISE, 100 * MIB)
