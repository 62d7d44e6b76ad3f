"""The gateway's view of the tier: a ``agentd.gateway.ports.TurnSink``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentd.gateway.ports import TurnReport
from agentd.tier.tier import Tier
from agentd.tier.turns import TurnFacts
from controller.model import SessionId


class GatewayTurns:
    """A turn waits for its KV's place in ``admit``, and is booked in ``ended``; both once for each turn."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier

    async def admit(self, session_id: str, engine: str, conversation: str) -> Mapping[str, Any]:
        """:raises ControllerError: the session has ended"""
        return await self._tier.before_turn(SessionId(session_id), engine, conversation)

    def ended(self, session_id: str, engine: str, conversation: str, report: TurnReport) -> None:
        if report.estimated or report.error or report.cancelled or not report.prompt:
            # how much of the prompt the engine has now is not known: its slot, or the next turn, will tell
            self._tier.gave_up_turn(SessionId(session_id), engine, conversation)
            return
        facts = TurnFacts(
            engine=engine,
            conversation=conversation,
            prompt=report.prompt,
            cached=report.cached,
            generated=report.generated,
            seconds=report.seconds,
            prefill=report.prefill_seconds,
            first_token=report.first_token,
        )
        self._tier.booked(SessionId(session_id), facts)
