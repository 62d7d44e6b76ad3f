"""The records that groups carry: there and back, and what is done with those that cannot be read."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.backend import CallRecord, SessionRecord
from controller.backends.records import decode, encode
from controller.model import (
    Action,
    CallState,
    CallView,
    ControllerError,
    Decision,
    EgressRule,
    Grant,
    Intent,
    Limits,
    Network,
    OnPressure,
    Reason,
    SessionView,
    TenantView,
    Tripwire,
    Usage,
    new_call_id,
    new_session_id,
    new_tenant_id,
)

MIB = 1 << 20
XATTR_MAX = 64 * 1024  # of the kernel

TENANT = TenantView(id=new_tenant_id(), name="acme", limits=Limits(memory_max=-1, cpu_max=1.5), priority=40)
SESSION = SessionRecord(
    session=SessionView(
        id=new_session_id(),
        tenant_id=TENANT.id,
        name="n\N{SNOWMAN}",
        uid=1000,
        opened_at=time.time(),
        labels={"a": "b"},
    ),
    token_hash="0" * 64,
    token_expires=time.time() + 60,
    managed=False,
)
DECISION = Decision(
    at=time.time(),
    action=Action.BRAKE,
    policy="kernel",
    reason="used 64 MiB, its threshold is 64 MiB",
    tenant_id=TENANT.id,
    session_id=SESSION.session.id,
    evidence={"usage_bytes": 67_108_864.0, "event_ms": 0.25},
)
CALL = CallRecord(
    call=CallView(
        id=new_call_id(),
        session_id=SESSION.session.id,
        tenant_id=TENANT.id,
        parent_id=None,
        command="make -j8",
        intent=Intent(
            tool="build",
            memory_typical=8 * MIB,
            memory_peak=64 * MIB,
            deadline=30.0,
            network=Network.EGRESS_LIST,
            egress=(EgressRule("10.0.0.0/8", 443), EgressRule("::1/128")),
            on_pressure=OnPressure.DEGRADE,
        ),
        grant=Grant(
            limits=Limits(memory_max=128 * MIB, pids_max=10),
            tripwire=Tripwire(notify=8 * MIB, brake=64 * MIB),
            priority=50,
            enforced=True,
            notes=("cpu: less",),
        ),
        state=CallState.BRAKED,
        begun_at=time.time(),
        held_since=time.time(),
        held_seconds=1.25,
        brakes=2,
        usage=Usage(cpu_usec=5, faults=None, memory_peak=3),
        cgroup="corral/t/s/calls/c",
    ),
    launcher=True,
    main_pid=77,
    launcher_pid=76,
    held=("brake", "operator"),
    decisions=(DECISION,),
    killed_as=Reason.TIMEOUT,
)


def test_there_and_back() -> None:
    assert decode(TenantView, encode(TENANT)) == TENANT
    assert decode(SessionRecord, encode(SESSION)) == SESSION
    assert decode(CallRecord, encode(CALL)) == CALL


def test_the_largest_record_fits_into_an_attribute() -> None:
    """All of it at its bound: command, egress list, notes, and as many decisions as are kept."""
    intent = replace(CALL.call.intent, egress=tuple(EgressRule(f"2001:db8:{n:x}::/48", 65_535) for n in range(64)))
    grant = replace(CALL.call.grant, notes=("n" * 400,) * 8)
    call = replace(CALL.call, command='"' * 4096, intent=intent, grant=grant)
    decisions = (replace(DECISION, reason="r" * 300),) * 16
    assert len(encode(replace(CALL, call=call, decisions=decisions))) < XATTR_MAX


def test_a_record_of_before_the_later_fields() -> None:
    version, _, text = encode(CALL).partition(b" ")
    fields = json.loads(text)
    for later in ("decisions", "killed_as", "held"):
        del fields[later]
    old = decode(CallRecord, version + b" " + json.dumps(fields).encode())
    assert (old.call, old.held, old.decisions, old.killed_as) == (CALL.call, (), (), None)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "no record"),
        (b"", "no record"),
        (b"2 {}", "another version"),
        (b"1 ", "damaged"),
        (b"1 {}", "damaged"),
        (b"1 \xff\xfe", "damaged"),
        (encode(CALL)[:-1], "damaged"),
        (encode(CALL) + b"}", "damaged"),
        (encode(SESSION), "damaged"),
        (encode(CALL).replace(b'"brake":67108864', b'"brake":"much"'), "damaged"),
        (encode(CALL).replace(b'"memory_peak":67108864', b'"memory_peak":1'), "damaged"),  # no such intent can be
        (encode(CALL).replace(b'"10.0.0.0/8"', b'"nowhere"'), "damaged"),
    ],
)
def test_what_cannot_be_read_is_said(data: bytes | None, says: str) -> None:
    with pytest.raises(ControllerError, match=says) as caught:
        decode(CallRecord, data)
    assert caught.value.remedy


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"1 " + tail))
def test_whatever_is_there_one_error_is_raised(data: bytes) -> None:
    with pytest.raises(ControllerError):
        decode(CallRecord, data)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_damage_is_found_or_harmless(at: int, damage: bytes) -> None:
    data = bytearray(encode(CALL))
    at %= len(data)
    data[at : at + len(damage)] = damage
    try:
        record = decode(CallRecord, bytes(data))
    except ControllerError:
        return
    assert isinstance(record, CallRecord)
