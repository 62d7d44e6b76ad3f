"""What one call will still need, as a policy sees it: a few quantiles, and a few whole futures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Future:
    """One way in which a call may go on: ``at[i]`` seconds from now it uses up to ``upto[i]`` bytes, until ``ends``.

    Both rise strictly (a running maximum: whoever has to promise memory promises the most until then). The first entry
    is at 0.
    """

    ends: float
    at: tuple[float, ...]
    upto: tuple[int, ...]

    @property
    def peak(self) -> int:
        return self.upto[-1]


@dataclass(frozen=True, slots=True)
class Need:
    """The forecast of one call from now on, given how long it has run and what it has used.

    Peaks in bytes: ``typical`` (median), ``likely`` (9 of 10 stay below), ``claim`` (what it must be able to get to be
    sure to finish, as far as such calls are known). Remaining times in seconds: ``ends_typical``, ``ends_likely``.
    ``basis`` says from what it was learned; ``count`` from how many calls. ``declared``: the sizes are those that the
    call declared. ``timed``: something is known of its length, so that others may be told when it will end.
    """

    typical: int
    likely: int
    claim: int
    ends_typical: float
    ends_likely: float
    futures: tuple[Future, ...]
    basis: str
    count: int
    declared: bool = False
    timed: bool = True


UNKNOWN: Final = Need(0, 0, 0, 0.0, 0.0, (), "nothing", 0, timed=False)
