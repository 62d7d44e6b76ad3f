"""The pressure ladder: what is done to calls that have begun. Pure; the weakest step that helps comes first.

0. **Arm**: while memory is plentiful a call that declared nothing has no threshold; when it gets short, it has one.
1. **Advise**: a call that outgrew what such calls typically use is told, once, when memory gets scarce.
2. **Raise**: a held call goes on, its threshold a step higher, when there is room and the host stays *safe* (all begun
   calls can still end one after the other, each getting what such calls claim). The champion (highest priority, oldest)
   needs no safety: it is who must be able to finish.
3. **Throttle**: where room is short, running calls give back the slack between their use and their threshold, and what
   the host can slow (memory.high, weights) is slowed. **Relax** undoes it when there is room again.
4. **Freeze** the youngest of the lowest priority, while what is promised exceeds what there is (the agents grew).
5. **Kill** one call's leaf: where holding cannot help (at its own hard limit; nobody runs who could free anything),
   where a hold has lasted for its bound, where its intent is to fail fast, or where the agents would die otherwise.

Without swap a frozen call frees nothing, so who goes on is decided by who can finish. Every held call gets exactly one
answer in every round (raise, hold or kill), so a hold is bounded by ``hold_max`` wherever rounds are made.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.model import CallId, OnPressure, TenantId
from controller.policy.account import Account, margin, stock
from controller.policy.fairness import champion, leads, victims
from controller.policy.settings import ControlConfig
from controller.policy.text import human_bytes, human_seconds
from controller.state import CallFacts, Stage, State, Step, StepKind


def climb(state: State, config: ControlConfig, account: Account) -> list[Step]:
    """The steps of one round, in the order in which they are to be carried out. ``account`` follows them."""
    begun = [c for c in state.calls if c.begun]
    held = [c for c in begun if c.stage is Stage.HELD]
    steps: list[Step] = []
    steps += _arm(begun, account)
    if account.free < 0:
        steps += _squeeze(begun, -account.free, account, code="pressure")
    steps += _rescue(state, begun, account)
    gone = {s.call_id for s in steps if s.kind is StepKind.KILL}
    frozen = {s.call_id for s in steps if s.kind is StepKind.FREEZE}
    if held:
        steps += _release([c for c in begun if c.id not in gone], frozen, account)
    steps += _mild(state, [c for c in begun if c.id not in gone | frozen], account)
    return steps


def step_of(call: CallFacts, config: ControlConfig) -> int:
    """By how much its threshold is raised, at the least."""
    return max(config.raise_step, int(call.usage * config.raise_share))


def worth(call: CallFacts, config: ControlConfig) -> int:
    """The least by which a raise helps: a last, smaller step is better than none, as long as it is worth a resume."""
    return max(1, min(config.raise_step // 4, call.usage // 4))


# --- making room -----------------------------------------------------------------------------------------------------


def _arm(begun: Sequence[CallFacts], account: Account) -> list[Step]:
    """Thresholds for running calls that have none: where they likely end, and a little above their use at the least.
    Who comes first has the most of what there is."""
    config = account.config
    steps: list[Step] = []
    if account.free >= config.arm_below * account.state.capacity:
        return steps
    bare = [c for c in begun if c.stage is Stage.RUNNING and not c.granted and not c.unbraked]
    for call in sorted(bare, key=rank):
        least = call.usage + config.least_slack
        brake = max(least, min(call.need.likely, call.usage + account.room(call)))
        if call.hard_limit is not None:
            brake = min(brake, max(call.usage, call.hard_limit - margin(call.hard_limit)))
        account.change(call, brake)
        steps.append(
            Step(
                kind=StepKind.ARM,
                call_id=call.id,
                brake=brake,
                reason=f"memory gets short: it may use up to {human_bytes(brake)} without asking",
                evidence=_numbers(call, account) | {"new_brake_bytes": float(brake)},
            )
        )
    return steps


def _squeeze(
    begun: Sequence[CallFacts],
    wanted: int,
    account: Account,
    *,
    of: CallFacts | None = None,
    to_typical: bool = False,
    code: str = "slack",
) -> list[Step]:
    """Lowers thresholds of running calls towards their use until ``wanted`` bytes are found, or none is left. ``of``:
    for this call, so neither of itself nor of a higher priority. ``to_typical``: no lower than what such calls
    typically come to use. ``code``: "pressure" where the host as a whole is short, so that calls are slowed, too."""
    steps: list[Step] = []
    order = sorted(begun, key=lambda c: (c.priority, -c.begun_at, c.id))
    for call in order:
        if wanted <= 0:
            break
        if call.stage is not Stage.RUNNING or (of is not None and (call.id == of.id or call.priority > of.priority)):
            continue
        least, spare = _slack(call, account, to_typical=to_typical)
        if spare <= 0:
            continue
        account.change(call, least)
        wanted -= spare
        steps.append(
            Step(
                kind=StepKind.THROTTLE,
                call_id=call.id,
                code=code,
                brake=least,
                reason=f"memory is short: its threshold is {human_bytes(least)} now, it uses {human_bytes(call.usage)}",
                evidence=_numbers(call, account) | {"new_brake_bytes": float(least)},
            )
        )
    return steps


def _slack(call: CallFacts, account: Account, *, to_typical: bool) -> tuple[int, int]:
    """The threshold to which that of a running call may be lowered, and what that gives. None of a call that asked to
    fail fast: it would be ended at a threshold that it never declared."""
    least = call.usage + account.config.least_slack
    if to_typical and (call.need.count or call.need.declared):
        least = max(least, call.need.typical)
    if not call.granted or (call.promised and call.on_pressure is OnPressure.FAIL_FAST):
        return least, 0
    return least, max(0, account.reserved.get(call.id, 0) - least)


def _rescue(state: State, begun: Sequence[CallFacts], account: Account) -> list[Step]:
    """The agents' own processes grew into what was promised to calls: freeze, then kill, one call a round."""
    config = account.config
    if account.free >= 0:
        return []
    order = [c for c in victims(begun) if c.id in account.reserved]
    order = [c for c in order if c.usage >= config.first_grant]
    if state.unused < -config.kill_at * state.reserve:
        # the champion too, at the very last: an agent's own process is never ended, so its call is
        last = champion(begun)
        for call in (*order, *([last] if last is not None and not order else [])):
            if call.usage > 0:
                account.drop(call)
                why = (
                    f"used {human_bytes(call.usage)} while the host was {human_bytes(-state.unused)} short of memory, "
                    "and agents would have been lost"
                )
                return [_kill(call, "host_full", why, account)]
    if state.unused < -config.freeze_at * state.reserve:
        for call in order:
            if call.stage is Stage.RUNNING:
                account.change(call, call.usage)
                return [
                    Step(
                        kind=StepKind.FREEZE,
                        call_id=call.id,
                        reason=f"the host is {human_bytes(-account.free)} short of memory; others finish first",
                        evidence=_numbers(call, account),
                    )
                ]
    return []


