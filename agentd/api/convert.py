"""controller.model to and from the messages of corral.v1.

A field that is None in the model is absent in the message, and the other way round. Fields that a newer client sends
and this daemon does not know are ignored, as proto does; a value of an enum that it does not know changes what the
client asked for, so it is refused.
"""

from __future__ import annotations

import math
import time
from typing import Final

from agentd.api.budgetproto import budget_to_proto, turns_to_proto
from agentd.api.errors import PROTO_FIELD
from agentd.api.ports import FeatureView, SampleView
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.model import (
    UNLIMITED,
    CallState,
    CallView,
    Decision,
    EgressRule,
    ForecastView,
    Grant,
    HostView,
    Intent,
    InvalidRequest,
    Limits,
    Network,
    OnPressure,
    Outcome,
    Recognition,
    SessionView,
    Snapshot,
    Squeeze,
    TenantView,
    Tripwire,
    Usage,
)
from controller.model.intent import MAX_CORES, MAX_EGRESS, MAX_MEMORY, MAX_PIDS, MIN_MEMORY
from controller.model.limits import MAX_RATE, MIN_EGRESS, MIN_IO

ON_PRESSURE: Final = {
    OnPressure.WAIT: pb.ON_PRESSURE_WAIT,
    OnPressure.DEGRADE: pb.ON_PRESSURE_DEGRADE,
    OnPressure.FAIL_FAST: pb.ON_PRESSURE_FAIL_FAST,
}
NETWORK: Final = {
    Network.ANY: pb.NETWORK_MODE_ANY,
    Network.NONE: pb.NETWORK_MODE_NONE,
    Network.EGRESS_LIST: pb.NETWORK_MODE_EGRESS_LIST,
}
CALL_STATE: Final = {
    CallState.QUEUED: pb.CALL_STATE_QUEUED,
    CallState.RUNNING: pb.CALL_STATE_RUNNING,
    CallState.BRAKED: pb.CALL_STATE_BRAKED,
    CallState.FROZEN: pb.CALL_STATE_FROZEN,
    CallState.THROTTLED: pb.CALL_STATE_THROTTLED,
    CallState.ENDED: pb.CALL_STATE_ENDED,
}
_FROM_ON_PRESSURE: Final = {
    **{int(number): member for member, number in ON_PRESSURE.items()},
    int(pb.ON_PRESSURE_UNSPECIFIED): OnPressure.WAIT,
}
_FROM_NETWORK: Final = {
    **{int(number): member for member, number in NETWORK.items()},
    int(pb.NETWORK_MODE_UNSPECIFIED): Network.ANY,
}
MIN_WEIGHT: Final = 1  # of cgroup v2's cpu.weight and io.weight
MAX_WEIGHT: Final = 10_000


# --- from a request -------------------------------------------------------------------------------------------------


def intent_from_proto(message: pb.Intent) -> Intent:
    """Raises InvalidRequest, with the field as the proto names it."""
    if len(message.egress) > MAX_EGRESS:
        # before any of them is parsed: a message of 1 MiB holds 100,000 of them
        raise InvalidRequest(
            f"{len(message.egress)} destinations",
            field="intent.egress",
            value=str(len(message.egress)),
            remedy=f"list at most {MAX_EGRESS}, or use networks",
        )
    try:
        return Intent(
            tool=message.tool,
            call_class=message.call_class,
            memory_typical=message.memory_typical_bytes if message.HasField("memory_typical_bytes") else None,
            memory_peak=message.memory_peak_bytes if message.HasField("memory_peak_bytes") else None,
            cpu=message.cpu_cores if message.HasField("cpu_cores") else None,
            pids=message.pids if message.HasField("pids") else None,
            duration=message.duration_seconds if message.HasField("duration_seconds") else None,
            deadline=message.deadline_seconds if message.HasField("deadline_seconds") else None,
            priority=message.priority if message.HasField("priority") else None,
            network=_network(message.network),
            egress=tuple(EgressRule(rule.network, rule.port) for rule in message.egress),
            gpu=message.gpu,
            on_pressure=_on_pressure(message.on_pressure),
            engine=message.inference.engine,
            conversation=message.inference.conversation,
        )
    except InvalidRequest as err:
        field = PROTO_FIELD.get(err.field, err.field)
        if field == err.field:
            raise
        raise InvalidRequest(err.message, field=field, value=err.value, remedy=err.remedy) from None


