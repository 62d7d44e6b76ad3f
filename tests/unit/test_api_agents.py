"""corral.v1.AgentService over real unix sockets, with a host that records."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from agentd.api.client import (
    ApiError,
    BadRequest,
    Client,
    NoSuchObject,
    NotPermitted,
    Rejected,
    WrongMoment,
    connect,
)
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.backend import Whose
from controller.model import CallState, EgressRule, Intent, Network, OnPressure, new_call_id
from tests.unit.api_fake import NOW, Served, make_call, make_decision, make_outcome, serve


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as it:
        yield it


@contextmanager
def a_process() -> Iterator[int]:
    """The pid of a process that waits; it has ended and is reaped afterwards."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        try:
            yield child.pid
        finally:
            child.communicate()


async def test_open_session_of_the_sockets_tenant_with_its_only_uid(served: Served) -> None:
    async with connect(served.acme) as api:
        answer = await api.call(
            api.agent.OpenSession, pb.OpenSessionRequest(name="run 1", labels={"model": "m", "job": "7"})
        )
    assert served.host.asked == [("open_session", "acme", "run 1", 1000, {"model": "m", "job": "7"})]
    assert served.host.tokens[answer.token] == answer.session.id
    assert (answer.session.name, answer.session.uid, dict(answer.session.labels)) == (
        "run 1",
        1000,
        {"model": "m", "job": "7"},
    )
    assert not answer.session.HasField("closed_at")


async def test_open_session_takes_a_listed_uid_and_asks_when_there_are_several(served: Served) -> None:
    async with connect(served.umbrella) as api:
        await api.call(api.agent.OpenSession, pb.OpenSessionRequest(tenant="umbrella", uid=2001))
        assert served.host.asked[0][3] == 2001
        with pytest.raises(BadRequest, match="uid") as missing:
            await api.call(api.agent.OpenSession, pb.OpenSessionRequest())
        with pytest.raises(BadRequest, match="not listed") as foreign:
            await api.call(api.agent.OpenSession, pb.OpenSessionRequest(uid=0))
    assert missing.value.field == "uid"
    assert (foreign.value.field, foreign.value.value) == ("uid", "0")
    assert len(served.host.asked) == 1


async def test_an_operator_names_tenant_and_uid(served: Served) -> None:
    async with connect(served.operator) as api:
        await api.call(api.agent.OpenSession, pb.OpenSessionRequest(tenant="newco", uid=0))
        assert served.host.asked == [("open_session", "newco", "", 0, {})]
        with pytest.raises(BadRequest, match="tenant"):
            await api.call(api.agent.OpenSession, pb.OpenSessionRequest(uid=0))
        with pytest.raises(BadRequest, match="uid: is missing"):
            await api.call(api.agent.OpenSession, pb.OpenSessionRequest(tenant="newco"))


