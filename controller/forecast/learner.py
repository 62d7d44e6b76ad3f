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
_COLD: Final = 64 * 1024 * 1024  # bytes: a call of which nothing at all is known


class Learner:
    """Not thread-safe; bounded: WINDOW lives for each of at most _MOST_KEYS kinds (the oldest kind goes first)."""

    def __init__(self) -> None:
        self._lives: dict[tuple[str, ...], deque[Life]] = {}

    def __len__(self) -> int:
        return len(self._lives.get((), ()))

    def learn(self, life: Life) -> None:
        for key in _keys(life.kind):
            lives = self._lives.pop(key, None)
            if lives is None:
                lives = deque(maxlen=WINDOW)
                if len(self._lives) >= _MOST_KEYS:
                    self._lives.pop(next(iter(self._lives)))
            lives.append(life)
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
        for level, key in enumerate(_keys(kind)):
            lives = self._lives.get(key)
            if not lives or len(lives) < _ENOUGH[level]:
                continue
            alike = [life for life in lives if life.duration > elapsed]
            if growing:
                alike = [life for life in alike if life.peak > usage]
            if len(alike) >= _ALIKE[level]:
                return _need(alike, _NAMES[level], ident, elapsed, usage, growing=growing)
        if elapsed > 0 and not growing and len(self):
            # it has outlived all that are known: such calls have done their growing
            more = elapsed
            if declared_seconds is not None and declared_seconds > elapsed:
                more = declared_seconds - elapsed
            rest = Future(more, (0.0,), (max(usage, 1),))
            return Need(usage, usage, usage, more, more, (rest,) * SCENARIOS, "its age", 0)
        return _cold(elapsed, usage, declared_typical, declared_peak, declared_seconds)


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


def _cold(elapsed: float, usage: int, typical: int | None, peak: int | None, seconds: float | None) -> Need:
    """Nothing alike is known. A declaration is believed as long as the call keeps to it."""
    declared = peak if peak is not None else typical
    believed = declared is not None and declared > usage
    most = declared if believed and declared is not None else max(math.ceil(usage * _GROWTH), _COLD)
    usual = typical if typical is not None and typical > usage else most
    rest = max(0.0, seconds - elapsed) if seconds is not None and seconds > elapsed else max(elapsed, 1.0)
    future = Future(rest, (0.0,), (most,))
    basis = "its declaration" if believed else "nothing"
    return Need(min(usual, most), most, most, rest, rest, (future,) * SCENARIOS, basis, 0)


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
    order = _ORDERS[drawn % len(_ORDERS)]
    for part in order:
        yield min(count - 1, int((part + offset) / SCENARIOS * count))


# Orders of 0..7 with little in common: multiples of the odd numbers, and each of them shifted.
_ORDERS: Final = tuple(
    tuple((factor * k + shift) % SCENARIOS for k in range(SCENARIOS)) for factor in (1, 3, 5, 7) for shift in range(8)
)


_N = TypeVar("_N", int, float)


def _quantile(ordered: Sequence[_N], share: float) -> _N:
    """Nearest rank, of ascending values."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
