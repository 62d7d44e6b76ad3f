"""controller.model ↔ proto: every field, in both directions, from tables and from hypothesis."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from agentd.api import convert
from agentd.api.budgetproto import budget_to_proto
from agentd.api.ports import SampleView
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.model import (
    Budget,
    CallState,
    CallView,
    EgressRule,
    Grant,
    HostView,
    Intent,
    InvalidRequest,
    Limits,
    Network,
    OnPressure,
    SessionView,
    TenantView,
    Tripwire,
    Usage,
    new_session_id,
    new_tenant_id,
)
from controller.model.intent import MAX_CORES, MAX_DURATION, MAX_MEMORY, MAX_PIDS, MIN_MEMORY
from controller.model.limits import MAX_RATE, MIN_EGRESS, MIN_IO
from tests.unit.api_fake import make_call, make_decision, make_outcome

TEXT = st.text(max_size=40).filter(lambda text: all(c.isprintable() for c in text))
MEMORY = st.none() | st.integers(MIN_MEMORY, MAX_MEMORY)
CEILING = st.none() | st.just(-1) | st.integers(MIN_MEMORY, MAX_MEMORY)
U64 = st.none() | st.integers(0, 2**64 - 1)
EGRESS = st.builds(EgressRule, st.ip_addresses().map(str), st.integers(0, 65_535))


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    pair: tuple[int | None, int | None] = (draw(MEMORY), draw(MEMORY))
    sizes = sorted(size for size in pair if size is not None)
    network = draw(st.sampled_from(Network))
    return Intent(
        tool=draw(TEXT),
        call_class=draw(TEXT),
        memory_typical=sizes[0] if len(sizes) == 2 else None,
        memory_peak=sizes[-1] if sizes else None,
        cpu=draw(st.none() | st.floats(0.01, MAX_CORES)),
        pids=draw(st.none() | st.integers(1, MAX_PIDS)),
        duration=draw(st.none() | st.floats(0, MAX_DURATION)),
        deadline=draw(st.none() | st.floats(0, MAX_DURATION)),
        priority=draw(st.none() | st.integers(0, 100)),
        network=network,
        egress=tuple(draw(st.lists(EGRESS, min_size=1, max_size=5))) if network is Network.EGRESS_LIST else (),
        gpu=draw(st.booleans()),
        on_pressure=draw(st.sampled_from(OnPressure)),
        engine=draw(TEXT),
        conversation=draw(TEXT),
    )


@given(intents())
def test_intents_survive_the_way_there_and_back(intent: Intent) -> None:
    wire = convert.intent_to_proto(intent).SerializeToString()
    assert convert.intent_from_proto(pb.Intent.FromString(wire)) == intent


def test_an_empty_intent_declares_nothing() -> None:
    assert convert.intent_from_proto(pb.Intent()) == Intent()
    assert convert.intent_to_proto(Intent(priority=0)).HasField("priority")
    assert not convert.intent_to_proto(Intent()).HasField("priority")
    assert not convert.intent_to_proto(Intent()).HasField("inference")


LIMITS = st.builds(
    Limits,
    memory_max=CEILING,
    memory_high=CEILING,
    memory_low=st.none() | st.just(-1) | st.integers(0, MAX_MEMORY),
    cpu_max=st.none() | st.just(-1.0) | st.floats(0.01, MAX_CORES),
    cpu_weight=st.none() | st.integers(1, 10_000),
    pids_max=st.none() | st.just(-1) | st.integers(1, MAX_PIDS),
    io_weight=st.none() | st.integers(1, 10_000),
    io_max=st.none() | st.just(-1) | st.integers(MIN_IO, MAX_RATE),
    egress_max=st.none() | st.just(-1) | st.integers(MIN_EGRESS, MAX_RATE),
)


@given(LIMITS)
def test_limits_survive_the_way_there_and_back(limits: Limits) -> None:
    wire = convert.limits_to_proto(limits).SerializeToString()
    assert convert.limits_from_proto(pb.Limits.FromString(wire)) == limits


@given(st.binary(max_size=200))
def test_any_bytes_are_an_intent_or_an_invalid_request(data: bytes) -> None:
    try:
        message = pb.Intent.FromString(data)
    except Exception:
        return  # not a message: gRPC refuses it before we see it
    try:
        intent = convert.intent_from_proto(message)
    except InvalidRequest as err:
        assert err.field.startswith("intent.")  # noqa: PT017 - either answer is right
        assert err.remedy  # noqa: PT017 - the same
        return
    assert convert.intent_from_proto(convert.intent_to_proto(intent)) == intent


ENUMS: list[tuple[Any, Any, str]] = [
    (OnPressure, pb.OnPressure, "ON_PRESSURE"),
    (Network, pb.NetworkMode, "NETWORK_MODE"),
    (CallState, pb.CallState, "CALL_STATE"),
]


@pytest.mark.parametrize(("model", "proto", "prefix"), ENUMS)
def test_enums_have_the_same_members(model: Any, proto: Any, prefix: str) -> None:
    assert {f"{prefix}_{member.value.upper()}" for member in model} == set(proto.keys()) - {f"{prefix}_UNSPECIFIED"}
    tables: dict[Any, Any] = {
        OnPressure: convert.ON_PRESSURE,
        Network: convert.NETWORK,
        CallState: convert.CALL_STATE,
    }
    table = tables[model]
    assert {member: proto.Name(number) for member, number in table.items()} == {
        member: f"{prefix}_{member.value.upper()}" for member in model
    }


# model field -> proto field, where the names differ
RENAMED = {
    Usage: {"memory_now": "memory_now_bytes", "memory_peak": "memory_peak_bytes"},
    Limits: {
        "memory_max": "memory_max_bytes",
        "memory_high": "memory_high_bytes",
        "memory_low": "memory_low_bytes",
        "cpu_max": "cpu_cores",
        "pids_max": "pids",
        "io_max": "io_bytes_per_second",
        "egress_max": "egress_bytes_per_second",
    },
    TenantView: {"memory_now": "memory_now_bytes"},
    CallView: {"eta": "eta_seconds"},
    HostView: {"memory_total": "memory_total_bytes", "memory_available": "memory_available_bytes"},
}


def same(value: Any, message: Message) -> None:
    """Every scalar field of a model has its namesake in the message, absent exactly where it is None."""
    for field in fields(value):
        name = RENAMED.get(type(value), {}).get(field.name, field.name)
        expected = getattr(value, field.name)
        if expected is None:
            descriptor = message.DESCRIPTOR.fields_by_name[name]
            assert (not message.HasField(name)) if descriptor.has_presence else getattr(message, name) in ("", 0)
            continue
        got = getattr(message, name)
        if isinstance(got, Message) or isinstance(expected, (tuple, Limits)):
            continue
        assert (dict(got) if isinstance(expected, dict) else got) == expected, name


def counter(name: str) -> st.SearchStrategy[float | None]:
    # GPU-seconds and joules are no whole numbers, and travel as such
    return st.none() | st.floats(0, 1e15) if name in ("gpu_seconds", "gpu_joules") else U64


@given(st.builds(Usage, **{f.name: counter(f.name) for f in fields(Usage) if not f.name.startswith("cpu_u")}))
def test_usage(usage: Usage) -> None:
    known = replace(usage, cpu_usec=usage.cpu_usec or 0, cpu_user_usec=usage.cpu_user_usec or 0, cpu_system_usec=0)
    same(known, convert.usage_to_proto(known))


def test_usage_and_limits_have_no_field_without_its_namesake() -> None:
    for model, message in ((Usage, pb.Usage), (Limits, pb.Limits)):
        names = {RENAMED[model].get(field.name, field.name) for field in fields(model)}
        assert names == {field.name for field in message.DESCRIPTOR.fields}


def test_views() -> None:
    session = SessionView(
        id=new_session_id(),
        tenant_id=new_tenant_id(),
        name="run",
        uid=4_294_967_294,
        opened_at=1.5,
        closed_at=None,
        labels={"a": "b"},
    )
    same(session, convert.session_to_proto(session))
    same(replace(session, closed_at=2.0), convert.session_to_proto(replace(session, closed_at=2.0)))
    tenant = TenantView(id=new_tenant_id(), name="acme", limits=Limits(pids_max=3), priority=7, cpu_usec=9)
    same(tenant, convert.tenant_to_proto(tenant))
    assert convert.tenant_to_proto(tenant).limits == pb.Limits(pids=3)
    budget = Budget(resource="pids", scope="session", limit=3.0, used=1.0, remaining=2.0)
    same(budget, budget_to_proto(budget))
    host = HostView(
        kernel="6.18",
        mode="unified",
        cpus=3,
        memory_total=9,
        memory_available=8,
        cpu_pressure=None,
        memory_pressure=0.0,
        io_pressure=1.5,
        missing=("a", "b"),
    )
    same(host, convert.host_to_proto(host, "1"))
    assert list(convert.host_to_proto(host, "1").missing) == ["a", "b"]


def test_a_call_with_all_that_hangs_on_it() -> None:
    session = SessionView(id=new_session_id(), tenant_id=new_tenant_id(), name="", uid=0, opened_at=0.0, labels={})
    running = make_call(session)
    outcome = replace(make_outcome(running.id), decisions=(make_decision(running),))
    grant = Grant(
        limits=Limits(cpu_max=2.0), tripwire=Tripwire(brake=5), priority=3, enforced=False, notes=("less than asked",)
    )
    for state in CallState:
        call = replace(running, state=state, outcome=outcome if state is CallState.ENDED else None, grant=grant)
        message = convert.call_to_proto(call)
        same(replace(call, state=convert.CALL_STATE[state]), message)  # type: ignore[arg-type]  # compared as number
        assert message.HasField("outcome") == (state is CallState.ENDED)
        assert message.grant == pb.Grant(
            limits=pb.Limits(cpu_cores=2.0), brake_bytes=5, priority=3, enforced=False, notes=["less than asked"]
        )
    message = convert.call_to_proto(replace(running, outcome=outcome))
    same(replace(outcome, reason=outcome.reason.value), message.outcome)  # type: ignore[arg-type]  # compared as text
    (decision,) = message.outcome.decisions
    assert (decision.action, dict(decision.evidence), decision.call_id) == ("brake", {"usage_bytes": 5.0}, running.id)
    assert list(message.outcome.suggestions) == ["Declare a higher peak."]
    sample = convert.sample_to_proto(
        SampleView(at=1.0, call_id=running.id, state=CallState.FROZEN, usage=Usage(cpu_usec=4))
    )
    assert sample == pb.Sample(
        at=1.0,
        call_id=running.id,
        state=pb.CALL_STATE_FROZEN,
        usage=pb.Usage(cpu_usec=4),
    )
