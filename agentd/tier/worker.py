"""One thread for calls that may hang: a driver that dies takes its caller along, and must not take the daemon's end."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[Callable[[], Any], "asyncio.Future[Any] | None", asyncio.AbstractEventLoop]


class Worker:
    """Runs functions one after the other, in a daemon thread: unlike an executor's, nobody waits for it at exit."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """The function's result; its exception. Cancelled: it still runs to its end, and its result is dropped."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put(function, future, loop)
        return await future

    def post(self, function: Callable[[], object]) -> None:
        """Runs it at some time; it must raise nothing."""
        self._put(function, None, asyncio.get_running_loop())

    def _put(
        self, function: Callable[[], Any], future: asyncio.Future[Any] | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put((function, future, loop))

    def close(self) -> None:
        """Ends the thread after what it has in hand; does not wait."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future, loop = job
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as raised:  # whatever it is, it belongs to whoever asked
                error = raised
            if future is None:
                continue
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