# --- held calls ------------------------------------------------------------------------------------------------------


def _release(begun: Sequence[CallFacts], frozen: set[CallId], account: Account) -> list[Step]:
    """Raise, hold or kill for every held call, the first in rank first."""
    steps: list[Step] = []
    held = sorted((c for c in begun if c.stage is Stage.HELD), key=rank)
    running = {c.id for c in begun if c.stage is Stage.RUNNING and c.id not in frozen}
    waits_in: set[TenantId] = set()  # tenants in which a call of higher rank waits for room under their ceiling
    left: list[CallFacts] = []
    for call in held:
        if call.on_pressure is OnPressure.FAIL_FAST:
            why = f"used {human_bytes(call.usage)}, all that it could be given, and asked to fail fast"
            steps.append(_kill(call, "fail_fast", why, account))
            account.drop(call)
            continue
        if call.tenant_id not in waits_in:
            steps += _squeeze_for(call, begun, account)
            raised = _raise(call, account)
            if raised is not None:
                steps.append(raised)
                running.add(call.id)
                continue
            if _tenant_binds(call, account):
                waits_in.add(call.tenant_id)
        left.append(call)
    # Whoever can finish has what it needs. What is left goes to the first in rank: he must get to his end, safe or not;
    # out of the reserve only where nothing else moves.
    for call in left:
        raised = _raise(call, account, at_any_risk=True, out_of_reserve=not running)
        if raised is not None:
            steps.append(raised)
            running.add(call.id)
            left.remove(call)
        if raised is not None or running:
            break
    for call in left:
        answer = _hold_or_kill(call, begun, running, account)
        steps.append(answer)
        if answer.kind is StepKind.KILL:
            running.add(call.id)  # what it frees comes to the others
    return steps


