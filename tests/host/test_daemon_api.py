"""Calls of agents that speak gRPC, with processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agentd.api.client import ApiError, BadRequest, Client, NoSuchObject, NotPermitted, WrongMoment, connect
from agentd.demo.runner import credentials
from agentd.embedded import Table
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import (
    MIB,
    NOBODY,
    cpu_quota,
    end,
    events_of,
    go,
    hierarchies,
    leaves,
    line,
    load_program,
    one_daemon,
    registered,
    soon,
)
from tests.support.daemons import DaemonUnderTest, Session

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]
PIPE = asyncio.subprocess.PIPE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon() -> AsyncIterator[DaemonUnderTest]:
    tenants: dict[str, Table] = {"acme": {"memory_max": "512M", "pids_max": 200}, "other": {}}
    async with one_daemon(tenants=tenants) as started:
        yield started
        await soon("all leaves are removed", lambda: not leaves(started))
        assert registered(started) == 0


@contextlib.asynccontextmanager
async def agent_of(daemon: DaemonUnderTest, session: Session, tenant: str = "acme") -> AsyncIterator[Client]:
    """As an agent speaks: on its tenant's socket, with its session's token."""
    async with connect(str(daemon.runtime_dir / "tenants" / f"{tenant}.sock"), session.token) as client:
        yield client


async def tool(*steps: str, uid: int | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        load_program(), *steps, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd="/", **credentials(uid)
    )


async def begin(client: Client, intent: pb.Intent | None = None) -> pb.Call:
    request = pb.BeginCallRequest(argv=["tool", "--flag"], intent=intent)
    return (await client.call(client.agent.BeginCall, request)).call


async def attach(client: Client, call: pb.Call, pid: int) -> None:
    await client.call(client.agent.AttachProcess, pb.AttachProcessRequest(call_id=call.id, pid=pid))


async def test_begin_attach_end(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme", uid=NOBODY)
    async with agent_of(daemon, session) as client, events_of(daemon, session) as events:
        call = await begin(client, pb.Intent(cpu_cores=0.5, memory_peak_bytes=64 * MIB, tool="build"))
        assert call.command == "tool --flag"
        assert call.grant.brake_bytes == 64 * MIB
        quota, period = cpu_quota(daemon, call)
        assert quota / period == pytest.approx(0.5)
        process = await tool("say:ready", "wait", f"write:{8 * MIB}", "cpu:100", "cgroup", uid=NOBODY)
        assert await line(process) == "ready"
        # the tool burns until its own clock says 100 ms, and what it had used before belongs to no call
        before = time.clock_gettime((~process.pid << 3) | 2)  # CPUCLOCK_SCHED of a process: linux/posix-timers.h
        await attach(client, call, process.pid)
        assert hierarchies(process.pid)[""] == f"/{call.cgroup}"
        go(process)
        status, out, _ = await end(process)
        assert f"0::/{call.cgroup}" in out
        request = pb.EndCallRequest(call_id=call.id, wait_status=status)
        outcome = (await client.call(client.agent.EndCall, request)).outcome
        again = (await client.call(client.agent.EndCall, request)).outcome
        got = (await client.call(client.agent.GetOutcome, pb.GetOutcomeRequest(call_id=call.id))).outcome
        assert outcome == again == got
        assert (outcome.reason, outcome.wait_status) == ("exited", 0)
        assert outcome.usage.written_bytes == pytest.approx(8 * MIB, rel=0.02)
        assert outcome.usage.cpu_usec == pytest.approx(100_000 - before * 1e6, rel=0.15)
        seen = await events.outcome(call.id)
        assert seen == outcome
        await client.call(client.agent.CloseSession, pb.CloseSessionRequest())
        await events.until("the session's close", lambda u: u.session.HasField("closed_at"))


async def test_a_call_whose_process_is_gone_ends_by_itself(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme", uid=NOBODY)
    async with agent_of(daemon, session) as client, events_of(daemon, session) as events:
        call = await begin(client)
        process = await tool("wait", uid=NOBODY)
        await attach(client, call, process.pid)
        go(process)
        await end(process)
        outcome = await events.outcome(call.id)
    assert outcome.reason == "unknown"
    assert not outcome.HasField("wait_status")


async def test_only_processes_of_its_own_user_can_be_attached(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme", uid=NOBODY)
    mine = await tool("wait")
    async with agent_of(daemon, session) as client:
        call = await begin(client)
        before = hierarchies(mine.pid)
        for pid, kind in (
            (mine.pid, NotPermitted),
            (daemon.pid, NotPermitted),
            (1, BadRequest),
            (4_194_304, ApiError),
        ):
            with pytest.raises(kind) as caught:
                await attach(client, call, pid)
            assert caught.value.field == "pid", pid
        assert hierarchies(mine.pid) == before
        outcome = await client.call(client.agent.EndCall, pb.EndCallRequest(call_id=call.id))
        assert outcome.outcome.reason == "unknown"
    go(mine)
    await end(mine)


async def test_a_session_sees_no_other(daemon: DaemonUnderTest) -> None:
    one, two = await daemon.open_session("acme", uid=NOBODY), await daemon.open_session("other", uid=NOBODY)
    async with agent_of(daemon, one) as mine, agent_of(daemon, two, "other") as theirs:
        call = await begin(theirs)
        process = await tool("wait", uid=NOBODY)
        agent = mine.agent
        for attempt in (
            mine.call(agent.EndCall, pb.EndCallRequest(call_id=call.id)),
            mine.call(agent.GetOutcome, pb.GetOutcomeRequest(call_id=call.id)),
            mine.call(agent.UpdateIntent, pb.UpdateIntentRequest(call_id=call.id)),
            mine.call(agent.AttachProcess, pb.AttachProcessRequest(call_id=call.id, pid=process.pid)),
            mine.call(agent.CloseSession, pb.CloseSessionRequest(session_id=two.id)),
        ):
            with pytest.raises((NoSuchObject, NotPermitted)):
                await attempt
        go(process)
        await end(process)
        with pytest.raises(ApiError):
            await mine.call(mine.operator.Snapshot, pb.SnapshotRequest())
        await theirs.call(theirs.agent.CloseSession, pb.CloseSessionRequest(kill=True))


async def test_a_process_under_way_is_killed_with_its_session(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme", uid=NOBODY)
    async with agent_of(daemon, session) as client:
        call = await begin(client)
        process = await tool("pause", uid=NOBODY)
        await attach(client, call, process.pid)
        with pytest.raises(WrongMoment) as caught:
            await client.call(client.agent.CloseSession, pb.CloseSessionRequest())
        assert "kill" in caught.value.remedy
        await client.call(client.agent.CloseSession, pb.CloseSessionRequest(kill=True))
    assert (await end(process))[0] == -9


async def test_what_is_out_of_range_leaves_nothing(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme", uid=NOBODY)
    async with agent_of(daemon, session) as client:
        for intent, field in (
            (pb.Intent(pids=0), "intent.pids"),
            (pb.Intent(memory_peak_bytes=1 << 60), "intent.memory_peak"),
            (pb.Intent(cpu_cores=float("nan")), "intent.cpu"),
            (pb.Intent(memory_peak_bytes=1024 * MIB), "intent.memory_peak"),  # the tenant has 512
            (pb.Intent(tool="x" * 10_000), "intent.tool"),
            (
                pb.Intent(egress=[pb.EgressRule(network="nowhere")], network=pb.NETWORK_MODE_EGRESS_LIST),
                "intent.egress",
            ),
        ):
            with pytest.raises(ApiError) as caught:
                await begin(client, intent)
            assert caught.value.field.startswith(field), (intent, caught.value.field)
            assert caught.value.remedy
        assert not [c for c in (await daemon.snapshot()).calls if c.session_id == session.id]
        call = await begin(client)
        limits = pb.SetLimitsRequest(target=call.id, limits=pb.Limits(memory_max_bytes=1024 * MIB))
        with pytest.raises(BadRequest) as caught:
            await daemon.client.call(daemon.client.operator.SetLimits, limits)
        assert caught.value.field == "limits.memory_max_bytes"
        await client.call(client.agent.EndCall, pb.EndCallRequest(call_id=call.id, wait_status=0))


async def test_what_is_left_of_the_budget(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme", uid=NOBODY)
    async with agent_of(daemon, session) as client:
        call = await begin(client)
        process = await tool("wait", f"touch:{32 * MIB}", "say:up", "wait", uid=NOBODY)
        await attach(client, call, process.pid)
        go(process)
        assert await line(process) == "up"
        budgets = (await client.call(client.agent.GetBudget, pb.GetBudgetRequest())).budgets
        memory = next(b for b in budgets if b.resource == "memory_bytes")
        assert memory.limit == 512 * MIB
        assert 32 * MIB <= memory.used < 64 * MIB
        assert memory.remaining == memory.limit - memory.used
        go(process)
        await end(process)
        await client.call(client.agent.EndCall, pb.EndCallRequest(call_id=call.id, wait_status=0))
