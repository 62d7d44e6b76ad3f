"""The stocks of one tenant or session, as they are now. The event loop alone changes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from controller.budget import stock
from controller.budget.stock import Level
from controller.model import Balance, Budget, BudgetRule, Resource, Turns


@dataclass(slots=True, kw_only=True)
class Stock:
    """``by_operator``: set over the API, which stands above the configuration. ``dirty``: not yet given to the ledger
    as it is. ``level``: the last one that was made known."""

    rule: BudgetRule
    balance: Balance
    by_operator: bool
    level: Level
    dirty: bool = False

    def refill(self, now: float) -> None:
        self.balance = stock.refilled(self.balance, self.rule, now)
        self.level = min(self.level, stock.level(self.balance, self.rule))

    def is_used_up(self, now: float) -> bool:
        if self.level is not Level.USED_UP:
            return False
        self.refill(now)
        return self.level is Level.USED_UP


@dataclass(slots=True)
class Account:
    """``told``: of a session, how far down its agent was last told, with a grant, that each stock is, by scope and
    resource; ``told_after``: likewise, with an outcome."""

    scope: Literal["tenant", "session"]
    stocks: dict[Resource, Stock] = field(default_factory=dict)
    turns: Turns | None = None
    turns_dirty: bool = False
    told: dict[tuple[str, Resource], Level] = field(default_factory=dict)
    told_after: dict[tuple[str, Resource], Level] = field(default_factory=dict)

    def views(self, now: float) -> tuple[Budget, ...]:
        if not self.stocks:
            return ()
        return tuple(stock.view(one.balance, one.rule, self.scope, now) for one in self.stocks.values())

    def set_rule(self, rule: BudgetRule, now: float, *, by_operator: bool, balance: Balance | None = None) -> Stock:
        """``balance``: what is known of its use, for a stock that is new here."""
        held = self.stocks.get(rule.resource)
        balance = stock.begun(balance if held is None else held.balance, rule, now)
        made = Stock(rule=rule, balance=balance, by_operator=by_operator, level=stock.level(balance, rule))
        self.stocks[rule.resource] = made
        return made
