"""A lower bound on what any KV policy could have paid on a given timeline, knowing every pause.

The problem on the timeline of a run: at each admission of a turn, each session's idle KV is in the pool, outside, or
gone; what is in the pool must fit into the room that running turns leave, what is outside into the room for offloaded
KV. It begins in the pool. If it was ever outside, it pays for one copy out and one back; if it is gone at the end, it
is computed again. Cost: seconds of prefill and of copying. KV may be split, as engines with blocks can.

This is relaxed by Lagrange's method. With a price for the pool (p) and one for the room outside (q) at each moment t, a
session's interval chooses for itself the least of

    keep  sum_t p_t w        move  copies + sum_t min(p_t, q_t) w        drop  prefill

and the sum of these, less sum_t p_t room_t + q_t outside, is a lower bound for *any* prices that are not negative (weak
duality; Geoffrion, Math. Programming Study 2, 1974). To move more than once, or to drop what was outside, costs more
than these three; of a part of the KV, at least its share of the copies and, as prefill is convex in the context, of
the prefill. So the bound holds for policies that split, too.

Prices are improved by subgradient steps of Polyak's length, in directions deflected after Camerini, Fratta and Maffioli
(1975); the best bound seen is returned. Moments may be left out (fewer constraints, a lower bound still).
Copies are taken to be instantaneous, and each turn begins when it really began.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from gpu.simulate.timeline import IdleKv, Timeline

MOST_MOMENTS: Final = 20_000
STEPS: Final = 300
PATIENCE: Final = 12  # steps without a better bound, until steps become shorter


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Seconds. ``avoidable``: of recomputing and copying; ``total``: with the prefill that is unavoidable."""

    avoidable: float
    unavoidable: float

    @property
    def total(self) -> float:
        return self.avoidable + self.unavoidable


def lower_bound(timeline: Timeline, *, upper: float | None = None, steps: int = STEPS) -> Bound:
    """
    :param upper: avoidable seconds of some policy on this timeline, for the length of steps; None: of dropping all
    """
    moments = _thin(timeline.room)
    items = _items(timeline.idle, [at for at, _ in moments])
    drop_all = sum(one.cost for one in items)
    if not items or not moments:
        return Bound(avoidable=0.0, unavoidable=timeline.unavoidable)
    goal = drop_all if upper is None else min(upper, drop_all)
    room = [tokens / timeline.capacity for _, tokens in moments]
    outside = timeline.host_tokens / timeline.capacity
    best = _ascend(items, room, outside, goal=goal, capacity=timeline.capacity, steps=steps)
    return Bound(avoidable=best, unavoidable=timeline.unavoidable)


@dataclass(frozen=True, slots=True)
class _Item:
    first: int  # of the moments that it covers
    last: int  # exclusive
    size: int
    cost: float  # of dropping
    moved: float


def _thin(room: list[tuple[float, int]]) -> list[tuple[float, int]]:
    ordered = sorted(room)
    if len(ordered) <= MOST_MOMENTS:
        return ordered
    # In each stretch the tightest moment: constraints left out are those that bind least.
    size = -(-len(ordered) // MOST_MOMENTS)
    return [min(ordered[at : at + size], key=lambda one: one[1]) for at in range(0, len(ordered), size)]


def _items(idle: list[IdleKv], moments: list[float]) -> list[_Item]:
    """Those that some moment constrains; the others are kept for nothing."""
    found: list[_Item] = []
    for one in idle:
        first, last = bisect_left(moments, one.begin), bisect_left(moments, one.end)
        if last > first and one.tokens:
            found.append(_Item(first, last, one.tokens, one.computed, one.moved))
    return found


def _ascend(items: list[_Item], room: list[float], outside: float, *, goal: float, capacity: int, steps: int) -> float:
    count = len(room)
    pool, host = [0.0] * count, [0.0] * count
    way = [0.0] * (2 * count)
    best = 0.0  # with no prices
    factor, stale = 1.0, 0
    for _ in range(steps):
        sums = list(accumulate(pool, initial=0.0))
        least = list(accumulate(map(min, pool, host), initial=0.0))
        held, moved = [0.0] * (count + 1), [0.0] * (count + 1)
        value = 0.0
        for one in items:
            size = one.size / capacity
            keep = (sums[one.last] - sums[one.first]) * size
            move = one.moved + (least[one.last] - least[one.first]) * size
            if keep <= move and keep <= one.cost:
                value += keep
                held[one.first] += size
                held[one.last] -= size
            elif move < one.cost:
                value += move
                moved[one.first] += size
                moved[one.last] -= size
            else:
                value += one.cost
        value -= sum(price * free for price, free in zip(pool, room, strict=True)) + outside * sum(host)
        if value > best + 1e-9 * abs(best):
            best, stale = value, 0
        else:
            stale += 1
            if stale >= PATIENCE:
                factor, stale = factor * 0.6, 0
        mixed = list(accumulate(moved[:-1]))
        inside = [price < other for price, other in zip(pool, host, strict=True)]  # where what moves is in the pool
        kept = accumulate(held[:-1])
        over = [
            load + (extra if cheap else 0.0) - free
            for load, extra, cheap, free in zip(kept, mixed, inside, room, strict=True)
        ]
        over_host = [(0.0 if cheap else extra) - outside for extra, cheap in zip(mixed, inside, strict=True)]
        # A price at zero cannot fall: it takes no part in the length of the step.
        slope = [g if g > 0 or price > 0 else 0.0 for g, price in zip(over, pool, strict=True)]
        slope += [g if g > 0 or price > 0 else 0.0 for g, price in zip(over_host, host, strict=True)]
        # Against zigzags: as much of the last direction as turns this one back by 1.5 of what it turned away.
        norm = sum(d * d for d in way)
        turned = sum(g * d for g, d in zip(slope, way, strict=True))
        deflect = max(0.0, -1.5 * turned / norm) if norm > 0 else 0.0
        way = [g + deflect * d for g, d in zip(slope, way, strict=True)]
        norm = sum(d * d for d in way)
        gap = goal - value
        if norm <= 1e-18 or gap <= 0:
            break
        step = factor * gap / norm
        pool = [max(0.0, price + step * d) for price, d in zip(pool, way[:count], strict=True)]
        host = [max(0.0, price + step * d) for price, d in zip(host, way[count:], strict=True)]
    return best
