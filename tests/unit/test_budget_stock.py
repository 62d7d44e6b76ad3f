"""The arithmetic of stocks, prices and meters, for arbitrary uses and clocks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.budget import stock
from controller.budget.meter import CallMeter
from controller.budget.price import Prices, TokenPrices, cost, turn_charges, turn_cost, unified_cost
from controller.budget.stock import Level
from controller.budget.words import human_amount, left_words
from controller.model import (
    Balance,
    Band,
    BudgetRule,
    Charges,
    InvalidRequest,
    Resource,
    Turn,
    Usage,
    new_call_id,
)

GIB = 1 << 30
DAY = 86_400.0
amounts = st.floats(0, 1e15)
moments = st.floats(1.7e9, 2.0e9)
rules = st.builds(
    BudgetRule,
    resource=st.sampled_from(Resource),
    limit=st.floats(0, 1e15),
    hard=st.booleans(),
    period=st.none() | st.floats(1.0, 366 * DAY),
)
uses = st.lists(st.tuples(amounts, moments), max_size=30)


def run(rule: BudgetRule, history: list[tuple[float, float]]) -> Balance:
    balance = Balance()
    for amount, at in history:
        balance = stock.charged(balance, rule, amount, at)
    return balance


@given(rules, uses, moments)
def test_nothing_is_ever_negative_and_the_band_fits(
    rule: BudgetRule, history: list[tuple[float, float]], at: float
) -> None:
    view = stock.view(run(rule, history), rule, "tenant", at)
    assert view.used >= 0
    assert 0 <= view.remaining <= view.limit
    assert view.exhausted == (view.used >= view.limit)
    assert view.band is not None
    if view.exhausted:
        assert view.band is Band.CRITICAL
    if view.refills_at is not None:
        assert view.period_seconds is not None
        assert math.isclose(view.refills_at / view.period_seconds, round(view.refills_at / view.period_seconds))


@given(rules, moments, st.lists(amounts, max_size=20))
def test_charging_in_parts_is_charging_at_once(rule: BudgetRule, at: float, parts: list[float]) -> None:
    in_parts = run(rule, [(part, at) for part in parts])
    at_once = run(rule, [(math.fsum(parts), at)] if parts else [])
    assert in_parts.start == at_once.start
    assert math.isclose(in_parts.used, at_once.used, rel_tol=1e-12, abs_tol=1e-300)


@given(rules, moments, st.lists(amounts, max_size=12).flatmap(lambda h: st.tuples(st.just(h), st.permutations(h))))
def test_the_order_of_charges_does_not_matter(
    rule: BudgetRule, at: float, orders: tuple[list[float], list[float]]
) -> None:
    one, other = (run(rule, [(amount, at) for amount in order]).used for order in orders)
    assert math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-300)


@given(rules, uses, moments)
def test_refilling_twice_is_refilling_once(rule: BudgetRule, history: list[tuple[float, float]], at: float) -> None:
    once = stock.refilled(run(rule, history), rule, at)
    assert stock.refilled(once, rule, at) == once


@given(rules, uses, moments)
def test_a_clock_that_is_set_back_fills_nothing(
    rule: BudgetRule, history: list[tuple[float, float]], at: float
) -> None:
    balance = stock.charged(run(rule, history), rule, 1.0, 2.0e9)
    assert stock.refilled(balance, rule, at) == balance


def test_a_day_ends_at_midnight_utc_whenever_the_daemon_started() -> None:
    rule = BudgetRule(resource=Resource.CPU_SECONDS, limit=10.0, period=DAY)
    noon = 20_000 * DAY + DAY / 2
    balance = stock.charged(stock.begun(None, rule, noon - 100), rule, 4.0, noon)
    assert stock.view(balance, rule, "tenant", noon).refills_at == 20_001 * DAY
    assert stock.view(balance, rule, "tenant", 20_001 * DAY - 1).used == 4.0
    assert stock.view(balance, rule, "tenant", 20_001 * DAY).used == 0.0
    never = BudgetRule(resource=Resource.CPU_SECONDS, limit=10.0)
    assert stock.view(stock.charged(Balance(), never, 4.0, noon), never, "tenant", noon * 2).used == 4.0


def test_a_new_period_keeps_what_was_used_within_it() -> None:
    hourly = BudgetRule(resource=Resource.TOKENS, limit=10.0, period=3600.0)
    daily = replace(hourly, period=DAY)
    noon = 20_000 * DAY + DAY / 2
    balance = stock.charged(Balance(), hourly, 4.0, noon)
    assert stock.begun(balance, daily, noon) == Balance(start=20_000 * DAY, used=4.0)
    of_the_morning = Balance(start=20_000 * DAY, used=4.0)
    assert stock.begun(of_the_morning, hourly, noon) == Balance(start=noon, used=0.0), "nobody knows when it was used"


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (100, Band.PLENTY),
        (70, Band.PLENTY),
        (69.9, Band.MEDIUM),
        (30, Band.MEDIUM),
        (29.9, Band.LOW),
        (10, Band.LOW),
        (9.9, Band.CRITICAL),
        (0, Band.CRITICAL),
    ],
)
def test_bands(left: float, expected: Band) -> None:
    assert stock.band(left, 100) is expected


def test_a_stock_of_nothing_is_used_up_from_the_start() -> None:
    rule = BudgetRule(resource=Resource.MONEY, limit=0.0)
    assert stock.level(Balance(), rule) is Level.USED_UP


@pytest.mark.parametrize(
    ("limit", "period"), [(-1.0, None), (math.nan, None), (math.inf, None), (1.0, 0.5), (1.0, math.nan), (1.0, 1e9)]
)
def test_odd_rules_are_refused(limit: float, period: float | None) -> None:
    with pytest.raises(InvalidRequest):
        BudgetRule(resource=Resource.MONEY, limit=limit, period=period)


@pytest.mark.parametrize(
    "odd",
    [
        {"prompt_tokens": -1},
        {"prompt_tokens": 10, "cached_tokens": 11},
        {"generated_tokens": 10**10},
        {"seconds": math.nan},
        {"seconds": -1.0},
        {"first_token_seconds": math.inf},
        {"money": -0.1},
    ],
)
def test_odd_turns_are_refused(odd: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Turn(**odd)  # type: ignore[arg-type]  # the table mixes fields of both kinds
    assert refused.value.field in odd


# --- prices -----------------------------------------------------------------------------------------------------------

PRICES = Prices(
    cpu_hour=0.04,
    gib_hour=0.005,
    network_gb=0.09,
    gpu_hour=2.0,
    kwh=0.3,
    call=0.001,
    tokens=TokenPrices(prompt=1.0, cached=0.1, generated=4.0),
    engines={"small": TokenPrices(prompt=0.1, generated=0.2)},
)


def test_prices_by_hand() -> None:
    charges = Charges(
        cpu_seconds=1800.0,  # 0.02
        memory_byte_seconds=2.0 * GIB * 3600,  # 0.01
        network_bytes=1e9,  # 0.09
        gpu_seconds=360.0,  # 0.2
        joules=3.6e6,  # 0.3
        calls_begun=10,  # 0.01
        money=1.0,
    )
    assert math.isclose(cost(charges, PRICES), 1.63)
    turn = Turn(prompt_tokens=1_000_000, cached_tokens=900_000, generated_tokens=10_000)
    assert math.isclose(turn_cost(turn, PRICES), 0.1 + 0.09 + 0.04)
    assert math.isclose(turn_cost(replace(turn, engine="small"), PRICES), 0.01 + 0.002)
    assert turn_cost(replace(turn, money=7.0), PRICES) == 7.0
    assert turn_charges(turn, PRICES).tokens == 1_010_000
    assert math.isclose(unified_cost(charges, (turn, turn), PRICES), 1.63 + 2 * 0.23)
    assert cost(charges, Prices()) == 1.0, "without prices only what is known to be spent"


positive = st.floats(0, 1e12)
charges_of = st.builds(
    Charges, cpu_seconds=positive, memory_byte_seconds=positive, network_bytes=positive, gpu_seconds=positive
)


@given(charges_of, charges_of)
def test_costs_add_up(a: Charges, b: Charges) -> None:
    assert math.isclose(cost(a + b, PRICES), cost(a, PRICES) + cost(b, PRICES), rel_tol=1e-9, abs_tol=1e-12)


# --- meters -----------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(st.floats(0, 100), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**12)), max_size=20
)


@given(steps)
def test_a_meter_charges_each_microsecond_and_byte_once(history: list[tuple[float, int, int, int]]) -> None:
    meter = CallMeter(0.0, active=True, begun_charged=True)
    at, cpu, network = 0.0, 0, 0
    total = Charges()
    for seconds, more_cpu, more_bytes, memory in history:
        at, cpu, network = at + seconds, cpu + more_cpu, network + more_bytes
        usage = Usage(cpu_usec=cpu, net_rx_bytes=network // 3, net_tx_bytes=network - network // 3, memory_now=memory)
        total += meter.advance(usage, at)
        assert meter.advance(usage, at) == Charges(), "nothing happened since"
    assert math.isclose(total.cpu_seconds, cpu / 1e6, rel_tol=1e-12, abs_tol=1e-12)
    assert total.network_bytes == network


@given(steps, st.integers(0, 20))
def test_a_restart_in_between_changes_nothing(history: list[tuple[float, int, int, int]], died_after: int) -> None:
    whole = CallMeter(0.0, active=True, begun_charged=True)
    broken = CallMeter(0.0, active=True, begun_charged=True)
    at, cpu = 0.0, 0
    first, second = Charges(), Charges()
    for number, (seconds, more_cpu, _, memory) in enumerate(history):
        at, cpu = at + seconds, cpu + more_cpu
        usage = Usage(cpu_usec=cpu, memory_now=memory)
        first += whole.advance(usage, at)
        second += broken.advance(usage, at)
        if number == died_after:  # the clock of the next daemon begins elsewhere
            broken = CallMeter.resumed(broken.mark(new_call_id(), 1e9), 1e9, active=True)
    assert math.isclose(first.cpu_seconds, second.cpu_seconds, abs_tol=1e-9)
    assert math.isclose(first.memory_byte_seconds, second.memory_byte_seconds, rel_tol=1e-6, abs_tol=1e12 * 1e-6)


def test_memory_is_trapezoids_and_the_last_stretch_stays_level() -> None:
    meter = CallMeter(10.0, active=True, begun_charged=True)
    assert meter.advance(Usage(memory_now=100), 12.0).memory_byte_seconds == 100.0  # from nothing to 100 in 2 s
    assert meter.advance(Usage(memory_now=300), 14.0).memory_byte_seconds == 400.0
    assert meter.advance(Usage(memory_now=0, memory_peak=900), 15.0, last=True).memory_byte_seconds == 300.0
    short = CallMeter(0.0, active=True, begun_charged=True)
    assert short.advance(Usage(memory_now=0, memory_peak=900), 1.0, last=True).memory_byte_seconds == 450.0


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "amount", "words"),
    [
        ("cpu_seconds", 5400.0, "1 h 30 min"),
        ("memory_byte_seconds", 12.0 * GIB * 3600, "12 GiB·h"),
        ("network_bytes", 1.5 * GIB, "1.5 GiB"),
        ("tokens", 2_500_000.0, "2.5 M"),
        ("calls_begun", 12.0, "12"),
        ("joules", 3_600_000.0, "3.6 MJ"),
        ("joules", 12.0, "12 J"),
        ("money", 0.4213, "0.4213"),
        ("gpu_seconds", 0.0, "0 s"),
    ],
)
def test_amounts_in_words(resource: str, amount: float, words: str) -> None:
    assert human_amount(resource, amount) == words


def test_a_sentence_about_a_budget() -> None:
    rule = BudgetRule(resource=Resource.CPU_SECONDS, limit=100.0, hard=True, period=DAY)
    at = 20_000 * DAY + DAY - 3600
    budget = stock.view(stock.charged(Balance(), rule, 85.0, at), rule, "tenant", at)
    assert left_words(budget, "this tenant", Level.LOW, at) == (
        "the hard budget of cpu_seconds of this tenant is low: 15 s of 1 min 40 s left, "
        "it is full again in 1 h 0 min (2024-10-05 00:00:00 UTC)"
    )
