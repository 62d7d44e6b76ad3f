"""Which waiting calls may begin, with what threshold, and how long the others will wait. Pure.

A call is admitted when

- declared CPU, processes and the number of calls leave room (of its tenant, and of the host);
- its first threshold fits into memory that is not spoken for: what such calls likely use, or at least what they
  typically use (so that it need not be braked at once);
- the host stays safe (see Account.safe): all begun calls, and it, can end one after the other;
- the peak of the host's future memory with it, M* (see controller.forecast.peak), stays within the capacity.

Waiting calls are tried in fair order. The first that does not fit holds the line: a later one may begin only if it
likely ends within ``backfill`` seconds, or if what the first waits for stays free. Calls that are held come before all
that wait: a newcomer gets nothing that the champion needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.forecast import ends_by, fits, peak_of
from controller.model import CallId, OnPressure, TenantId
from controller.policy.account import Account
from controller.policy.fairness import champion, in_order
from controller.policy.ladder import step_of
from controller.policy.settings import ControlConfig
from controller.policy.text import human_bytes
from controller.state import CallFacts, Stage, State, Step, StepKind


def admit(state: State, config: ControlConfig, account: Account) -> list[Step]:
    """One step for every waiting call: ADMIT, WAIT or REFUSE."""
    steps: list[Step] = []
    begun = [c for c in state.calls if c.id in account.reserved]
    counts = _Counts(state, begun)
    kept = _kept_for_held(begun, account)
    stuck: set[TenantId] = set()
    for call in in_order(state, config):
        why = "calls of the same tenant wait already" if call.tenant_id in stuck else counts.full(call, config)
        if not why:
            size = _first_threshold(call, config)
            least = min(size, max(config.first_grant, call.need.typical))
            room = account.room(call)
            quick = call.need.ends_likely <= config.backfill and call.need.count > 0
            if not quick:
                room = min(room, account.free - kept)
            given = min(size, room)
            if given < least:
                why = f"such a call takes about {human_bytes(least)}, {human_bytes(max(0, room))} are free"
                kept = max(kept, least)
            else:
                why = _too_much_later(call, given, begun, account, quick=quick)
                if not why:
                    begun.append(call)
                    counts.add(call)
                    steps.append(_admitted(call, given, account))
                    continue
                kept = max(kept, least)
        else:
            stuck.add(call.tenant_id)
        steps.append(_not_now(call, why, begun, account))
    return steps


def _kept_for_held(begun: Sequence[CallFacts], account: Account) -> int:
    """What stays free for the first of the held calls: all that it may still claim."""
    held = [c for c in begun if c.stage is Stage.HELD]
    first = champion(held)
    if first is None:
        return 0
    return max(step_of(first, account.config), first.need.typical - first.usage)


def _first_threshold(call: CallFacts, config: ControlConfig) -> int:
    size = max(config.first_grant, call.need.typical + config.least_slack)
    if call.declared_peak is not None:
        size = min(size, max(config.first_grant, call.declared_peak))
    return min(size, call.hard_limit) if call.hard_limit is not None else size


def _too_much_later(call: CallFacts, given: int, begun: Sequence[CallFacts], account: Account, *, quick: bool) -> str:
    """Why the future is too full for it; reserves ``given`` where it is not."""
    account.change(call, given)
    if quick:
        return ""
    if not account.safe():
        account.change(call, 0)
        del account.reserved[call.id]
        return f"such calls may claim {human_bytes(call.need.claim)}, and those that run may need it to finish"
    budget = account.state.capacity - account.state.agents - account.state.agents_growth
    budget -= sum(c.usage for c in begun if c.stage is Stage.PARKED)
    needs = [c.need for c in (*begun, call) if c.stage is not Stage.PARKED]
    if len(needs) > 1 and not fits(needs, budget):
        future = peak_of(needs)
        account.change(call, 0)
        del account.reserved[call.id]
        return f"with it the calls would come to need {human_bytes(future)} at once, of {human_bytes(budget)}"
    return ""


def _admitted(call: CallFacts, given: int, account: Account) -> Step:
    return Step(
        kind=StepKind.ADMIT,
        call_id=call.id,
        brake=given,
        reason=f"{human_bytes(given)} to begin with; such calls likely use {human_bytes(call.need.likely)} "
        f"(learned from {call.need.basis})",
        evidence={
            "given_bytes": float(given),
            "likely_bytes": float(call.need.likely),
            "claim_bytes": float(call.need.claim),
            "free_bytes": float(account.free),
            "learned_from_calls": float(call.need.count),
        },
    )


def _not_now(call: CallFacts, why: str, begun: Sequence[CallFacts], account: Account) -> Step:
    evidence = {"needs_bytes": float(max(call.need.typical, account.config.first_grant))}
    evidence["free_bytes"] = float(account.free)
    if call.on_pressure is OnPressure.FAIL_FAST:
        return Step(kind=StepKind.REFUSE, call_id=call.id, reason=why, code="no_memory", evidence=evidence)
    return Step(
        kind=StepKind.WAIT,
        call_id=call.id,
        reason=why,
        evidence=evidence,
        eta=eta(call, begun, account, account.config),
    )


def eta(call: CallFacts, begun: Sequence[CallFacts], account: Account, config: ControlConfig) -> float | None:
    """Seconds until enough running calls will typically have ended for ``call`` to begin. None: cannot be said."""
    wanted = _first_threshold(call, config) - account.free
    able = [c for c in begun if c.stage is Stage.RUNNING and c.id in account.reserved]
    if not able:
        return None
    reserved = [account.reserved[c.id] for c in able]
    return ends_by([c.need for c in able], max(1, wanted), reserved)


class _Counts:
    """Declared CPU, processes and numbers of calls, of tenants and of the host."""

    def __init__(self, state: State, begun: Sequence[CallFacts]) -> None:
        self._state = state
        self._cpu: dict[TenantId, float] = {}
        self._pids: dict[TenantId, int] = {}
        self._calls: dict[TenantId, int] = {}
        self._seen: set[CallId] = set()
        for call in begun:
            self.add(call)

    def add(self, call: CallFacts) -> None:
        tenant = call.tenant_id
        self._cpu[tenant] = self._cpu.get(tenant, 0.0) + call.cpu
        self._pids[tenant] = self._pids.get(tenant, 0) + call.pids
        self._calls[tenant] = self._calls.get(tenant, 0) + 1

    def full(self, call: CallFacts, config: ControlConfig) -> str:
        """Why the call may not begin; empty when it may. A call alone on the host, or in its tenant, always may: what
        can never be had was refused before it came here."""
        cpu = sum(self._cpu.values())
        if call.cpu and cpu and cpu + call.cpu > self._state.cpus * config.cpu_overcommit:
            return f"{cpu:g} cores are promised, {call.cpu:g} more are too many for {self._state.cpus:g} CPUs"
        tenant = self._state.tenants.get(call.tenant_id)
        if tenant is None:
            return ""
        calls = self._calls.get(tenant.id, 0)
        if tenant.max_calls is not None and calls >= tenant.max_calls:
            return f"the tenant runs {calls} calls, {tenant.max_calls} allowed at once"
        promised = self._cpu.get(tenant.id, 0.0)
        if tenant.cpu_max is not None and call.cpu and promised and promised + call.cpu > tenant.cpu_max:
            return f"{promised:g} of the tenant's {tenant.cpu_max:g} cores are promised"
        pids = self._pids.get(tenant.id, 0)
        if tenant.pids_max is not None and call.pids and pids and pids + call.pids > tenant.pids_max:
            return f"{pids} of the tenant's {tenant.pids_max} processes are promised"
        return ""
