"""KV policies and the cost formulas: worked examples, and properties by hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpu.cost import ForwardModel, SwapModel, fit_forward, gamma, prefill_equivalents
from gpu.errors import InvalidValue
from gpu.policy import (
    AlwaysDrop,
    AlwaysKeep,
    AlwaysOffload,
    Continuum,
    InferCept,
    KvAction,
    KvPolicy,
    LeastRecentlyUsed,
    Pause,
    ShadowPrice,
    Tier,
    time_to_live,
    waste,
)

ALL: Sequence[KvPolicy] = (
    AlwaysKeep(),
    AlwaysDrop(),
    AlwaysOffload(),
    LeastRecentlyUsed(),
    InferCept(),
    InferCept(chunks=8),
    Continuum(),
    Continuum(offload=True),
    ShadowPrice(),
)

TIER = Tier(
    bytes_per_token=2048,
    capacity=10_000,
    used=5_000,
    running_tokens=2_000,
    forward=ForwardModel(b=0.001),
    swap=SwapModel(bytes_per_second=2_048_000),
    offload_free=1 << 30,
)


def pause(tokens: int = 1000, *, expected: float | None = 1.0, session: str = "s") -> Pause:
    return Pause(session=session, tokens=tokens, expected=expected)


# --- cost ------------------------------------------------------------------------------------------------------------


def test_forward_and_swap_models() -> None:
    assert ForwardModel(a=1e-6, b=1e-3, c=0.5).seconds(1000) == pytest.approx(1.0 + 1.0 + 0.5)
    assert ForwardModel(b=1.0).seconds(0) == 0
    assert SwapModel(bytes_per_second=100, latency=0.25).seconds(50) == 0.75
    for broken in ({"b": -1.0}, {"b": 0.0}, {"b": 1.0, "c": -1.0}):
        with pytest.raises(InvalidValue):
            ForwardModel(**broken)
    with pytest.raises(InvalidValue):
        SwapModel(bytes_per_second=0)


@given(st.floats(0, 1e-6), st.floats(1e-6, 1e-2), st.floats(0, 1))
def test_a_fit_finds_the_model_that_made_the_samples(a: float, b: float, c: float) -> None:
    model = ForwardModel(a=a, b=b, c=c)
    found = fit_forward([(size, model.seconds(size)) for size in (100, 500, 1000, 4000, 16000)])
    assert found is not None
    for size in (300, 2000, 12000):
        assert found.seconds(size) == pytest.approx(model.seconds(size), rel=0.02, abs=1e-3)


@given(st.lists(st.tuples(st.floats(1, 1e5), st.floats(0, 100)), max_size=12))
def test_a_fit_of_noise_is_a_model_or_none(samples: list[tuple[float, float]]) -> None:
    found = fit_forward(samples)
    if found is not None:
        assert found.seconds(1e5) >= found.seconds(10) >= 0


def test_too_few_samples_fit_nothing() -> None:
    assert fit_forward([]) is None
    assert fit_forward([(10, 1.0), (10, 2.0)]) is None
    line = fit_forward([(10, 1.5), (20, 2.5)])
    assert line is not None
    assert line.a == 0.0
    assert (line.b, line.c) == pytest.approx((0.1, 0.5))


def test_prefill_equivalents() -> None:
    weight = gamma(layers=32, width=4096, parameters=8e9, flops_per_byte=300)
    assert weight == pytest.approx(2 * 32 * 4096 * 300 / 8e9)
    assert prefill_equivalents(computed=100, generated=10, context=1000, gamma=0.01) == pytest.approx(200.0)
    with pytest.raises(InvalidValue):
        gamma(layers=0, width=1, parameters=1, flops_per_byte=1)


# --- InferCept -------------------------------------------------------------------------------------------------------


def test_wastes_by_the_papers_formulas() -> None:
    found = waste(pause(), TIER, remaining=3.0)
    assert found.preserve == 3.0 * 1000 * 2048
    assert found.discard == pytest.approx(1.0 * (1000 + 2000) * 2048)
    assert found.swap == pytest.approx(2 * 1.0 * 2000 * 2048)
    chunked = waste(pause(), TIER, remaining=3.0, chunks=4)
    assert chunked.discard == pytest.approx(1.0 * 1000 * 2048 / 2 + 4 * 0.25 * 2000 * 2048)


@pytest.mark.parametrize(
    ("expected", "tier", "action"),
    [
        (1.0, TIER, KvAction.KEEP),
        (60.0, TIER, KvAction.DROP),
        (60.0, replace(TIER, swap=SwapModel(bytes_per_second=1e9)), KvAction.OFFLOAD),
        (60.0, replace(TIER, swap=SwapModel(bytes_per_second=1e9), offload_free=100), KvAction.DROP),
        (60.0, replace(TIER, swap=None), KvAction.DROP),
        (60.0, replace(TIER, forward=ForwardModel(b=10.0), swap=None), KvAction.KEEP),
    ],
)
def test_infercept_takes_the_least_waste(expected: float, tier: Tier, action: KvAction) -> None:
    decision = InferCept().at_pause(pause(expected=expected), tier)
    assert decision.action is action
    assert decision.evidence["remaining_seconds"] == expected
    assert (decision.ttl is None) == (action is not KvAction.KEEP)


def test_what_remains_of_a_pause() -> None:
    assert Pause(session="s", tokens=1, expected=5, elapsed=2).remaining(9) == 3
    assert Pause(session="s", tokens=1, expected=5, elapsed=8).remaining(9) == 8  # late: as long again
    assert Pause(session="s", tokens=1, durations=(1, 4, 8), elapsed=2).remaining(9) == 4
    assert Pause(session="s", tokens=1, durations=(1, 4), elapsed=5).remaining(9) == 9
    assert Pause(session="s", tokens=1).remaining(9) == 9
    with pytest.raises(InvalidValue):
        Pause(session="s", tokens=-1)


# --- Continuum -------------------------------------------------------------------------------------------------------


def test_time_to_live_by_hand() -> None:
    # Nine calls of 1 s, one of 100 s; a gain of 5 s: 0.9 x 5 - 1 = 3.5 beats 1 x 5 - 100 and 0.
    assert time_to_live([1.0] * 9 + [100.0], 5.0) == 1.0
    assert time_to_live([1.0] * 9 + [100.0], 1000.0) == 100.0
    assert time_to_live([10.0], 5.0) == 0.0
    assert time_to_live([], 5.0) == 0.0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40), st.floats(0, 300))
def test_no_other_time_to_live_is_better(durations: list[float], gain: float) -> None:
    def value(tau: float) -> float:
        return sum(one <= tau for one in durations) / len(durations) * gain - tau

    best = time_to_live(durations, gain)
    assert all(value(best) >= value(step / 4) - 1e-9 for step in range(450))


def test_continuum_waits_two_seconds_until_it_knows_the_tool() -> None:
    cold = Continuum().at_pause(replace(pause(), durations=(50.0,) * 99), TIER)
    assert (cold.action, cold.ttl) == (KvAction.KEEP, 2.0)
    warm = Continuum().at_pause(replace(pause(), durations=(0.5,) * 100), replace(TIER, queueing=1.0))
    assert (warm.action, warm.ttl) == (KvAction.KEEP, 0.5)
    slow = Continuum().at_pause(replace(pause(), durations=(50.0,) * 100), TIER)
    assert (slow.action, slow.ttl) == (KvAction.DROP, None)
    assert Continuum(offload=True).at_pause(replace(pause(), durations=(50.0,) * 100), TIER).action is KvAction.OFFLOAD
    assert Continuum().expired(pause(), TIER).action is KvAction.DROP


# --- all of them -----------------------------------------------------------------------------------------------------

_pauses = st.lists(
    st.builds(
        Pause,
        session=st.sampled_from([f"s{number}" for number in range(40)]),
        tokens=st.integers(0, 4000),
        elapsed=st.floats(0, 100),
        expected=st.one_of(st.none(), st.floats(0, 1000)),
        durations=st.lists(st.floats(0, 100), max_size=5),
        last_used=st.floats(0, 1e6),
    ),
    max_size=12,
    unique_by=lambda one: one.session,
)
_tiers = st.builds(
    Tier,
    bytes_per_token=st.integers(1, 1 << 18),
    capacity=st.integers(0, 1 << 20),
    used=st.integers(0, 1 << 20),
    running_tokens=st.integers(0, 1 << 16),
    forward=st.builds(ForwardModel, a=st.floats(0, 1e-6), b=st.floats(1e-6, 1e-2), c=st.floats(0, 1)),
    swap=st.one_of(st.none(), st.builds(SwapModel, bytes_per_second=st.floats(1e3, 1e11), latency=st.floats(0, 1))),
    offload_free=st.integers(0, 1 << 34),
    queueing=st.floats(0, 100),
)


@pytest.mark.parametrize("policy", ALL, ids=repr)
@given(_pauses, _tiers, st.integers(0, 20_000))
def test_room_is_made_and_never_more_offloaded_than_fits(
    policy: KvPolicy, pauses: list[Pause], tier: Tier, need: int
) -> None:
    decisions = policy.under_pressure(pauses, tier, need)
    size = {one.session: one.tokens for one in pauses}
    named = [one.session for one in decisions]
    assert len(set(named)) == len(named)
    assert all(one.action is not KvAction.KEEP and one.why for one in decisions)
    freed = sum(size[one] for one in named)
    assert freed >= min(need, sum(size.values()))
    offloaded = sum(size[one.session] for one in decisions if one.action is KvAction.OFFLOAD)
    if tier.swap is None or isinstance(policy, AlwaysDrop):
        assert offloaded == 0
    assert offloaded * tier.bytes_per_token <= tier.offload_free
    if decisions and not isinstance(policy, AlwaysDrop):
        assert freed - size[named[-1]] < need  # the last one was needed, too


@pytest.mark.parametrize("policy", ALL, ids=repr)
@given(_pauses, _tiers)
def test_decisions_are_functions_of_what_is_seen(policy: KvPolicy, pauses: list[Pause], tier: Tier) -> None:
    for one in pauses:
        for decision in (policy.at_pause(one, tier), policy.expired(one, tier)):
            assert decision.session == one.session
            assert decision.why
            assert decision.ttl is None or (decision.action is KvAction.KEEP and decision.ttl > 0)
            if decision.action is KvAction.OFFLOAD:
                assert tier.can_offload(one.tokens)
        assert policy.at_pause(one, tier) == policy.at_pause(replace(one), replace(tier))


@given(_tiers, st.integers(1, 4000), st.floats(0, 1000), st.floats(0, 1000))
def test_infercept_never_keeps_for_a_longer_call_what_it_gives_up_for_a_shorter_one(
    tier: Tier, tokens: int, one: float, two: float
) -> None:
    short, long = sorted((one, two))
    assume(long > short)
    keeps_long = InferCept().at_pause(pause(tokens, expected=long), tier).action is KvAction.KEEP
    keeps_short = InferCept().at_pause(pause(tokens, expected=short), tier).action is KvAction.KEEP
    assert keeps_short or not keeps_long
