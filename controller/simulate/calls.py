"""One tool call and one agent in virtual time.

A call's memory follows its recorded schedule, on a clock of its own that stands still while the call waits or is held.
A step that would cross the call's threshold stops it there, as the brake does in the kernel. The agent's clock (its
framework's memory, the starts of its calls) stands still while any of its calls does: it waits for the tool's result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from controller.forecast import UNKNOWN, Kind, Need
from controller.model import CallId, SessionId, TenantId
from controller.simulate.plan import Plan, PlannedCall
from controller.state import CallFacts, Stage

NO_LIMIT = 1 << 62


@dataclass(slots=True, eq=False)
class SimCall:
    """``clock`` seconds of its schedule were done at ``since``; ``version`` makes old events void."""

    id: CallId
    agent: Agent
    planned: PlannedCall
    kind: Kind
    asked_at: float
    stage: Stage = Stage.WAITING
    begun_at: float = 0.0
    held_since: float | None = None
    held_seconds: float = 0.0
    waited_seconds: float = 0.0
    usage: int = 0
    granted: int = 0
    wanted: int = 0  # what its schedule holds at this moment
    step: int = -1  # index of the schedule's step that is in force
    clock: float = 0.0
    since: float = 0.0
    catch_up: float = 0.0  # it was begun anew: until its clock is here, the agent waits
    version: int = 0
    tries: int = 0  # that were killed
    squeezed: bool = False
    advised: bool = False
    braked: bool = False
    need: Need = UNKNOWN

    def facts(self) -> CallFacts:
        return CallFacts(
            id=self.id,
            tenant_id=self.agent.tenant_id,
            session_id=self.agent.session_id,
            stage=self.stage,
            asked_at=self.asked_at,
            begun_at=self.begun_at,
            held_since=self.held_since,
            priority=self.agent.priority,
            usage=self.usage,
            granted=0 if self.unarmed else self.granted,
            squeezed=self.squeezed,
            advised=self.advised,
            need=self.need,
        )

    @property
    def unarmed(self) -> bool:
        """Whether it has begun, and no threshold stops it."""
        return self.granted == NO_LIMIT

    def clock_at(self, now: float) -> float:
        return self.clock + (now - self.since) if self.stage is Stage.RUNNING else self.clock

    def keeps_agent_waiting(self, now: float) -> bool:
        return self.stage is not Stage.RUNNING or self.clock_at(now) < self.catch_up - 1e-9

    def next_at(self) -> float:
        """The moment of its next step, of having caught up, or of its end; it runs."""
        schedule = self.planned.schedule
        following = self.step + 1
        target = schedule.steps[following].at if following < len(schedule.steps) else schedule.end
        if self.clock < self.catch_up < target:
            target = self.catch_up
        return self.since + max(0.0, target - self.clock)


@dataclass(slots=True, eq=False)
class Agent:
    """One slot of the host: plays one trace after the other. ``clock``/``since``/``version`` as of a call."""

    index: int
    tenant_id: TenantId
    session_id: SessionId
    priority: int
    plan: Plan
    clock: float
    since: float
    version: int = 0
    waits: bool = False
    started: bool = True
    memory: int = 0
    step: int = -1
    next_call: int = 0
    calls: dict[CallId, SimCall] = field(default_factory=dict)
    progress: float = 0.0  # seconds of finished traces
    begun_clock: float = 0.0  # where in its present trace it began
    runs: int = 0
    reserved: int = 0
    finished: bool = False
    ended_at: float = 0.0

    def clock_at(self, now: float) -> float:
        return self.clock if self.waits else self.clock + (now - self.since)

    def done_at(self, now: float) -> float:
        """Recorded seconds that it has got through until ``now``."""
        return self.progress + (self.clock_at(now) - self.begun_clock if self.started else 0.0)

    def next_at(self) -> float:
        """The moment of the framework's next step, of the next call or of the trace's end; its clock runs."""
        target = self.plan.seconds
        steps = self.plan.framework.steps if self.plan.framework is not None else ()
        if self.step + 1 < len(steps):
            target = min(target, steps[self.step + 1].at)
        if self.next_call < len(self.plan.calls):
            target = min(target, self.plan.calls[self.next_call].start)
        return self.since + max(0.0, target - self.clock)
