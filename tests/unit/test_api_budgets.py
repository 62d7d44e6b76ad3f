"""Budgets and turns over the API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentd.api.budgetproto import BAND
from agentd.api.client import ApiError, connect
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.model import Band, BudgetRule, Refused, Resource, Turn
from tests.unit.api_fake import NOW, Served, serve


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as it:
        yield it


def test_every_band_has_its_number() -> None:
    assert set(BAND) == set(Band)
    assert len({*BAND.values(), pb.BUDGET_BAND_UNSPECIFIED}) == len(pb.BudgetBand.values())


async def test_a_turn_is_reported(served: Served) -> None:
    session, token = served.host.add_session("acme")
    request = pb.ReportTurnRequest(
        engine="vllm-1",
        conversation="main",
        prompt_tokens=50,
        cached_tokens=20,
        generated_tokens=7,
        seconds=1.5,
        first_token_seconds=0.25,
        money=0.02,
    )
    async with connect(served.anyone, token) as api:
        answer = await api.call(api.agent.ReportTurn, request)
    turn = Turn(
        engine="vllm-1",
        conversation="main",
        prompt_tokens=50,
        cached_tokens=20,
        generated_tokens=7,
        seconds=1.5,
        first_token_seconds=0.25,
        money=0.02,
    )
    assert served.host.asked == [("report_turn", session.id, turn)]
    assert (answer.turns.turns, answer.turns.prompt_tokens) == (3, 50)
    assert [b.band for b in answer.budgets] == [pb.BUDGET_BAND_CRITICAL]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ReportTurnRequest(prompt_tokens=1, cached_tokens=2), "cached_tokens"),
        (pb.ReportTurnRequest(prompt_tokens=2**63), "prompt_tokens"),
        (pb.ReportTurnRequest(seconds=float("nan")), "seconds"),
        (pb.ReportTurnRequest(seconds=1e300), "seconds"),
        (pb.ReportTurnRequest(money=-1.0), "money"),
        (pb.ReportTurnRequest(engine="x" * 300), "engine"),
        (pb.ReportTurnRequest(conversation="\x1b[2J"), "conversation"),
    ],
)
async def test_odd_turns(served: Served, request_: Any, field: str) -> None:
    _, token = served.host.add_session("acme")
    async with connect(served.anyone, token) as api:
        with pytest.raises(ApiError) as refused:
            await api.call(api.agent.ReportTurn, request_)
    assert refused.value.field == field
    assert served.host.asked == []


async def test_what_is_left_stands_in_the_grant(served: Served) -> None:
    _, token = served.host.add_session("acme")
    async with connect(served.anyone, token) as api:
        answer = await api.call(api.agent.BeginCall, pb.BeginCallRequest(argv=["true"]))
    (budget,) = answer.call.grant.budgets
    assert (budget.resource, budget.scope, budget.remaining, budget.hard) == ("cpu_seconds", "session", 5.0, True)
    assert (budget.period_seconds, budget.refills_at) == (86_400.0, NOW + 60)


async def test_operators_set_and_remove(served: Served) -> None:
    async with connect(served.operator) as api:
        request = pb.SetBudgetRequest(target="acme", resource="tokens", limit=5.0, hard=True, ends_calls=True)
        request.period_seconds = 60.0
        answer = await api.call(api.operator.SetBudget, request)
        assert [b.resource for b in answer.budgets] == ["cpu_seconds"], "all of the target"
        await api.call(api.operator.SetBudget, pb.SetBudgetRequest(target="acme", resource="tokens"))
    rule = BudgetRule(resource=Resource.TOKENS, limit=5.0, hard=True, period=60.0, ends_calls=True)
    assert served.host.asked == [("set_budget", "acme", rule), ("remove_budget", "acme", Resource.TOKENS)]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.SetBudgetRequest(target="../x", resource="tokens", limit=1.0), "target"),
        (pb.SetBudgetRequest(target="acme", resource="memory_bytes", limit=1.0), "resource"),
        (pb.SetBudgetRequest(target="acme", resource="tokens", limit=-1.0), "limit"),
        (pb.SetBudgetRequest(target="acme", resource="tokens", limit=float("nan")), "limit"),
        (pb.SetBudgetRequest(target="acme", resource="tokens", hard=True), "limit"),
        (pb.SetBudgetRequest(target="acme", resource="tokens", limit=1.0, ends_calls=True), "ends_calls"),
        (pb.SetBudgetRequest(target="acme", resource="tokens", limit=1.0, period_seconds=0.1), "period_seconds"),
    ],
)
async def test_odd_budgets(served: Served, request_: Any, field: str) -> None:
    async with connect(served.operator) as api:
        with pytest.raises(ApiError) as refused:
            await api.call(api.operator.SetBudget, request_)
    assert refused.value.field == field
    assert served.host.asked == []


async def test_a_used_up_budget_reaches_the_caller_with_its_code(served: Served) -> None:
    _, token = served.host.add_session("acme")
    served.host.fail = Refused("is used up", code="budget_exhausted", field="budget.tokens", remedy="wait")
    async with connect(served.anyone, token) as api:
        with pytest.raises(ApiError) as refused:
            await api.call(api.agent.BeginCall, pb.BeginCallRequest(argv=["true"]))
    assert (refused.value.code, refused.value.field) == ("budget_exhausted", "budget.tokens")
