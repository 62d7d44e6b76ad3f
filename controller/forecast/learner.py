"""Learns what calls of a kind use, and forecasts what one of them will still need.

Past calls are kept as whole lives, the last WINDOW of each kind (Past-Future, arXiv 2507.10150, samples from the last
200 lengths; tool calls have heavier tails, so the window is larger). A forecast is the empirical distribution of those
lives that agree with what is known of the call: they lasted longer than it has run and, where it was just stopped as it
grew, came to use more than it does. Where too few agree, the kind is widened: session, tenant, tool and class → tenant,
tool and class → tool and class → class → every call. Where nothing agrees, what the call declared counts, and else a
factor over its use.
"""

from __future__ import annotations

import bisect
import math
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from controller.forecast.life import Kind, Life
from controller.forecast.need import Future, Need

WINDOW: Final = 512
SCENARIOS: Final = 8
_ENOUGH: Final = (
    20,
    20,
    12,
    12,
    1,
)  # lives that a level must have to be believed; fewer are too sure (docs/control.md)
_ALIKE: Final = (1, 3, 3, 3, 3)  # of them, those that must agree with what is known of the call
_NAMES: Final = ("session", "tenant", "tool", "class", "all calls")
_MOST_KEYS: Final = 4096  # kinds that are kept: agents choose the names of their tools
_GROWTH: Final = 1.5  # over its use, for a call that has outgrown all that is known
_CLAIM: Final = 0.98
_SHORTEST: Final = 1e-6  # seconds: a life is never without any length
_COLD: Final = 64 * 1024 * 1024  # bytes: a call of which nothing at all is known


class Learner:
    """Not thread-safe; bounded: WINDOW lives for each of at most _MOST_KEYS kinds (the oldest kind goes first)."""

    def __init__(self) -> None:
        self._lives: dict[tuple[str, ...], _Lives] = {}

    def __len__(self) -> int:
        return len(self._lives.get((), ()))

    @property
    def largest(self) -> int:
        """The largest peak of all lives that are remembered, bytes."""
        lives = self._lives.get(())
        return lives.largest if lives is not None else 0

    def learn(self, life: Life) -> None:
        if life.duration <= 0.0:
            life = replace(life, duration=_SHORTEST)
        for key in _keys(life.kind):
            lives = self._lives.pop(key, None)
            if lives is None:
                lives = _Lives()
                if len(self._lives) >= _MOST_KEYS:
                    self._lives.pop(next(iter(self._lives)))
            lives.add(life)
            self._lives[key] = lives  # the last: the one that was used last goes last

    def forecast(
        self,
        kind: Kind,
        *,
        ident: str = "",
        elapsed: float = 0.0,
        usage: int = 0,
        growing: bool = False,
        declared_typical: int | None = None,
        declared_peak: int | None = None,
        declared_seconds: float | None = None,
    ) -> Need:
        """``ident`` makes the choice of futures differ between calls, and the same for the same call. ``growing``: it
        was just stopped at ``usage``, and wants more; else it runs on within what it has."""
        declared = declared_peak if declared_peak is not None else declared_typical
        for level, lives in self._levels(kind):
            if level >= _first_broad(kind) and declared is not None and declared > usage:
                break  # what it says of itself is more than what calls of every kind say
            alike = [life for life in lives if life.duration > elapsed]
            if growing:
                alike = [life for life in alike if life.peak > usage]
            if len(alike) >= _ALIKE[level]:
                return _need(alike, _NAMES[level], ident, elapsed, usage, growing=growing)
        believed = declared is not None and declared > usage
        if elapsed > 0 and not growing and not believed and len(self):
            # it has outlived all that are known: such calls have done their growing
            more = elapsed
            if declared_seconds is not None and declared_seconds > elapsed:
                more = declared_seconds - elapsed
            rest = Future(more, (0.0,), (max(usage, 1),))
            timed = declared_seconds is not None
            return Need(usage, usage, usage, more, more, (rest,) * SCENARIOS, "its age", 0, timed=timed)
        return _cold(ident, elapsed, usage, typical=declared_typical, peak=declared_peak, seconds=declared_seconds)

    def at_most(
        self, kind: Kind, *, declared_typical: int | None = None, declared_peak: int | None = None
    ) -> tuple[int, int]:
        """Bytes that the forecast of such a call, before it begins, does not exceed: its typical size, and what it
        claims or comes to in any of its futures. Without making the forecast, which costs a thousand times as much."""
        declared = declared_peak if declared_peak is not None else declared_typical
        for level, lives in self._levels(kind):
            if level >= _first_broad(kind) and declared is not None:
                break
            if len(lives) >= _ALIKE[level]:  # before its begin, each of them is alike
                return lives.largest, lives.largest
        return (declared, declared) if declared is not None else (_COLD, 1)

    def _levels(self, kind: Kind) -> Iterator[tuple[int, _Lives]]:
        for level, key in enumerate(_keys(kind)):
            lives = self._lives.get(key)
            if lives and len(lives) >= _ENOUGH[level]:
                yield level, lives