async def test_call_from_begin_to_end(served: Served) -> None:
    session, token = served.host.add_session("acme", uid=os.getuid())
    async with connect(served.acme, token) as api:
        begun = await api.call(
            api.agent.BeginCall,
            pb.BeginCallRequest(
                argv=["pytest", "-q"],
                intent=pb.Intent(
                    tool="pytest",
                    call_class="test",
                    memory_typical_bytes=100 << 20,
                    memory_peak_bytes=200 << 20,
                    cpu_cores=1.5,
                    priority=0,
                    network=pb.NETWORK_MODE_EGRESS_LIST,
                    egress=[pb.EgressRule(network="10.0.0.0/8", port=443)],
                    on_pressure=pb.ON_PRESSURE_FAIL_FAST,
                    inference=pb.InferenceBinding(engine="vllm-0", conversation="x"),
                ),
            ),
        )
        intent = Intent(
            tool="pytest",
            call_class="test",
            memory_typical=100 << 20,
            memory_peak=200 << 20,
            cpu=1.5,
            priority=0,
            network=Network.EGRESS_LIST,
            egress=(EgressRule("10.0.0.0/8", 443),),
            on_pressure=OnPressure.FAIL_FAST,
            engine="vllm-0",
            conversation="x",
        )
        assert served.host.asked == [("begin", session.id, intent, ["pytest", "-q"], None)]
        assert begun.call.command == "pytest -q"
        assert begun.call.grant.brake_bytes == 1 << 28
        call_id = begun.call.id

        nested = await api.call(
            api.agent.BeginCall, pb.BeginCallRequest(session_id=session.id, argv=["true"], parent_id=call_id)
        )
        assert served.host.asked[-1][-1] == call_id
        assert nested.call.id != call_id

        with a_process() as pid:
            await api.call(api.agent.AttachProcess, pb.AttachProcessRequest(call_id=call_id, pid=pid))
            assert served.host.asked[-1] == ("attach", call_id, pid)

        updated = await api.call(
            api.agent.UpdateIntent, pb.UpdateIntentRequest(call_id=call_id, intent=pb.Intent(pids=5))
        )
        assert updated.call.intent.pids == 5
        assert served.host.asked[-1] == ("update_intent", call_id, Intent(pids=5))

        ended = await api.call(api.agent.EndCall, pb.EndCallRequest(call_id=call_id, wait_status=256))
        assert served.host.asked[-1] == ("end", call_id, 256)
        assert (ended.outcome.reason, ended.outcome.summary) == ("braked", "It was braked.")
        await api.call(api.agent.EndCall, pb.EndCallRequest(call_id=nested.call.id))
        assert served.host.asked[-1] == ("end", nested.call.id, None)

        await api.call(api.agent.CloseSession, pb.CloseSessionRequest(kill=True))
        assert served.host.asked[-1] == ("close_session", session.id, True)


async def test_get_outcome_and_budget(served: Served) -> None:
    session, token = served.host.add_session("acme")
    call = served.host.add_call(session)
    async with connect(served.anyone, token) as api:
        with pytest.raises(WrongMoment, match="running and has no outcome yet"):
            await api.call(api.agent.GetOutcome, pb.GetOutcomeRequest(call_id=call.id))
        served.host.calls[call.id] = replace(call, state=CallState.ENDED, outcome=make_outcome(call.id))
        answer = await api.call(api.agent.GetOutcome, pb.GetOutcomeRequest(call_id=call.id))
        assert answer.outcome.wait_status == 256
        budget = await api.call(api.agent.GetBudget, pb.GetBudgetRequest())
    assert budget.budgets[0] == pb.Budget(resource="pids", scope="tenant", limit=10, used=4, remaining=6, hard=True)


async def test_attach_refuses_processes_of_others(served: Served) -> None:
    session, token = served.host.add_session("acme", uid=os.getuid() + 12_345)
    call = served.host.add_call(session)
    with a_process() as pid:
        async with connect(served.acme, token) as api:
            with pytest.raises(NotPermitted, match="runs as uid") as foreign:
                await api.call(api.agent.AttachProcess, pb.AttachProcessRequest(call_id=call.id, pid=pid))
            assert (foreign.value.field, foreign.value.value) == ("pid", str(pid))
        async with connect(served.operator) as api:
            await api.call(api.agent.AttachProcess, pb.AttachProcessRequest(call_id=call.id, pid=pid))
            assert served.host.asked == [("attach", call.id, pid)]
            with pytest.raises(NotPermitted, match="daemon itself"):
                await api.call(api.agent.AttachProcess, pb.AttachProcessRequest(call_id=call.id, pid=os.getpid()))
    async with connect(served.operator) as api:
        with pytest.raises(NoSuchObject, match="no such process"):
            await api.call(api.agent.AttachProcess, pb.AttachProcessRequest(call_id=call.id, pid=pid))
    assert len(served.host.asked) == 1


