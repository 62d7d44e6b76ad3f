"""Amounts and budgets as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.amounts import form, parse_amount, parse_budget, parse_resource
from agentd.units import UnitError
from controller.model import BudgetRule, Resource

GIB = 1 << 30


@pytest.mark.parametrize(
    ("resource", "text", "amount"),
    [
        ("cpu_seconds", "10h", 36_000.0),
        ("cpu_seconds", "90", 90.0),
        ("gpu_seconds", "1h30m", 5400.0),
        ("memory_byte_seconds", "16G*8h", 16.0 * GIB * 8 * 3600),
        ("memory_byte_seconds", "1000", 1000.0),
        ("network_bytes", "500G", 500.0 * GIB),
        ("tokens", "2M", 2e6),
        ("calls_begun", "1.5k", 1500.0),
        ("joules", "5kWh", 1.8e7),
        ("joules", "18 MJ", 1.8e7),
        ("money", "12.50", 12.5),
    ],
)
def test_amounts(resource: str, text: str, amount: float) -> None:
    assert parse_amount(Resource(resource), text) == amount


@pytest.mark.parametrize(
    ("resource", "text"),
    [
        ("cpu_seconds", "10 apples"),
        ("cpu_seconds", "2M"),
        ("tokens", "10h"),
        ("tokens", "-5"),
        ("money", "12 EUR"),
        ("money", "nan"),
        ("memory_byte_seconds", "16G"),
        ("joules", "5 Wm"),
        ("tokens", ""),
        ("tokens", "9" * 100),
    ],
)
def test_what_is_no_amount_says_what_would_be_one(resource: str, text: str) -> None:
    with pytest.raises(UnitError) as wrong:
        parse_amount(Resource(resource), text)
    assert form(Resource(resource)) in str(wrong.value)


def test_every_resource_has_a_form() -> None:
    for resource in Resource:
        example = form(resource).split()[-1]
        assert parse_amount(resource, example) > 0, resource
    with pytest.raises(UnitError, match="cpu_seconds, memory_byte_seconds"):
        parse_resource("pids")


def test_budgets() -> None:
    cpu = Resource.CPU_SECONDS
    assert parse_budget(cpu, "10h per 1d hard") == BudgetRule(resource=cpu, limit=36_000.0, hard=True, period=86_400.0)
    assert parse_budget(cpu, "10h end") == BudgetRule(resource=cpu, limit=36_000.0, hard=True, ends_calls=True)
    assert parse_budget(cpu, "10h") == BudgetRule(resource=cpu, limit=36_000.0)
    assert parse_budget(cpu, " 1h  30m per 1h 30m soft ") == BudgetRule(resource=cpu, limit=5400.0, period=5400.0)


@pytest.mark.parametrize("text", ["", "hard", "per 1d", "10h per", "10h per 1ms", "10h per never", "10h harder"])
def test_odd_budgets(text: str) -> None:
    with pytest.raises(UnitError):
        parse_budget(Resource.CPU_SECONDS, text)


@given(st.sampled_from(Resource), st.text(max_size=80))
def test_any_text_is_an_amount_or_refused(resource: Resource, text: str) -> None:
    with contextlib.suppress(UnitError):
        assert parse_budget(resource, text).limit >= 0
