"""One stock: charge it, fill it again, say what is left. Pure.

Periods are whole multiples of their length since 1970 (unix time 0), so that neither a restart nor a new configuration
shifts them: with a period of a day a stock is full again at midnight UTC.

The bands are four regimes of what there was at first: at least 70 % left, 30 to 70 %, 10 to 30 %, less than 10 %. The
idea is that of the budget tracker of BATS (Liu et al., Budget-Aware Tool-Use Enables Effective Agent Scaling, arXiv
2511.17006). For the three numbers no source was found: the paper was not at hand, and nothing was measured.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from controller.model import Balance, Band, Budget, BudgetRule

_PLENTY_FROM: Final = 0.7  # shares of the limit that are left
_MEDIUM_FROM: Final = 0.3
_LOW_FROM: Final = 0.1


class Level(IntEnum):
    """How far down a stock is: its band, and beyond the last one the end. Ordered."""

    PLENTY = 0
    MEDIUM = 1
    LOW = 2
    CRITICAL = 3
    USED_UP = 4


_LEVEL: Final = {
    Band.PLENTY: Level.PLENTY,
    Band.MEDIUM: Level.MEDIUM,
    Band.LOW: Level.LOW,
    Band.CRITICAL: Level.CRITICAL,
}


def period_start(period: float | None, now: float) -> float:
    """When the period that ``now`` (unix seconds) lies in began; 0 for one that never ends."""
    return 0.0 if period is None else now // period * period


def refilled(balance: Balance, rule: BudgetRule, now: float) -> Balance:
    """The balance at ``now``. What was used in an earlier period is forgotten, overdrafts too. A clock that was set
    back fills nothing: the period that has begun goes on."""
    start = period_start(rule.period, now)
    return Balance(start=start) if start > balance.start else balance


def begun(balance: Balance | None, rule: BudgetRule, now: float) -> Balance:
    """The balance under a rule that is new, whose period may have another length: what was used in its present period,
    or in one within it, stays used."""
    start = period_start(rule.period, now)
    if balance is None or balance.start < start:
        return Balance(start=start)
    return Balance(start=start, used=balance.used)


def charged(balance: Balance, rule: BudgetRule, amount: float, now: float) -> Balance:
    """With ``amount`` (not negative) used at ``now``. May pass the limit: who runs already may finish."""
    balance = refilled(balance, rule, now)
    return Balance(start=balance.start, used=balance.used + amount)


def remaining(balance: Balance, rule: BudgetRule) -> float:
    return max(0.0, rule.limit - balance.used)


def band(left: float, limit: float) -> Band:
    """Of a stock of which ``left`` remains. One of nothing at all is critical from the start."""
    share = left / limit if limit > 0 else 0.0
    if share >= _PLENTY_FROM:
        return Band.PLENTY
    if share >= _MEDIUM_FROM:
        return Band.MEDIUM
    return Band.LOW if share >= _LOW_FROM else Band.CRITICAL


def level(balance: Balance, rule: BudgetRule) -> Level:
    left = remaining(balance, rule)
    return _LEVEL[band(left, rule.limit)] if left > 0 else Level.USED_UP


def refills_at(balance: Balance, rule: BudgetRule) -> float | None:
    """Unix seconds; None: never."""
    return None if rule.period is None else balance.start + rule.period


def view(balance: Balance, rule: BudgetRule, scope: str, now: float) -> Budget:
    """``scope``: tenant or session."""
    balance = refilled(balance, rule, now)
    left = remaining(balance, rule)
    return Budget(
        resource=rule.resource.value,
        scope=scope,
        limit=rule.limit,
        used=balance.used,
        remaining=left,
        hard=rule.hard,
        ends_calls=rule.ends_calls,
        period_seconds=rule.period,
        refills_at=refills_at(balance, rule),
        band=band(left, rule.limit),
    )
