"""The benchmarks' statistics, against Python's own where that has the same definition."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.stats import median, percentile, ratio_of_medians, relative_error, spread

numbers = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)


@given(st.lists(numbers, min_size=2, max_size=300))
def test_percentiles_are_those_of_the_inclusive_definition(values: list[float]) -> None:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    for percent in (1, 25, 50, 75, 99):
        assert percentile(values, percent) == pytest.approx(cuts[percent - 1], rel=1e-9, abs=1e-3)


@given(st.lists(numbers, min_size=1, max_size=50))
def test_spread_is_ordered_and_within_the_values(values: list[float]) -> None:
    s = spread(values)
    assert s.count == len(values)
    assert (s.least, s.most) == (min(values), max(values))
    slack = 1e-6 * max(1.0, abs(s.least), abs(s.most))  # of the interpolation's rounding
    for lower, upper in zip((s.least, s.p25, s.p50, s.p75, s.p99), (s.p25, s.p50, s.p75, s.p99, s.most), strict=True):
        assert lower <= upper + slack


def test_ends_and_middle() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 0) == 1
    assert percentile(values, 100) == 4
    assert median(values) == 2.5
    assert percentile([7.0], 99) == 7
    assert values == [4.0, 1.0, 3.0, 2.0]  # the caller's order is left alone


def test_what_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="101 is not in 0 to 100"):
        percentile([1.0], 101)
    with pytest.raises(ValueError, match="no ratio"):
        ratio_of_medians([1.0], [0.0])
    with pytest.raises(ValueError, match="does not exist"):
        relative_error(1, 0)


def test_ratio_and_error() -> None:
    assert ratio_of_medians([3.0, 2.0, 100.0], [2.0, 1.0, 3.0]) == 1.5
    assert relative_error(98, 100) == pytest.approx(0.02)
    assert relative_error(102, 100) == pytest.approx(0.02)
