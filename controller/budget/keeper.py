"""Charges what is used to the session and its tenant, says what is left, and refuses when a hard budget is used up.

Calls are charged as they run (each sample) and to the last microsecond at their end: what the counters say then, less
what was charged before. A hard budget that is used up lets no call begin; calls that run may finish, since half a tool
call is worth nothing and its use is spent (the overdraft is forgotten with the next period); a budget that ends calls
ends them at the next sample.

What a call's begin pays: two dictionaries are walked, and one small object is made. Writing is the sampler's round's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from controller.budget import stock as stocks
from controller.budget.account import Account, Stock
from controller.budget.meter import CallMeter
from controller.budget.price import cost, turn_charges
from controller.budget.stock import Level
from controller.budget.words import human_amount, left_words, refill_words
from controller.model import (
    Action,
    Budget,
    BudgetChange,
    BudgetRule,
    CallId,
    Charges,
    Decision,
    Grant,
    NotFound,
    Reason,
    Refused,
    Resource,
    SavedBudgets,
    Turn,
    Turns,
    WrongState,
)
from controller.policy.grant import Refusal
from controller.registry import Call, Session, Tenant, now
from controller.shared import Shared

End = Callable[[Call, Reason, str, dict[str, float]], None]
"""Ends a call: the outcome's reason, why in words, and the numbers."""

CODE: Final = "budget_exhausted"  # stable: docs/outcomes.md
_ONE_CALL: Final = Charges(calls_begun=1.0)


