"""How one tool call went: what the forecast learns from. Made from the ledger's samples, or from a recorded trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MOST_POINTS: Final = 24  # of a life's curve: a step of an eighth from one to the next covers 1 MiB to 16 MiB in 24
_STEP: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a call is, as far as one can know when it begins. Empty where unknown."""

    tenant: str = ""
    tool: str = ""
    call_class: str = ""
    session: str = ""


@dataclass(frozen=True, slots=True)
class Life:
    """``duration`` seconds of running (holds not counted). ``at``/``upto``: the running maximum of its memory: from
    ``at[i]`` seconds after its begin it had used up to ``upto[i]`` bytes. Both rise strictly; ``at[0]`` is 0."""

    kind: Kind
    duration: float
    at: tuple[float, ...]
    upto: tuple[int, ...]

    @property
    def peak(self) -> int:
        return self.upto[-1]


def life_of(kind: Kind, duration: float, samples: Iterable[tuple[float, int]], peak: int | None = None) -> Life:
    """``samples``: (seconds after the begin, bytes), in order. ``peak``: the kernel's own high-water mark, which knows
    what happened between two samples; it is put where the memory was highest, at the begin where there is no sample.

    Steps smaller than an eighth are merged into the earlier point, so a life is at most MOST_POINTS points and never
    forecasts less than it used."""
    at: list[float] = [0.0]
    upto: list[int] = [0]
    for moment, nbytes in samples:
        if nbytes > upto[-1]:
            when = min(max(moment, at[-1]), max(duration, 0.0))
            if when == at[-1] or (nbytes - upto[-1]) * _STEP <= upto[-1]:
                upto[-1] = nbytes
            else:
                at.append(when)
                upto.append(nbytes)
    if peak is not None and peak > upto[-1]:
        upto[-1] = peak
    while len(at) > MOST_POINTS:
        # drop the point whose loss forecasts the least too much: its value moves to the point before it
        least = min(range(len(upto) - 1), key=lambda i: upto[i + 1] - upto[i])
        upto[least] = upto.pop(least + 1)
        at.pop(least + 1)
    return Life(kind, max(duration, 0.0), tuple(at), tuple(upto))
