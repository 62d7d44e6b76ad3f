"""A forecast that is kept with its call until the call has changed: making one costs up to a millisecond."""

from __future__ import annotations

from typing import Final

from controller.forecast.need import Need
from controller.model import ForecastView

_SAME_AGE: Final = 1.25  # times older, and
_SAME_TIME: Final = 0.5  # so many seconds more: until then a forecast stands
_SAME_SIZE: Final = 8  # nor is it made anew while the use has changed by less than one part in so many, and
_SAME_BYTES: Final = 4 << 20


class Kept:
    """A forecast, and for what it was made."""

    __slots__ = ("elapsed", "growing", "most", "need", "usage")

    def __init__(self, need: Need, elapsed: float, usage: int, growing: bool) -> None:
        self.need = need
        self.elapsed = elapsed
        self.usage = usage
        self.growing = growing
        self.most = max(need.claim, *(future.peak for future in need.futures), usage)

    def stands(self, elapsed: float, usage: int, growing: bool) -> bool:
        return (
            growing == self.growing
            and elapsed <= self.elapsed * _SAME_AGE + _SAME_TIME
            and abs(usage - self.usage) <= max(_SAME_BYTES, self.usage // _SAME_SIZE)
            and not (growing and usage != self.usage)
        )

    def view(self) -> ForecastView | None:
        """For people: nothing where nothing is known of such calls."""
        need = self.need
        if not need.count:
            return None
        return ForecastView(
            memory_median=need.typical,
            memory_high=need.claim,
            remaining=need.ends_typical if need.timed else None,
            lives=need.count,
            kind=need.basis,
        )
