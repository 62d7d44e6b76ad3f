"""Who comes first: among calls that wait to begin, and among calls that one must act on. Pure.

Waiting calls are ordered by points: their priority, one point for every ``age`` seconds of waiting (so nobody starves:
a newcomer starts without), its urgency, less ``fair_points`` times the tenant's share of the memory over its share of
the weights, and up to ``deadline_points`` as the deadline comes so near that the call, at its likely length, would miss
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from controller.model import TenantId
from controller.policy.settings import ControlConfig
from controller.state import CallFacts, Stage, State

_NO_WEIGHT = 1e-9


def shares(state: State) -> Mapping[TenantId, float]:
    """Of each tenant with calls: its share of the calls' memory, divided by its share of the weights; 1.0 is fair."""
    used: dict[TenantId, int] = {}
    for call in state.calls:
        used[call.tenant_id] = used.get(call.tenant_id, 0) + (call.reserved if call.begun else 0)
    total = sum(used.values())
    weights = {t: max(_NO_WEIGHT, state.tenants[t].weight if t in state.tenants else 100.0) for t in used}
    weight = sum(weights.values())
    if not total:
        return dict.fromkeys(used, 0.0)
    return {t: (used[t] / total) / (weights[t] / weight) for t in used}


def in_order(state: State, config: ControlConfig) -> list[CallFacts]:
    """The waiting calls, the first to be let in first. Within a tenant only a nearer deadline lets a call overtake an
    older one of the same priority."""
    over = shares(state)
    tenants = max(1, len(over))

    def points(call: CallFacts) -> float:
        waited = max(0.0, state.at - call.asked_at)
        score = call.priority + call.urgency + waited / config.age
        score -= config.fair_points * over[call.tenant_id] / tenants
        if call.deadline is not None:
            spare = call.deadline - state.at - call.need.ends_likely
            score += config.deadline_points / (1.0 + max(0.0, spare) / config.age)
        return score

    waiting = [c for c in state.calls if c.stage is Stage.WAITING]
    return sorted(waiting, key=lambda c: (-points(c), c.asked_at, c.id))


def champion(calls: Iterable[CallFacts]) -> CallFacts | None:
    """The call that must always be able to go on: of the highest priority, the one that began first."""
    return min(
        (c for c in calls if c.begun and c.stage is not Stage.PARKED),
        key=lambda c: (-c.priority, c.begun_at, c.id),
        default=None,
    )


def leads(call: CallFacts, others: Iterable[CallFacts]) -> bool:
    """Whether it is of a higher priority than every other call that has begun and may go on."""
    return all(
        c.priority < call.priority for c in others if c.begun and c.stage is not Stage.PARKED and c.id != call.id
    )


def victims(calls: Sequence[CallFacts]) -> list[CallFacts]:
    """Running and held calls in the order in which the ladder acts on them: the youngest of the lowest priority first.

    The host's champion is not among them, and the first call of every tenant comes last of its priority; so a higher
    priority is never acted on while a lower one remains, unless that is the champion."""
    first = champion(calls)
    of_tenant = {
        c.id
        for t in {c.tenant_id for c in calls}
        if (c := champion(other for other in calls if other.tenant_id == t)) is not None
    }
    able = [c for c in calls if c.begun and c.stage is not Stage.PARKED and c is not first]
    return sorted(able, key=lambda c: (c.priority, c.id in of_tenant, -c.begun_at, c.id))
