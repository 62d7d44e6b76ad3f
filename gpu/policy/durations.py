"""What is known of how long a tool call takes: a distribution, conditional on what has passed already. Seconds.

Three sources are mixed: calls of the same class that ended, a general prior (tools are quick, with a heavy tail), whose
weight fades as the class becomes known, and what the call itself declared. Beyond the longest duration that is known, a
call is as likely as not to take as long again as it has taken (the tail of a Pareto distribution with exponent 1).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import exp, log
from typing import Final, overload

# Tools in general, before anything is known: about evenly spread over the logarithm of time.
PRIOR: Final = (0.02, 0.05, 0.3, 1.0, 4.0, 10.0, 30.0, 120.0)
PRIOR_SAMPLES: Final = 2.0  # how many calls of a class the prior counts for
DECLARED: Final = (0.5, 0.8, 1.0, 1.25, 2.0)  # a declared duration is right within a factor of two
MOST_POINTS: Final = 48  # of a class's history: more do not change a decision, and cost time at each
_GRID: Final = 16.0  # steps of elapsed time per factor of e, for the memory of results
_COARSE: Final = 4.0  # the same of horizons
_LEAST: Final = 1e-3


class Durations(Sequence[float]):
    """Immutable. As a sequence it is what it was learned from, in ascending order: baselines look at that."""

    __slots__ = ("_at", "_history", "_means", "_rates", "_weights")

    def __init__(self, points: Sequence[tuple[float, float]], history: Sequence[float] = ()) -> None:
        """:param points: (seconds, weight); weights need not add up to 1. None: what is known of tools in general."""
        ordered = sorted((max(at, 0.0), weight) for at, weight in points if weight > 0)
        if not ordered:
            ordered = [(at, 1.0) for at in PRIOR]
        total = sum(weight for _, weight in ordered)
        self._history: Final = tuple(history)
        self._at: Final = tuple(at for at, _ in ordered)
        self._weights: Final = tuple(weight / total for _, weight in ordered)
        self._rates: Final[dict[tuple[int, int], float]] = {}  # pure results, remembered
        self._means: Final[dict[int, float]] = {}

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[float]: ...
    def __getitem__(self, index: int | slice) -> float | Sequence[float]:
        return self._history[index]

    def __len__(self) -> int:
        return len(self._history)

    def __iter__(self) -> Iterator[float]:
        return iter(self._history)  # many times faster than by index

    def ahead(self, elapsed: float) -> list[tuple[float, float]]:
        """(seconds from now, probability) given that it still runs after ``elapsed``; never empty, adds up to 1."""
        first = bisect_right(self._at, elapsed)
        mass = sum(self._weights[first:])
        if mass <= 0:
            base = max(elapsed, _LEAST)
            return [(base * 0.25, 0.25), (base, 0.25), (base * 3, 0.25), (base * 9, 0.25)]
        return [
            (at - elapsed, weight / mass) for at, weight in zip(self._at[first:], self._weights[first:], strict=True)
        ]

    def rate(self, elapsed: float, horizon: float) -> float:
        """How likely and how soon it is back: ``E[exp(-R / horizon)] / horizon``, R what remains of the call; 1/s.

        KV that is put out makes room for ``horizon`` or so, until that room would have been wanted again: a return long
        after that is worth nothing, whenever it is. ``elapsed`` is rounded to 6 %, ``horizon`` to 25 %.
        """
        cell = round(log(max(elapsed, _LEAST)) * _GRID), round(log(max(horizon, _LEAST)) * _COARSE)
        found = self._rates.get(cell)
        if found is None:
            over = exp(cell[1] / _COARSE)
            ahead = self.ahead(exp(cell[0] / _GRID) if elapsed > _LEAST else 0.0)
            found = self._rates[cell] = sum(weight * exp(-at / over) for at, weight in ahead) / over
        return found

    def mean(self, elapsed: float) -> float:
        """Expected seconds that remain; ``elapsed`` is rounded to 6 %."""
        cell = round(log(max(elapsed, _LEAST)) * _GRID)
        found = self._means.get(cell)
        if found is None:
            ahead = self.ahead(exp(cell / _GRID) if elapsed > _LEAST else 0.0)
            found = self._means[cell] = sum(at * weight for at, weight in ahead)
        return found

    def hold(self, elapsed: float, gain: float, price: float) -> tuple[float, float]:
        """For how long to hold, and what that is worth: ``max_tau P(R <= tau) gain - price E[min(R, tau)]``.

        :param gain: what a return in time saves; :param price: of a second of holding, in the same unit
        :returns: (0, 0) where not to hold is best
        """
        best, best_value = 0.0, 0.0
        chance = held = 0.0
        for tau, weight in self.ahead(elapsed):
            chance += weight
            held += weight * tau
            value = chance * gain - price * (held + (1 - chance) * tau)
            if value > best_value:
                best, best_value = tau, value
        return best, best_value

    def chance(self, elapsed: float, within: float) -> float:
        """That it ends within so many seconds from now."""
        return min(1.0, sum(weight for at, weight in self.ahead(elapsed) if at <= within))


def known(durations: Sequence[float], expected: float | None, *, trust: float) -> Durations:
    """The distribution that a pause's facts amount to.

    :param trust: probability that what was declared (``expected``) holds, where there is history besides; 0 to 1
    """
    if expected is None and isinstance(durations, Durations):
        return durations
    return _known(durations if isinstance(durations, Durations) else tuple(durations), expected, trust)


@lru_cache(maxsize=4096)
def _known(durations: tuple[float, ...] | Durations, expected: float | None, trust: float) -> Durations:
    history = durations if isinstance(durations, Durations) else learned(durations)
    if expected is None:
        return history
    share = trust if len(durations) else 1.0
    points = [(at, weight * (1 - share)) for at, weight in zip(history._at, history._weights, strict=True)]
    points += [(expected * factor, share / len(DECLARED)) for factor in DECLARED]
    return Durations(points, history)


def learned(samples: Sequence[float]) -> Durations:
    """From what ended: as many points as make a difference, with the prior mixed in."""
    ordered = sorted(samples)
    count = len(ordered)
    if count > MOST_POINTS:
        points = [
            (ordered[min(count - 1, int((step + 0.5) * count / MOST_POINTS))], count / MOST_POINTS)
            for step in range(MOST_POINTS)
        ]
    else:
        points = [(at, 1.0) for at in ordered]
    points += [(at, PRIOR_SAMPLES / len(PRIOR)) for at in PRIOR]
    return Durations(points, ordered)
