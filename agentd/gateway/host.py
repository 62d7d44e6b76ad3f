"""The daemon's side of a turn: whose token it is, whether a budget is left, where its KV goes, and what it came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from agentd.gateway.errors import Refusal
from agentd.gateway.metrics import TurnTotals
from agentd.gateway.ports import Admission, Ask, TurnReport, TurnSink
from agentd.log import get_logger
from controller.model import (
    ControllerError,
    NotAllowed,
    Refused,
    Resource,
    SessionId,
    SessionView,
    TenantId,
    Turn,
    Turns,
)

log = get_logger("corral.gateway")

#: What a model's turn uses up. A session without CPU seconds may still think.
TURN_RESOURCES: Final = frozenset({Resource.TOKENS, Resource.MONEY, Resource.GPU_SECONDS, Resource.JOULES})


class TurnHost(Protocol):
    """Of controller.host.Host what is needed here."""

    def authenticate(self, token: str) -> SessionView: ...
    def check_budgets(self, session_id: SessionId, resources: frozenset[Resource] | None = None) -> None: ...
    def report_turn(self, session_id: SessionId, turn: Turn) -> Turns: ...


class HostTurns:
    """A TurnPort on the daemon's loop.

    ``tells_usage``: whether an engine counts tokens in streams unasked. ``sinks``: who else sees every turn; the first
    one that gives fields binds it. ``tenant_name``: for the metrics' labels.
    """

    def __init__(
        self,
        host: TurnHost,
        *,
        engine: str,
        sink: TurnSink | None = None,
        tells_usage: Callable[[], bool] = lambda: False,
        tenant_name: Callable[[TenantId], str] = str,
        totals: TurnTotals | None = None,
    ) -> None:
        self._host = host
        self.engine = engine
        self._sink = sink
        self._tells_usage = tells_usage
        self._tenant_name = tenant_name
        self.totals: Final = totals or TurnTotals()

    async def admit(self, ask: Ask) -> Admission:
        try:
            session = self._host.authenticate(ask.token)
        except NotAllowed as error:
            raise Refusal(401, "invalid_api_key", error.message, remedy=error.remedy) from None
        if ask.uid is not None and ask.uid not in (0, session.uid):
            raise Refusal(
                403,
                "not_allowed",
                f"the token is one of user {session.uid}, and user {ask.uid} sent it",
                remedy="open a session of your own (corral session open)",
            )
        if not ask.turn:
            return Admission(session=session.id)
        tenant = self._tenant_name(session.tenant_id)
        engine = self.engine
        try:
            self._host.check_budgets(session.id, TURN_RESOURCES)
        except Refused as error:
            self.totals.refused(tenant, engine)
            raise Refusal(429, error.code, error.message, remedy=error.remedy) from None
        fields: Mapping[str, object] = {}
        if self._sink is not None:
            try:
                fields = await self._sink.admit(session.id, engine, ask.conversation)
            except ControllerError as error:
                raise Refusal(409, "session_ended", error.message, remedy=error.remedy) from None
        return Admission(
            session=session.id,
            tenant=tenant,
            engine=engine,
            conversation=ask.conversation,
            fields=dict(fields),
            tells_usage=self._tells_usage(),
        )

    def ended(self, admission: Admission, report: TurnReport) -> None:
        self.totals.turn(admission.tenant, admission.engine, report)
        session_id = SessionId(admission.session)
        if self._sink is not None:
            self._sink.ended(session_id, admission.engine, admission.conversation, report)
        if not report.prompt and not report.generated:
            return  # the engine refused it, or was not there: nothing was used
        try:
            self._host.report_turn(
                session_id,
                Turn(
                    engine=admission.engine,
                    conversation=admission.conversation,
                    prompt_tokens=report.prompt,
                    cached_tokens=min(report.cached, report.prompt),
                    generated_tokens=report.generated,
                    seconds=report.seconds,
                    first_token_seconds=report.first_token,
                ),
            )
        except ControllerError as error:
            log.info("a turn ended after its session", session=session_id, error=str(error))
