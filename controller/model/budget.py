"""Budgets: what may be used up, what was used, and how much is left.

A *ceiling* bounds what is in use at one time (memory_bytes, cpu_cores, pids, calls). A *stock* is used up
(``Resource``), and is full again with each period, or never.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final

from controller.model.errors import InvalidRequest
from controller.model.ids import CallId

MIN_PERIOD: Final = 1.0  # seconds
MAX_PERIOD: Final = 366 * 86_400.0
MAX_AMOUNT: Final = 1e24  # of any stock; float64 keeps 15 digits of it
MAX_TURN_TOKENS: Final = 1_000_000_000  # of one turn
MAX_TURN_SECONDS: Final = 30 * 86_400.0


class Resource(StrEnum):
    """What can be used up. Each name says its unit; money has the unit of the prices in the configuration."""

    CPU_SECONDS = "cpu_seconds"
    MEMORY_BYTE_SECONDS = "memory_byte_seconds"
    CALLS_BEGUN = "calls_begun"
    NETWORK_BYTES = "network_bytes"  # IP packets with their headers, in and out
    TOKENS = "tokens"  # of the prompt (cached ones, too) and generated
    GPU_SECONDS = "gpu_seconds"
    JOULES = "joules"
    MONEY = "money"


class Band(StrEnum):
    """How much is left, in words that an agent can plan with (controller/budget/stock.py has the shares)."""

    PLENTY = "plenty"
    MEDIUM = "medium"
    LOW = "low"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What is left of one resource, in the unit that ``resource`` names. ``band`` is None for a ceiling; ``used`` of a
    stock is that of the present period, and may be above ``limit``: calls that run when it is used up may finish."""

    resource: str
    scope: str  # tenant or session
    limit: float
    used: float
    remaining: float
    hard: bool = True
    ends_calls: bool = False
    period_seconds: float | None = None
    refills_at: float | None = None  # unix seconds
    band: Band | None = None

    @property
    def exhausted(self) -> bool:
        return self.remaining <= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRule:
    """A budget as it was set. ``hard``: once it is used up nothing begins any more; what runs may finish, unless it
    ``ends_calls``. ``period`` seconds: it is full again at each whole multiple since 1970 (a day ends at midnight UTC);
    None: never."""

    resource: Resource
    limit: float
    hard: bool = False
    period: float | None = None
    ends_calls: bool = False

    def __post_init__(self) -> None:
        # "not (low <= x <= high)" also refuses NaN
        if not 0 <= self.limit <= MAX_AMOUNT:
            raise InvalidRequest(
                f"{self.limit} is no amount of {self.resource.value}",
                field="limit",
                value=str(self.limit),
                remedy=f"give 0 to {MAX_AMOUNT:g}",
            )
        if self.ends_calls and not self.hard:
            raise InvalidRequest(
                "a soft budget ends no calls", field="ends_calls", remedy="make it hard, too, or leave ends_calls out"
            )
        if self.period is not None and not MIN_PERIOD <= self.period <= MAX_PERIOD:
            raise InvalidRequest(
                f"{self.period} is out of range",
                field="period_seconds",
                value=str(self.period),
                remedy=f"give {MIN_PERIOD:g} to {MAX_PERIOD:g} seconds, or leave it out: it is never full again then",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Charges:
    """What was used since it was last charged. Units as in Resource; never negative. ``prefill_equivalents`` (tokens,
    gpu/cost.py) is no stock: it is only added up in the session's Turns."""

    cpu_seconds: float = 0.0
    memory_byte_seconds: float = 0.0
    calls_begun: float = 0.0
    network_bytes: float = 0.0
    tokens: float = 0.0
    gpu_seconds: float = 0.0
    joules: float = 0.0
    money: float = 0.0  # known costs; what the prices say comes on top
    prefill_equivalents: float = 0.0

    def __post_init__(self) -> None:
        used = (
            *(self.cpu_seconds, self.memory_byte_seconds, self.calls_begun, self.network_bytes, self.tokens),
            *(self.gpu_seconds, self.joules, self.money, self.prefill_equivalents),
        )
        if min(used) >= 0 and sum(used) <= MAX_AMOUNT:  # a sum with NaN is none
            return
        for name in _CHARGES:
            if not 0 <= getattr(self, name) <= MAX_AMOUNT:
                raise InvalidRequest(
                    f"{getattr(self, name)} cannot be charged",
                    field=name,
                    value=str(getattr(self, name)),
                    remedy="charge finite numbers that are not negative",
                )

    def __add__(self, other: Charges) -> Charges:
        return Charges(**{name: getattr(self, name) + getattr(other, name) for name in _CHARGES})


_CHARGES: Final = tuple(f.name for f in fields(Charges))


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a session's model. ``prompt_tokens`` counts cached ones, too. ``seconds`` from the request to its
    last token. ``money``: what it cost, where that is known; otherwise the configured prices say."""

    engine: str = ""  # name in the configuration; empty: not one of ours
    conversation: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float | None = None
    money: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "cached_tokens", "generated_tokens"):
            _within(name, getattr(self, name), MAX_TURN_TOKENS)
        if self.cached_tokens > self.prompt_tokens:
            raise InvalidRequest(
                f"{self.cached_tokens} are more than the prompt's {self.prompt_tokens}",
                field="cached_tokens",
                value=str(self.cached_tokens),
                remedy="count cached tokens in prompt_tokens, too",
            )
        _within("seconds", self.seconds, MAX_TURN_SECONDS)
        if self.first_token_seconds is not None:
            _within("first_token_seconds", self.first_token_seconds, MAX_TURN_SECONDS)
        if self.money is not None:
            _within("money", self.money, 1e12)


def _within(name: str, value: float, high: float) -> None:
    if not (math.isfinite(value) and 0 <= value <= high):
        raise InvalidRequest(f"{value} is out of range", field=name, value=str(value), remedy=f"give 0 to {high:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """What a session's model did so far."""

    turns: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    model_seconds: float = 0.0
    prefill_equivalents: float = 0.0
    gpu_seconds: float = 0.0
    joules: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What was used of one stock in the period that began at ``start`` (unix seconds; 0: it is never full again)."""

    start: float = 0.0
    used: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallMark:
    """How much of a call is in the balances already. ``at`` and ``memory``: where the next stretch of byte-seconds
    begins (unix seconds, bytes). The rest as in Usage."""

    call_id: CallId
    cpu_usec: int
    network_bytes: int
    gpu_seconds: float
    joules: float
    at: float
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBudgets:
    """What the ledger has of budgets. Scopes are ids of tenants and sessions. ``rules`` are those that operators set:
    those of the configuration are read from it."""

    rules: dict[tuple[str, Resource], BudgetRule]
    balances: dict[tuple[str, Resource], Balance]
    marks: dict[CallId, CallMark]
    turns: dict[str, Turns]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetChange:
    """News of budgets, to be written as a whole or not at all: a balance and the marks of the calls that are in it.

    ``removed`` stocks lose rule and balance, before the rest is written."""

    removed: tuple[tuple[str, Resource], ...] = ()
    rules: tuple[tuple[str, BudgetRule], ...] = ()
    balances: tuple[tuple[str, Resource, Balance], ...] = ()
    marks: tuple[CallMark, ...] = ()
    turns: tuple[tuple[str, Turns], ...] = ()
