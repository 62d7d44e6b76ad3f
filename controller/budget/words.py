"""Budgets in words, for people and for language models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from controller.budget.stock import Level
from controller.model import Budget
from controller.policy.text import human_bytes, human_seconds

_HOUR: Final = 3600.0
_DECIMAL: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_STATE: Final = {
    Level.PLENTY: "has plenty left",
    Level.MEDIUM: "is getting smaller",
    Level.LOW: "is low",
    Level.CRITICAL: "is nearly used up",
    Level.USED_UP: "is used up",
}


def human_amount(resource: str, amount: float) -> str:
    """``1 h 30 min``, ``12 GiB·h``, ``1.5 GiB``, ``2.5 M``, ``0.42``: by the unit that the resource's name says."""
    if resource.endswith("byte_seconds"):
        return f"{human_bytes(amount / _HOUR)}·h"
    if resource.endswith("_bytes"):
        return human_bytes(amount)
    if resource.endswith("_seconds"):
        return human_seconds(amount)
    if resource == "joules":
        return f"{_decimal(amount)}J"
    return _decimal(amount).rstrip()


def _decimal(amount: float) -> str:
    for factor, letter in _DECIMAL:
        if amount >= factor:
            return f"{amount / factor:.3g} {letter}"
    return f"{amount:.4g} "


def refill_words(budget: Budget, now: float) -> str:
    """``it is full again in 3 h 2 min (2026-11-25 00:00:00 UTC)``, or that it never is."""
    if budget.refills_at is None:
        return "it is never full again by itself"
    at = datetime.fromtimestamp(budget.refills_at, UTC)
    return f"it is full again in {human_seconds(max(0.0, budget.refills_at - now))} ({at:%Y-%m-%d %H:%M:%S} UTC)"


def left_words(budget: Budget, whose: str, level: Level, now: float) -> str:
    """One sentence: whose budget of what is how far down, with the numbers."""
    left = human_amount(budget.resource, budget.remaining)
    limit = human_amount(budget.resource, budget.limit)
    kind = "hard" if budget.hard else "soft"
    return (
        f"the {kind} budget of {budget.resource} of {whose} {_STATE[level]}: {left} of {limit} left, "
        f"{refill_words(budget, now)}"
    )
