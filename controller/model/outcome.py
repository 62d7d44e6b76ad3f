"""Decisions and Outcomes: what was done to a call, by whom, why, and what the agent can do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from controller.model.budget import Budget
from controller.model.ids import CallId, SessionId, TenantId
from controller.model.usage import Usage


class Action(StrEnum):
    ADVISE = "advise"
    THROTTLE = "throttle"  # slowed: see Squeeze
    RELAX = "relax"  # a throttled call got back what it had
    BRAKE = "brake"  # stopped in the kernel at a threshold, then held by the freezer
    RAISE = "raise"  # a threshold was raised and the call resumed
    FREEZE = "freeze"
    THAW = "thaw"
    KILL = "kill"
    ADOPT = "adopt"  # left-over processes were moved into the session
    QUEUE = "queue"
    REFUSE = "refuse"
    LIMIT = "limit"  # limits or priority were changed
    OFFLOAD = "offload"  # the session's KV cache was moved out of its engine's pool while a tool runs
    RESTORE = "restore"  # and back
    DROP = "drop"  # it was given up, to be computed again


class Reason(StrEnum):
    """Stable codes: agents and dashboards match on them. New ones may come, none changes its meaning."""

    EXITED = "exited"  # ended by itself with status 0
    FAILED = "failed"  # ended by itself with another status
    SIGNALLED = "signalled"  # died of a signal that it, its agent or a user sent
    OOM_CALL = "oom_call"  # the kernel killed it at its own memory limit
    OOM_TENANT = "oom_tenant"  # at its tenant's (or session's) limit
    OOM_HOST = "oom_host"  # because the host ran out
    BRAKED = "braked"  # it ended by itself, and had been braked on the way
    BRAKE_KILLED = "brake_killed"  # braked, no room came within the bound, killed
    PRESSURE_KILLED = "pressure_killed"  # ended by the ladder for lack of memory, without having met a threshold
    BUDGET_EXHAUSTED = "budget_exhausted"  # a hard budget was used up that ends the calls that run
    OPERATOR_KILLED = "operator_killed"
    CANCELLED = "cancelled"  # its launcher or its session went away
    TIMEOUT = "timeout"  # killed at the deadline that it declared
    PIDS_LIMIT = "pids_limit"  # fork was refused at its limit of processes
    NETWORK_DENIED = "network_denied"  # a connection outside its egress list was refused
    DISK_FULL = "disk_full"  # failed, and a write of it found no space or went beyond a quota
    REFUSED = "refused"  # never started
    UNKNOWN = "unknown"  # the kernel's records prove none of the above


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One thing done to one call (or session, or tenant), with the numbers that justified it.

    ``at`` unix seconds. ``evidence`` maps the name of a number to its value, in the units that its name says
    (``usage_bytes``, ``brake_bytes``, ``headroom_bytes``, ``waited_seconds``).
    """

    at: float
    action: Action
    policy: str  # which policy, or "operator", or "kernel"
    reason: str  # one sentence for a person
    tenant_id: TenantId
    session_id: SessionId | None = None
    call_id: CallId | None = None
    evidence: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call ended. ``wait_status`` is the kernel's (as of waitpid), None where nobody could see it."""

    call_id: CallId
    reason: Reason
    ended_at: float
    wait_status: int | None
    usage: Usage
    wall_seconds: float
    held_seconds: float  # braked or frozen
    decisions: tuple[Decision, ...]
    summary: str  # one paragraph for a language model; empty when nothing was done to the call
    suggestions: tuple[str, ...] = ()
    leftovers: int = 0  # processes that outlived the call's main process
    budgets: tuple[Budget, ...] = ()  # stocks of its session and tenant, as they were when it had ended

    @property
    def was_acted_on(self) -> bool:
        return bool(self.summary)
