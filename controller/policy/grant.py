"""From an intent to a grant, as far as the moment does not matter: limits, the threshold that was declared, or why it
can never be. When the call begins, and with how much memory to begin with, is a round's to say (admission). Pure."""

from __future__ import annotations

from dataclasses import dataclass

from controller.config import CallConfig
from controller.model import UNLIMITED, Grant, Intent, Limits, OnPressure, Tripwire
from controller.policy.text import human_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the tenant and the host have in all. Bytes. ``host_total`` counts where the intent says what is typical."""

    tenant_limits: Limits
    tenant_priority: int
    host_total: int
    enforced: bool  # whether limits can be enforced on this host
    can_gate_network: bool = True
    can_brake: bool = True
    controllers: frozenset[str] = frozenset({"memory", "cpu", "pids"})  # whose limits this host can set


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Never, or not as asked. ``code`` is stable; ``unenforceable`` when the host lacks the means."""

    code: str
    field: str
    value: str
    message: str
    remedy: str
    unenforceable: bool = False


def decide(intent: Intent, room: Room, config: CallConfig) -> Grant | Refusal:
    """Observe-only hosts refuse an intent that asks for a limit: ignoring it would be a lie."""
    refusal = _cannot_enforce(intent, room)
    if refusal is not None:
        return refusal

    notes: list[str] = []
    degrade = intent.on_pressure is OnPressure.DEGRADE
    ceiling = _ceiling(room)
    typical, peak = intent.memory_typical, intent.memory_peak
    wanted = max(typical or 0, peak or 0)
    if ceiling is not None and wanted > ceiling:
        if not degrade:
            what = "memory_peak" if peak is not None and peak > ceiling else "memory_typical"
            return Refusal(
                code="above_ceiling",
                field=f"intent.{what}",
                value=str(wanted),
                message=f"{human_bytes(wanted)} is above the tenant's ceiling of {human_bytes(ceiling)}",
                remedy=f"declare at most {ceiling} bytes, or on_pressure=degrade to take what there is",
            )
        notes.append(f"memory: {human_bytes(wanted)} asked, {human_bytes(ceiling)} given (the tenant's ceiling)")
        peak = min(peak, ceiling) if peak is not None else None
        typical = min(typical, ceiling) if typical is not None else None

    cpu = intent.cpu
    cpu_ceiling = _limit(room.tenant_limits.cpu_max)
    if cpu is not None and cpu_ceiling is not None and cpu > cpu_ceiling:
        if not degrade:
            return Refusal(
                code="above_ceiling",
                field="intent.cpu",
                value=str(cpu),
                message=f"{cpu:g} cores is above the tenant's ceiling of {cpu_ceiling:g}",
                remedy=f"declare at most {cpu_ceiling:g} cores, or on_pressure=degrade",
            )
        notes.append(f"cpu: {cpu:g} cores asked, {cpu_ceiling:g} given (the tenant's ceiling)")
        cpu = cpu_ceiling

    pids = intent.pids
    pids_ceiling = _limit(room.tenant_limits.pids_max)
    if pids is not None and pids_ceiling is not None and pids > pids_ceiling:
        if not degrade:
            return Refusal(
                code="above_ceiling",
                field="intent.pids",
                value=str(pids),
                message=f"{pids} processes are above the tenant's ceiling of {pids_ceiling:.0f}",
                remedy=f"declare at most {pids_ceiling:.0f} processes, or on_pressure=degrade",
            )
        notes.append(f"pids: {pids} asked, {pids_ceiling:.0f} given (the tenant's ceiling)")
        pids = int(pids_ceiling)
    if pids is not None and config.pids_max is not None and pids > config.pids_max:
        notes.append(f"pids: {pids} asked, {config.pids_max} given (call.pids_max)")

    if room.enforced and typical is not None and typical > room.host_total and not degrade:
        total = human_bytes(room.host_total)
        return Refusal(
            code="no_memory",
            field="intent.memory_typical",
            value=str(typical),
            message=f"the call typically needs {human_bytes(typical)}, the host has {total} in all",
            remedy="declare less, or use on_pressure=degrade to take what there is",
        )

    priority = intent.priority if intent.priority is not None else room.tenant_priority
    if priority > room.tenant_priority:
        # an intent tightens and never loosens: nobody raises himself above what the operator gave the tenant
        notes.append(f"priority: {priority} asked, {room.tenant_priority} given (the tenant's)")
        priority = room.tenant_priority
    if not room.enforced:
        return Grant(limits=Limits(), tripwire=Tripwire(), priority=priority, enforced=False, notes=tuple(notes))
    if peak is not None and not room.can_brake:
        notes.append("brake: not to be had on this host (see corral doctor); the hard limit holds")
    limits = _limits(peak, cpu, pids, config, ceiling)
    notes += (
        f"{name}: not to be had on this host (see corral doctor)"
        for name in limits.lacking(room.controllers)
        if name in ("io_max", "egress_max")
    )
    return Grant(
        # without the defaults that this host has no controller for; what the call itself asked for was refused above
        limits=limits.only(room.controllers),
        tripwire=_tripwire(typical, peak, config) if room.can_brake else Tripwire(),
        priority=priority,
        enforced=True,
        notes=tuple(notes),
    )


