"""Whether a call may begin at once, without a round: while there is plenty of memory for all that run, and for it.

Kept are two numbers: what the host has left, and how much more the begun calls may come to use as far as is known
(*outstanding*: the most that forecasts and thresholds allow). A call whose own most fits beside that is one that a
round would let in with the same threshold (tests/unit/test_plenty.py): its first threshold is free, all can end one
after the other without even waiting for each other, and the future peak is below the sum of the peaks. The figures are
those of the last sample, and what was let in since.
"""

from __future__ import annotations

import time
from typing import Final

from controller.facts import Facts
from controller.foresight import Foresight
from controller.model import UNLIMITED
from controller.policy.account import unwatched_growth
from controller.policy.settings import ControlConfig
from controller.registry import Call
from controller.shared import Shared

_STALE: Final = 0.05  # seconds after which the host's memory is read again before a call is let in: 30 µs


class Plenty:
    def __init__(self, shared: Shared, facts: Facts, foresight: Foresight) -> None:
        self._shared = shared
        self._facts = facts
        self._foresight = foresight
        self._outstanding = 0
        self._in_use = 0
        self._spoken_for = 0  # by thresholds, beyond what is used
        self._capacity = 0
        self._read_at = float("-inf")
        self._bare = 0  # running calls without a threshold
        self._thrifty = False  # some calls run trimmed, squeezed, or under a threshold that only shortage gave

    # --- questions ---------------------------------------------------------------------------------------------------

    @property
    def is_short(self) -> bool:
        """Whether so little is free that thresholds are armed for all, or taken from some."""
        free = self._capacity - self._in_use - self._spoken_for
        return self._shared.backend.enforces and free < self._shared.config.control().arm_below * self._capacity

    @property
    def is_tight(self) -> bool:
        """Whether something was taken from calls that may be given back."""
        return self._thrifty

    def unwatched_growth(self) -> int:
        """Bytes that a call without a threshold, or an agent, may grow until somebody looks."""
        watched = self._bare + len(self._shared.registry.sessions)
        return unwatched_growth(self._capacity - self._in_use - self._spoken_for, watched)

    def lets_in(self, call: Call) -> bool:
        """Whether ``call``, prepared and granted, may begin now with the threshold that it was promised (or none)."""
        if not self._counts_allow(call):
            return False
        shared = self._shared
        if not shared.backend.enforces:
            return True
        if time.monotonic() - self._read_at > _STALE:
            self._read()
        config = shared.config.control()
        given, most = self._sizes(call, config)
        unused = self._capacity - self._in_use
        if unused - self._spoken_for - given < config.arm_below * self._capacity:
            return False
        if unused - self._outstanding - max(given, most) < 0:
            return False
        tenant = call.tenant
        ceiling = tenant.limits.memory_max
        if ceiling is None or ceiling == UNLIMITED:
            return True
        return (
            tenant.memory_now is not None and ceiling - tenant.memory_now - tenant.outstanding - max(given, most) >= 0
        )

    @property
    def unused(self) -> int:
        """Bytes that may be used beyond what is used now; read afresh."""
        self._read()
        return self._capacity - self._in_use

    def _sizes(self, call: Call, config: ControlConfig) -> tuple[int, int]:
        """No more than these: the first threshold that a round would give it, and what it may come to use. Bytes."""
        typical, most = self._foresight.at_most(call)
        return call.promised or max(config.first_grant, typical + config.least_slack), most

    def _counts_allow(self, call: Call) -> bool:
        tenant, limits = call.tenant, call.tenant.limits
        if tenant.max_calls is not None and tenant.running >= tenant.max_calls:
            return False
        if call.intent.cpu is not None:
            # a rare declaration: a round, which counts what is promised, is cheap beside being wrong about it
            return False
        return call.intent.pids is None or limits.pids_max is None or limits.pids_max == UNLIMITED

    # --- keeping count -----------------------------------------------------------------------------------------------

    def add(self, call: Call) -> None:
        """``call`` has begun."""
        threshold = call.grant.tripwire.brake or 0
        call.outstanding = max(self._foresight.at_most(call)[1], threshold)
        self._outstanding += call.outstanding
        self._spoken_for += threshold
        call.tenant.outstanding += call.outstanding
        self._bare += not threshold

    def forget(self, call: Call) -> None:
        """``call`` has ended."""
        self._outstanding -= call.outstanding
        call.tenant.outstanding -= call.outstanding
        call.outstanding = 0

    def refresh(self, at: float, *, forecasts: int = 0) -> None:
        """Counts anew, from what was last read of each call: a few microseconds a call. ``forecasts``: how many may be
        made for calls that have none that stands, up to a millisecond each; without, the worst is assumed of them."""
        if not self._shared.backend.enforces:
            return
        registry = self._shared.registry
        outstanding = spoken_for = in_use = bare = 0
        thrifty = False
        for tenant in registry.tenants.values():
            tenant.outstanding = 0
        largest = self._foresight.largest
        used: dict[str, int] = {}
        for call in registry.begun_calls():
            threshold = call.grant.tripwire.brake or 0
            kept = call.forecast
            if kept is None or not kept.stands(_elapsed(call, at), call.memory, "brake" in call.held_by):
                if forecasts > 0:
                    forecasts -= 1
                    self._foresight.need(call, at)
                    kept = call.forecast
                else:
                    kept = None
            if kept is not None:
                most = max(kept.most, call.memory)
            else:
                # whatever is made of it later: such a call grows by no more than the largest that is known
                most = max(call.memory + largest, call.memory * 3 // 2 + 1, call.intent.memory_peak or 0)
            most = max(most, threshold)
            call.outstanding = max(0, most - call.memory)
            outstanding += call.outstanding
            call.tenant.outstanding += call.outstanding
            spoken_for += max(0, threshold - call.memory) if not call.held_by else 0
            used[call.ref.tenant_id] = used.get(call.ref.tenant_id, 0) + call.memory
            bare += not threshold
            thrifty |= call.trimmed or call.squeeze is not None or (threshold > 0 and not call.promised)
        for tenant in registry.tenants.values():
            in_use += max(used.get(tenant.id, 0), tenant.memory_now or 0)
        self._outstanding, self._spoken_for, self._bare = outstanding, spoken_for, bare
        self._in_use, self._thrifty = in_use, thrifty
        self._read()

    def _read(self) -> None:
        self._capacity, _ = self._facts.capacity(self._in_use)
        self._read_at = time.monotonic()


def _elapsed(call: Call, at: float) -> float:
    return max(0.0, at - call.begun_at - call.held_now(at))