def reclaim(call: CallFacts, begun: Sequence[CallFacts], short: int, account: Account) -> list[Step]:
    """Slack of running calls for ``call``, which waits for ``short`` bytes more than there are: what they neither use
    nor typically will. Nothing is taken where all of it would not be enough."""
    inside = (room := account.tenant_room(call)) is not None and room <= account.free
    able = [c for c in begun if not inside or c.tenant_id == call.tenant_id]
    spare = sum(
        _slack(other, account, to_typical=True)[1]
        for other in able
        if other.stage is Stage.RUNNING and other.priority <= call.priority
    )
    return _squeeze(able, short, account, of=call, to_typical=True) if spare >= short else []


def rank(call: CallFacts) -> tuple[float, float, str]:
    """The order in which held calls are served: the highest priority first, then the one that began first."""
    return (-call.priority, call.begun_at, call.id)


def _squeeze_for(call: CallFacts, begun: Sequence[CallFacts], account: Account) -> list[Step]:
    wanted = step_of(call, account.config)
    if call.hard_limit is not None:  # what its own limit keeps from it is not taken from others
        wanted = min(wanted, call.hard_limit - margin(call.hard_limit) - call.usage)
    room = account.tenant_room(call)
    short = wanted - (account.free if room is None else min(account.free, room))
    if short <= 0 or _at_its_limit(call, account):
        return []
    inside = _tenant_binds(call, account)
    return _squeeze([c for c in begun if not inside or c.tenant_id == call.tenant_id], short, account, of=call)


def _raise(
    call: CallFacts, account: Account, *, at_any_risk: bool = False, out_of_reserve: bool = False
) -> Step | None:
    """None: it cannot be. It can where the call can then finish, or all calls still can, or ``at_any_risk``."""
    config = account.config
    # what was promised meanwhile (by its agent, or an operator) is given back in one step
    want = max(step_of(call, config), call.promised - call.usage)
    if leads(call, account.state.calls):  # to where it likely ends, in one step: each stop costs it
        want = max(want, call.need.likely - call.usage)
    room = account.room_to_grow(call, int(account.state.reserve * config.champion_reserve) if out_of_reserve else 0)
    more = min(want, room)
    back = call.granted - call.usage
    if stock(call.granted) < back <= room < want:
        more = back  # it gave memory back while it stood: at least to where it was
    elif more < min(want, worth(call, config)):
        return None
    before = account.reserved[call.id]
    finishes = call.need.likely - call.usage <= room
    account.change(call, call.usage + more)
    if not (at_any_risk or finishes or account.safe()):
        account.change(call, before)
        return None
    brake = call.usage + more
    return Step(
        kind=StepKind.RAISE,
        call_id=call.id,
        brake=brake,
        reason=f"used {human_bytes(call.usage)}; there is room for {human_bytes(more)} more",
        evidence=_numbers(call, account) | {"new_brake_bytes": float(brake)},
    )


def _hold_or_kill(call: CallFacts, begun: Sequence[CallFacts], running: set[CallId], account: Account) -> Step:
    state, config = account.state, account.config
    used = human_bytes(call.usage)
    inside = _tenant_binds(call, account)
    others = [c for c in begun if c.id != call.id and c.id in account.reserved]
    if inside:
        others = [c for c in others if c.tenant_id == call.tenant_id]
    held = state.at - (call.held_since if call.held_since is not None else state.at)
    why = code = ""
    if _at_its_limit(call, account):
        limit = human_bytes(call.hard_limit or 0)
        code, why = "hard_limit", f"used {used} of its hard limit of {limit}: waiting cannot help"
    elif not any(c.id in running for c in others):
        # all are held: the last in rank makes room, and nobody where one can still go on
        last = max((c for c in (call, *others) if c.stage is Stage.HELD), key=lambda c: (-c.priority, c.begun_at, c.id))
        if last.id == call.id and not _waits_for_agents(call, others, account, inside=inside):
            code, why = "nobody_frees", f"used {used}, and no call that runs could free any memory for it"
    if not code and held >= config.hold_max:
        code, why = "held_too_long", f"used {used}; no room came within {human_seconds(config.hold_max)}"
    if code:
        step = _kill(call, code, why, account)
        account.drop(call)
        return step
    return Step(
        kind=StepKind.HOLD,
        call_id=call.id,
        reason=f"used {used}; waits for {human_bytes(step_of(call, config))} to be freed",
        evidence=_numbers(call, account) | {"held_seconds": round(held, 3)},
        eta=min((c.need.ends_typical for c in others if c.id in running), default=None),
    )