def _cannot_enforce(intent: Intent, room: Room) -> Refusal | None:
    remedy = "run agentd as root on a host with cgroups (corral doctor says what is missing), or declare no limit"
    if not room.enforced and intent.asks_for_limits:
        name = next(
            n
            for n, asked in (
                ("memory_peak", intent.memory_peak is not None),
                ("cpu", intent.cpu is not None),
                ("pids", intent.pids is not None),
                ("network", True),
            )
            if asked
        )
        return Refusal(
            code="observe_only",
            field=f"intent.{name}",
            value="",
            message="this host only observes, it cannot enforce a limit",
            remedy=remedy,
            unenforceable=True,
        )
    for name, controller, asked in (
        ("memory_peak", "memory", intent.memory_peak),
        ("cpu", "cpu", intent.cpu),
        ("pids", "pids", intent.pids),
    ):
        if asked is not None and room.enforced and controller not in room.controllers:
            return Refusal(
                code="no_controller",
                field=f"intent.{name}",
                value=f"{asked:g}" if isinstance(asked, float) else str(asked),
                message=f"this host has no {controller} controller, it cannot enforce the limit",
                remedy=f"give agentd the {controller} controller (corral doctor says why it is not there), or omit it",
                unenforceable=True,
            )
    if intent.network.value != "any" and not room.can_gate_network:
        return Refusal(
            code="no_network_gate",
            field="intent.network",
            value=intent.network.value,
            message="the network gates of this host are not loaded",
            remedy=remedy,
            unenforceable=True,
        )
    return None


def _ceiling(room: Room) -> int | None:
    limit = _limit(room.tenant_limits.memory_max)
    return int(limit) if limit is not None else None


def _limit(value: float | None) -> float | None:
    return None if value is None or value == UNLIMITED else value


def _limits(peak: int | None, cpu: float | None, asked: int | None, config: CallConfig, ceiling: int | None) -> Limits:
    memory_max = config.memory_max
    if peak is not None and config.hard_limit_factor is not None:
        memory_max = int(peak * config.hard_limit_factor)
    if memory_max is not None and ceiling is not None:
        memory_max = min(memory_max, ceiling)
    pids = asked if asked is not None else config.pids_max
    if pids is not None and config.pids_max is not None:
        pids = min(pids, config.pids_max)
    return Limits(memory_max=memory_max, cpu_max=cpu, pids_max=pids, io_max=config.io_max, egress_max=config.egress_max)


def _tripwire(typical: int | None, peak: int | None, config: CallConfig) -> Tripwire:
    brake = int(peak * config.brake_factor) if peak is not None else None
    notify = typical if typical is not None and (brake is None or typical < brake) else None
    return Tripwire(notify=notify, brake=brake)
