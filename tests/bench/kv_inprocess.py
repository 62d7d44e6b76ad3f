"""A cell of the bench ``kv`` without a daemon: Corral's rule over the bench's own ``Slots``, with nothing around it.

Beside the same rule under the daemon it tells what the rest costs: processes, the gateway's worker, the books.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from agentd.gateway import Admission, Ask, Gateway, TurnReport, Upstream
from tests.bench.kv_slots import Slots
from tests.bench.kv_work import Agent, Call, History


class Port:
    """A TurnPort that binds turns to slots."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    async def admit(self, ask: Ask) -> Admission:
        if not ask.turn:
            return Admission(session=ask.token)
        slot = await self._slots.acquire(ask.token)
        return Admission(session=ask.token, fields={"id_slot": slot, "cache_prompt": True})

    def ended(self, admission: Admission, report: TurnReport) -> None:
        self._slots.release(admission.session, tokens=report.prompt + report.generated)
        self._slots.prefilled(report.prompt - report.cached, report.prefill_seconds or 0.0)


class InProcess:
    """Gateway and slots in the bench's own process; a ``kv_agents.Place``. A session's key is its agent's name."""

    def __init__(self, slots: Slots, engine: str, past: Sequence[Call]) -> None:
        self.slots: Final = slots
        self._history = History(list(past))
        self._gateway = Gateway(Port(slots), Upstream(engine, engine="llama"), tells_usage=True)

    async def listen(self) -> str:
        host, port = await self._gateway.listen_tcp("127.0.0.1", 0)
        return f"http://{host}:{port}"

    async def close(self) -> None:
        await self._gateway.close()
        await self.slots.close()

    async def call(self, agent: Agent, call: Call) -> None:
        self.slots.pause_begun(agent.name, durations=self._history.of(call.kind))
        await asyncio.sleep(call.seconds)
        self.slots.pause_ended(agent.name)
        self._history.ended(call)

    async def gone(self, agent: Agent) -> None:
        self.slots.forget(agent.name)