def _waits_for_agents(call: CallFacts, others: Sequence[CallFacts], account: Account, *, inside: bool) -> bool:
    """Whether its end would make room for nobody but itself, begun anew, while agents (of its tenant, where it is
    ``inside`` its ceiling) or calls that an operator holds have memory that may become free: then it is better held."""
    if any(c.stage is not Stage.PARKED for c in others):
        return False
    tenant = account.state.tenants.get(call.tenant_id) if inside else None
    agents = tenant.agents if tenant is not None else account.state.agents
    return agents + sum(c.usage for c in others) >= step_of(call, account.config)


def _at_its_limit(call: CallFacts, account: Account) -> bool:
    if call.hard_limit is None:
        return False
    return call.hard_limit - margin(call.hard_limit) - call.usage < worth(call, account.config)


def _tenant_binds(call: CallFacts, account: Account) -> bool:
    """Whether what it lacks is room under its tenant's ceiling, rather than memory of the host."""
    room = account.tenant_room(call)
    return room is not None and room < step_of(call, account.config) and room <= account.free


# --- mild steps ------------------------------------------------------------------------------------------------------


def _mild(state: State, begun: Sequence[CallFacts], account: Account) -> list[Step]:
    """Advice while memory is scarce, and the end of a throttle when it no longer is."""
    steps: list[Step] = []
    if account.free < account.config.advise_below * state.capacity:
        for call in begun:
            over = call.declared_peak if call.declared_peak is not None else call.need.likely
            if not call.advised and call.stage is Stage.RUNNING and 0 < over < call.usage:
                steps.append(
                    Step(
                        kind=StepKind.ADVISE,
                        call_id=call.id,
                        reason=f"memory is scarce, and it uses {human_bytes(call.usage)} where "
                        f"{human_bytes(over)} was expected: fewer workers, or smaller pieces, would help",
                        evidence=_numbers(call, account) | {"expected_bytes": float(over)},
                    )
                )
    elif account.free > account.config.relax_above * state.capacity:
        for call in sorted(begun, key=rank):
            if call.squeezed and call.stage is Stage.RUNNING:
                wanted = max(call.promised, call.need.likely)
                room = account.room(call)
                # all of it where there is room for all, else half of what there is; but not bit by bit
                more = wanted - call.usage if wanted - call.usage <= room else room // 2
                brake = max(account.reserved[call.id], call.usage + more)
                if brake < wanted and brake - call.granted < worth(call, account.config):
                    continue
                account.change(call, brake)
                steps.append(
                    Step(
                        kind=StepKind.RELAX,
                        call_id=call.id,
                        brake=brake,
                        reason=f"memory is there again: its threshold is {human_bytes(brake)}",
                        evidence=_numbers(call, account) | {"new_brake_bytes": float(brake)},
                    )
                )
    return steps + _disarm(state, begun, account)


def _disarm(state: State, begun: Sequence[CallFacts], account: Account) -> list[Step]:
    """The end of thresholds that only shortage gave: where so much is free but for what they keep."""
    lent = [c for c in begun if c.granted and not c.promised and not c.squeezed and c.stage is Stage.RUNNING]
    free = account.free + sum(account.reserved[c.id] - c.usage for c in lent)
    if free <= account.config.disarm_above * state.capacity:
        return []
    return [
        Step(
            kind=StepKind.DISARM,
            call_id=call.id,
            reason="memory is there again: it needs no threshold",
            evidence=_numbers(call, account),
        )
        for call in sorted(lent, key=rank)
    ]


def _kill(call: CallFacts, code: str, why: str, account: Account) -> Step:
    return Step(kind=StepKind.KILL, call_id=call.id, reason=why, code=code, evidence=_numbers(call, account))


def _numbers(call: CallFacts, account: Account) -> dict[str, float]:
    return {
        "usage_bytes": float(call.usage),
        "brake_bytes": float(call.granted),
        "free_bytes": float(account.free),
        "unused_bytes": float(account.state.unused),
        "claim_bytes": float(call.need.claim),
    }
