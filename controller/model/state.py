"""Tenants, sessions and calls, and the immutable snapshot of all of them that policies and clients see."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from controller.model.budget import Budget, Turns
from controller.model.ids import CallId, SessionId, TenantId
from controller.model.intent import Intent
from controller.model.limits import Limits, Tripwire
from controller.model.outcome import Outcome
from controller.model.squeeze import Squeeze
from controller.model.usage import Usage


class CallState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    BRAKED = "braked"  # stopped at its threshold; a policy decides within its bound
    FROZEN = "frozen"  # held by an operator or the ladder
    THROTTLED = "throttled"  # runs, and was slowed by the ladder until pressure goes
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a call got. ``notes`` say where it got less than it asked for; ``enforced`` is False observe-only."""

    limits: Limits
    tripwire: Tripwire
    priority: int
    enforced: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantView:
    id: TenantId
    name: str
    limits: Limits  # ceilings of the tenant as a whole
    priority: int  # default for its calls
    memory_now: int | None = None
    cpu_usec: int = 0
    budgets: tuple[Budget, ...] = ()  # its stocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """Of a call that was recognised, not declared: what it had done before it was placed in its leaf. Seconds, CPU
    microseconds, and bytes that stay charged to the agent (None: not known)."""

    rule: str
    seconds_before: float
    cpu_usec_before: int
    memory_before: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    id: SessionId
    tenant_id: TenantId
    name: str
    uid: int
    opened_at: float
    closed_at: float | None = None
    labels: dict[str, str]
    budgets: tuple[Budget, ...] = ()  # its own stocks; its tenant's count as well
    turns: Turns | None = None  # None: no turn was reported
    container: str = ""  # its id, where it is one
    rules: str = ""  # by which its calls are recognised; "": they are not


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastView:
    """What calls like one came to, learned from those that ended. Bytes; ``remaining``: seconds, the median."""

    memory_median: int
    memory_high: int  # the 0.98 quantile of the peaks
    remaining: float | None
    lives: int
    kind: str  # which calls those were


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """One tool call as it is now. ``begun_at`` unix seconds; ``held_since`` is set while braked or frozen. ``eta``:
    unix seconds at which a queued one typically begins; ``waits_for``: what a queued or held one waits for, in words.
    """

    id: CallId
    session_id: SessionId
    tenant_id: TenantId
    parent_id: CallId | None  # the call inside which this one was begun
    command: str
    intent: Intent
    grant: Grant
    state: CallState
    begun_at: float
    held_since: float | None
    held_seconds: float  # over earlier holds
    brakes: int
    usage: Usage
    cgroup: str  # path of its leaf below the hierarchy's mount, "" observe-only
    outcome: Outcome | None = None
    recognition: Recognition | None = None
    squeeze: Squeeze | None = None  # what is in force of it
    forecast: ForecastView | None = None
    eta: float | None = None
    waits_for: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """``memory_available`` is MemAvailable of /proc/meminfo; pressures are PSI "some" averages over 10 s in %."""

    kernel: str
    mode: str  # unified, hybrid or observe
    cpus: int
    memory_total: int
    memory_available: int
    cpu_pressure: float | None
    memory_pressure: float | None
    io_pressure: float | None
    missing: tuple[str, ...] = ()  # what this host cannot do, in words, for every screen


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    at: float
    host: HostView
    tenants: tuple[TenantView, ...]
    sessions: tuple[SessionView, ...]
    calls: tuple[CallView, ...]
