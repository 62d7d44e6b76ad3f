"""Which waiting calls may begin, with what threshold, and how long the others will wait. Pure.

A call is admitted when

- declared CPU, processes and the number of calls leave room (of its tenant, and of the host);
- its first threshold fits into memory that is not spoken for: what it declared, or what such calls typically use and a
  little more; at least what they typically use (so that it need not be braked at once);
- the host stays safe (see Account.safe): all begun calls, and it, can end one after the other;
- the peak of the host's future memory with it, M* (see controller.forecast.peak), stays within the capacity.

Waiting calls are tried in fair order. The first that does not fit holds the line: a later one may begin only if it
likely ends within ``backfill`` seconds, or if what the first waits for stays free. Calls that are held come before all
that wait: a newcomer gets nothing that the champion needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controller.forecast import ends_by, fits, peak_of
from controller.model import CallId, OnPressure, TenantId
from controller.policy.account import Account
from controller.policy.fairness import champion, in_order, leads
from controller.policy.ladder import reclaim, step_of
from controller.policy.settings import ControlConfig
from controller.policy.text import human_bytes
from controller.state import CallFacts, Stage, State, Step, StepKind


def admit(state: State, config: ControlConfig, account: Account) -> list[Step]:
    """One step for every waiting call (ADMIT, WAIT or REFUSE), each ADMIT after what makes room for it."""
    steps: list[Step] = []
    begun = [c for c in state.calls if c.id in account.reserved]
    counts = _Counts(state, begun)
    kept = _kept_for_held(begun, account)
    stuck: dict[TenantId, int] = {}  # how many of the tenant's calls wait for another of it to end
    for call in in_order(state, config):
        no = _Not("queue", "calls of the same tenant wait already") if call.tenant_id in stuck else None
        no = no or counts.full(call, config)
        if no is not None:
            ahead = stuck.get(call.tenant_id, 0)
            stuck[call.tenant_id] = ahead + 1
            able = [c for c in begun if c.tenant_id == call.tenant_id] if no.of_tenant else begun
            steps.append(_not_now(call, no, _nth_end(able, ahead), account))
            continue
        size = _first_threshold(call, config)
        least = _least(call, size, config)
        quick = call.need.ends_likely <= config.backfill and call.need.count > 0
        held_back = 0 if quick else kept
        if (short := least + held_back - min(account.room(call), account.free)) > 0 and held_back == 0:
            steps += reclaim(call, begun, short, account)
        room = min(account.room(call), account.free - held_back)
        given = min(size, room)
        alone = not any(c.stage is not Stage.PARKED for c in begun)
        if given < least and call.on_pressure is OnPressure.DEGRADE:
            given, code = max(given, min(size, config.first_grant)), "degraded"
            account.change(call, given)
        elif given < least and alone and not _is_known(call) and (last := _last_resort(call, least, account)):
            # nothing runs that could free any, and nothing is known of it: waiting would not help
            given, code = last, ""
            account.change(call, given)
        elif given < least:
            no = _Not(
                "no_memory", f"such a call takes about {human_bytes(least)}, {human_bytes(max(0, room))} are free"
            )
        else:
            code = ""
            no = _too_much_later(call, given, begun, account, quick=quick)
        if no is not None:
            kept = max(kept, least)
            steps.append(_not_now(call, no, eta(call, begun, account, config), account))
            continue
        if leads(call, begun):
            given = _more_for_the_first(call, given, kept, account)
        begun.append(call)
        counts.add(call)
        steps.append(_admitted(call, given, size, account, code))
    return steps


@dataclass(frozen=True, slots=True)
class _Not:
    """Why a call may not begin now. ``code`` is what it is refused with where it does not wait. ``of_tenant``: only an
    end of a call of its own tenant helps."""

    code: str
    why: str
    of_tenant: bool = True


def _kept_for_held(begun: Sequence[CallFacts], account: Account) -> int:
    """What stays free for the first of the held calls: all that it may still claim."""
    held = [c for c in begun if c.stage is Stage.HELD]
    first = champion(held)
    if first is None:
        return 0
    return max(step_of(first, account.config), first.need.typical - first.usage)


def _first_threshold(call: CallFacts, config: ControlConfig) -> int:
    size = call.promised or max(config.first_grant, call.need.typical + config.least_slack)
    return min(size, call.hard_limit) if call.hard_limit is not None else size


def _is_known(call: CallFacts) -> bool:
    """Whether anything says what it will use: earlier calls, or its declaration."""
    return call.need.count > 0 or call.need.declared


def _least(call: CallFacts, size: int, config: ControlConfig) -> int:
    """What must be free for it to begin. A guess keeps nobody out."""
    return min(size, max(config.first_grant, call.need.typical) if _is_known(call) else config.first_grant)


def _last_resort(call: CallFacts, least: int, account: Account) -> int:
    """What a call that nobody knows may begin with where nothing else runs: out of the reserve, too, as if it had begun
    and been stopped. 0: not even that would carry it."""
    config = account.config
    room = min(least, account.room(call, int(account.state.reserve * config.champion_reserve)))
    return room if room >= config.first_grant // 4 else 0


def _too_much_later(
    call: CallFacts, given: int, begun: Sequence[CallFacts], account: Account, *, quick: bool
) -> _Not | None:
    """Why the future is too full for it; reserves ``given`` where it is not."""
    account.change(call, given)
    if quick or call.on_pressure is OnPressure.DEGRADE:
        return None
    why = ""
    if not account.safe():
        why = f"such calls may claim {human_bytes(call.need.claim)}, and those that run may need it to finish"
    else:
        budget = account.state.capacity - account.state.agents - account.state.agents_growth
        budget -= sum(c.usage for c in begun if c.stage is Stage.PARKED)
        needs = [c.need for c in (*begun, call) if c.stage is not Stage.PARKED]
        if len(needs) > 1 and not fits(needs, budget):
            why = (
                f"with it the calls would come to need {human_bytes(peak_of(needs))} at once, of {human_bytes(budget)}"
            )
    if not why:
        return None
    account.drop(call)
    return _Not("no_memory", why, of_tenant=False)


def _more_for_the_first(call: CallFacts, given: int, kept: int, account: Account) -> int:
    """A call of a higher priority than all that run begins with what it likely needs, where that is free and the host
    stays safe: it need not be stopped for it, and what it does not use can be taken back. ``kept``: for others."""
    config = account.config
    if call.promised or not _is_known(call) or account.free >= config.arm_below * account.state.capacity:
        return given
    more = min(call.need.likely + config.least_slack, given + account.room(call) - kept)
    if more <= given:
        return given
    account.change(call, more)
    if account.safe():
        return more
    account.change(call, given)
    return given


def _admitted(call: CallFacts, given: int, size: int, account: Account, code: str) -> Step:
    state, config = account.state, account.config
    plenty = account.free >= config.arm_below * state.capacity
    needless = (not call.promised and plenty and config.arm_below < 1.0) or call.unbraked
    if _is_known(call):
        basis = f"such calls likely use {human_bytes(call.need.likely)} (by {call.need.basis})"
    else:
        basis = "nothing is known of such calls"
    reason = f"{human_bytes(given)} to begin with; {basis}"
    if code:
        reason = f"{human_bytes(size)} asked, {human_bytes(given)} given: the host has no more now"
    return Step(
        kind=StepKind.ADMIT,
        call_id=call.id,
        brake=0 if needless else given,
        reason=reason,
        code=code,
        evidence={
            "given_bytes": float(given),
            "likely_bytes": float(call.need.likely),
            "claim_bytes": float(call.need.claim),
            "free_bytes": float(account.free),
            "learned_from_calls": float(call.need.count),
        },
    )


def _not_now(call: CallFacts, no: _Not, when: float | None, account: Account) -> Step:
    evidence = {"needs_bytes": float(max(call.need.typical, account.config.first_grant))}
    evidence["free_bytes"] = float(account.free)
    # who degrades takes less memory; fewer CPUs, processes or calls than were declared are no call
    waits = call.on_pressure is OnPressure.WAIT
    return Step(
        kind=StepKind.WAIT if waits else StepKind.REFUSE,
        call_id=call.id,
        reason=no.why,
        code=no.code,
        evidence=evidence,
        eta=when if waits else None,
    )


def _nth_end(begun: Sequence[CallFacts], ahead: int) -> float | None:
    """Seconds until, of the running calls among ``begun``, one more than ``ahead`` have typically ended."""
    ends = sorted(c.need.ends_typical for c in begun if c.stage is Stage.RUNNING and c.need.timed)
    return ends[ahead] if ahead < len(ends) else None


def eta(call: CallFacts, begun: Sequence[CallFacts], account: Account, config: ControlConfig) -> float | None:
    """Seconds until enough running calls will typically have ended for ``call`` to begin. None: cannot be said."""
    wanted = _first_threshold(call, config) - account.free
    able = [c for c in begun if c.stage is Stage.RUNNING and c.id in account.reserved and c.need.timed]
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

    def full(self, call: CallFacts, config: ControlConfig) -> _Not | None:
        """Why the call may not begin; None when it may. A call alone on the host, or in its tenant, always may: what
        can never be had was refused before it came here."""
        cpu = sum(self._cpu.values())
        if call.cpu and cpu and cpu + call.cpu > self._state.cpus * config.cpu_overcommit:
            why = f"{cpu:g} cores are promised, {call.cpu:g} more are too many for {self._state.cpus:g} CPUs"
            return _Not("no_cpu", why, of_tenant=False)
        tenant = self._state.tenants.get(call.tenant_id)
        if tenant is None:
            return None
        calls = self._calls.get(tenant.id, 0)
        if tenant.max_calls is not None and calls >= tenant.max_calls:
            return _Not("too_many_calls", f"the tenant runs {calls} calls, {tenant.max_calls} allowed at once")
        promised = self._cpu.get(tenant.id, 0.0)
        if tenant.cpu_max is not None and call.cpu and promised and promised + call.cpu > tenant.cpu_max:
            return _Not("no_cpu", f"{promised:g} of the tenant's {tenant.cpu_max:g} cores are promised")
        pids = self._pids.get(tenant.id, 0)
        if tenant.pids_max is not None and call.pids and pids and pids + call.pids > tenant.pids_max:
            return _Not("no_pids", f"{pids} of the tenant's {tenant.pids_max} processes are promised")
        return None
