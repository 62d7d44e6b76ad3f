"""What is learned from past calls, and the peak of the future in the manner of Past-Future."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.forecast import Future, Kind, Learner, Need, ends_by, fits, future_peak, life_of, peak_of
from controller.forecast.calibration import calibrate
from controller.forecast.learner import SCENARIOS, WINDOW
from controller.forecast.life import MOST_POINTS

MIB = 1 << 20
SUITE = Kind(tenant="acme", tool="Bash", call_class="test", session="s-1")
samples = st.lists(st.tuples(st.floats(0, 100), st.integers(0, 4096 * MIB)), max_size=80).map(sorted)


@settings(max_examples=200, deadline=None)
@given(samples, st.floats(0, 100), st.none() | st.integers(0, 8192 * MIB))
def test_a_life_never_says_less_than_was_used(points: list[tuple[float, int]], length: float, peak: int | None) -> None:
    life = life_of(SUITE, length, points, peak)
    assert life.peak == max([size for _, size in points] + [peak or 0])
    assert len(life.at) == len(life.upto) <= MOST_POINTS
    assert list(life.at) == sorted(set(life.at))
    assert list(life.upto) == sorted(set(life.upto))
    for moment, size in points:
        known = [upto for at, upto in zip(life.at, life.upto, strict=True) if at <= moment]
        assert known[-1] >= size


futures = st.builds(
    lambda ends, first, more: Future(ends, (0.0, ends / 2), (first, first + more)),
    st.floats(0.1, 100),
    st.integers(1, 1000),
    st.integers(1, 1000),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(futures, min_size=1, max_size=8))
def test_the_future_peak_is_that_of_past_future(many: list[Future]) -> None:
    """M* = max over i of what the calls that last at least as long as i use when i ends (section 4 of the paper)."""
    by_formula = max(sum(f.peak if f.ends / 2 <= e.ends else f.upto[0] for f in many if f.ends >= e.ends) for e in many)
    assert future_peak(many) == by_formula
    assert future_peak(many) <= sum(f.peak for f in many)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(futures, min_size=SCENARIOS, max_size=SCENARIOS), max_size=5), st.integers(0, 6000))
def test_fits_is_the_comparison_that_it_saves(many: list[list[Future]], budget: int) -> None:
    needs = [Need(0, 0, 1, 1.0, 1.0, tuple(each), "class", 9) for each in many]
    assert fits(needs, budget) == (peak_of(needs) <= budget)


def _learned(peaks: list[int], kind: Kind = SUITE, seconds: float = 10.0) -> Learner:
    learner = Learner()
    for peak in peaks:
        learner.learn(life_of(kind, seconds, [(0.0, peak // 2), (seconds / 2, peak)]))
    return learner


def test_nothing_is_known_at_first_and_a_declaration_is_believed_while_it_holds() -> None:
    learner = Learner()
    declared = learner.forecast(SUITE, declared_typical=200 * MIB, declared_peak=500 * MIB, declared_seconds=30.0)
    assert (declared.typical, declared.claim, declared.ends_typical) == (200 * MIB, 500 * MIB, 30.0)
    assert declared.basis == "its declaration"
    outgrown = learner.forecast(SUITE, elapsed=1.0, usage=800 * MIB, growing=True, declared_peak=500 * MIB)
    assert (outgrown.claim, outgrown.basis) == (1200 * MIB, "nothing")


def test_quantiles_of_what_was_seen() -> None:
    need = _learned([n * MIB for n in range(1, 101)]).forecast(SUITE, ident="c-1")
    assert (need.typical, need.likely, need.claim) == (50 * MIB, 90 * MIB, 98 * MIB)
    assert (need.ends_typical, need.basis, need.count) == (10.0, "session", 100)
    assert len(need.futures) == SCENARIOS
    assert len({f.peak for f in need.futures}) == SCENARIOS, "one of each part of the distribution"


@pytest.mark.parametrize(
    ("kind", "basis"),
    [
        (SUITE, "session"),
        (Kind(tenant="acme", tool="Bash", call_class="test", session="s-2"), "tenant"),
        (Kind(tenant="other", tool="Bash", call_class="test"), "tool"),
        (Kind(tenant="other", tool="pytest", call_class="test"), "class"),
        (Kind(tenant="other", tool="Read", call_class="read"), "all calls"),
    ],
)
def test_a_kind_that_is_not_known_is_widened(kind: Kind, basis: str) -> None:
    assert _learned([100 * MIB] * 20).forecast(kind).basis == basis


def test_a_call_that_grows_is_like_those_that_grew_so_far() -> None:
    learner = _learned([40 * MIB] * 90 + [1500 * MIB] * 10)
    assert learner.forecast(SUITE).typical == 40 * MIB
    grown = learner.forecast(SUITE, elapsed=2.0, usage=200 * MIB, growing=True)
    assert (grown.typical, grown.count) == (1500 * MIB, 10)


def test_a_call_that_has_run_long_grows_only_by_what_the_others_still_grew() -> None:
    learner = _learned([400 * MIB] * 20)
    late = learner.forecast(SUITE, elapsed=6.0, usage=100 * MIB)
    assert (late.typical, late.ends_typical) == (100 * MIB, 4.0)
    early = learner.forecast(SUITE, elapsed=2.0, usage=100 * MIB)
    assert early.typical == 200 * MIB, "the others doubled, so it may double"
    outlived = learner.forecast(SUITE, elapsed=60.0, usage=100 * MIB)
    assert (outlived.claim, outlived.basis) == (100 * MIB, "its age")


def test_the_choice_of_futures_is_the_call_s_own_and_stays() -> None:
    learner = _learned([n * MIB for n in range(1, 101)])
    assert learner.forecast(SUITE, ident="c-1") == learner.forecast(SUITE, ident="c-1")
    assert learner.forecast(SUITE, ident="c-1").futures != learner.forecast(SUITE, ident="c-2").futures


def test_memory_of_the_past_is_bounded() -> None:
    learner = _learned([MIB] * (WINDOW + 50))
    assert len(learner) == WINDOW
    learner = Learner()
    for number in range(3000):
        learner.learn(life_of(Kind(tool=f"t-{number}"), 1.0, [(0.0, MIB)]))
    assert len(learner._lives) <= 4096


def test_when_enough_will_be_free() -> None:
    short, long = (Need(0, 0, 0, ends, ends, (), "class", 9) for ends in (2.0, 9.0))
    assert ends_by([long, short], 50, [40, 60]) == 2.0
    assert ends_by([long, short], 80, [40, 60]) == 9.0
    assert ends_by([long, short], 200, [40, 60]) is None


def test_calibration_prefers_the_learned_quantiles() -> None:
    """Of calls that are mostly small and sometimes large, in an order without a pattern: nine of ten stay within the
    forecast of 0.9, and neither the last value nor the largest ever comes near it in loss."""
    sizes = [40 * MIB + (n * 7919 % 101) * MIB for n in range(600)]
    scores = calibrate([life_of(SUITE, 10.0, [(0.0, size)]) for size in sizes])
    learned, last, largest = scores
    assert learned.calls == last.calls == 500
    assert learned.coverage() == pytest.approx([0.5, 0.9, 0.98], abs=0.02)
    assert largest.coverage()[0] > 0.95
    for index in range(2):
        assert learned.mean_loss()[index] < min(last.mean_loss()[index], largest.mean_loss()[index])