async def test_a_tenant_without_listed_users_opens_no_sessions_over_grpc(served: Served) -> None:
    served.uids["acme"] = frozenset()
    async with connect(served.acme) as api:
        for uid in (0, 1000):
            with pytest.raises(BadRequest, match="not listed"):
                await api.call(api.agent.OpenSession, pb.OpenSessionRequest(uid=uid))
        with pytest.raises(BadRequest, match="no users listed"):
            await api.call(api.agent.OpenSession, pb.OpenSessionRequest())
    assert served.host.asked == []


async def test_attach_of_a_process_that_has_ended_or_ends_meanwhile(served: Served) -> None:
    """Its number may be another process's by then, so it is not reported as attached."""
    session, token = served.host.add_session("acme", uid=os.getuid())
    call = served.host.add_call(session)
    async with connect(served.acme, token) as api:
        with a_process() as pid:
            request = pb.AttachProcessRequest(call_id=call.id, pid=pid)

            def end() -> None:
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # ended, and not reaped

            served.host.on_attach = end
            with pytest.raises(NoSuchObject, match="may have ended"):
                await api.call(api.agent.AttachProcess, request)
            assert served.host.asked == [("attach", call.id, pid)]
            with pytest.raises(NoSuchObject, match="may have ended"):
                await api.call(api.agent.AttachProcess, request)
            assert len(served.host.asked) == 1


async def test_attach_takes_no_process_out_of_another_session(served: Served) -> None:
    session, token = served.host.add_session("acme", uid=os.getuid())
    fellow, _ = served.host.add_session("acme", uid=os.getuid())
    call = served.host.add_call(session)
    async with connect(served.acme, token) as api:
        with a_process() as pid:
            request = pb.AttachProcessRequest(call_id=call.id, pid=pid)
            served.host.processes[pid] = Whose(session_id=fellow.id)
            with pytest.raises(NotPermitted, match="another session"):
                await api.call(api.agent.AttachProcess, request)
            assert served.host.asked == []
            served.host.processes[pid] = Whose(session_id=session.id)
            await api.call(api.agent.AttachProcess, request)
            assert served.host.asked == [("attach", call.id, pid)]


LONG = "x" * 10_000
BAD_REQUESTS: list[tuple[str, Any, str]] = [
    ("OpenSession", pb.OpenSessionRequest(name=LONG), "name"),
    ("OpenSession", pb.OpenSessionRequest(name="a\x1b[2J"), "name"),
    ("OpenSession", pb.OpenSessionRequest(tenant=LONG, uid=1), "tenant"),
    ("OpenSession", pb.OpenSessionRequest(labels={"k": LONG}), "labels.k"),
    ("OpenSession", pb.OpenSessionRequest(labels={LONG: "v"}), "labels (a key)"),
    ("OpenSession", pb.OpenSessionRequest(labels={"": "v"}), "labels"),
    ("OpenSession", pb.OpenSessionRequest(labels={str(i): "v" for i in range(17)}), "labels"),
    ("OpenSession", pb.OpenSessionRequest(uid=0xFFFF_FFFF), "uid"),
    ("CloseSession", pb.CloseSessionRequest(), "session_id"),
    ("CloseSession", pb.CloseSessionRequest(session_id="../../etc"), "session_id"),
    ("CloseSession", pb.CloseSessionRequest(session_id=str(new_call_id())), "session_id"),
    ("BeginCall", pb.BeginCallRequest(session_id=LONG, argv=["true"]), "session_id"),
    ("BeginCall", pb.BeginCallRequest(session_id="SESSION"), "argv"),
    ("BeginCall", pb.BeginCallRequest(session_id="SESSION", argv=["a"] * 5000), "argv"),
    ("BeginCall", pb.BeginCallRequest(session_id="SESSION", argv=["a" * 200_000]), "argv"),
    ("BeginCall", pb.BeginCallRequest(session_id="SESSION", argv=["a"], parent_id=LONG), "parent_id"),
    (
        "BeginCall",
        pb.BeginCallRequest(session_id="SESSION", argv=["a"], intent=pb.Intent(memory_peak_bytes=1)),
        "intent.memory_peak_bytes",
    ),
    (
        "BeginCall",
        pb.BeginCallRequest(session_id="SESSION", argv=["a"], intent=pb.Intent(cpu_cores=float("nan"))),
        "intent.cpu_cores",
    ),
    (
        "BeginCall",
        pb.BeginCallRequest(session_id="SESSION", argv=["a"], intent=pb.Intent(egress=[pb.EgressRule()] * 65)),
        "intent.egress",
    ),
    ("AttachProcess", pb.AttachProcessRequest(call_id="CALL", pid=0), "pid"),
    ("AttachProcess", pb.AttachProcessRequest(call_id="CALL", pid=1), "pid"),
    ("AttachProcess", pb.AttachProcessRequest(call_id="CALL", pid=4_294_967_295), "pid"),
    ("UpdateIntent", pb.UpdateIntentRequest(call_id="CALL", intent=pb.Intent(priority=101)), "intent.priority"),
    ("EndCall", pb.EndCallRequest(call_id=LONG), "call_id"),
    ("EndCall", pb.EndCallRequest(call_id="CALL", wait_status=0x13_7F), "wait_status"),
    ("EndCall", pb.EndCallRequest(call_id="CALL", wait_status=0x1_0000), "wait_status"),
    ("GetOutcome", pb.GetOutcomeRequest(), "call_id"),
    ("GetBudget", pb.GetBudgetRequest(session_id="\N{SNOWMAN}" * 500), "session_id"),
]


