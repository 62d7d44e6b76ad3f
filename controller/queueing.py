"""Calls that wait for their turn. Who begins when is decided in rounds (controller.live); here they are kept
meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from controller.model import Action, CallId, ControllerError, WrongState
from controller.registry import Call, Session, now
from controller.shared import Shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Not now. ``message`` says what it waits for; ``eta``: seconds until it will typically begin, None: not known."""

    message: str
    eta: float | None = None


class Queue:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._waiting: dict[CallId, tuple[Call, asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def position(self, call: Call) -> int:
        """How many calls of the same tenant were asked for before it."""
        return sum(1 for c, _ in self._waiting.values() if c is not call and c.tenant is call.tenant)

    async def turn(self, call: Call, wait: Wait) -> None:
        """Returns when the call has begun. Cancelled: it leaves the queue."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[call.id] = (call, future)
        call.queued = True
        call.waits_for = wait.message
        call.eta = now() + wait.eta if wait.eta is not None else None
        evidence = {"ahead": float(self.position(call))}
        if wait.eta is not None:
            evidence["eta_seconds"] = round(wait.eta, 3)
        self._shared.decide(call, Action.QUEUE, "admission", wait.message, evidence=evidence)
        self._shared.publish(call)
        try:
            await future
        finally:
            self._waiting.pop(call.id, None)
            call.queued = False
            call.eta, call.waits_for, call.tell_queued = None, "", None

    def begun(self, call: Call) -> None:
        found = self._waiting.pop(call.id, None)
        if found is not None and not found[1].done():
            found[1].set_result(None)

    def failed(self, call: Call, err: ControllerError) -> None:
        """It will never begin, and whoever asked for it is told why."""
        found = self._waiting.pop(call.id, None)
        if found is not None and not found[1].done():
            found[1].set_exception(err)

    def gave_up(self, call: Call) -> bool:
        """Whether its turn was cancelled, and only its own task has not noticed yet."""
        found = self._waiting.get(call.id)
        return found is None or found[1].done()

    def drop(self, session: Session) -> None:
        """The session is being closed: its calls that wait will never begin, and are told so."""
        for call, _ in [entry for entry in self._waiting.values() if entry[0].session is session]:
            self.failed(
                call,
                WrongState(
                    f"session {session.id} was closed while the call waited for its turn",
                    field="session_id",
                    value=session.id,
                    remedy="open a new session (corral session open)",
                ),
            )
