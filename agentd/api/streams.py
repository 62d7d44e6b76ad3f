"""What the two streams share: updates merged with a clock, and how many streams there may be."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Final

from agentd.api.errors import Context, Stopping
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

    Ticks are not made up for when the reader is slow.
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
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


async def _next(subscription: Subscription) -> Update | _End:
    try:
        return await anext(subscription)
    except StopAsyncIteration:
        return _End.END


class Streams:
    """The open streams of one service on one listener: at most ``limit`` of one principal, all ended by ``stop``."""

    def __init__(self, limit: int = MAX_STREAMS) -> None:
        self._limit = limit
        self._held: Counter[str] = Counter()
        self._open: set[Subscription] = set()
        self._stopped = False

    @contextmanager
    def hold(self, who: str, context: Context, subscribe: Callable[[], Subscription]) -> Iterator[Subscription]:
        """A subscription that is closed when the RPC ends, however it ends. Raises Refused beyond the limit."""
        if self._stopped:
            raise Stopping
        if self._held[who] >= self._limit:
            raise Refused(
                f"{who} already has {self._limit} streams open",
                code="too_many_streams",
                value=str(self._limit),
                remedy="close one, or share one stream among its readers",
            )
        self._held[who] += 1
        subscription = subscribe()

        # A reader that goes away while an answer waits for room in its window leaves the method's generator suspended:
        # without this, nothing would close the subscription until the generator is collected.
        def ended(ctx: Context) -> None:
            subscription.close()

        context.add_done_callback(ended)  # type: ignore[arg-type]  # the stubs name a class; any callable serves
        self._open.add(subscription)
        try:
            yield subscription
        finally:
            subscription.close()
            self._open.discard(subscription)
            self._held[who] -= 1
            if not self._held[who]:
                del self._held[who]

    def stop(self) -> None:
        """Ends them: they would use up the time that other requests have to finish."""
        self._stopped = True
        for subscription in list(self._open):
            subscription.close()
