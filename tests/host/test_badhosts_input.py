"""Bad input through gRPC and through corral-exec: a status with field, value and remedy, and nothing half made left."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agentd.api.client import ApiError
from agentd.embedded import cgroup_mounts
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.support.daemons import DaemonFactory, DaemonUnderTest, Session

pytestmark = pytest.mark.host

MIB = 1 << 20
LONG = "x" * 10_000
NO_CALL = "c-0000000000000000"
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
REFUSED, WRONG = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def daemon(daemons: DaemonFactory) -> AsyncIterator[DaemonUnderTest]:
    """When the test is over, nothing that it asked for in vain is there, and the daemon met nothing unexpected."""
    daemon = await daemons.start(tenants={"acme": {"memory_max": "256M", "cpu_max": 1, "pids_max": 50}, "beta": {}})
    yield daemon
    log = daemon.log_file.read_text("utf-8")
    assert "unexpectedly" not in log
    assert "Traceback" not in log


def leaves(daemon: DaemonUnderTest) -> list[Path]:
    return [leaf for mount in cgroup_mounts() for leaf in (mount / daemon.name).glob("*/*/calls/*") if leaf.is_dir()]


async def refused(daemon: DaemonUnderTest, rpc: Any, request: Any, status: grpc.StatusCode, field: str) -> ApiError:
    """The status, whose parts and text say the same, with a remedy, each of a bearable length."""
    with pytest.raises(ApiError) as caught:
        await daemon.client.call(rpc, request)
    err = caught.value
    assert (err.status, err.field) == (status, field), err
    assert err.code
    assert err.remedy
    assert str(err).startswith(f"{field}: ")
    assert err.remedy in str(err)
    assert len(str(err)) < 1000
    assert len(err.value) <= 120
    return err


INTENTS = [
    (pb.Intent(priority=101), "priority", "101"),
    (pb.Intent(memory_peak_bytes=0), "memory_peak_bytes", "0"),
    (pb.Intent(memory_peak_bytes=2**63), "memory_peak_bytes", str(2**63)),
    (pb.Intent(memory_typical_bytes=100 * MIB, memory_peak_bytes=50 * MIB), "memory_typical_bytes", str(100 * MIB)),
    (pb.Intent(cpu_cores=-1), "cpu_cores", "-1.0"),
    (pb.Intent(cpu_cores=float("nan")), "cpu_cores", "nan"),
    (pb.Intent(cpu_cores=float("inf")), "cpu_cores", "inf"),
    (pb.Intent(pids=0), "pids", "0"),
    (pb.Intent(duration_seconds=-1), "duration_seconds", "-1.0"),
    (pb.Intent(deadline_seconds=1e12), "deadline_seconds", "1000000000000.0"),
    (pb.Intent(network=pb.NETWORK_MODE_EGRESS_LIST, egress=[pb.EgressRule(network="here")]), "egress", "here"),
    (
        pb.Intent(network=pb.NETWORK_MODE_EGRESS_LIST, egress=[pb.EgressRule(network="10.0.0.0/8", port=70_000)]),
        "egress",
        "70000",
    ),
    (pb.Intent(tool=LONG), "tool", LONG[:40]),
    (pb.Intent(call_class="a\x1b[31m"), "call_class", ""),
    (pb.Intent(inference=pb.InferenceBinding(engine=LONG)), "inference.engine", LONG[:40]),
]


async def test_an_intent_out_of_range(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    call = (await daemon.client.call(daemon.client.agent.BeginCall, begin(session))).call
    for intent, field, value in INTENTS:
        for rpc, request in (
            (daemon.client.agent.BeginCall, begin(session, intent)),
            (daemon.client.agent.UpdateIntent, pb.UpdateIntentRequest(call_id=call.id, intent=intent)),
        ):
            err = await refused(daemon, rpc, request, INVALID, f"intent.{field}")
            assert err.value == value
    (left,) = (await daemon.snapshot(with_ended=True)).calls
    assert (left.id, left.intent) == (call.id, call.intent)
    assert {leaf.name for leaf in leaves(daemon)} == {call.id}


def begin(session: Session, intent: pb.Intent | None = None, **more: Any) -> pb.BeginCallRequest:
    return pb.BeginCallRequest(session_id=session.id, intent=intent, argv=["x"], **more)


async def test_more_than_the_tenant_may_have(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    for intent, field, most in (
        (pb.Intent(memory_peak_bytes=1 << 30), "memory_peak_bytes", str(256 * MIB)),
        (pb.Intent(cpu_cores=4), "cpu_cores", "1 cores"),
        (pb.Intent(pids=1000), "pids", "50"),
    ):
        err = await refused(daemon, daemon.client.agent.BeginCall, begin(session, intent), REFUSED, f"intent.{field}")
        assert err.code == "above_ceiling"
        assert most in err.remedy
        intent.on_pressure = pb.ON_PRESSURE_DEGRADE  # the remedy works
        call = (await daemon.client.call(daemon.client.agent.BeginCall, begin(session, intent))).call
        assert call.grant.notes
        assert call.grant.limits.pids <= 50 or field != "pids"
        await daemon.client.call(daemon.client.agent.EndCall, pb.EndCallRequest(call_id=call.id, wait_status=0))


async def test_a_limit_above_its_parents(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    call = (await daemon.client.call(daemon.client.agent.BeginCall, begin(session))).call
    for target in (call.id, session.id):
        for limits, field in (
            (pb.Limits(memory_max_bytes=1 << 40), "memory_max_bytes"),
            (pb.Limits(memory_max_bytes=-1), "memory_max_bytes"),
            (pb.Limits(cpu_cores=64), "cpu_cores"),
            (pb.Limits(pids=51), "pids"),
        ):
            request = pb.SetLimitsRequest(target=target, limits=limits)
            err = await refused(daemon, daemon.client.operator.SetLimits, request, INVALID, f"limits.{field}")
            assert "tenant 'acme'" in str(err)
            assert "raise the tenant's ceiling" in err.remedy
    (after,) = (await daemon.snapshot()).calls
    assert after.grant == call.grant


async def test_wrong_limits(daemon: DaemonUnderTest) -> None:
    operator = daemon.client.operator
    for limits, field in (
        (pb.Limits(memory_max_bytes=-7), "memory_max_bytes"),
        (pb.Limits(memory_max_bytes=0), "memory_max_bytes"),
        (pb.Limits(cpu_cores=float("nan")), "cpu_cores"),
        (pb.Limits(cpu_weight=0), "cpu_weight"),
        (pb.Limits(io_weight=20_000), "io_weight"),
        (pb.Limits(pids=0), "pids"),
    ):
        target = pb.SetLimitsRequest(target="beta", limits=limits)
        await refused(daemon, operator.SetLimits, target, INVALID, f"limits.{field}")
        await refused(
            daemon, operator.SetTenant, pb.SetTenantRequest(name="gamma", limits=limits), INVALID, f"limits.{field}"
        )
    await refused(daemon, operator.SetLimits, pb.SetLimitsRequest(target="beta"), INVALID, "limits")
    await refused(
        daemon, operator.SetLimits, pb.SetLimitsRequest(target=LONG, limits=pb.Limits(pids=5)), INVALID, "target"
    )
    await refused(daemon, operator.SetLimits, pb.SetLimitsRequest(target="beta", brake_bytes=MIB), INVALID, "target")
    for name in ("../x", "", LONG, "A b", "-a"):
        await refused(daemon, operator.SetTenant, pb.SetTenantRequest(name=name), INVALID, "name")
    await refused(daemon, operator.SetTenant, pb.SetTenantRequest(name="acme", priority=500), INVALID, "priority")
    assert {t.name for t in (await daemon.snapshot()).tenants} == {"acme", "beta", "default"}


async def test_unknown_objects(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    agent = daemon.client.agent
    for request, status, field in (
        (pb.BeginCallRequest(session_id="s-0000000000000000", argv=["x"]), NOT_FOUND, "session_id"),
        (pb.BeginCallRequest(session_id="../../etc", argv=["x"]), INVALID, "session_id"),
        (pb.BeginCallRequest(argv=["x"]), INVALID, "session_id"),
        (pb.BeginCallRequest(session_id=session.id), INVALID, "argv"),
        (begin(session, parent_id=NO_CALL), NOT_FOUND, "parent_id"),
    ):
        await refused(daemon, agent.BeginCall, request, status, field)
    for opened, status, field in (
        (pb.OpenSessionRequest(tenant="nobody-here", name="x", uid=0), NOT_FOUND, "tenant"),
        (pb.OpenSessionRequest(tenant=LONG, name="x", uid=0), INVALID, "tenant"),
        (pb.OpenSessionRequest(tenant="acme", name=LONG, uid=0), INVALID, "name"),
        (pb.OpenSessionRequest(tenant="acme", name="a\x1b[2J", uid=0), INVALID, "name"),
        (pb.OpenSessionRequest(tenant="acme", name="x", uid=0, labels={"k": LONG}), INVALID, "labels.k"),
        (pb.OpenSessionRequest(tenant="acme", uid=0, labels={str(n): "" for n in range(17)}), INVALID, "labels"),
        (pb.OpenSessionRequest(tenant="acme", name="x", uid=2**32 - 1), INVALID, "uid"),
    ):
        await refused(daemon, agent.OpenSession, opened, status, field)
    await refused(daemon, agent.GetOutcome, pb.GetOutcomeRequest(call_id=NO_CALL), NOT_FOUND, "call_id")
    await refused(daemon, daemon.client.operator.Kill, pb.KillRequest(target=NO_CALL), NOT_FOUND, "target")
    assert [s.id for s in (await daemon.snapshot()).sessions] == [session.id]


async def test_a_request_that_is_too_long(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    await refused(
        daemon,
        daemon.client.agent.BeginCall,
        pb.BeginCallRequest(session_id=session.id, argv=["x" * 1_000_000]),
        INVALID,
        "argv",
    )
    with pytest.raises(ApiError, match=r"larger than max.*api\.max_message_bytes") as caught:
        await daemon.client.call(
            daemon.client.agent.BeginCall, pb.BeginCallRequest(session_id=session.id, argv=["x" * 20_000_000])
        )
    assert caught.value.status is REFUSED
    assert not (await daemon.snapshot(with_ended=True)).calls


async def test_calls_that_have_ended(daemon: DaemonUnderTest) -> None:
    """An end that is told twice has one outcome, the first; nothing else can be done to an ended call."""
    session = await daemon.open_session("acme")
    agent = daemon.client.agent
    call = (await daemon.client.call(agent.BeginCall, begin(session))).call
    for pid, status in ((0, INVALID), (1, INVALID), (4_000_000, NOT_FOUND)):
        await refused(daemon, agent.AttachProcess, pb.AttachProcessRequest(call_id=call.id, pid=pid), status, "pid")
    itself = pb.AttachProcessRequest(call_id=call.id, pid=daemon.pid)
    await refused(daemon, agent.AttachProcess, itself, grpc.StatusCode.PERMISSION_DENIED, "pid")
    strange = pb.EndCallRequest(call_id=call.id, wait_status=2**32 - 1)
    await refused(daemon, agent.EndCall, strange, INVALID, "wait_status")

    first = await daemon.client.call(agent.EndCall, pb.EndCallRequest(call_id=call.id, wait_status=0))
    second = await daemon.client.call(agent.EndCall, pb.EndCallRequest(call_id=call.id, wait_status=256))
    assert first == second
    assert first.outcome.wait_status == 0
    late = pb.AttachProcessRequest(call_id=call.id, pid=os.getpid())
    assert call.id in (await refused(daemon, agent.AttachProcess, late, NOT_FOUND, "call_id")).value
    revised = pb.UpdateIntentRequest(call_id=call.id, intent=pb.Intent(pids=5))
    await refused(daemon, agent.UpdateIntent, revised, NOT_FOUND, "call_id")
    await refused(daemon, daemon.client.operator.Freeze, pb.FreezeRequest(target=call.id), NOT_FOUND, "target")

    close = pb.CloseSessionRequest(session_id=session.id)
    await daemon.client.call(agent.CloseSession, close)
    await refused(daemon, agent.CloseSession, close, NOT_FOUND, "session_id")
    await refused(daemon, agent.BeginCall, begin(session), NOT_FOUND, "session_id")


async def test_a_newer_client(daemon: DaemonUnderTest) -> None:
    """Fields that this daemon does not know are ignored; a value that it does not know is never taken for another."""
    session = await daemon.open_session("acme")
    newer = pb.BeginCallRequest.FromString(begin(session).SerializeToString() + b"\xfa\x3f\x05hello")
    call = (await daemon.client.call(daemon.client.agent.BeginCall, newer)).call
    assert call.state == pb.CALL_STATE_RUNNING
    for intent, field in (
        (pb.Intent.FromString(b"\x50\x63"), "network"),  # field 10: 99
        (pb.Intent.FromString(b"\x68\x63"), "on_pressure"),  # field 13: 99
    ):
        request = begin(session, intent)
        err = await refused(daemon, daemon.client.agent.BeginCall, request, INVALID, f"intent.{field}")
        assert "the client may be newer" in str(err)
        assert "update the daemon" in err.remedy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--memory", "banana"), ("--memory", "'banana'", "300M")),
        (("--memory", "1K"), ("intent.memory_typical", "1024")),
        (("--memory", "1T"), ("above_ceiling", "256 MiB", "on_pressure=degrade")),
        (("--pids", "1000"), ("above_ceiling", "intent.pids", "50")),
        (("--priority", "101"), ("--priority", "101", "0 to 100")),
        (("--pids", "0"), ("intent.pids", "1 to 4194304")),
        (("--tool", LONG), ("intent.tool", "10000", "at most 256 characters")),
        (("--tool", "a\x1b[2J"), ("intent.tool", "printable")),
        (("--network", "10.0.0.0/99"), ("intent.egress", "10.0.0.0/99", "CIDR")),
        (("--on-pressure", "pray"), ("'pray'", "fail-fast")),
        (("--session", "s-0000000000000000"), ("session", "token")),
        (("--nonsense",), ("'--nonsense'", "--help")),
    ],
    ids=lambda value: " ".join(value)[:24] if isinstance(value, tuple) else None,
)
async def test_bad_options_of_the_launcher(
    daemon: DaemonUnderTest, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """One line, status 125, the command did not run, and there is no call and no leaf."""
    session = await daemon.open_session("acme")
    code, out, err = await daemon.call(session, "/bin/echo", "ran", options=options)
    assert (code, out) == (125, "")
    assert err.startswith("corral-exec: ")
    assert err.count("\n") == 1
    assert "\x1b" not in err
    for word in words:
        assert word in err
    assert not (await daemon.snapshot(with_ended=True)).calls
    assert not leaves(daemon)


async def test_tokens(daemons: DaemonFactory) -> None:
    """One that has expired, and one that nobody gave; neither is ever repeated, to its sender or in the log."""
    daemon = await daemons.start(settings={"broker": {"token_ttl": "1ms"}})
    expired = await daemon.open_session("acme")
    code, _, err = await daemon.call(expired, "/bin/true")
    assert code == 125
    assert f"the token of session {expired.id} has expired" in err
    assert "open a new session" in err
    expired.environment["CORRAL_TOKEN"] = "nobody-gave-this"  # noqa: S105 - which is the point
    code, _, err = await daemon.call(expired, "/bin/true")
    assert code == 125
    assert "not one of an open session" in err
    assert "nobody-gave-this" not in err
    assert "nobody-gave-this" not in daemon.log_file.read_text("utf-8")
    assert not (await daemon.snapshot(with_ended=True)).calls
