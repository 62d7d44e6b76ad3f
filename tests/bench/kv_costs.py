"""What KV costs to compute and to move at one engine, learned from its turns and moves."""

from __future__ import annotations

from collections import deque
from typing import Final

from gpu.cost import ForwardModel, SwapModel, fit_forward

_KEPT: Final = 64
_REFIT: Final = 8  # prefills; fitting takes most of a millisecond
_LEAST_TOKENS: Final = 64  # below, a prefill's time is that of one step, whatever its size


class Costs:
    """
    :param prefill_rate: tokens a second, until turns tell
    :param move_rate: bytes a second, until moves tell
    """

    def __init__(self, *, prefill_rate: float = 2000.0, move_rate: float = 1e9) -> None:
        self.forward = ForwardModel(b=1 / prefill_rate)
        self.swap = SwapModel(bytes_per_second=move_rate, latency=0.002)
        self._prefills: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._since_fit = 0
        self._moves: deque[tuple[int, float]] = deque(maxlen=_KEPT)

    def prefilled(self, tokens: int, seconds: float) -> None:
        if tokens < _LEAST_TOKENS or seconds <= 0:
            return
        self._prefills.append((tokens, seconds))
        self._since_fit += 1
        if self._since_fit < _REFIT and len(self._prefills) > 4:
            return
        self._since_fit = 0
        fitted = fit_forward(list(self._prefills))
        if fitted is not None:
            self.forward = fitted

    def moved(self, size: int, seconds: float) -> None:
        """One way. The lower quartile counts: a copy may wait for a busy engine, which a turn in its place would, too.

        With the mean, a few that had waited would make copies look dearer than computing anew, and as none would be
        made then, nothing would ever correct that.
        """
        if size <= 0 or seconds <= 0:
            return
        self._moves.append((size, seconds))
        rates = sorted(took / moved for moved, took in self._moves)
        self.swap = SwapModel(bytes_per_second=1 / rates[len(rates) // 4])