class Budgets:
    """``saved``: what the ledger has; balances of tenants and sessions that come later are taken from it."""

    def __init__(self, shared: Shared, saved: SavedBudgets | None = None) -> None:
        self._shared = shared
        self._saved = saved or SavedBudgets(rules={}, balances={}, marks={}, turns={})
        self._dirty_calls: dict[CallId, Call] = {}
        self._dirty_owners: dict[str, Tenant | Session] = {}
        self._uncounted: set[Resource] = set()
        self.end: End = _nothing  # the owner's

    # --- who has which budgets ---------------------------------------------------------------------------------------

    def open_tenant(self, tenant: Tenant) -> None:
        self._fill(tenant.account, tenant.id, self._configured(tenant.name, "tenant"))

    def open_session(self, session: Session) -> None:
        self._fill(session.account, session.id, self._configured(session.tenant.name, "session"))
        session.account.turns = self._saved.turns.pop(session.id, None)

    def configure(self) -> None:
        """The configuration is new: its budgets are. What operators set stands."""
        for tenant in self._shared.registry.tenants.values():
            self._reset(tenant.account, tenant.id, self._configured(tenant.name, "tenant"))
            rules = self._configured(tenant.name, "session")
            for session in tenant.sessions.values():
                self._reset(session.account, session.id, rules)

    def set_rule(self, of: Tenant | Session, rule: BudgetRule) -> None:
        """By an operator. What was used in the present period stays used."""
        made = of.account.set_rule(rule, now(), by_operator=True)
        period = f" a period of {rule.period:g} s" if rule.period is not None else ""
        kind = "hard" if rule.hard else "soft"
        ends = ", and ends calls" if rule.ends_calls else ""
        limit = human_amount(rule.resource.value, rule.limit)
        self._record(of, f"the {kind} budget of {rule.resource.value} is {limit}{period} now{ends}")
        self._rewrite(of.id, made)

    def remove_rule(self, of: Tenant | Session, resource: Resource) -> None:
        """What an operator set. The configuration's budget, where there is one, holds again."""
        held = of.account.stocks.get(resource)
        name = _name(of)
        if held is None:
            raise NotFound(
                f"{name} has no budget of {resource.value}",
                field="resource",
                value=resource.value,
                remedy="corral budget lists those that there are",
            )
        if not held.by_operator:
            raise WrongState(
                f"the budget of {resource.value} of {name} is the configuration's",
                field="resource",
                value=resource.value,
                remedy="take it out of the file and reload, or set another one over it (corral budget set)",
            )
        del of.account.stocks[resource]
        self._record(of, f"the budget of {resource.value} was removed")
        self._write(BudgetChange(removed=((of.id, resource),)))
        tenant, scope = (of, "tenant") if isinstance(of, Tenant) else (of.tenant, "session")
        for rule in self._configured(tenant.name, scope):
            if rule.resource is resource:
                self._rewrite(of.id, of.account.set_rule(rule, now(), by_operator=False, balance=held.balance))

    # --- the path of a call ------------------------------------------------------------------------------------------

    def refusal(self, session: Session, resources: Collection[Resource] | None = None) -> Refusal | None:
        """Why nothing may begin in the session; None: something may. ``resources``: only these are asked for."""
        for owner in (session.tenant, session):
            for resource, held in owner.account.stocks.items():
                if held.level is not Level.USED_UP or not held.rule.hard:
                    continue
                at = now()
                if held.is_used_up(at) and (resources is None or resource in resources):
                    return _refusal(owner, held, at)
        return None

    def noted(self, session: Session, grant: Grant) -> Grant:
        """The grant, with what its agent should know of budgets: once for each step down."""
        notes = _notes(session, session.account.told)
        return replace(grant, notes=(*grant.notes, *notes)) if notes else grant

    def parting_notes(self, session: Session) -> tuple[str, ...]:
        """Likewise with an outcome, for agents that read what corral-exec tells of it and not its stderr."""
        return tuple(_notes(session, session.account.told_after))

    def begun(self, call: Call) -> None:
        active = self._counts(call)
        call.meter = CallMeter(time.monotonic(), active=active, begun_charged=True)
        if active:
            self._charge_begin(call.session)
            self._dirty_calls[call.id] = call

    def sampled(self, call: Call) -> None:
        """``call.usage`` is new."""
        meter = call.meter or self._resumed(call)
        at = time.monotonic()
        if not self._counts(call):
            meter.active = False
        elif not meter.active:
            meter.rebase(call.usage, at)
            meter.active = True
            self._dirty_calls[call.id] = call
        else:
            self._advance(call, meter, at, last=False)
            self._end_if_used_up(call)

    def ended(self, call: Call) -> tuple[Budget, ...]:
        """``call.usage`` is final. What is left of the session's and the tenant's stocks."""
        meter = call.meter or self._resumed(call)
        if meter.active and self._counts(call):
            self._advance(call, meter, time.monotonic(), last=True)
            # before the call's end reaches the ledger: an end that is on disk is charged
            self.flush()
        self._dirty_calls.pop(call.id, None)
        return self.left(call.session)

    def left(self, session: Session) -> tuple[Budget, ...]:
        at = now()
        return (*session.tenant.account.views(at), *session.account.views(at))

    def _end_if_used_up(self, call: Call) -> None:
        for owner in (call.tenant, call.session):
            for held in owner.account.stocks.values():
                if held.rule.ends_calls and held.level is Level.USED_UP and held.is_used_up(at := now()):
                    budget = stocks.view(held.balance, held.rule, owner.account.scope, at)
                    evidence = {"limit": budget.limit, "used": budget.used}
                    self.end(call, Reason.BUDGET_EXHAUSTED, left_words(budget, _whose(owner), held.level, at), evidence)
                    return

    # --- what is not seen by counters --------------------------------------------------------------------------------

    def charge(self, session: Session, charges: Charges, *, model: bool) -> None:
        """``model``: the session's model used it, and its Turns count it."""
        if model and (charges.gpu_seconds or charges.joules or charges.prefill_equivalents):
            turns = session.account.turns or Turns()
            session.account.turns = replace(
                turns,
                gpu_seconds=turns.gpu_seconds + charges.gpu_seconds,
                joules=turns.joules + charges.joules,
                prefill_equivalents=turns.prefill_equivalents + charges.prefill_equivalents,
            )
            session.account.turns_dirty = True
            self._dirty_owners[session.id] = session
        self._charge(session, charges)

    def report_turn(self, session: Session, turn: Turn) -> Turns:
        held = session.account.turns or Turns()
        session.account.turns = turns = replace(
            held,
            turns=held.turns + 1,
            prompt_tokens=held.prompt_tokens + turn.prompt_tokens,
            cached_tokens=held.cached_tokens + turn.cached_tokens,
            generated_tokens=held.generated_tokens + turn.generated_tokens,
            model_seconds=held.model_seconds + turn.seconds,
        )
        session.account.turns_dirty = True
        self._dirty_owners[session.id] = session
        self._charge(session, turn_charges(turn, self._shared.config.prices))
        self.flush()
        return turns

    def problems(self) -> list[str]:
        """Budgets that this host cannot charge, in words, for every screen."""
        return [
            f"budgets of {resource.value} stay full: nothing here counts it (corral doctor says what is missing)"
            for resource in sorted(self._uncounted)
        ]

    # --- the ledger --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Gives the ledger what has changed, as one record: balances, and the marks of the calls that are in them."""
        if not self._dirty_owners and not self._dirty_calls:
            return
        clock = now() - time.monotonic()
        balances = []
        turns = []
        for owner in self._dirty_owners.values():
            account = owner.account
            for resource, held in account.stocks.items():
                if held.dirty:
                    held.dirty = False
                    balances.append((owner.id, resource, held.balance))
            if account.turns_dirty and account.turns is not None:
                account.turns_dirty = False
                turns.append((owner.id, account.turns))
        marks = tuple(c.meter.mark(c.id, clock) for c in self._dirty_calls.values() if c.meter is not None)
        self._dirty_calls.clear()
        self._dirty_owners.clear()
        if balances or turns or marks:
            self._write(BudgetChange(balances=tuple(balances), marks=marks, turns=tuple(turns)))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _configured(self, tenant: str, scope: str) -> tuple[BudgetRule, ...]:
        for config in self._shared.config.tenants:
            if config.name == tenant:
                return config.budgets if scope == "tenant" else config.session_budgets
        return ()

    def _fill(self, account: Account, owner: str, configured: tuple[BudgetRule, ...]) -> None:
        at = now()
        rules = {rule.resource: (rule, False) for rule in configured}
        rules |= {r: (rule, True) for (of, r), rule in self._saved.rules.items() if of == owner}
        for resource, (rule, by_operator) in rules.items():
            balance = self._saved.balances.pop((owner, resource), None)
            made = account.set_rule(rule, at, by_operator=by_operator, balance=balance)
            self._saved.rules.pop((owner, resource), None)
            if balance is not None and made.balance.start < balance.start:
                self._rewrite(owner, made)  # the configuration's period is a longer one now

    def _reset(self, account: Account, owner: str, configured: tuple[BudgetRule, ...]) -> None:
        at = now()
        wanted = {rule.resource for rule in configured}
        gone = [r for r, held in account.stocks.items() if not held.by_operator and r not in wanted]
        for resource in gone:
            del account.stocks[resource]
        if gone:
            self._write(BudgetChange(removed=tuple((owner, resource) for resource in gone)))
        for rule in configured:
            held = account.stocks.get(rule.resource)
            if held is None or (not held.by_operator and held.rule != rule):
                self._rewrite(owner, account.set_rule(rule, at, by_operator=False))

    @staticmethod
    def _counts(call: Call) -> bool:
        return bool(call.session.account.stocks or call.tenant.account.stocks)

    def _resumed(self, call: Call) -> CallMeter:
        """Of a call that an earlier daemon left: charged up to its mark, or not at all."""
        mark = self._saved.marks.pop(call.id, None)
        active = self._counts(call)
        if mark is not None:
            meter = CallMeter.resumed(mark, now() - time.monotonic(), active=active)
        else:
            begun = time.monotonic() - max(0.0, now() - call.begun_at)
            meter = CallMeter(begun, active=active, begun_charged=False)
        call.meter = meter
        return meter

    def _advance(self, call: Call, meter: CallMeter, at: float, *, last: bool) -> None:
        charges = meter.advance(call.usage, at, last=last)
        if last:
            self._look_for_uncounted(call)
        if not meter.begun_charged:
            meter.begun_charged = True
            charges += _ONE_CALL
        self._dirty_calls[call.id] = call
        self._charge(call.session, charges)

    def _look_for_uncounted(self, call: Call) -> None:
        for resource, counted in (
            (Resource.NETWORK_BYTES, call.usage.net_rx_bytes is not None),
            (Resource.MEMORY_BYTE_SECONDS, call.usage.memory_peak is not None or call.usage.memory_now is not None),
        ):
            if resource not in call.session.account.stocks and resource not in call.tenant.account.stocks:
                continue
            if counted:
                self._uncounted.discard(resource)
            else:
                self._uncounted.add(resource)

    def _charge_begin(self, session: Session) -> None:
        """As ``_charge`` of one call begun, on the path of a begin."""
        at, price = now(), self._shared.config.prices.call
        for owner in (session.tenant, session):
            held = owner.account.stocks.get(Resource.CALLS_BEGUN)
            if held is not None:
                self._use(owner, held, 1.0, at)
            if price > 0 and (money := owner.account.stocks.get(Resource.MONEY)) is not None:
                self._use(owner, money, price, at)

    def _charge(self, session: Session, charges: Charges) -> None:
        at = now()
        for owner in (session.tenant, session):
            for resource, held in owner.account.stocks.items():
                if resource is Resource.MONEY:
                    amount = cost(charges, self._shared.config.prices)
                else:
                    amount = getattr(charges, resource)  # a text: its value costs more
                if amount > 0:
                    self._use(owner, held, amount, at)

    def _use(self, owner: Tenant | Session, held: Stock, amount: float, at: float) -> None:
        held.balance = stocks.charged(held.balance, held.rule, amount, at)
        held.dirty = True
        self._dirty_owners[owner.id] = owner
        before, held.level = held.level, stocks.level(held.balance, held.rule)
        if held.level > before:
            self._advise(owner, held, at)

    def _advise(self, owner: Tenant | Session, held: Stock, at: float) -> None:
        budget = stocks.view(held.balance, held.rule, owner.account.scope, at)
        self._decided(
            owner,
            Action.ADVISE,
            "budget",
            left_words(budget, _name(owner), held.level, at),
            {"limit": budget.limit, "used": budget.used, "remaining": budget.remaining, "hard": float(budget.hard)},
        )
        if isinstance(owner, Session) and self._shared.hub.listened_to:
            self._shared.hub.publish(owner.view())  # whoever watches it sees what is left

    def _record(self, of: Tenant | Session, reason: str) -> None:
        self._decided(of, Action.LIMIT, "operator", f"{_name(of)}: {reason}", {})

    def _decided(
        self, of: Tenant | Session, action: Action, policy: str, reason: str, evidence: dict[str, float]
    ) -> None:
        tenant = of if isinstance(of, Tenant) else of.tenant
        decision = Decision(
            at=now(),
            action=action,
            policy=policy,
            reason=reason,
            tenant_id=tenant.id,
            session_id=of.id if isinstance(of, Session) else None,
            evidence=evidence,
        )
        self._shared.meter.decided(tenant.name, decision)
        self._shared.journal.decision(decision)
        self._shared.hub.publish(decision)

    def _rewrite(self, owner: str, held: Stock) -> None:
        """In place of what the ledger has, which otherwise believes the later period and the larger use."""
        held.dirty = False
        resource = held.rule.resource
        self._write(
            BudgetChange(
                removed=((owner, resource),),
                rules=((owner, held.rule),) if held.by_operator else (),
                balances=((owner, resource, held.balance),),
            )
        )

    def _write(self, change: BudgetChange) -> None:
        self._shared.journal.budgets_changed(change)


