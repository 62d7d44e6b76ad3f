"""What operators do to calls, sessions and tenants, and what agents may change about their own calls."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from controller.ceilings import check_below, check_settable
from controller.endings import Endings
from controller.holds import Holds
from controller.live import Live
from controller.model import (
    UNLIMITED,
    Action,
    CallId,
    CallView,
    CannotEnforce,
    ControllerError,
    Intent,
    InvalidRequest,
    Limits,
    NotFound,
    OnPressure,
    Reason,
    SessionId,
    TenantId,
    Tripwire,
    WrongState,
)
from controller.plenty import Plenty
from controller.policy.grant import Refusal, Room, decide
from controller.policy.text import human_bytes
from controller.registry import Call, Session, Tenant
from controller.sessions import Sessions
from controller.shared import Shared

_KILL_PATIENCE = 10.0  # seconds that a kill waits to report the end


class Control:
    def __init__(
        self,
        shared: Shared,
        *,
        holds: Holds,
        endings: Endings,
        sessions: Sessions,
        live: Live,
        plenty: Plenty,
    ) -> None:
        self._shared = shared
        self._live = live
        self._plenty = plenty
        self._holds = holds
        self._endings = endings
        self._sessions = sessions

    # --- targets -----------------------------------------------------------------------------------------------------

    def find(self, target: str) -> Call | Session | Tenant:
        registry = self._shared.registry
        found: Call | Session | Tenant | None = (
            registry.calls.get(CallId(target))
            or registry.sessions.get(SessionId(target))
            or registry.tenants.get(TenantId(target))
            or registry.by_name.get(target)
        )
        if found is not None:
            return found
        raise NotFound(
            f"no live call, open session or tenant {target[:80]!r}",
            field="target",
            value=target,
            remedy="corral ps lists what is live",
        )

    def _calls_of(self, target: str) -> list[Call]:
        found = self.find(target)
        if isinstance(found, Call):
            calls = [found]
        elif isinstance(found, Session):
            calls = list(found.calls.values())
        else:
            calls = [c for s in found.sessions.values() for c in s.calls.values()]
        return [c for c in calls if not c.queued and c.outcome is None]

    # --- hold and end ------------------------------------------------------------------------------------------------

    def freeze(self, target: str, by: str) -> list[CallId]:
        return [c.id for c in self._calls_of(target) if self._holds.freeze(c, by)]

    def thaw(self, target: str, by: str) -> list[CallId]:
        return [c.id for c in self._calls_of(target) if self._holds.thaw(c, by)]

    async def kill(self, target: str, by: str) -> list[CallId]:
        """Ends the calls and waits, for a while, until they have ended."""
        calls = self._calls_of(target)
        for call in calls:
            self._endings.kill(call, Reason.OPERATOR_KILLED, f"ended by {by}")
        waits = [asyncio.ensure_future(c.ended.wait()) for c in calls]
        if waits:
            _, late = await asyncio.wait(waits, timeout=_KILL_PATIENCE)
            for task in late:
                task.cancel()
        return [c.id for c in calls]

    # --- limits ------------------------------------------------------------------------------------------------------

    def set_limits(self, target: str, *, limits: Limits, tripwire: Tripwire | None) -> None:
        """A call's limits are checked against its tenant's ceilings; a brake of 0 disarms."""
        if not self._shared.backend.enforces:
            raise WrongState(
                "this host only observes", field="target", remedy="run agentd as root on a host with cgroups"
            )
        check_settable(limits, self._shared.backend.controllers)
        found = self.find(target)
        if isinstance(found, Call):
            self._limit_call(found, limits, tripwire)
            return
        if tripwire is not None:
            raise InvalidRequest("thresholds belong to calls", field="brake_bytes", remedy="name a call")
        if isinstance(found, Session):
            check_below(limits, found.tenant.limits, f"tenant {found.tenant.name!r}")
            self._shared.backend.limit_session(found.tenant.id, found.id, limits)
        else:
            self._sessions.change_tenant(found.name, limits=limits, priority=None)

    def _limit_call(self, call: Call, limits: Limits, tripwire: Tripwire | None) -> None:
        if call.queued or call.outcome is not None:
            raise WrongState(f"call {call.id} is {call.state.value}", field="target", remedy="name a running call")
        check_below(limits, call.tenant.limits, f"tenant {call.tenant.name!r}")
        wires = call.grant.tripwire
        if tripwire is not None:
            wires = Tripwire(notify=_wire(tripwire.notify, wires.notify), brake=_wire(tripwire.brake, wires.brake))
            if wires.brake is not None and not self._shared.backend.can_brake:
                raise WrongState(
                    "this host has no brake", field="brake_bytes", remedy="corral doctor says what is missing"
                )
        grant = replace(call.grant, limits=call.grant.limits.merged(limits), tripwire=wires)
        notes = self._shared.backend.limit_call(call.ref, grant, call.intent)
        call.grant = grant
        if tripwire is not None and tripwire.brake is not None:
            call.promised, call.unbraked, call.trimmed = wires.brake or 0, wires.brake is None, False
        if tripwire is not None and tripwire.notify is not None:
            call.notice = wires.notify
        changed = list(notes)
        if tripwire is not None:
            changed.append(f"brake {human_bytes(wires.brake)}" if wires.brake else "brake off")
        if limits.memory_max is not None and limits.memory_max != UNLIMITED:
            changed.append(f"memory_max {human_bytes(limits.memory_max)}")
        text = ", ".join(changed)
        self._shared.decide(call, Action.LIMIT, "operator", f"limits changed: {text or 'as asked'}")
        self._shared.remember(call)
        self._shared.publish(call)

    def set_priority(self, target: str, priority: int) -> None:
        if not 0 <= priority <= 100:
            raise InvalidRequest(
                f"{priority} is out of range", field="priority", value=str(priority), remedy="0 to 100"
            )
        found = self.find(target)
        if isinstance(found, Tenant):
            self._sessions.change_tenant(found.name, limits=None, priority=priority)
            return
        for call in self._calls_of(target):
            call.grant = replace(call.grant, priority=priority)
            self._shared.decide(
                call, Action.LIMIT, "operator", f"priority is {priority} now", evidence={"priority": float(priority)}
            )
            self._shared.remember(call)
            self._shared.publish(call)

    def update_intent(self, call: Call, intent: Intent) -> CallView:
        """An agent revises what it declared. Admission judges it as it would a new call; thresholds follow."""
        if call.queued or call.ending or call.outcome is not None:
            raise WrongState(f"call {call.id} is {call.state.value}", field="call_id", remedy="name a running call")
        backend = self._shared.backend
        answer = decide(
            intent,
            Room(
                tenant_limits=call.tenant.limits,
                tenant_priority=call.tenant.priority,
                host_total=self._shared.total() if backend.enforces else 0,
                enforced=backend.enforces,
                can_gate_network=backend.can_gate_network,
                can_brake=backend.can_brake,
                controllers=backend.controllers,
            ),
            self._shared.config.call,
        )
        if isinstance(answer, Refusal):
            kind = CannotEnforce if answer.unenforceable else InvalidRequest
            raise kind(answer.message, field=answer.field, value=answer.value, remedy=answer.remedy)
        more = (intent.memory_typical or 0) - call.memory
        if backend.enforces and more > 0 and intent.on_pressure is not OnPressure.DEGRADE:
            left = self._plenty.unused
            if more > left:
                raise WrongState(
                    f"it would need {human_bytes(more)} more, the host has {human_bytes(max(0, left))} to give",
                    field="intent.memory_typical",
                    remedy="retry later, or declare less",
                )
        before = call.intent, call.promised, call.unbraked
        call.intent, call.promised, call.unbraked = intent, answer.tripwire.brake or 0, False
        grant = replace(answer, tripwire=self._live.tripwire(call, call.promised))
        try:
            backend.limit_call(call.ref, grant, intent)
        except ControllerError:
            call.intent, call.promised, call.unbraked = before
            backend.limit_call(call.ref, call.grant, call.intent)
            raise
        call.grant = grant
        call.trimmed = False
        call.forecast = None
        self._shared.decide(call, Action.LIMIT, "intent", "its intent was revised")
        self._shared.remember(call)
        self._shared.publish(call)
        self._live.soon()
        return call.view()


def _wire(new: int | None, old: int | None) -> int | None:
    """Not given: as before. 0: off."""
    if new is None:
        return old
    return new if new > 0 else None
