"""Runs a coroutine here and now, and makes a task of it only when it has to wait.

A task takes a turn of the event loop before its first step, and on the path of a tool call each turn counts (50 µs).
Python 3.12 has ``asyncio.eager_task_factory`` for this; Debian 12 has 3.11. What runs before the first wait has no
current task: it may await futures and events, but not use ``asyncio.timeout`` or ``asyncio.current_task``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


def start(coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
    """None when it has finished. What it raises before its first wait is raised here."""
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    return loop.create_task(_Begun(coroutine, waits_for))


class _Begun(Coroutine[Any, Any, None]):
    """A coroutine that waits already. The task's first step is handed what it waits for; everything else is passed on,
    also a cancellation that comes before that step."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for
        self._handed = False
        self.__name__ = getattr(coroutine, "__name__", "request")
        self.__qualname__ = getattr(coroutine, "__qualname__", self.__name__)

    def send(self, value: Any) -> Any:
        if not self._handed:
            self._handed = True
            return self._waits_for
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        self._handed = True
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("made for a task alone")
