"""Calls that are held: by the brake until a policy has decided, or by an operator until he lets go.

A leaf is frozen while anyone holds it. The brake stopped some of its processes with SIGSTOP, at the instruction that
crossed the threshold; the freezer then holds all of them, so that nothing of the call runs while the policy thinks,
and a resume is: new threshold, SIGCONT to exactly those processes (they stay frozen), thaw.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from controller.model import UNLIMITED, Action, CallId, ControllerError, Reason, TenantId
from controller.policy.brake import Braked, Headroom, Judgement, Verdict, judge
from controller.policy.text import human_bytes
from controller.registry import Call, now
from controller.shared import Shared

log = structlog.get_logger("corral.holds")

_BRAKE = "brake"
_OPERATOR = "operator"


class Holds:
    """``kill`` ends a call for a reason; given by the owner, so that endings and holds need not know each other."""

    def __init__(self, shared: Shared, kill: Callable[[Call, Reason, str, dict[str, float]], None]) -> None:
        self._shared = shared
        self._kill = kill
        self._braked: dict[CallId, Call] = {}
        self._review: asyncio.Handle | None = None

    @property
    def any_braked(self) -> bool:
        return bool(self._braked)

    # --- the brake -------------------------------------------------------------------------------------------------

    def braked(self, call: Call, pid: int, usage: int, threshold: int, latency: float) -> None:
        """The kernel stopped ``pid`` of this call ``latency`` seconds ago, at ``usage`` bytes."""
        self._shared.meter.event_handled(latency)
        if threshold != call.grant.tripwire.brake and _BRAKE not in call.held_by:
            # stopped under a threshold that has been raised since: the event was on its way
            self._shared.backend.resume(call.ref, pid)
            return
        call.stopped.add(pid)
        if _BRAKE in call.held_by:
            return
        if not self._hold(call, _BRAKE):
            return
        call.brakes += 1
        self._braked[call.id] = call
        self._shared.decide(
            call,
            Action.BRAKE,
            "kernel",
            f"used {human_bytes(usage)}, its threshold is {human_bytes(threshold)}",
            evidence={
                "usage_bytes": float(usage),
                "brake_bytes": float(threshold),
                "overshoot_bytes": float(usage - threshold),
                "event_ms": round(latency * 1e3, 3),
                "pid": float(pid),
            },
        )
        self._shared.remember(call)
        self._shared.publish(call)
        self.review_soon()

    def review_soon(self) -> None:
        """Looks at the braked calls again, once, in this turn of the loop: several events make one review."""
        if self._braked and self._review is None:
            self._review = asyncio.get_running_loop().call_soon(self._run_review)

    def _run_review(self) -> None:
        self._review = None
        self.review()

    def review(self) -> None:
        """Lets the policy judge every braked call, and does what it says. Cheap when nothing is braked."""
        calls = {c.id: c for c in self._braked.values() if c.outcome is None and c.held_by == {_BRAKE}}
        for call in [c for c in calls.values() if c.grant.tripwire.brake is None]:
            # an operator disarmed it, or its agent took its intent back: nothing is left to hold it for
            del calls[call.id]
            self._shared.decide(call, Action.RAISE, "brake", "its threshold was taken away")
            self._braked.pop(call.id, None)
            self._let_go(call, _BRAKE)
        if not calls:
            return
        at = now()
        braked = []
        for call in calls.values():
            try:
                braked.append(self._facts(call, at))
            except ControllerError as err:
                log.warning("a braked call's memory cannot be read; it stays held", call=call.id, error=str(err))
        for judgement in judge(braked, self._headroom(calls), self._shared.config.call):
            self._carry_out(calls[judgement.call_id], judgement)

    def _facts(self, call: Call, at: float) -> Braked:
        limit = call.grant.limits.memory_max
        return Braked(
            call_id=call.id,
            tenant_id=call.ref.tenant_id,
            priority=call.grant.priority,
            usage=self._shared.backend.memory(call.ref),
            brake=call.grant.tripwire.brake or 0,
            hard_limit=limit if limit is not None and limit != UNLIMITED else None,
            held_seconds=at - (call.held_since or at),
            fail_fast=call.intent.on_pressure.value == "fail_fast",
            running_siblings=sum(1 for c in self._shared.registry.begun_calls() if self._frees_for(call, c)),
        )

    @staticmethod
    def _frees_for(call: Call, other: Call) -> bool:
        return other is not call and other.tenant is call.tenant and not other.held_by

    def _headroom(self, braked: dict[CallId, Call]) -> Headroom:
        _, host = self._shared.headroom()
        tenants: dict[TenantId, int] = {}
        for call in braked.values():
            ceiling = call.tenant.limits.memory_max
            if ceiling is None or ceiling == UNLIMITED or call.ref.tenant_id in tenants:
                continue
            used = self._shared.backend.tenant_memory(call.ref.tenant_id)
            if used is not None:
                tenants[call.ref.tenant_id] = max(0, ceiling - used)
        running = any(not c.held_by for c in self._shared.registry.begun_calls())
        return Headroom(host=host, tenants=tenants, host_others_running=running)

    def _carry_out(self, call: Call, judgement: Judgement) -> None:
        match judgement.verdict:
            case Verdict.RAISE:
                self._raise(call, judgement)
            case Verdict.KILL:
                self._braked.pop(call.id, None)
                self._kill(call, Reason.BRAKE_KILLED, judgement.reason, judgement.evidence)
            case Verdict.HOLD:
                held = judgement.evidence["held_seconds"]
                left = max(0.05, self._shared.config.call.hold_max - held)
                loop = asyncio.get_running_loop()
                call.cancel_hold_timer()
                call.hold_timer = loop.call_later(left, self.review_soon)

    def _raise(self, call: Call, judgement: Judgement) -> None:
        tripwire = replace(call.grant.tripwire, brake=judgement.brake)
        grant = replace(call.grant, tripwire=tripwire)
        try:
            self._shared.backend.limit_call(call.ref, grant, call.intent)
        except ControllerError as err:
            log.warning("the threshold could not be raised; the call stays held", call=call.id, error=str(err))
            return
        call.grant = grant
        self._shared.decide(call, Action.RAISE, "brake", judgement.reason, evidence=judgement.evidence)
        self._braked.pop(call.id, None)
        self._let_go(call, _BRAKE)

    # --- operators ---------------------------------------------------------------------------------------------------

    def freeze(self, call: Call, by: str) -> bool:
        """Holds a call until ``thaw``. False when it was held by an operator already."""
        if _OPERATOR in call.held_by or not self._hold(call, _OPERATOR):
            return False
        self._shared.decide(call, Action.FREEZE, by, "frozen by an operator")
        self._shared.remember(call)
        self._shared.publish(call)
        return True

    def thaw(self, call: Call, by: str) -> bool:
        if _OPERATOR not in call.held_by:
            return False
        self._shared.decide(call, Action.THAW, by, "thawed by an operator")
        self._let_go(call, _OPERATOR)
        self.review_soon()
        return True

    # --- both --------------------------------------------------------------------------------------------------------

    def adopt(self, call: Call, held_by: set[str]) -> None:
        """A call that an earlier daemon held: goes on being held, and is judged anew."""
        call.held_by = set(held_by)
        if held_by:
            call.held_since = call.held_since or now()
            self._shared.backend.freeze(call.ref)
        if _BRAKE in held_by:
            self._braked[call.id] = call
            self.review_soon()

    def forget(self, call: Call) -> None:
        """The call has ended, or is being ended: nobody holds it any longer."""
        self._braked.pop(call.id, None)
        call.cancel_hold_timer()
        if call.held_since is not None:
            self._end_hold(call)
        call.held_by.clear()

    def _hold(self, call: Call, who: str) -> bool:
        if call.ending or call.outcome is not None or call.killed_as is not None:
            return False
        if not call.held_by:
            try:
                self._shared.backend.freeze(call.ref)
            except ControllerError as err:
                # the processes that crossed the threshold are stopped all the same; the others go on
                log.error("a call could not be frozen", call=call.id, error=str(err))
                if who == _OPERATOR:
                    raise
            call.held_since = now()
        call.held_by.add(who)
        return True

    def _let_go(self, call: Call, who: str) -> None:
        call.held_by.discard(who)
        call.cancel_hold_timer()
        if not call.held_by:
            self._end_hold(call)
            stopped, call.stopped = call.stopped, set()
            try:
                self._shared.backend.thaw(call.ref, stopped)
            except ControllerError as err:
                log.error("a call could not be resumed", call=call.id, error=str(err))
        self._shared.remember(call)
        self._shared.publish(call)

    def _end_hold(self, call: Call) -> None:
        if call.held_since is not None:
            call.held_seconds += now() - call.held_since
            call.held_since = None
