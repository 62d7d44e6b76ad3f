"""Order statistics of small samples. Nothing is interpolated away: p99 of 60 values is (almost) their largest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` (0 to 100) of ``values`` lie, interpolated linearly between neighbours.

    Definition 7 of Hyndman and Fan (1996), as numpy's and R's default. ValueError when there are no values.
    """
    if not values:
        raise ValueError("no values: a percentile of nothing does not exist")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent {percent:g} is not in 0 to 100")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)


@dataclass(frozen=True, slots=True)
class Spread:
    """``p25`` and ``p75`` say how far single runs scatter; ``count`` how many there were."""

    count: int
    least: float
    p25: float
    p50: float
    p75: float
    p99: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """ValueError when there are no values."""
    p25, p50, p75, p99 = (percentile(values, p) for p in (25, 50, 75, 99))
    return Spread(count=len(values), least=min(values), p25=p25, p50=p50, p75=p75, p99=p99, most=max(values))


def ratio_of_medians(values: Sequence[float], baseline: Sequence[float]) -> float:
    """How many times as large as ``baseline``. ValueError when either is empty or the baseline's median is 0."""
    base = median(baseline)
    if base == 0:
        raise ValueError("the baseline's median is 0: there is no ratio to it")
    return median(values) / base


def relative_error(counted: float, expected: float) -> float:
    """|counted - expected| / expected. ValueError when nothing was expected."""
    if expected <= 0:
        raise ValueError(f"expected {expected:g}: an error relative to it does not exist")
    return abs(counted - expected) / expected
