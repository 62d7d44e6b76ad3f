"""Budgets over the API: what is left, turns that agents report, and what operators set."""

from __future__ import annotations

from agentd.api import validate
from agentd.api.budgetproto import (
    budget_to_proto,
    resource_from_proto,
    rule_from_proto,
    turn_from_proto,
    turns_to_proto,
)
from agentd.api.errors import Context, answering
from agentd.api.identity import Access
from agentd.api.ports import HostPort, TierPort
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.corral.v1 import corral_pb2_grpc


class BudgetAgentMethods(corral_pb2_grpc.AgentServiceServicer):
    _host: HostPort
    _access: Access
    _tier: TierPort

    async def GetBudget(self, request: pb.GetBudgetRequest, context: Context) -> pb.GetBudgetResponse:
        async with answering(context, "GetBudget"):
            session = self._access.session(self._access.principal(context), request.session_id)
            return pb.GetBudgetResponse(budgets=[budget_to_proto(budget) for budget in self._host.budgets(session.id)])

    async def ReportTurn(self, request: pb.ReportTurnRequest, context: Context) -> pb.ReportTurnResponse:
        async with answering(context, "ReportTurn"):
            session = self._access.session(self._access.principal(context), request.session_id)
            turn = turn_from_proto(request)
            turns = self._host.report_turn(session.id, turn)
            self._tier.reported(session.id, turn)
            return pb.ReportTurnResponse(
                turns=turns_to_proto(turns),
                budgets=[budget_to_proto(budget) for budget in self._host.stocks(session.id)],
            )


class BudgetOperatorMethods(corral_pb2_grpc.OperatorServiceServicer):
    _host: HostPort
    _access: Access

    async def SetBudget(self, request: pb.SetBudgetRequest, context: Context) -> pb.SetBudgetResponse:
        async with answering(context, "SetBudget"):
            self._access.operator(context)
            target = validate.target(request.target)
            rule = rule_from_proto(request)
            if rule is not None:
                left = self._host.set_budget(target, rule)
            else:
                left = self._host.remove_budget(target, resource_from_proto(request.resource))
            return pb.SetBudgetResponse(budgets=[budget_to_proto(budget) for budget in left])