def _on_pressure(number: int) -> OnPressure:
    member = _FROM_ON_PRESSURE.get(number)
    if member is None:
        raise _unknown_enum("intent.on_pressure", number, "OnPressure", pb.OnPressure.keys())
    return member


def _network(number: int) -> Network:
    member = _FROM_NETWORK.get(number)
    if member is None:
        raise _unknown_enum("intent.network", number, "NetworkMode", pb.NetworkMode.keys())
    return member


def _unknown_enum(field: str, number: int, enum: str, names: list[str]) -> InvalidRequest:
    return InvalidRequest(
        f"{number} is no {enum} that this daemon knows (the client may be newer than it)",
        field=field,
        value=str(number),
        remedy=f"use one of {', '.join(names)}, or update the daemon",
    )


def limits_from_proto(message: pb.Limits, field: str = "limits") -> Limits:
    """Raises InvalidRequest. -1 lifts a limit, except weights, which have no unlimited."""
    return Limits(
        memory_max=_ceiling(message, field, "memory_max_bytes", within=(MIN_MEMORY, MAX_MEMORY), unit="bytes"),
        memory_high=_ceiling(message, field, "memory_high_bytes", within=(MIN_MEMORY, MAX_MEMORY), unit="bytes"),
        memory_low=_ceiling(message, field, "memory_low_bytes", within=(0, MAX_MEMORY), unit="bytes"),
        cpu_max=_cores(message, field),
        cpu_weight=_weight(message, field, "cpu_weight"),
        pids_max=_ceiling(message, field, "pids", within=(1, MAX_PIDS), unit="processes"),
        io_weight=_weight(message, field, "io_weight"),
        io_max=_ceiling(message, field, "io_bytes_per_second", within=(MIN_IO, MAX_RATE), unit="bytes per second"),
        egress_max=_ceiling(
            message, field, "egress_bytes_per_second", within=(MIN_EGRESS, MAX_RATE), unit="bytes per second"
        ),
    )


def _ceiling(message: pb.Limits, field: str, name: str, *, within: tuple[int, int], unit: str) -> int | None:
    low, high = within
    if not message.HasField(name):
        return None
    value = int(getattr(message, name))
    if value != UNLIMITED and not low <= value <= high:
        raise _out_of_range(f"{field}.{name}", value, f"{low} to {high} {unit}, or -1 to lift the limit")
    return value


def _weight(message: pb.Limits, field: str, name: str) -> int | None:
    if not message.HasField(name):
        return None
    value = int(getattr(message, name))
    if not MIN_WEIGHT <= value <= MAX_WEIGHT:
        raise _out_of_range(f"{field}.{name}", value, f"{MIN_WEIGHT} to {MAX_WEIGHT}; 100 is the default")
    return value


def _cores(message: pb.Limits, field: str) -> float | None:
    if not message.HasField("cpu_cores"):
        return None
    value = message.cpu_cores
    if value == UNLIMITED:
        return float(UNLIMITED)
    if math.isnan(value) or not 0.01 <= value <= MAX_CORES:
        raise _out_of_range(f"{field}.cpu_cores", value, f"0.01 to {MAX_CORES:g} cores, or -1 to lift the limit")
    return value


def threshold_from_proto(value: int, field: str) -> int | None:
    """A threshold of the tripwire in bytes; 0 disarms it (None)."""
    if value == 0:
        return None
    if not MIN_MEMORY <= value <= MAX_MEMORY:
        raise _out_of_range(field, value, f"{MIN_MEMORY} to {MAX_MEMORY} bytes, or 0 to disarm it")
    return value


def _out_of_range(field: str, value: float, remedy: str) -> InvalidRequest:
    return InvalidRequest(f"{value} is out of range", field=field, value=str(value), remedy=remedy)


# --- to an answer ---------------------------------------------------------------------------------------------------


