"""Calls that wait for their turn. First come, first served within a tenant, higher priority first across tenants.

A tenant whose head does not fit yet does not hold up other tenants, and nobody overtakes within a tenant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controller.model import Action, ControllerError, TenantId, WrongState
from controller.policy.grant import Wait
from controller.registry import Call, Session
from controller.shared import Shared


class Queue:
    """``start`` tries to begin a call: None when it has begun, a Wait when not yet; it raises when it never will."""

    def __init__(self, shared: Shared, start: Callable[[Call], Wait | None]) -> None:
        self._shared = shared
        self._start = start
        self._waiting: list[tuple[Call, asyncio.Future[None]]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def has(self, tenant_id: TenantId) -> bool:
        """Whether a call of this tenant waits: then a new one queues behind it."""
        return any(call.ref.tenant_id == tenant_id for call, _ in self._waiting)

    def position(self, call: Call) -> int:
        """How many calls of the same tenant are ahead."""
        ahead = 0
        for other, _ in self._waiting:
            if other is call:
                break
            ahead += other.tenant is call.tenant
        return ahead

    async def turn(self, call: Call, wait: Wait) -> None:
        """Returns when the call has begun. Cancelled: it leaves the queue."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (call, future)
        self._waiting.append(entry)
        call.queued = True
        self._shared.decide(
            call, Action.QUEUE, "admission", wait.message, evidence={"ahead": float(self.position(call))}
        )
        self._shared.publish(call)
        try:
            await future
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
            call.queued = False

    def drop(self, session: Session) -> None:
        """The session is being closed: its calls that wait will never begin, and are told so."""
        for entry in [e for e in self._waiting if e[0].session is session]:
            self._waiting.remove(entry)
            if not entry[1].done():
                entry[1].set_exception(
                    WrongState(
                        f"session {session.id} was closed while the call waited for its turn",
                        field="session_id",
                        value=session.id,
                        remedy="open a new session (corral session open)",
                    )
                )

    def wake(self) -> None:
        """Something was freed: whoever can begin, begins."""
        blocked: set[TenantId] = set()
        for entry in sorted(self._waiting, key=lambda e: (-e[0].grant.priority, e[0].begun_at)):
            call, future = entry
            if future.done() or call.ref.tenant_id in blocked:
                continue
            try:
                wait = self._start(call)
            except ControllerError as err:
                self._waiting.remove(entry)
                future.set_exception(err)
                continue
            if wait is not None:
                blocked.add(call.ref.tenant_id)
                continue
            self._waiting.remove(entry)
            future.set_result(None)
