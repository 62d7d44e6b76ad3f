"""Who is told of changes. Every subscriber has a bounded queue: a slow one loses updates, not the daemon its memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from controller.model import CallView, Decision, SessionId, SessionView

Update = CallView | SessionView | Decision

_QUEUE_LENGTH = 1024


class Subscription:
    """An async iterator of updates. ``lost`` counts those that did not fit; the reader should take a snapshot then."""

    def __init__(self, hub: Hub, session_id: SessionId | None) -> None:
        self._hub = hub
        self._session_id = session_id
        self._queue: deque[Update] = deque()
        self._wake = asyncio.Event()
        self._closed = False
        self.lost = 0

    def __aiter__(self) -> AsyncIterator[Update]:
        return self

    async def __anext__(self) -> Update:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._queue.popleft()

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._hub.discard(self)

    def offer(self, update: Update) -> None:
        if self._session_id is not None:
            of = update.id if isinstance(update, SessionView) else update.session_id
            if of != self._session_id:
                return
        if len(self._queue) >= _QUEUE_LENGTH:
            self._queue.popleft()
            self.lost += 1
        self._queue.append(update)
        self._wake.set()


class Hub:
    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def subscribe(self, session_id: SessionId | None = None) -> Subscription:
        subscription = Subscription(self, session_id)
        self._subscriptions.add(subscription)
        return subscription

    def discard(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    @property
    def listened_to(self) -> bool:
        """Whether anyone listens: views need not be made when nobody does."""
        return bool(self._subscriptions)

    def publish(self, update: Update) -> None:
        for subscription in self._subscriptions:
            subscription.offer(update)

    def close(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.close()
