"""Before a stopped call is ended for lack of memory, the kernel is asked for the page cache that it holds.

A threshold and a hard limit count page cache, so a build that has read and written much is stopped at them though it
needs little. The kernel gives cache back at a limit, but a call that the brake stopped never gets there. So its cache
is taken back while it stands, once in a hold, and the next round sees what it really uses. That may take long where
much must be written to a disk: a thread waits for it, and the hold's bound holds all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from controller.backend import Backend, CallRef
from controller.model import Action, CallId, ControllerError
from controller.policy.text import human_bytes
from controller.registry import Call
from controller.shared import Shared

log = structlog.get_logger("corral.reclaims")

_WORTH: Final = 4 * 1024 * 1024  # bytes of page cache: less makes no difference


class Reclaims:
    """``done``: called on the loop when there is something new to decide about a call."""

    def __init__(self, shared: Shared, done: Callable[[], None]) -> None:
        self._shared = shared
        self._done = done
        self._tasks: dict[CallId, asyncio.Task[None]] = {}

    def instead_of_the_end(self, call: Call) -> bool:
        """Whether the call may stand a little longer: its page cache is being taken back."""
        if call.id in self._tasks:
            return True
        if "brake" not in call.held_by or call.reclaimed:
            return False
        try:
            cache = self._shared.backend.page_cache(call.ref)
        except ControllerError:
            return False  # it has just ended
        call.reclaimed = True
        if cache < _WORTH:
            return False
        self._tasks[call.id] = asyncio.create_task(self._take_back(call, cache), name=f"reclaim {call.id}")
        return True

    async def _take_back(self, call: Call, cache: int) -> None:
        backend = self._shared.backend
        before = call.memory
        try:
            await asyncio.to_thread(_reclaim, backend, call.ref, cache)
            call.memory = backend.memory(call.ref)
        except ControllerError as err:
            log.info("page cache of a call was not taken back", call=call.id, error=str(err))
        finally:
            self._tasks.pop(call.id, None)
        if call.outcome is None and (freed := before - call.memory) > 0:
            self._shared.decide(
                call,
                Action.LIMIT,
                "ladder",
                f"{human_bytes(freed)} of its page cache were taken back; it uses {human_bytes(call.memory)} without",
                evidence={"freed_bytes": float(freed), "usage_bytes": float(call.memory)},
                quiet=True,
            )
        self._done()

    def stop(self) -> None:
        """What a thread has begun goes on in the kernel; nobody waits for it any more."""
        for task in self._tasks.values():
            task.cancel()


def _reclaim(backend: Backend, ref: CallRef, nbytes: int) -> None:
    backend.reclaim(ref, nbytes)
