"""Corral's own KV policy: what a session's KV is worth, who goes, what comes back when, who is let in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu.cost import ForwardModel, SwapModel
from gpu.errors import InvalidValue
from gpu.policy import (
    POLICIES,
    AlwaysKeep,
    Durations,
    KvAction,
    LeastRecentlyUsed,
    Pause,
    Place,
    ShadowPrice,
    Tier,
    Waiting,
    learned,
    policy_named,
)
from gpu.policy.durations import known

POLICY = ShadowPrice()
# 10,000 tokens take 1 s to compute and 0.1 s to copy.
TIER = Tier(
    bytes_per_token=1000,
    capacity=100_000,
    used=0,
    running_tokens=0,
    forward=ForwardModel(b=1e-4),
    swap=SwapModel(bytes_per_second=1e8),
    offload_free=1 << 40,
)


def exactly(seconds: float) -> Durations:
    return Durations(((seconds, 1.0),), (seconds,))


def pause(
    session: str, seconds: float = 1.0, *, tokens: int = 10_000, elapsed: float = 0.0, where: Place = Place.RESIDENT
) -> Pause:
    return Pause(session=session, tokens=tokens, elapsed=elapsed, durations=exactly(seconds), where=where)


def full(*pauses: Pause, over: int = 0) -> Tier:
    """A pool that is exactly at the limit of no pressure, and ``over`` tokens more are asked for."""
    return replace(TIER, used=int(POLICY.headroom * TIER.capacity), waiting_tokens=over, paused=pauses)


# --- durations -------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e4), max_size=80), st.floats(0, 2e4), st.floats(0, 100))
def test_what_lies_ahead_is_a_distribution_of_the_future(samples: list[float], elapsed: float, within: float) -> None:
    found = learned(samples)
    ahead = found.ahead(elapsed)
    assert sum(weight for _, weight in ahead) == pytest.approx(1.0)
    assert all(at >= 0 and weight > 0 for at, weight in ahead)
    assert 0 <= found.chance(elapsed, within) <= found.chance(elapsed, within * 2) <= 1
    assert found.rate(elapsed, 5.0) >= 0
    assert list(found) == sorted(samples)


def test_history_outweighs_the_prior_and_a_declaration_is_trusted_half() -> None:
    assert learned([7.0] * 200).mean(0.0) == pytest.approx(7.0, rel=0.1)
    alone = known((), 60.0, trust=0.5)
    assert 50 < alone.mean(0.0) < 80
    both = known((7.0,) * 200, 60.0, trust=0.5)
    assert 25 < both.mean(0.0) < 45
    # What was declared has passed: history is left.
    assert known((200.0,) * 200, 1.0, trust=0.5).mean(5.0) == pytest.approx(195.0, rel=0.1)


def test_beyond_all_that_is_known_a_call_takes_as_long_again() -> None:
    late = exactly(1.0)
    assert late.mean(100.0) > 100.0
    assert late.rate(1000.0, 10.0) < late.rate(10.0, 10.0) < late.rate(0.5, 10.0)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0, 50), st.floats(0, 10), st.floats(0.001, 5))
def test_no_other_time_to_hold_is_worth_more(samples: list[float], elapsed: float, gain: float, price: float) -> None:
    found = learned(samples)
    _, worth = found.hold(elapsed, gain, price)
    ahead = found.ahead(elapsed)
    for tau in [0.0] + [at for at, _ in ahead]:
        back = sum(weight for at, weight in ahead if at <= tau)
        held = sum(weight * min(at, tau) for at, weight in ahead)
        assert worth >= gain * back - price * held - 1e-9


# --- a call begins ---------------------------------------------------------------------------------------------------


def test_with_room_holding_is_free() -> None:
    for seconds in (0.1, 1e4):
        decision = POLICY.at_pause(pause("a", seconds), TIER)
        assert (decision.action, decision.ttl) == (KvAction.KEEP, None)


def test_a_price_gives_a_time_to_live_to_some_and_none_to_others() -> None:
    others = [pause(f"o{number}", 5.0) for number in range(9)]
    tier = full(*others, over=20_000)
    short = POLICY.at_pause(pause("a", 0.5), tier)
    assert short.action is KvAction.KEEP
    assert short.ttl == pytest.approx(0.5)
    eager = ShadowPrice(eager=True).at_pause(pause("b", 500.0), tier)
    assert eager.action is KvAction.OFFLOAD
    lazy = POLICY.at_pause(pause("b", 500.0), tier)
    assert (lazy.action, lazy.ttl) == (KvAction.KEEP, None)
    assert lazy.evidence["price_seconds_per_token_second"] > 0


@given(
    st.lists(st.tuples(st.floats(0.01, 1e3), st.integers(1, 20_000)), min_size=1, max_size=10),
    st.floats(0, 100),
    st.integers(0, 50_000),
)
def test_never_drops_at_a_calls_begin(held: list[tuple[float, int]], elapsed: float, over: int) -> None:
    """A drop later costs the same, and the call may end before."""
    others = [pause(f"o{number}", seconds, tokens=tokens) for number, (seconds, tokens) in enumerate(held)]
    for policy in (POLICY, ShadowPrice(eager=True)):
        for tier in (full(*others, over=over), replace(full(*others, over=over), swap=None)):
            assert policy.at_pause(replace(others[0], elapsed=elapsed), tier).action is not KvAction.DROP


# --- pressure --------------------------------------------------------------------------------------------------------


def test_belady_among_equals() -> None:
    pauses = [pause(f"s{seconds}", float(seconds)) for seconds in (5, 50, 1, 20)]
    named = [one.session for one in POLICY.under_pressure(pauses, TIER, 25_000)]
    assert named == ["s50", "s20", "s5"]


def test_who_is_not_needed_after_all_is_spared() -> None:
    pauses = [pause("small", 100.0, tokens=1000), pause("large", 90.0, tokens=20_000), pause("soon", 1.0)]
    assert [one.session for one in POLICY.under_pressure(pauses, TIER, 15_000)] == ["large"]
    assert [one.session for one in POLICY.under_pressure(pauses, TIER, 21_000)] == ["small", "large"]


def test_in_part_only_what_is_needed_goes() -> None:
    tier = replace(TIER, partial=True)
    (one,) = POLICY.under_pressure([pause("a", 50.0), pause("b", 1.0)], tier, 3000)
    assert (one.session, one.action) == ("a", KvAction.OFFLOAD)
    assert one.tokens is not None
    assert 3000 <= one.tokens < 3256


def test_room_outside_goes_to_who_makes_better_use_of_it() -> None:
    tier = replace(TIER, offload_free=0)
    away = pause("away", 500.0, where=Place.OFFLOADED)
    decisions = POLICY.under_pressure([pause("a", 20.0), away], tier, 10_000)
    assert [(one.session, one.action) for one in decisions] == [("away", KvAction.DROP), ("a", KvAction.OFFLOAD)]
    soon = replace(away, durations=exactly(2.0))
    decisions = POLICY.under_pressure([pause("a", 20.0), soon], tier, 10_000)
    assert [(one.session, one.action) for one in decisions] == [("a", KvAction.DROP)]


def test_who_waited_for_lost_kv_is_spared_the_next_time() -> None:
    one, two = pause("one", 20.0), pause("two", 21.0)
    assert [d.session for d in POLICY.under_pressure([one, two], TIER, 1)] == ["two"]
    hurt = replace(two, waited=60.0)
    assert [d.session for d in POLICY.under_pressure([one, hurt], TIER, 1)] == ["one"]


_places = st.sampled_from([Place.RESIDENT, Place.OFFLOADED])
_some = st.lists(
    st.builds(
        Pause,
        session=st.sampled_from([f"s{number}" for number in range(30)]),
        tokens=st.integers(0, 5000),
        elapsed=st.floats(0, 100),
        durations=st.lists(st.floats(0, 100), max_size=5).map(tuple),
        last_used=st.floats(0, 1e6),
        where=_places,
        waited=st.floats(0, 100),
    ),
    max_size=12,
    unique_by=lambda one: one.session,
)


@pytest.mark.parametrize("policy", [POLICY, LeastRecentlyUsed(), AlwaysKeep()], ids=lambda one: one.name)
@given(_some, st.integers(0, 40_000), st.integers(0, 20_000), st.sampled_from([None, 0, 700, 3000]))
def test_decisions_can_be_carried_out_one_after_the_other(
    policy: ShadowPrice, pauses: list[Pause], need: int, room: int, outside: int | None
) -> None:
    """Followed in their order they free what is asked for, and never more lies outside than fits."""
    partial = outside is not None
    if outside:
        pauses = [replace(one, outside=outside) if one.resident else one for one in pauses]
    tier = replace(TIER, offload_free=room * TIER.bytes_per_token, partial=partial)
    here = {one.session: one.resident for one in pauses}
    away = {one.session: one.away for one in pauses}
    held, free = sum(here.values()), room
    for one in policy.under_pressure(pauses, tier, need):
        session = one.session
        assert one.tokens is None or partial
        if one.action is KvAction.OFFLOAD:
            moved = here[session] if one.tokens is None else one.tokens
            assert 0 < moved <= min(here[session], free)
            here[session] -= moved
            away[session] += moved
            free -= moved
        else:
            lost = here[session] + away[session] if one.tokens is None else one.tokens
            first = min(lost, away[session])
            away[session] -= first
            free += first
            assert lost - first <= here[session]
            here[session] -= lost - first
        assert free >= 0
    assert held - sum(here.values()) >= min(need, held)


# --- fetching ahead --------------------------------------------------------------------------------------------------


def test_fetched_in_time_for_the_calls_end() -> None:
    found = POLICY.before_return(pause("a", 60.0, where=Place.OFFLOADED), TIER)
    assert found is not None
    assert found.after == pytest.approx(60.0 - 0.1)  # the copy takes 0.1 s
    late = POLICY.before_return(pause("a", 60.0, where=Place.OFFLOADED, elapsed=59.95), TIER)
    assert late is not None
    assert late.after == 0.0


def test_not_fetched_into_a_pool_of_running_turns_nor_when_it_is_there() -> None:
    away = pause("a", 60.0, where=Place.OFFLOADED)
    assert POLICY.before_return(away, replace(TIER, used=TIER.capacity, running_tokens=TIER.capacity)) is None
    assert POLICY.before_return(pause("a", 60.0), TIER) is None
    assert POLICY.before_return(away, replace(TIER, swap=None)) is None


def test_a_dear_pool_fetches_later() -> None:
    spread = Durations(((1.0, 0.5), (20.0, 0.5)))
    away = replace(pause("a", where=Place.OFFLOADED), durations=spread)
    cheap = POLICY.before_return(away, TIER)
    dear = POLICY.before_return(away, full(*(pause(f"o{number}", 0.05) for number in range(9)), over=40_000))
    assert cheap is not None
    assert cheap.after == pytest.approx(0.9)  # for the first of two ends: to lie idle until the other is worth it
    assert dear is not None
    assert dear.after == pytest.approx(19.9)


# --- turns, sessions, the host ---------------------------------------------------------------------------------------


@given(
    st.lists(
        st.builds(
            Waiting,
            session=st.sampled_from([f"s{number}" for number in range(30)]),
            tokens=st.integers(0, 10_000),
            waited=st.floats(0, 100),
            priority=st.integers(0, 100),
            where=st.sampled_from(list(Place)),
        ),
        unique_by=lambda one: one.session,
    )
)
def test_nobody_is_overtaken_after_waiting_long_enough(waiting: list[Waiting]) -> None:
    order = POLICY.order(waiting, TIER)
    assert sorted(order) == sorted(one.session for one in waiting)
    by_name = {one.session: one for one in waiting}
    patient = [by_name[name] for name in order if by_name[name].waited >= POLICY.patience]
    assert [by_name[name] for name in order[: len(patient)]] == patient
    assert [one.waited for one in patient] == sorted((one.waited for one in patient), reverse=True)


def test_turns_whose_kv_is_there_go_first_among_equals() -> None:
    waiting = [Waiting(session="gone", tokens=1, waited=5.0), Waiting(session="here", tokens=1, where=Place.RESIDENT)]
    assert POLICY.order(waiting, TIER) == ("here", "gone")
    assert AlwaysKeep().order(waiting, TIER) == ("gone", "here")


def test_new_sessions_wait_where_they_would_thrash() -> None:
    busy = replace(TIER, running_tokens=60_000, used=60_000)
    assert POLICY.admit(20_000, busy).admitted
    refused = POLICY.admit(40_000, busy)
    assert not refused.admitted
    assert refused.evidence["demand_tokens"] == 100_000
    back_soon = replace(busy, paused=tuple(pause(f"o{number}", 0.1) for number in range(3)))
    assert not POLICY.admit(20_000, back_soon).admitted
    away_for_long = replace(busy, paused=tuple(pause(f"o{number}", 900.0) for number in range(3)))
    assert POLICY.admit(20_000, away_for_long).admitted
    assert POLICY.admit(200_000, TIER).admitted  # alone it may try
    assert AlwaysKeep().admit(10**9, busy).admitted


def test_the_host_hears_who_holds_up_others_and_who_can_wait() -> None:
    pauses: Sequence[Pause] = (
        pause("holds", 60.0, tokens=40_000),
        pause("little", 60.0, tokens=100),
        pause("away", 60.0, where=Place.OFFLOADED),
    )
    assert POLICY.hints(pauses, TIER) == ()
    crowded = replace(TIER, used=90_000, waiting_tokens=30_000, queueing=20.0)
    hints = {one.session: one for one in POLICY.hints(pauses, crowded)}
    assert set(hints) == {"holds", "away"}
    assert hints["holds"].urgency == 1.0
    assert -1 <= hints["away"].urgency < 0
    assert hints["away"].slack == 20.0
    assert AlwaysKeep().hints(pauses, crowded) == ()


def test_policies_have_names() -> None:
    assert {name: policy_named(name).name for name in POLICIES} == {name: name for name in POLICIES}
    with pytest.raises(InvalidValue, match="one of always-drop"):
        policy_named("best")