@pytest.mark.parametrize(("method", "request_", "field"), BAD_REQUESTS, ids=lambda value: str(value)[:40])
async def test_bad_requests_name_field_and_remedy_and_change_nothing(
    served: Served, method: str, request_: Any, field: str
) -> None:
    session, _ = served.host.add_session("acme")
    call = served.host.add_call(session)
    request = type(request_)()
    request.CopyFrom(request_)
    if getattr(request, "session_id", "") == "SESSION":
        request.session_id = session.id
    if getattr(request, "call_id", "") == "CALL":
        request.call_id = call.id
    async with connect(served.acme) as api:
        with pytest.raises(BadRequest) as refused:
            await api.call(getattr(api.agent, method), request)
    assert refused.value.status is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.code == "invalid_request"
    assert refused.value.field == field
    assert refused.value.remedy
    assert str(refused.value).startswith(f"{field}: ")
    assert len(str(refused.value)) < 1000
    assert served.host.asked == []


async def test_newer_clients(served: Served) -> None:
    """Unknown fields are ignored; an unknown value of an enum is refused, because it changes what was asked for."""
    session, token = served.host.add_session("acme")
    request = pb.BeginCallRequest(argv=["true"])
    newer = pb.BeginCallRequest.FromString(request.SerializeToString() + b"\xf2\x3f\x03new" + b"\x12\x05\xf2\x3f\x02ab")
    async with connect(served.acme, token) as api:
        await api.call(api.agent.BeginCall, newer)
        assert served.host.asked == [("begin", session.id, Intent(), ["true"], None)]
        for field, intent in (
            ("intent.on_pressure", pb.Intent.FromString(b"\x68\x63")),
            ("intent.network", pb.Intent.FromString(b"\x50\x63")),
        ):
            with pytest.raises(BadRequest, match="may be newer") as refused:
                await api.call(api.agent.BeginCall, pb.BeginCallRequest(argv=["true"], intent=intent))
            assert (refused.value.field, refused.value.value) == (field, "99")
            assert "update the daemon" in refused.value.remedy
    assert len(served.host.asked) == 1


