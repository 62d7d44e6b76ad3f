"""How good forecasts are: of each call in turn, what was forecast before it began against what it came to use.

Prequential (each call is forecast from those before it, then learned), so nothing is judged on what it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from controller.forecast.learner import Learner
from controller.forecast.life import Kind, Life

SHARES: Final = (0.5, 0.9, 0.98)


@dataclass(slots=True)
class Score:
    """Of one forecaster. ``covered``: of each share, how many calls stayed within that quantile; ``loss``: the sum of
    the pinball losses (bytes), which is least for the true quantile (Koenker and Bassett, 1978)."""

    name: str
    calls: int = 0
    covered: list[int] = field(default_factory=lambda: [0] * len(SHARES))
    loss: list[float] = field(default_factory=lambda: [0.0] * len(SHARES))

    def add(self, forecast: Sequence[int], used: int) -> None:
        self.calls += 1
        for index, (share, bound) in enumerate(zip(SHARES, forecast, strict=True)):
            self.covered[index] += used <= bound
            self.loss[index] += share * (used - bound) if used > bound else (1.0 - share) * (bound - used)

    def coverage(self) -> list[float]:
        return [count / self.calls if self.calls else 0.0 for count in self.covered]

    def mean_loss(self) -> list[float]:
        return [loss / self.calls if self.calls else 0.0 for loss in self.loss]


def calibrate(lives: Iterable[Life], *, warm_up: int = 100) -> list[Score]:
    """Scores of the learner, of the last value and of the largest value ever of the same tool and class (each of the
    two is all three quantiles at once), over ``lives`` in order. The first ``warm_up`` are learned only."""
    learner = Learner()
    last: dict[tuple[str, str], int] = {}
    largest: dict[tuple[str, str], int] = {}
    scores = [Score("learned"), Score("last value"), Score("largest ever")]
    for number, life in enumerate(lives):
        key = _key(life.kind)
        if number >= warm_up and key in last:
            need = learner.forecast(life.kind, ident=str(number))
            scores[0].add((need.typical, need.likely, need.claim), life.peak)
            scores[1].add((last[key],) * len(SHARES), life.peak)
            scores[2].add((largest[key],) * len(SHARES), life.peak)
        learner.learn(life)
        last[key] = life.peak
        largest[key] = max(life.peak, largest.get(key, 0))
    return scores


def _key(kind: Kind) -> tuple[str, str]:
    return (kind.tool, kind.call_class)
