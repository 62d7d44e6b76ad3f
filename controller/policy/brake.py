"""What to do with calls that the brake has stopped: raise the threshold, hold on, or end them. Pure.

Rules, in order, for each braked call, the highest priority and then the longest held first:

1. It asked to fail fast: end it.
2. There is room for another step (below its hard limit, its tenant's ceiling and the host's reserve): raise and resume.
3. No room, and nothing could free any (it stands at its own hard limit, or against its tenant's ceiling or the host's
   memory without any other call that could end or be ended): holding it would wait for ever; end it and say why.
4. No room, and held for longer than the bound: end it.
5. Otherwise hold, and look again when memory is freed or the bound is near.

Room that rule 2 gives away is no longer there for the calls that come after it in the same round, and what a call waits
for is not given to one of lower priority. Where all calls of a tenant are held, rule 3 ends one of them, the youngest
of the lowest priority, and the others wait for what that frees: so at least one of them gets to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from controller.config import CallConfig
from controller.model import CallId, TenantId
from controller.policy.text import human_bytes, human_seconds

_MARGIN: Final = 16 * 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Braked:
    """One stopped call. Bytes, seconds. ``hard_limit`` None: none of its own."""

    call_id: CallId
    tenant_id: TenantId
    priority: int
    usage: int
    brake: int
    hard_limit: int | None
    held_seconds: float
    fail_fast: bool
    running_siblings: int  # other calls of the tenant that run and could free memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """Bytes left on the host above its reserve, and under each tenant's ceiling (absent: no ceiling)."""

    host: int
    tenants: dict[TenantId, int]
    host_others_running: bool  # whether any call runs at all (that could free host memory)


class Verdict(StrEnum):
    RAISE = "raise"
    HOLD = "hold"
    KILL = "kill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    call_id: CallId
    verdict: Verdict
    brake: int  # the new threshold when raised, the present one otherwise
    reason: str
    evidence: dict[str, float]


def judge(braked: Sequence[Braked], headroom: Headroom, config: CallConfig) -> list[Judgement]:
    """One judgement per braked call, in the order in which they should be carried out."""
    host = headroom.host
    tenants = dict(headroom.tenants)
    judgements = []
    ordered = sorted(braked, key=lambda c: (-c.priority, -c.held_seconds, c.call_id))
    movable = [call.tenant_id for call in ordered]  # tenants of calls that may yet free memory: all but the held ones
    waits_in: dict[TenantId, int] = {}  # the highest priority that waits for room under a tenant's ceiling
    waits_on_host = -1
    for call in ordered:
        movable.remove(call.tenant_id)
        behind = call.priority < max(waits_on_host, waits_in.get(call.tenant_id, -1))
        room = 0 if behind else _room(call, host, tenants)
        step = max(config.raise_step, call.brake // 4)
        evidence = {
            "usage_bytes": float(call.usage),
            "brake_bytes": float(call.brake),
            "room_bytes": float(room),
            "held_seconds": round(call.held_seconds, 3),
        }
        full = tenants.get(call.tenant_id, step) < step or call.priority < waits_in.get(call.tenant_id, -1)
        alone = not (movable or headroom.host_others_running)
        if full:
            alone = call.running_siblings == 0 and call.tenant_id not in movable
        verdict, reason, target = _one(call, room, step, tenant_is_full=full, alone=alone, config=config)
        if verdict is not Verdict.HOLD:
            movable.append(call.tenant_id)
        elif full:
            waits_in.setdefault(call.tenant_id, call.priority)
        else:
            waits_on_host = max(waits_on_host, call.priority)
        if verdict is Verdict.RAISE:
            granted = target - call.usage
            host -= granted
            if call.tenant_id in tenants:
                tenants[call.tenant_id] -= granted
            evidence["new_brake_bytes"] = float(target)
        judgements.append(
            Judgement(call_id=call.call_id, verdict=verdict, brake=target, reason=reason, evidence=evidence)
        )
    return judgements


def _room(call: Braked, host: int, tenants: dict[TenantId, int]) -> int:
    room = host
    if call.tenant_id in tenants:
        room = min(room, tenants[call.tenant_id])
    if call.hard_limit is not None:
        room = min(room, call.hard_limit - _margin(call.hard_limit) - call.usage)
    return max(0, room)


def _margin(hard_limit: int) -> int:
    """Kept free below a hard limit, so that the last stop is the brake's, which can explain, and not the OOM killer's:
    the overshoot of some processes with a huge page each, but no more than a share of a small limit."""
    return min(_MARGIN, hard_limit // 16)


def _stock(brake: int) -> int:
    """How far below its threshold a call that was stopped there may be found, though it freed nothing: the kernel
    charges ahead, 64 pages a CPU (MEMCG_CHARGE_BATCH), and may take that back while the call stands. A share of the
    threshold, as a small call is on few CPUs."""
    return min(_MARGIN, max(_MARGIN // 16, brake // 32), brake // 8)


def _one(
    call: Braked, room: int, step: int, *, tenant_is_full: bool, alone: bool, config: CallConfig
) -> tuple[Verdict, str, int]:
    """``alone``: no call other than this one could free what it waits for."""
    used = human_bytes(call.usage)
    if call.fail_fast:
        return Verdict.KILL, f"used {used}, past its declared peak, and asked to fail fast", call.brake
    if call.usage < call.brake - _stock(call.brake) and room >= call.brake - call.usage:
        # Its threshold was raised meanwhile (by its agent or an operator), or it gave memory back: never below that.
        # Nor above it out of the last room, which the next to be judged would be given as well.
        target = max(call.brake, call.usage + step) if room >= step else call.brake
        return Verdict.RAISE, f"used {used}, below its threshold of {human_bytes(target)}", target
    if room >= step:
        target = call.usage + step
        return Verdict.RAISE, f"used {used}; there is room for {human_bytes(step)} more", target
    # a last, smaller step up to the hard limit is better than none, as long as it is worth a resume
    worth = max(min(config.raise_step // 4, call.brake // 4), call.usage // 50, 1)
    if room >= worth:
        return Verdict.RAISE, f"used {used}; room is left for {human_bytes(room)} more", call.usage + room
    if call.hard_limit is not None and call.hard_limit - _margin(call.hard_limit) - call.usage < worth:
        limit = human_bytes(call.hard_limit)
        return Verdict.KILL, f"used {used} of its hard limit of {limit}: waiting cannot help", call.brake
    if tenant_is_full and alone:
        return (
            Verdict.KILL,
            f"used {used}, the tenant's ceiling is reached and no other call of it could free any",
            call.brake,
        )
    if alone:
        return Verdict.KILL, f"used {used}, the host is full and no other call could free any", call.brake
    if call.held_seconds >= config.hold_max:
        return Verdict.KILL, f"used {used}; no room came within {human_seconds(config.hold_max)}", call.brake
    return Verdict.HOLD, f"used {used}; waits for {human_bytes(step)} to be freed", call.brake