def intent_to_proto(intent: Intent) -> pb.Intent:
    bound = bool(intent.engine or intent.conversation)
    return pb.Intent(
        tool=intent.tool,
        call_class=intent.call_class,
        memory_typical_bytes=intent.memory_typical,
        memory_peak_bytes=intent.memory_peak,
        cpu_cores=intent.cpu,
        pids=intent.pids,
        duration_seconds=intent.duration,
        deadline_seconds=intent.deadline,
        priority=intent.priority,
        network=NETWORK[intent.network],
        egress=[pb.EgressRule(network=rule.network, port=rule.port) for rule in intent.egress],
        gpu=intent.gpu,
        on_pressure=ON_PRESSURE[intent.on_pressure],
        inference=pb.InferenceBinding(engine=intent.engine, conversation=intent.conversation) if bound else None,
    )


def limits_to_proto(limits: Limits) -> pb.Limits:
    return pb.Limits(
        memory_max_bytes=limits.memory_max,
        memory_high_bytes=limits.memory_high,
        memory_low_bytes=limits.memory_low,
        cpu_cores=limits.cpu_max,
        cpu_weight=limits.cpu_weight,
        pids=limits.pids_max,
        io_weight=limits.io_weight,
        io_bytes_per_second=limits.io_max,
        egress_bytes_per_second=limits.egress_max,
    )


def grant_to_proto(grant: Grant) -> pb.Grant:
    tripwire: Tripwire = grant.tripwire
    return pb.Grant(
        limits=limits_to_proto(grant.limits),
        notify_bytes=tripwire.notify,
        brake_bytes=tripwire.brake,
        priority=grant.priority,
        enforced=grant.enforced,
        notes=grant.notes,
    )


def usage_to_proto(usage: Usage) -> pb.Usage:
    return pb.Usage(
        cpu_usec=usage.cpu_usec,
        cpu_user_usec=usage.cpu_user_usec,
        cpu_system_usec=usage.cpu_system_usec,
        memory_now_bytes=usage.memory_now,
        memory_peak_bytes=usage.memory_peak,
        pids_now=usage.pids_now,
        faults=usage.faults,
        major_faults=usage.major_faults,
        read_bytes=usage.read_bytes,
        written_bytes=usage.written_bytes,
        disk_read_bytes=usage.disk_read_bytes,
        disk_written_bytes=usage.disk_written_bytes,
        net_rx_bytes=usage.net_rx_bytes,
        net_tx_bytes=usage.net_tx_bytes,
        forks=usage.forks,
        execs=usage.execs,
        run_wait_usec=usage.run_wait_usec,
        switches=usage.switches,
        memory_stall_usec=usage.memory_stall_usec,
        cpu_stall_usec=usage.cpu_stall_usec,
        io_stall_usec=usage.io_stall_usec,
        oom_kills=usage.oom_kills,
        gpu_memory_bytes=usage.gpu_memory_bytes,
        gpu_seconds=usage.gpu_seconds,
        gpu_joules=usage.gpu_joules,
    )


def decision_to_proto(decision: Decision) -> pb.Decision:
    return pb.Decision(
        at=decision.at,
        action=decision.action.value,
        policy=decision.policy,
        reason=decision.reason,
        tenant_id=decision.tenant_id,
        session_id=decision.session_id,
        call_id=decision.call_id,
        evidence=decision.evidence,
    )


def outcome_to_proto(outcome: Outcome) -> pb.Outcome:
    return pb.Outcome(
        call_id=outcome.call_id,
        reason=outcome.reason.value,
        ended_at=outcome.ended_at,
        wait_status=outcome.wait_status,
        usage=usage_to_proto(outcome.usage),
        wall_seconds=outcome.wall_seconds,
        held_seconds=outcome.held_seconds,
        decisions=[decision_to_proto(decision) for decision in outcome.decisions],
        summary=outcome.summary,
        suggestions=outcome.suggestions,
        leftovers=outcome.leftovers,
        budgets=[budget_to_proto(budget) for budget in outcome.budgets],
    )


def tenant_to_proto(tenant: TenantView) -> pb.Tenant:
    return pb.Tenant(
        id=tenant.id,
        name=tenant.name,
        limits=limits_to_proto(tenant.limits),
        priority=tenant.priority,
        memory_now_bytes=tenant.memory_now,
        cpu_usec=tenant.cpu_usec,
        budgets=[budget_to_proto(budget) for budget in tenant.budgets],
    )


