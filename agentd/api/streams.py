"""What the two streams share: updates merged with a clock, and how many streams there may be."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Final

from agentd.api.errors import Context
from agentd.api.ports import Subscription, Update
from controller.model import Refused

MAX_STREAMS: Final = 16  # of one principal: each costs a queue and a part of every update
MAX_OPERATOR_STREAMS: Final = 64  # operators on one socket cannot be told apart: all of them together


class Tick(Enum):
    """The interval has passed."""

    TICK = "tick"


class _End(Enum):
    END = "end"


async def merged(subscription: Subscription, interval: float | None) -> AsyncGenerator[Update | Tick, None]:
    """Updates as they come and a TICK every ``interval`` seconds, until the subscription is closed.

    Ticks are not made up for when the reader is slow. The subscription is closed when the iteration ends, however it
    ends.
    """
    loop = asyncio.get_running_loop()
    next_tick = loop.time() + interval if interval is not None else None
    pending: asyncio.Task[Update | _End] | None = None
    try:
        while True:
            if pending is None:
                pending = loop.create_task(_next(subscription))
            timeout = max(0.0, next_tick - loop.time()) if next_tick is not None else None
            await asyncio.wait({pending}, timeout=timeout)
            if pending.done():
                update = pending.result()
                pending = None
                if isinstance(update, _End):
                    return
                yield update
            if interval is not None and next_tick is not None and loop.time() >= next_tick:
                next_tick = loop.time() + interval
                yield Tick.TICK
    finally:
        subscription.close()
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


async def _next(subscription: Subscription) -> Update | _End:
    try:
        return await anext(subscription)
    except StopAsyncIteration:
        return _End.END


def close_with(context: Context, subscription: Subscription) -> None:
    """Closes the subscription when the RPC ends: a reader that goes away while an answer waits for room in its window
    leaves the method's generator suspended, and nothing would close it until it is collected."""

    def closed(ctx: Context) -> None:
        subscription.close()

    context.add_done_callback(closed)  # type: ignore[arg-type]  # the stubs name a class; any callable serves


class StreamLimit:
    """At most ``limit`` streams of one principal at a time."""

    def __init__(self, limit: int = MAX_STREAMS) -> None:
        self._limit = limit
        self._open: Counter[str] = Counter()

    @contextmanager
    def hold(self, who: str) -> Iterator[None]:
        if self._open[who] >= self._limit:
            raise Refused(
                f"{who} already has {self._limit} streams open",
                code="too_many_streams",
                value=str(self._limit),
                remedy="close one, or share one stream among its readers",
            )
        self._open[who] += 1
        try:
            yield
        finally:
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]
