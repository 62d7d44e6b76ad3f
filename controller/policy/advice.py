"""What an agent can do about memory, from what is known: its own figures, and what earlier calls came to. Pure.

A call that was killed at its limit says of its own need only that it is more; what such calls need is what those say
that ran to their end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from controller.model import UNLIMITED, Grant
from controller.policy.text import human_bytes

ENOUGH: Final = 3  # earlier calls that must be known to speak of them
_MARGIN: Final = 1.1
_MIB: Final = 1 << 20
_OF: Final = {  # the levels at which the learner widens a kind; what all calls of the host did says nothing of one
    "session": "of its kind in this session",
    "tenant": "of its kind in this tenant",
    "tool": "of its tool and class",
    "class": "of its class",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Peaks of earlier calls like this one, bytes: the median, and what nearly all stayed below. ``basis`` as
    controller.forecast.Need has it."""

    typical: int
    high: int
    lives: int
    basis: str

    @property
    def says_something(self) -> bool:
        return self.lives >= ENOUGH and self.basis in _OF and self.high > 0

    def describe(self) -> str:
        spread = f"typically peaked at {human_bytes(self.typical)}"
        if self.high > self.typical * 1.05:
            spread += f" and nearly all below {human_bytes(self.high)}"
        return f"{self.lives} earlier calls {_OF[self.basis]} {spread}"


def memory_advice(peak: int, grant: Grant, expected: Expected | None) -> list[str]:
    limit = grant.limits.memory_max
    granted = (limit if limit != UNLIMITED else None) or grant.tripwire.brake or 0
    if expected is None or not expected.says_something:
        return [
            "do the work in smaller pieces or with fewer workers",
            f"or declare a memory peak above {human_bytes(max(peak, granted))}",
        ]
    if expected.high > granted:
        want = declared(expected.high)
        return [
            f"declare a memory peak of about {want}: {expected.describe()}, and it had {human_bytes(granted)}",
            f"or run fewer workers, or smaller pieces, so that it stays below {human_bytes(granted)}",
        ]
    return [
        f"look at what is different this time: {expected.describe()}, within the {human_bytes(granted)} that it had",
        "do the work in smaller pieces or with fewer workers",
        f"or declare a memory peak above {human_bytes(max(peak, granted))}",
    ]


def declared(peak: float) -> str:
    """What to declare for a peak: a tenth more, in whole MiB."""
    return human_bytes(-(-int(peak * _MARGIN) // _MIB) * _MIB)
