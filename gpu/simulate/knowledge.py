"""What a policy may know of a pause: only what had ended before it began, or, for a reference, the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gpu.policy import Durations, learned

REMEMBERED: Final = 200  # calls of a class


class Learner:
    """Durations by class of tool, from the calls that ended, in the order in which they ended."""

    def __init__(self) -> None:
        self._ended: dict[str, list[float]] = {}
        self._made: dict[str, tuple[int, Durations]] = {}
        self._nothing: Final = learned(())

    def ended(self, kinds: Sequence[str], seconds: float) -> None:
        """A turn's calls have ended. With several classes it is not known which one took so long: none learns."""
        if len(kinds) == 1:
            self._ended.setdefault(kinds[0], []).append(seconds)

    def durations(self, kinds: Sequence[str]) -> Durations:
        """Of the class that is slowest on the average, as far as is known."""
        found = [self._of(kind) for kind in kinds]
        if not found:
            return self._nothing
        return max(found, key=lambda one: one.mean(0.0))

    def _of(self, kind: str) -> Durations:
        samples = self._ended.get(kind)
        if not samples:
            return self._nothing
        made = self._made.get(kind)
        # Made anew when a tenth more is known: a distribution keeps what it has worked out.
        if made is None or len(samples) >= made[0] * 1.1:
            made = self._made[kind] = (len(samples), learned(samples[-REMEMBERED:]))
        return made[1]


class Clairvoyant:
    """Knows how long each pause lasts: for a reference that no real policy can be."""

    def truth(self, seconds: float) -> Durations:
        return Durations(((seconds, 1.0),), (seconds,))