async def test_a_begin_that_waits_is_cancelled_with_its_client(served: Served) -> None:
    served.host.admit = asyncio.Event()
    _, token = served.host.add_session("acme")
    async with connect(served.acme, token) as api:
        waiting = asyncio.create_task(api.call(api.agent.BeginCall, pb.BeginCallRequest(argv=["true"]), timeout=None))
        await served.host.queued.acquire()
        waiting.cancel()
        await served.host.begin_cancelled.wait()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert served.host.calls == {}


async def test_a_call_that_began_as_its_client_went_is_ended(served: Served) -> None:
    """Its id reached nobody, so nobody else would end it."""
    served.host.admit = asyncio.Event()
    served.host.begins_nevertheless = True
    _, token = served.host.add_session("acme")
    async with connect(served.acme, token) as api:
        waiting = asyncio.create_task(api.call(api.agent.BeginCall, pb.BeginCallRequest(argv=["true"]), timeout=None))
        await served.host.queued.acquire()
        waiting.cancel()
        await served.host.begin_cancelled.wait()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await served.host.ended.wait()
    (call_id,) = served.host.calls
    assert served.host.asked[-1] == ("end", call_id, None)


async def test_a_begin_past_its_deadline_is_cancelled(served: Served) -> None:
    served.host.admit = asyncio.Event()
    _, token = served.host.add_session("acme")
    async with connect(served.acme, token) as api:
        with pytest.raises(ApiError) as late:
            await api.call(api.agent.BeginCall, pb.BeginCallRequest(argv=["true"]), timeout=0.2)
    assert late.value.status is grpc.StatusCode.DEADLINE_EXCEEDED
    await served.host.begin_cancelled.wait()


async def _first(api: Client, count: int) -> tuple[list[pb.WatchSessionResponse], Any]:
    stream = api.stream(api.agent.WatchSession, pb.WatchSessionRequest())
    return [await anext(stream) for _ in range(count)], stream


async def test_watch_session_shows_the_present_then_changes_and_ends_with_the_session(served: Served) -> None:
    session, token = served.host.add_session("acme")
    other, _ = served.host.add_session("acme")
    call = served.host.add_call(session)
    ended = served.host.add_call(session, state=CallState.ENDED)
    served.host.add_call(other)
    async with connect(served.acme, token) as api:
        present, stream = await _first(api, 3)
        assert present[0].session.id == session.id
        assert [answer.call.id for answer in present[1:]] == [call.id, ended.id]
        served.host.hub.publish(make_decision(make_call(other)))
        served.host.hub.publish(make_decision(call))
        served.host.hub.publish(replace(call, brakes=1))
        served.host.hub.publish(replace(session, closed_at=NOW + 9))
        rest = [answer async for answer in stream]
    assert [answer.WhichOneof("update") for answer in rest] == ["decision", "call", "session"]
    assert rest[0].decision.evidence["usage_bytes"] == 5.0
    assert rest[1].call.brakes == 1
    assert rest[2].session.closed_at == NOW + 9
    assert not served.host.hub.listened_to


async def test_watch_of_a_closed_session_ends_at_once(served: Served) -> None:
    session, _ = served.host.add_session("acme")
    served.host.sessions[session.id] = replace(session, closed_at=NOW)
    async with connect(served.acme) as api:
        stream = api.stream(api.agent.WatchSession, pb.WatchSessionRequest(session_id=session.id))
        assert [answer.WhichOneof("update") async for answer in stream] == ["session"]
    assert not served.host.hub.listened_to


async def test_streams_of_one_session_are_limited(served: Served) -> None:
    _, token = served.host.add_session("acme")
    _, other = served.host.add_session("acme")
    async with connect(served.acme, token) as api, connect(served.acme, other) as fellow:
        streams = [(await _first(api, 1))[1] for _ in range(16)]
        with pytest.raises(Rejected, match="16 streams") as refused:
            await _first(api, 1)
        assert refused.value.code == "too_many_streams"
        await _first(fellow, 1)
        for stream in streams:
            await stream.aclose()
