"""Budgets and turns to and from the messages of corral.v1 (see convert.py)."""

from __future__ import annotations

from typing import Final

from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.model import Band, Budget, BudgetRule, InvalidRequest, Resource, Turn, Turns, check_text

BAND: Final = {
    Band.PLENTY: pb.BUDGET_BAND_PLENTY,
    Band.MEDIUM: pb.BUDGET_BAND_MEDIUM,
    Band.LOW: pb.BUDGET_BAND_LOW,
    Band.CRITICAL: pb.BUDGET_BAND_CRITICAL,
}


def budget_to_proto(budget: Budget) -> pb.Budget:
    return pb.Budget(
        resource=budget.resource,
        scope=budget.scope,
        limit=budget.limit,
        used=budget.used,
        remaining=budget.remaining,
        hard=budget.hard,
        ends_calls=budget.ends_calls,
        period_seconds=budget.period_seconds,
        refills_at=budget.refills_at,
        band=pb.BUDGET_BAND_UNSPECIFIED if budget.band is None else BAND[budget.band],
    )


def turns_to_proto(turns: Turns) -> pb.Turns:
    return pb.Turns(
        turns=turns.turns,
        prompt_tokens=turns.prompt_tokens,
        cached_tokens=turns.cached_tokens,
        generated_tokens=turns.generated_tokens,
        model_seconds=turns.model_seconds,
        prefill_equivalents=turns.prefill_equivalents,
        gpu_seconds=turns.gpu_seconds,
        joules=turns.joules,
    )


def turn_from_proto(message: pb.ReportTurnRequest) -> Turn:
    """Raises InvalidRequest."""
    return Turn(
        engine=check_text("engine", message.engine),
        conversation=check_text("conversation", message.conversation),
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        generated_tokens=message.generated_tokens,
        seconds=message.seconds,
        first_token_seconds=message.first_token_seconds if message.HasField("first_token_seconds") else None,
        money=message.money if message.HasField("money") else None,
    )


def rule_from_proto(message: pb.SetBudgetRequest) -> BudgetRule | None:
    """None: the budget is to be removed. Raises InvalidRequest."""
    resource = resource_from_proto(message.resource)
    if not message.HasField("limit"):
        if message.hard or message.ends_calls or message.HasField("period_seconds"):
            raise InvalidRequest(
                "is missing, and the rest of a budget is given",
                field="limit",
                remedy="give it, or leave out hard and period_seconds, too, to remove the budget",
            )
        return None
    return BudgetRule(
        resource=resource,
        limit=message.limit,
        hard=message.hard,
        ends_calls=message.ends_calls,
        period=message.period_seconds if message.HasField("period_seconds") else None,
    )


def resource_from_proto(name: str) -> Resource:
    try:
        return Resource(name)
    except ValueError:
        raise InvalidRequest(
            "is nothing that can be used up",
            field="resource",
            value=name,
            remedy=f"give one of {', '.join(Resource)}; ceilings are set with SetLimits and SetTenant",
        ) from None
