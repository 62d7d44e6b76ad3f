"""corral.v1.AgentService: what an agent's framework calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

import structlog

from agentd.api import validate
from agentd.api.budgetproto import budget_to_proto
from agentd.api.budgets import BudgetAgentMethods
from agentd.api.convert import (
    call_to_proto,
    decision_to_proto,
    intent_from_proto,
    outcome_to_proto,
    session_to_proto,
)
from agentd.api.errors import Context, Stopping, answering, caller_is_gone
from agentd.api.identity import Access, Kind, Principal
from agentd.api.ports import HostPort, TierPort
from agentd.api.process import same_process
from agentd.api.streams import Streams, merged
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.model import (
    CallView,
    ControllerError,
    Decision,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Outcome,
    SessionId,
    SessionView,
    WrongState,
    check_text,
)

TenantUids = Callable[[str], frozenset[int]]
"""The uids whose processes may use sessions of a tenant. Asked for each OpenSession, so that a reload counts."""

_log: Final = structlog.get_logger("corral.api")


class AgentServicer(BudgetAgentMethods):
    """Of one listener. Every method ends by an answer or by one status (errors.py); none raises."""

    def __init__(self, host: HostPort, access: Access, tenant_uids: TenantUids, tier: TierPort) -> None:
        self._host = host
        self._access = access
        self._tenant_uids = tenant_uids
        self._tier = tier
        self.streams = Streams()

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Context) -> pb.OpenSessionResponse:
        async with answering(context, "OpenSession"):
            principal = self._access.principal(context)
            tenant = self._tenant_of_new_session(principal, request.tenant)
            view, token = self._host.open_session(
                tenant=tenant,
                name=check_text("name", request.name, validate.MAX_SESSION_NAME),
                uid=self._uid_of_new_session(principal, tenant, request),
                labels=validate.labels(request.labels),
            )
            return pb.OpenSessionResponse(session=session_to_proto(view), token=token)

    def _tenant_of_new_session(self, principal: Principal, given: str) -> str:
        if principal.kind is Kind.SESSION:
            raise NotAllowed(
                "a session's token opens no further session",
                remedy="call without corral-token on the tenant's socket, or begin calls in this session",
            )
        if principal.kind is Kind.OPERATOR:
            return validate.tenant_name(given, "tenant")
        if given and validate.tenant_name(given, "tenant") != principal.name:
            raise NotFound(
                "no such tenant here",
                field="tenant",
                value=given,
                remedy="leave it out: a session opened here belongs to the tenant of the socket or the certificate",
            )
        return principal.name

    def _uid_of_new_session(self, principal: Principal, tenant: str, request: pb.OpenSessionRequest) -> int:
        """A token is good for processes of one user, and its holder may attach that user's processes. So a tenant may
        give only uids that are listed as its own, and none is guessed: root least of all."""
        listed = self._tenant_uids(tenant)
        if not request.HasField("uid"):
            if len(listed) == 1:
                return next(iter(listed))
            raise InvalidRequest(
                f"is missing, and tenant {tenant!r} has {len(listed) or 'no'} users listed",
                field="uid",
                remedy="give the uid whose processes will use the session",
            )
        uid = validate.uid(request.uid)
        if principal.kind is not Kind.OPERATOR and uid not in listed:
            raise InvalidRequest(
                f"{uid} is not listed as a user of tenant {tenant!r}",
                field="uid",
                value=str(uid),
                remedy=f"give one of its uids; the operator lists them in [tenants.{tenant}]",
            )
        return uid

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Context) -> pb.CloseSessionResponse:
        async with answering(context, "CloseSession"):
            session = self._access.session(self._access.principal(context), request.session_id)
            await self._host.close_session(session.id, kill=request.kill)
            return pb.CloseSessionResponse()

    async def BeginCall(self, request: pb.BeginCallRequest, context: Context) -> pb.BeginCallResponse:
        async with answering(context, "BeginCall"):
            principal = self._access.principal(context)
            session = self._access.session(principal, request.session_id)
            intent = intent_from_proto(request.intent)
            argv = validate.argv(request.argv, intent.tool)
            parent_id = None
            if request.parent_id:
                parent = self._access.call(principal, request.parent_id, "parent_id")
                if parent.session_id != session.id:
                    raise InvalidRequest(
                        "is a call of another session",
                        field="parent_id",
                        value=parent.id,
                        remedy="give a call of the same session",
                    )
                parent_id = parent.id
            # A client that goes away while this waits cancels this task, and with it the wait.
            call = await self._host.begin(session.id, intent=intent, argv=argv, parent_id=parent_id)
            if caller_is_gone():
                # It went in the same moment: nobody knows the call's id, so nobody would end it.
                await self._forget(call)
            answer = pb.BeginCallResponse(call=call_to_proto(call))
            answer.call.grant.budgets.extend(budget_to_proto(budget) for budget in self._host.stocks(session.id))
            return answer

    async def _forget(self, call: CallView) -> None:
        try:
            await self._host.end(call.id, None)
        except ControllerError as err:
            _log.warning("a call whose caller went away could not be ended", call_id=call.id, error=str(err))

    async def AttachProcess(self, request: pb.AttachProcessRequest, context: Context) -> pb.AttachProcessResponse:
        async with answering(context, "AttachProcess"):
            principal = self._access.principal(context)
            call = self._access.call(principal, request.call_id)
            pid = validate.pid(request.pid)
            uid = None if principal.kind is Kind.OPERATOR else self._host.session(call.session_id).uid
            with same_process(pid, uid=uid):
                if uid is not None:
                    self._refuse_process_of_other_session(call, pid)
                self._host.attach(call.id, pid)
            return pb.AttachProcessResponse()

    def _refuse_process_of_other_session(self, call: CallView, pid: int) -> None:
        """Two sessions may be of one user; taking a process out of the other's call would take it out of its limits."""
        present = self._host.whose(pid).session_id
        if present is not None and present != call.session_id:
            raise NotAllowed(
                "belongs to another session",
                field="pid",
                value=str(pid),
                remedy="attach a process that this session's agent started",
            )

    async def UpdateIntent(self, request: pb.UpdateIntentRequest, context: Context) -> pb.UpdateIntentResponse:
        async with answering(context, "UpdateIntent"):
            call = self._access.call(self._access.principal(context), request.call_id)
            updated = self._host.update_intent(call.id, intent_from_proto(request.intent))
            return pb.UpdateIntentResponse(call=call_to_proto(updated))

    async def EndCall(self, request: pb.EndCallRequest, context: Context) -> pb.EndCallResponse:
        async with answering(context, "EndCall"):
            call = self._access.call(self._access.principal(context), request.call_id)
            status = validate.wait_status(request.wait_status) if request.HasField("wait_status") else None
            outcome = await self._host.end(call.id, status)
            return pb.EndCallResponse(outcome=outcome_to_proto(outcome))

    async def GetOutcome(self, request: pb.GetOutcomeRequest, context: Context) -> pb.GetOutcomeResponse:
        async with answering(context, "GetOutcome"):
            call = self._access.call(self._access.principal(context), request.call_id)
            outcome: Outcome | None = call.outcome
            if outcome is None:
                raise WrongState(
                    f"the call is {call.state.value} and has no outcome yet",
                    field="call_id",
                    value=call.id,
                    remedy="end it with EndCall, or wait for its end with WatchSession",
                )
            return pb.GetOutcomeResponse(outcome=outcome_to_proto(outcome))

    async def WatchSession(
        self, request: pb.WatchSessionRequest, context: Context
    ) -> AsyncIterator[pb.WatchSessionResponse]:
        async with answering(context, "WatchSession"):
            principal = self._access.principal(context)
            session = self._access.session(principal, request.session_id)
            # subscribed before the first look, so that nothing falls between the two
            with self.streams.hold(
                str(principal), context, lambda: self._host.subscribe(session_id=session.id)
            ) as subscription:
                for answer in self._present(session.id):
                    yield answer
                if session.closed_at is not None:
                    return
                lost = subscription.lost
                async with aclosing(merged(subscription, None)) as updates:
                    async for update in updates:
                        if subscription.lost != lost:
                            # more may be lost while an answer waits for room: those are for the next round
                            before, lost = lost, subscription.lost
                            yield pb.WatchSessionResponse(lost=pb.Lost(updates=lost - before))
                            for answer in self._present(session.id):
                                yield answer
                        if isinstance(update, CallView) and update.session_id == session.id:
                            yield pb.WatchSessionResponse(call=call_to_proto(update))
                        elif isinstance(update, Decision) and update.session_id == session.id:
                            yield pb.WatchSessionResponse(decision=decision_to_proto(update))
                        elif isinstance(update, SessionView) and update.id == session.id:
                            yield pb.WatchSessionResponse(session=session_to_proto(update))
                            if update.closed_at is not None:
                                return
                raise Stopping  # a stream that ended without it says that the session is closed

    def _present(self, session_id: SessionId) -> list[pb.WatchSessionResponse]:
        """The session and its calls as they are now."""
        answers = [pb.WatchSessionResponse(session=session_to_proto(self._host.session(session_id)))]
        answers += [
            pb.WatchSessionResponse(call=call_to_proto(call))
            for call in self._host.snapshot(with_ended=True).calls
            if call.session_id == session_id
        ]
        return answers
