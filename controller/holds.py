"""Calls that are held: by the brake or the ladder until a round has decided, or by an operator until he lets go.

A leaf is frozen while anyone holds it. The brake stopped some of its processes with SIGSTOP, at the instruction that
crossed the threshold; the freezer then holds all of them, so that nothing of the call runs while the policy thinks,
and a resume is: new threshold, SIGCONT to exactly those processes (they stay frozen), thaw.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from controller.model import Action, CallId, ControllerError
from controller.policy.text import human_bytes
from controller.registry import Call, now
from controller.shared import Shared

log = structlog.get_logger("corral.holds")

_BRAKE = "brake"
_LADDER = "ladder"
_OPERATOR = "operator"


class Holds:
    """``held``: the calls that a round must answer for: stopped by the brake or by the ladder."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.held: dict[CallId, Call] = {}
        self.on_change: Callable[[], None] = _nothing  # the owner's: a round is due

    # --- the brake and the ladder ----------------------------------------------------------------------------------

    def braked(self, call: Call, pid: int, usage: int, threshold: int, latency: float) -> None:
        """The kernel stopped ``pid`` of this call ``latency`` seconds ago, at ``usage`` bytes."""
        began = time.monotonic()
        self._shared.meter.event_handled(latency)
        if threshold != call.grant.tripwire.brake and _BRAKE not in call.held_by:
            # stopped under a threshold that has been moved since: the event was on its way
            self._shared.backend.resume(call.ref, pid)
            return
        call.stopped.add(pid)
        if _BRAKE in call.held_by:
            return
        if not self._hold(call, _BRAKE):
            return
        call.brakes += 1
        self.held[call.id] = call
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
                # since the stop in the kernel: from here on nothing of the call runs
                "frozen_ms": round((latency + time.monotonic() - began) * 1e3, 3),
            },
        )
        self._shared.remember(call)
        self._shared.publish(call)
        self.on_change()

    def freeze_for_others(self, call: Call, reason: str, evidence: dict[str, float]) -> None:
        """The ladder holds a running call, so that others get to their end."""
        if call.held_by or not self._hold(call, _LADDER):
            return
        self.held[call.id] = call
        call.waits_for = reason
        self._shared.decide(call, Action.FREEZE, "ladder", reason, evidence=evidence)
        self._shared.remember(call)
        self._shared.publish(call)

    def release(self, call: Call, reason: str, evidence: dict[str, float] | None = None) -> None:
        """Lets a call go on that the brake or the ladder holds. Its new threshold is in force already."""
        action = Action.RAISE if _BRAKE in call.held_by else Action.THAW
        self._shared.decide(call, action, "brake" if _BRAKE in call.held_by else "ladder", reason, evidence=evidence)
        self.held.pop(call.id, None)
        self._let_go(call, _BRAKE, _LADDER)

    # --- operators ---------------------------------------------------------------------------------------------------

    def freeze(self, call: Call, by: str) -> bool:
        """Holds a call until ``thaw``. False when it was held by an operator already."""
        if _OPERATOR in call.held_by or not self._hold(call, _OPERATOR):
            return False
        self._shared.decide(call, Action.FREEZE, by, "frozen by an operator")
        self._shared.remember(call)
        self._shared.publish(call)
        self.on_change()
        return True

    def thaw(self, call: Call, by: str) -> bool:
        if _OPERATOR not in call.held_by:
            return False
        self._shared.decide(call, Action.THAW, by, "thawed by an operator")
        self._let_go(call, _OPERATOR)
        self.on_change()
        return True

    # --- both --------------------------------------------------------------------------------------------------------

    def adopt(self, call: Call, held_by: set[str]) -> None:
        """A call that an earlier daemon held: goes on being held, and is judged anew."""
        call.held_by = set(held_by)
        if held_by:
            call.held_since = call.held_since or now()
            self._shared.backend.freeze(call.ref)
        if held_by & {_BRAKE, _LADDER}:
            self.held[call.id] = call
            self.on_change()

    def forget(self, call: Call) -> None:
        """The call has ended, or is being ended: nobody holds it any longer."""
        self.held.pop(call.id, None)
        if call.held_since is not None:
            self._end_hold(call)
        call.held_by.clear()
        call.waits_for = ""

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

    def _let_go(self, call: Call, *who: str) -> None:
        call.held_by.difference_update(who)
        if not call.held_by:
            self._end_hold(call)
            call.waits_for, call.eta = "", None
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
        call.reclaimed = False


def _nothing() -> None:
    pass