class _Lives(deque[Life]):
    """The last WINDOW lives of a kind. ``largest``: the largest peak among them, bytes."""

    def __init__(self) -> None:
        super().__init__(maxlen=WINDOW)
        self.largest = 0

    def add(self, life: Life) -> None:
        gone = self[0].peak if len(self) == WINDOW else -1
        self.append(life)
        if life.peak >= self.largest:
            self.largest = life.peak
        elif gone == self.largest:
            self.largest = max(other.peak for other in self)


def _first_broad(kind: Kind) -> int:
    """The first level that says so little of a call that its own declaration is believed before: calls of its class, or
    of every kind; where it names no tool, all but those of its session and tenant."""
    return 3 if kind.tool else 2


def _keys(kind: Kind) -> Iterator[tuple[str, ...]]:
    yield ("session", kind.session, kind.tool, kind.call_class)
    yield ("tenant", kind.tenant, kind.tool, kind.call_class)
    yield ("tool", kind.tool, kind.call_class)
    yield ("class", kind.call_class)
    yield ()


def _need(alike: list[Life], basis: str, ident: str, elapsed: float, usage: int, *, growing: bool) -> Need:
    futures = [_future(life, elapsed, usage, growing=growing) for life in alike]
    futures.sort(key=lambda future: future.upto[-1])
    peaks = [future.upto[-1] for future in futures]
    durations = sorted(future.ends for future in futures)
    return Need(
        typical=_quantile(peaks, 0.5),
        likely=_quantile(peaks, 0.9),
        claim=_quantile(peaks, _CLAIM),
        ends_typical=_quantile(durations, 0.5),
        ends_likely=_quantile(durations, 0.9),
        futures=tuple(futures[index] for index in _strata(ident, len(futures))),
        basis=basis,
        count=len(alike),
    )


def _cold(
    ident: str, elapsed: float, usage: int, *, typical: int | None, peak: int | None, seconds: float | None
) -> Need:
    """Nothing alike is known. A declaration is believed as long as the call keeps to it; without one the sizes are a
    guess, good enough for a threshold to begin with, and nothing is claimed by it that might keep others out."""
    declared = peak if peak is not None else typical
    rest = max(0.0, seconds - elapsed) if seconds is not None and seconds > elapsed else max(elapsed, 1.0)
    timed = seconds is not None
    grown = max(math.ceil(usage * _GROWTH), 1)
    if declared is None or declared <= usage:
        future = Future(rest, (0.0,), (grown,))
        guess = max(grown, _COLD)
        return Need(guess, guess, grown, rest, rest, (future,) * SCENARIOS, "nothing", 0, timed=timed)
    size = typical if typical is not None and typical > usage else declared
    # half of such calls stay below what is typical, as far as the declaration goes
    most_of_it, half_of_it = Future(rest, (0.0,), (declared,)), Future(rest, (0.0,), (size,))
    futures = tuple(half_of_it if k % 2 else most_of_it for k in _order(ident))
    return Need(size, declared, declared, rest, rest, futures, "its declaration", 0, declared=True, timed=timed)


def _future(life: Life, elapsed: float, usage: int, *, growing: bool) -> Future:
    """How the call goes on if it goes on as ``life`` did. A call that is stopped as it grows goes on to the size that
    the life reached. One that runs on grows by what the life still grew from this age on, in proportion where it is
    the smaller of the two."""
    first = bisect.bisect_right(life.at, elapsed)
    then = life.upto[first - 1]
    at, upto = [0.0], [max(usage, then) if growing or elapsed == 0.0 else max(usage, 1)]
    share = 1.0 if then <= usage else usage / then
    for moment, nbytes in zip(life.at[first:], life.upto[first:], strict=True):
        size = nbytes if growing or elapsed == 0.0 else usage + int((nbytes - then) * share)
        if size > upto[-1]:
            at.append(moment - elapsed)
            upto.append(size)
    return Future(life.duration - elapsed, tuple(at), tuple(upto))


def _strata(ident: str, count: int) -> Iterator[int]:
    """SCENARIOS positions in 0..count-1, one in each of as many equal parts, in an order of the call's own: scenario k
    of two calls is then as if drawn independently, and yet every run decides the same."""
    drawn = zlib.crc32(ident.encode())
    offset = (drawn >> 8) / float(1 << 24)
    for part in _order(ident):
        yield min(count - 1, int((part + offset) / SCENARIOS * count))


def _order(ident: str) -> tuple[int, ...]:
    return _ORDERS[zlib.crc32(ident.encode()) % len(_ORDERS)]


# Orders of 0..7 with little in common: multiples of the odd numbers, and each of them shifted.
_ORDERS: Final = tuple(
    tuple((factor * k + shift) % SCENARIOS for k in range(SCENARIOS)) for factor in (1, 3, 5, 7) for shift in range(8)
)


_N = TypeVar("_N", int, float)


def _quantile(ordered: Sequence[_N], share: float) -> _N:
    """Nearest rank, of ascending values."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
