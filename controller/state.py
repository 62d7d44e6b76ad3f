"""The host as policies see it: one immutable picture, and the steps that a policy asks for.

A policy is a pure function ``(State, Config) -> list[Step]``. The daemon builds the state from its registry, the
simulator from virtual calls; both carry out the same steps. Bytes, seconds, cores. Times are of one clock (the
daemon's: unix seconds; the simulator's: virtual).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from controller.forecast.need import UNKNOWN, Need
from controller.model import CallId, OnPressure, SessionId, TenantId


class Stage(StrEnum):
    WAITING = "waiting"  # asked for, not begun
    RUNNING = "running"
    HELD = "held"  # begun, and stopped by the brake or by the ladder: a policy decides
    PARKED = "parked"  # held by an operator: no policy touches it


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFacts:
    """``granted``: the threshold up to which it may use memory without asking (0: none is armed, or it waits).

    ``promised``: the threshold that it has where there is room: what it declared, or what an operator set (0: none;
    then a threshold is armed while memory is short, and at no other time). ``unbraked``: no threshold is armed at all:
    an operator took it away, the host has no brake, or the call is ending. ``squeezed``: the ladder has taken its slack
    or slowed it; undone when pressure goes. ``advised``: it was told of pressure. ``deadline``: a moment. ``urgency``:
    points that its place in the queue gains (its session's KV cache is held for it, say).
    """

    id: CallId
    tenant_id: TenantId
    session_id: SessionId
    stage: Stage
    asked_at: float
    begun_at: float = 0.0
    held_since: float | None = None
    priority: int = 50
    usage: int = 0
    granted: int = 0
    promised: int = 0
    unbraked: bool = False
    hard_limit: int | None = None
    deadline: float | None = None
    on_pressure: OnPressure = OnPressure.WAIT
    cpu: float = 0.0
    pids: int = 0
    squeezed: bool = False
    advised: bool = False
    urgency: float = 0.0
    declared_peak: int | None = None
    need: Need = UNKNOWN

    @property
    def reserved(self) -> int:
        """Memory that is spoken for: what it uses, or may use without asking."""
        return max(self.usage, self.granted) if self.stage is Stage.RUNNING else self.usage

    @property
    def begun(self) -> bool:
        return self.stage is not Stage.WAITING


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantFacts:
    """``None``: no ceiling. ``agents``: what the tenant's agent processes use, beside its calls."""

    id: TenantId
    weight: float = 100.0
    memory_max: int | None = None
    cpu_max: float | None = None
    pids_max: int | None = None
    max_calls: int | None = None
    agents: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """``capacity``: memory that Corral may give away, the host's reserve taken off. ``reserve``: that reserve, of which
    a part may be used to let somebody finish, and whose loss is what agents are saved from. ``agents``: used by
    everything that is no call. ``agents_growth``: what those may come to need soon. ``memory_pressure``: PSI some avg10
    in percent.
    """

    at: float
    capacity: int
    reserve: int = 0
    agents: int = 0
    agents_growth: int = 0
    cpus: float = 1.0
    memory_pressure: float | None = None
    tenants: Mapping[TenantId, TenantFacts] = field(default_factory=dict)
    calls: tuple[CallFacts, ...] = ()

    @property
    def free(self) -> int:
        """Memory that is neither used nor spoken for. Negative: more was promised than there is."""
        return self.capacity - self.agents - self.agents_growth - sum(c.reserved for c in self.calls)

    @property
    def unused(self) -> int:
        """Memory that is not used at this moment, whatever was promised."""
        return self.capacity - self.agents - sum(c.usage for c in self.calls)


class StepKind(StrEnum):
    ADMIT = "admit"  # begin a waiting call, its threshold at ``brake`` (0: none)
    WAIT = "wait"  # it goes on waiting; ``eta``
    REFUSE = "refuse"
    ADVISE = "advise"
    THROTTLE = "throttle"  # its threshold is lowered to ``brake``; memory.high and weights where the host has them
    RELAX = "relax"  # a throttled call gets back what it had
    ARM = "arm"  # memory gets short: it has no threshold, and gets one at ``brake``
    DISARM = "disarm"  # memory is there again: the threshold that only shortage gave it is taken away
    RAISE = "raise"  # its threshold is raised to ``brake``; a held call goes on
    HOLD = "hold"  # a held call stays held
    FREEZE = "freeze"
    THAW = "thaw"
    KILL = "kill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do to one call, with the numbers that justify it. ``eta``: seconds from now, None: not known.
    ``code`` is stable, for refusals, kills and throttles; "degraded" of an ADMIT that gives less than was asked."""

    kind: StepKind
    call_id: CallId
    reason: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    brake: int = 0
    eta: float | None = None
    code: str = ""
