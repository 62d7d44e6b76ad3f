"""Model objects for the tests of the ledger: every field set, no two alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields, replace

from controller.model import (
    Action,
    CallId,
    CallState,
    CallView,
    Decision,
    EgressRule,
    Grant,
    Intent,
    Limits,
    Network,
    OnPressure,
    Outcome,
    Reason,
    SessionId,
    SessionView,
    TenantId,
    TenantView,
    Tripwire,
    Usage,
    new_call_id,
    new_session_id,
    new_tenant_id,
)

T0 = 1_790_000_000.0  # unix seconds: the tests' own present
_number = itertools.count(1)


def tenant(name: str = "acme", tenant_id: TenantId | None = None) -> TenantView:
    limits = Limits(memory_max=8 << 30, memory_high=7 << 30, cpu_max=3.5, cpu_weight=200, pids_max=4_000, io_weight=50)
    return TenantView(id=tenant_id or new_tenant_id(), name=name, limits=limits, priority=40)


def session(of: TenantView, name: str = "fix the parser", opened_at: float = T0) -> SessionView:
    return SessionView(
        id=new_session_id(),
        tenant_id=of.id,
        name=name,
        uid=1_000,
        opened_at=opened_at,
        labels={"framework": "mini-swe", "größe": "klein"},
    )


def usage(base: int | None = None) -> Usage:
    start = next(_number) * 100 if base is None else base
    return Usage(**{f.name: start + offset for offset, f in enumerate(fields(Usage))})


def call(
    tenant_id: TenantId | None = None,
    session_id: SessionId | None = None,
    *,
    begun_at: float = T0,
    call_class: str = "test",
    command: str = "pytest -q tests",
) -> CallView:
    return CallView(
        id=new_call_id(),
        session_id=session_id or new_session_id(),
        tenant_id=tenant_id or new_tenant_id(),
        parent_id=new_call_id(),
        command=command,
        intent=Intent(
            tool="bash",
            call_class=call_class,
            memory_typical=200 << 20,
            memory_peak=1 << 30,
            cpu=1.5,
            pids=64,
            duration=12.5,
            deadline=600.0,
            priority=70,
            network=Network.EGRESS_LIST,
            egress=(EgressRule("10.0.0.0/8", 443), EgressRule("2001:db8::/32")),
            gpu=True,
            on_pressure=OnPressure.DEGRADE,
            engine="vllm-0",
            conversation="conv-17",
        ),
        grant=Grant(
            limits=Limits(memory_max=1 << 30, pids_max=64),
            tripwire=Tripwire(notify=200 << 20, brake=900 << 20),
            priority=60,
            enforced=True,
            notes=("priority 70 was asked for, the tenant may have 60",),
        ),
        state=CallState.RUNNING,
        begun_at=begun_at,
        held_since=None,
        held_seconds=0.0,
        brakes=0,
        usage=usage(),
        cgroup=f"corral/t/s/calls/{next(_number)}",
    )


def decision(of: CallView, at: float = T0 + 1, action: Action = Action.BRAKE) -> Decision:
    return Decision(
        at=at,
        action=action,
        policy="ladder",
        reason="past its brake with 12 MB of headroom on the host",
        tenant_id=of.tenant_id,
        session_id=of.session_id,
        call_id=of.id,
        evidence={"usage_bytes": 1e9, "headroom_bytes": 0.1, "waited_seconds": 2.25},
    )


def ended(of: CallView, *, after: float = 5.0, decisions: tuple[Decision, ...] = ()) -> CallView:
    final = usage()
    outcome = Outcome(
        call_id=of.id,
        reason=Reason.BRAKED if decisions else Reason.FAILED,
        ended_at=of.begun_at + after,
        wait_status=256,
        usage=final,
        wall_seconds=after,
        held_seconds=1.25,
        decisions=decisions,
        summary="The call was stopped at 900 MB and resumed." if decisions else "",
        suggestions=("declare memory_peak: 2 GiB",) if decisions else (),
        leftovers=2,
    )
    return replace(of, state=CallState.ENDED, held_seconds=1.25, brakes=len(decisions), usage=final, outcome=outcome)


def nothing() -> None:
    """A ``committed`` callback that nobody waits for."""


def counting() -> tuple[list[CallId], Callable[[CallId], Callable[[], None]]]:
    """A list, and a maker of callbacks that each add their call to it."""
    seen: list[CallId] = []
    return seen, lambda call_id: lambda: seen.append(call_id)