def _notes(session: Session, told: dict[tuple[str, Resource], Level]) -> list[str]:
    """The worst first. ``told`` is brought up to date."""
    notes: list[tuple[Level, str]] = []
    for owner in (session.tenant, session):
        account = owner.account
        for resource, held in account.stocks.items():
            if held.level < Level.LOW:
                if told:
                    told.pop((account.scope, resource), None)
                continue
            key = (account.scope, resource)
            if told.get(key, Level.PLENTY) < held.level:
                at = now()
                held.refill(at)
                told[key] = held.level
                if held.level >= Level.LOW:
                    budget = stocks.view(held.balance, held.rule, account.scope, at)
                    notes.append((held.level, left_words(budget, _whose(owner), held.level, at)))
    notes.sort(key=lambda note: -note[0])
    return [text for _, text in notes]


def refused(refusal: Refusal) -> Refused:
    return Refused(refusal.message, code=refusal.code, field=refusal.field, value=refusal.value, remedy=refusal.remedy)


def _nothing(call: Call, reason: Reason, why: str, evidence: dict[str, float]) -> None:
    pass


def _name(of: Tenant | Session) -> str:
    return f"tenant {of.name!r}" if isinstance(of, Tenant) else f"session {of.id}"


def _whose(of: Tenant | Session) -> str:
    """For its agent."""
    return "this tenant" if isinstance(of, Tenant) else "this session"


def _refusal(owner: Tenant | Session, held: Stock, at: float) -> Refusal:
    budget = stocks.view(held.balance, held.rule, owner.account.scope, at)
    resource = budget.resource
    return Refusal(
        code=CODE,
        field=f"budget.{resource}",
        value=f"{budget.used:g}",
        message=(
            f"the hard budget of {resource} of {_name(owner)} is used up: "
            f"{human_amount(resource, budget.used)} of {human_amount(resource, budget.limit)}"
        ),
        remedy=(
            f"{refill_words(budget, at)}; finish with what you have, or ask the operator for more "
            f"(corral budget set {owner.name if isinstance(owner, Tenant) else owner.id} {resource} LIMIT)"
        ),
    )
