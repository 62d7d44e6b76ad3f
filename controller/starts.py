"""The beginning of a call that may begin: what it gets for good, its leaf, its record. All or nothing."""

from __future__ import annotations

import time
from dataclasses import replace

from controller.budget.keeper import Budgets
from controller.endings import Endings
from controller.model import Action, CannotEnforce, Decision, Grant, Refused, Tripwire
from controller.policy.grant import Refusal, Room, decide
from controller.registry import Call, now
from controller.shared import Shared


class Starts:
    def __init__(self, shared: Shared, endings: Endings, keeper: Budgets) -> None:
        self._shared = shared
        self._keeper = keeper
        self._endings = endings

    def grant(self, call: Call) -> Grant:
        """Limits and the threshold that it declared, by its tenant's ceilings and this host's means. Raises Refused or
        CannotEnforce for what can never be had."""
        shared, tenant = self._shared, call.tenant
        room = Room(
            tenant_limits=tenant.limits,
            tenant_priority=tenant.priority,
            host_total=shared.total() if shared.backend.enforces and call.intent.memory_typical else 0,
            enforced=shared.backend.enforces,
            can_gate_network=shared.backend.can_gate_network,
            can_brake=shared.backend.can_brake,
            controllers=shared.backend.controllers,
        )
        answer = self._keeper.refusal(call.session) or decide(call.intent, room, shared.config.call)
        if isinstance(answer, Grant):
            call.grant = answer
            hard = answer.limits.memory_max
            call.promised = min(answer.tripwire.brake or 0, hard if hard is not None and hard > 0 else 1 << 62)
            return answer
        self.refused(call, answer)
        if answer.unenforceable:
            raise CannotEnforce(answer.message, field=answer.field, value=answer.value, remedy=answer.remedy)
        raise Refused(answer.message, code=answer.code, field=answer.field, value=answer.value, remedy=answer.remedy)

    def begin(self, call: Call, *, tripwire: Tripwire, notes: tuple[str, ...] = ()) -> None:
        """``call.grant`` is what ``grant`` gave. Raises what the backend raises; nothing is left then."""
        started = time.perf_counter()
        shared = self._shared
        grant = replace(call.grant, tripwire=tripwire, notes=(*call.grant.notes, *notes))
        grant = self._keeper.noted(call.session, grant)
        call.cgroup = shared.backend.add_call(call.ref, call.intent, grant)
        call.grant = grant
        call.begun = True
        call.was_queued, call.queued = call.queued, False
        call.eta, call.waits_for = None, ""
        call.begun_at = now()
        shared.registry.add_call(call)
        call.tenant.running += 1
        self._keeper.begun(call)
        self._endings.watch_deadline(call)
        shared.journal.call_begun(call.view())
        shared.publish(call)
        waited = call.begun_at - call.asked_at
        shared.meter.begun(
            call.tenant.name, time.perf_counter() - started, queued_seconds=waited if call.was_queued else None
        )

    def refused(self, call: Call, refusal: Refusal) -> None:
        """Puts it on record."""
        shared = self._shared
        shared.meter.refused(call.tenant.name, refusal.code)
        decision = Decision(
            at=now(),
            action=Action.REFUSE,
            policy="admission",
            reason=f"{refusal.code}: {refusal.message}",
            tenant_id=call.ref.tenant_id,
            session_id=call.ref.session_id,
            evidence={},
        )
        shared.meter.decided(call.tenant.name, decision)
        shared.journal.decision(decision)
        shared.hub.publish(decision)