def session_to_proto(session: SessionView) -> pb.Session:
    return pb.Session(
        id=session.id,
        tenant_id=session.tenant_id,
        name=session.name,
        uid=session.uid,
        opened_at=session.opened_at,
        closed_at=session.closed_at,
        labels=session.labels,
        budgets=[budget_to_proto(budget) for budget in session.budgets],
        turns=turns_to_proto(session.turns) if session.turns is not None else None,
        container=session.container,
        rules=session.rules,
    )


def recognition_to_proto(recognition: Recognition) -> pb.Recognition:
    return pb.Recognition(
        rule=recognition.rule,
        seconds_before=recognition.seconds_before,
        cpu_usec_before=recognition.cpu_usec_before,
        memory_bytes_before=recognition.memory_before,
    )


def call_to_proto(call: CallView) -> pb.Call:
    return pb.Call(
        id=call.id,
        session_id=call.session_id,
        tenant_id=call.tenant_id,
        parent_id=call.parent_id,
        command=call.command,
        intent=intent_to_proto(call.intent),
        grant=grant_to_proto(call.grant),
        state=CALL_STATE[call.state],
        begun_at=call.begun_at,
        held_since=call.held_since,
        held_seconds=call.held_seconds,
        brakes=call.brakes,
        usage=usage_to_proto(call.usage),
        cgroup=call.cgroup,
        outcome=outcome_to_proto(call.outcome) if call.outcome is not None else None,
        recognition=recognition_to_proto(call.recognition) if call.recognition is not None else None,
        squeeze=squeeze_to_proto(call.squeeze) if call.squeeze is not None else None,
        forecast=forecast_to_proto(call.forecast) if call.forecast is not None else None,
        eta_seconds=max(0.0, call.eta - time.time()) if call.eta is not None else None,
        waits_for=call.waits_for,
    )


def forecast_to_proto(forecast: ForecastView) -> pb.Forecast:
    return pb.Forecast(
        memory_median_bytes=forecast.memory_median,
        memory_high_bytes=forecast.memory_high,
        remaining_seconds=forecast.remaining,
        lives=forecast.lives,
        kind=forecast.kind,
    )


def squeeze_to_proto(squeeze: Squeeze) -> pb.Squeeze:
    return pb.Squeeze(
        since=squeeze.since,
        memory_high_bytes=squeeze.memory_high,
        cpu_weight=squeeze.cpu_weight,
        io_weight=squeeze.io_weight,
        egress_bytes_per_second=squeeze.egress_bytes_per_second,
        reason=squeeze.reason,
        cpu_cores=squeeze.cpu_max,
    )


def host_to_proto(host: HostView, version: str) -> pb.HostStatus:
    return pb.HostStatus(
        kernel=host.kernel,
        mode=host.mode,
        cpus=host.cpus,
        memory_total_bytes=host.memory_total,
        memory_available_bytes=host.memory_available,
        cpu_pressure=host.cpu_pressure,
        memory_pressure=host.memory_pressure,
        io_pressure=host.io_pressure,
        missing=host.missing,
        version=version,
    )


def snapshot_to_proto(snapshot: Snapshot, version: str) -> pb.SnapshotResponse:
    return pb.SnapshotResponse(
        at=snapshot.at,
        host=host_to_proto(snapshot.host, version),
        tenants=[tenant_to_proto(tenant) for tenant in snapshot.tenants],
        sessions=[session_to_proto(session) for session in snapshot.sessions],
        calls=[call_to_proto(call) for call in snapshot.calls],
    )


def sample_to_proto(sample: SampleView) -> pb.Sample:
    return pb.Sample(
        at=sample.at, call_id=sample.call_id, state=CALL_STATE[sample.state], usage=usage_to_proto(sample.usage)
    )


def feature_to_proto(feature: FeatureView) -> pb.Feature:
    return pb.Feature(
        name=feature.name, found=bool(feature.found), detail=feature.detail, cost=feature.cost, remedy=feature.remedy
    )
