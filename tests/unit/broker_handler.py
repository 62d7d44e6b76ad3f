"""A handler for tests of the broker and the launcher: it grants, keeps what it was told, and can be told what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from agentd.broker import Ended, Granted, Link, Peer
from agentd.wire import Begin
from controller.model import new_call_id, new_session_id

BeginHook = Callable[[Peer, Begin, Link], Awaitable[Granted | None]]


def granted(*, enforced: bool = True, notes: tuple[str, ...] = ()) -> Granted:
    return Granted(call_id=new_call_id(), enforced=enforced, notes=notes)


@dataclass
class Recorder:
    """``on_begin`` decides a begin (None: grant it). ``events`` get ("begin", call), ("hung_up", call), ..."""

    on_begin: BeginHook | None = None
    outcome: tuple[str, str] = ("exited", "")
    suggestions: tuple[str, ...] = ()
    outcome_error: Exception | None = None
    outcome_gate: asyncio.Event | None = None
    begins: list[tuple[Peer, Begin]] = field(default_factory=list)
    links: dict[str, Link] = field(default_factory=dict)
    cancelled: int = 0
    events: asyncio.Queue[tuple[object, ...]] = field(default_factory=asyncio.Queue)

    async def begin(self, peer: Peer, begin: Begin, link: Link) -> Granted:
        self.begins.append((peer, begin))
        answer: Granted | None = None
        if self.on_begin is not None:
            try:
                answer = await self.on_begin(peer, begin, link)
            except asyncio.CancelledError:
                self.cancelled += 1
                self.events.put_nowait(("cancelled",))
                raise
        if answer is None:
            answer = granted()
        self.links[answer.call_id] = link
        self.events.put_nowait(("begin", answer.call_id))
        return answer

    async def ended(self, call_id: str, wait_status: int, want: bool) -> Ended:
        self.events.put_nowait(("ended", call_id, wait_status, want))
        if self.outcome_gate is not None:
            await self.outcome_gate.wait()
        if self.outcome_error is not None:
            raise self.outcome_error
        reason, paragraph = self.outcome
        return Ended(reason=reason, paragraph=paragraph, suggestions=self.suggestions)

    async def hung_up(self, call_id: str) -> None:
        self.events.put_nowait(("hung_up", call_id))

    async def resume(self, peer: Peer, call_id: str, link: Link) -> None:
        self.links[call_id] = link
        self.events.put_nowait(("resume", call_id, peer.pidfd_pid))

    async def open_session(self, peer: Peer, tenant: str, name: str) -> tuple[str, str]:
        self.events.put_nowait(("open", tenant, name))
        return new_session_id(), "token-of-the-session"

    async def close_session(self, peer: Peer, token: str, kill: bool) -> None:
        self.events.put_nowait(("close", token, kill))

    async def enter(self, peer: Peer, session_id: str | None, token: str | None) -> None:
        self.events.put_nowait(("enter", peer.pid, session_id, token))

    async def next(self, kind: str) -> tuple[object, ...]:
        """The next event of that kind; what comes before it is dropped. Bounded, so that a failure is no hang."""
        async with asyncio.timeout(20):
            while True:
                event = await self.events.get()
                if event[0] == kind:
                    return event
