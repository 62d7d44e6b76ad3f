"""``corral session attach --pid``: a running agent's tool calls, recognised and placed by a real daemon."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agentd.api.client import AlreadyThere, ApiError, BadRequest, NoSuchObject
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.attach_tools import SLEEPER, Agent, an_agent, closed, group_of, live_calls, two_in
from tests.host.daemon_tools import WITHIN, hierarchies, one_daemon, soon, until_gone
from tests.support.daemons import DaemonUnderTest

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def agent(daemon: DaemonUnderTest) -> AsyncIterator[Agent]:
    async with an_agent(daemon) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon() -> AsyncIterator[DaemonUnderTest]:
    async with one_daemon(tenants={"acme": {}, "narrow": {"max_calls": 1}}) as made:
        yield made


async def test_a_shell_command_is_a_call_in_a_leaf_of_its_own(agent: Agent) -> None:
    session = await agent.attach()
    assert session.rules == "generic"
    assert session.tenant_id in group_of(agent.pid)
    assert group_of(agent.pid).endswith("/agent")
    assert await agent.tell(["&", "bash", "-c", "sleep 60 & wait; exit 3"])
    # the shell and the process that it started are both in the leaf, in every hierarchy
    call = (await live_calls(agent, 1))[0]
    pids = await soon("both are in it", lambda: two_in(agent.daemon, call))
    assert all(hierarchies(pid)["memory" if "memory" in hierarchies(pid) else ""].endswith(call.cgroup) for pid in pids)
    assert call.intent.tool == "sleep"
    assert call.recognition.rule == "generic/shell"
    os.kill(max(pids), signal.SIGTERM)
    assert await agent.tell(["wait"]) == "[3]"
    [ended] = await agent.ended(1)
    assert (ended.outcome.wait_status, ended.outcome.reason) == (3 << 8, "failed")
    assert 0 < ended.recognition.seconds_before < 30
    assert ended.recognition.cpu_usec_before > 0


async def test_a_daemonised_child_keeps_its_call_alive(agent: Agent) -> None:
    await agent.attach()
    assert await agent.tell(["bash", "-c", "setsid sleep 60 >/dev/null 2>&1 & exit 4"]) == "4"
    [call] = await live_calls(agent, 1)
    assert call.command.startswith("bash -c setsid")
    left = await soon("the sleeper alone", lambda: (agent.daemon.groups(call)[0] / "cgroup.procs").read_text().split())
    assert len(left) == 1
    os.kill(int(left[0]), signal.SIGKILL)
    [ended] = await agent.ended(1)
    assert ended.outcome.wait_status == 4 << 8


async def test_commands_of_a_fed_shell_are_calls(agent: Agent) -> None:
    await agent.attach(rules="swe-agent")
    assert await agent.tell({"feed": "cd /; X=1"}) == "fed 0"
    assert await agent.tell({"feed": "sleep 0.2"}) == "fed 0"
    assert await agent.tell({"feed": "(sleep 0.2; sleep 0.1; exit 5)"}) == "fed 5"
    first, second = await agent.ended(2)
    assert (first.command, first.recognition.rule) == ("sleep 0.2", "swe-agent/fed-command")
    assert second.outcome.wait_status == 5 << 8
    assert await agent.live() == []


async def test_what_is_no_tool_stays_with_the_agent(agent: Agent) -> None:
    await agent.attach(rules="claude-code")
    pid = int(await agent.tell(["&", sys.executable, "-c", SLEEPER]))
    assert await agent.tell(["bash", "-c", "sleep 0.1"]) == "0"
    await agent.ended(1)
    assert group_of(pid) == group_of(agent.pid)


async def test_what_runs_already_is_attached_too(agent: Agent) -> None:
    tool = int(await agent.tell(["&", "bash", "-c", "sleep 60; exit 1"]))
    server = int(await agent.tell(["&", sys.executable, "-c", SLEEPER, "mcp-server"]))
    await agent.attach()
    [call] = await live_calls(agent, 1)
    assert group_of(tool).endswith(call.cgroup)
    assert group_of(server) == group_of(agent.pid)
    await agent.daemon.client.call(agent.daemon.client.operator.Kill, pb.KillRequest(target=call.id))
    [ended] = await agent.ended(1)
    assert ended.outcome.reason == "operator_killed"
    await until_gone(tool)


async def test_a_call_that_must_wait_is_frozen_until_its_turn(agent: Agent) -> None:
    await agent.attach(tenant="narrow")
    first = int(await agent.tell(["&", "bash", "-c", "sleep 60; exit 1"]))
    await live_calls(agent, 1)
    second = int(await agent.tell(["&", "bash", "-c", "sleep 1; exit 7"]))
    _, queued = await live_calls(agent, 2)
    assert queued.state == pb.CALL_STATE_QUEUED
    assert group_of(second).endswith("/wait")
    events = _v2(agent) / group_of(second).lstrip("/") / "cgroup.events"
    await soon("it is frozen", lambda: "frozen 1" in events.read_text())
    os.killpg(os.getpgid(first), 0)
    for pid in (two_in(agent.daemon, (await agent.live())[0]) or [first])[::-1]:
        os.kill(pid, signal.SIGKILL)
    assert json.loads(await agent.tell(["wait"]))[1] == 7
    _, ended = await agent.ended(2)
    assert ended.outcome.wait_status == 7 << 8
    assert any(d.action == "queue" for d in ended.outcome.decisions)


def _v2(agent: Agent) -> Path:
    unified = Path("/sys/fs/cgroup/unified")
    return unified if unified.is_dir() else Path("/sys/fs/cgroup")


async def test_short_calls_are_on_record_or_said_to_be_missing(agent: Agent) -> None:
    """Whether one is placed or has ended before is a matter of microseconds: each is recorded, once. Where the process
    connector tells of them, some end before it is known what they were: those are counted for every screen."""
    before = await _unseen(agent)
    await agent.attach()
    for _ in range(20):
        assert await agent.tell(["git", "--version"]) == "0"
    assert await agent.tell(["bash", "-c", "sleep 0.2"]) == "0"  # when it has ended, all before it have
    await soon_ended(agent, "sleep")
    calls = [c for c in await _ended(agent) if c.command == "git --version"]
    assert len(calls) + await _unseen(agent) - before == 20
    assert {c.outcome.reason for c in calls} == {"exited"}
    assert {c.intent.call_class for c in calls} == {"git"}
    missed = [c for c in calls if c.grant.notes]
    assert all("charged to the agent" in note for c in missed for note in c.grant.notes)


async def _ended(agent: Agent) -> list[pb.Call]:
    snapshot = await agent.daemon.snapshot(with_ended=True)
    return [c for c in snapshot.calls if c.session_id == agent.session.id and c.HasField("outcome")]


async def _unseen(agent: Agent) -> int:
    for problem in (await agent.daemon.snapshot()).host.missing:
        if found := re.search(r"(\d+) processes ended before it was known", problem):
            return int(found[1])
    return 0


async def soon_ended(agent: Agent, tool: str) -> None:
    async with asyncio.timeout(WITHIN):
        while not any(c.intent.tool == tool for c in await _ended(agent)):  # noqa: ASYNC110 - asked of another
            await asyncio.sleep(0.02)


async def test_the_session_closes_with_its_agent_and_detach_ends_the_recognition(agent: Agent) -> None:
    session = await agent.attach()
    client = agent.daemon.client
    assert await agent.tell(["&", "bash", "-c", "sleep 0.3; exit 2"])
    await live_calls(agent, 1)
    reply = await client.call(client.operator.Detach, pb.DetachRequest(target=session.id))
    assert list(reply.session_ids) == [session.id]
    assert await agent.tell(["bash", "-c", "sleep 0.05"]) == "0"  # no call any more
    [ended] = await agent.ended(1)
    assert ended.outcome.wait_status == 2 << 8
    await closed(agent, session)
    assert agent.process.returncode is None
    again = await agent.attach()  # it can be attached anew, though it is still where it was
    assert again.id != session.id
    assert group_of(agent.pid).endswith(f"{again.id}/agent")
    with pytest.raises(NoSuchObject):
        await client.call(client.operator.Detach, pb.DetachRequest(target=session.id))
    async with an_agent(agent.daemon) as other:
        closing = await other.attach()
        assert other.process.stdin is not None
        other.process.stdin.close()
        await other.process.wait()
        await closed(other, closing)


async def test_wrong_requests_change_nothing(agent: Agent) -> None:
    client = agent.daemon.client

    async def attach(request: pb.AttachRequest) -> None:
        await client.call(client.operator.Attach, request)

    with pytest.raises(BadRequest, match="the daemon itself was started by"):
        await attach(pb.AttachRequest(tenant="acme", pid=os.getpid()))
    with pytest.raises(BadRequest, match="no process that can be moved"):
        await attach(pb.AttachRequest(tenant="acme", pid=1))
    with pytest.raises(ApiError, match="no set of rules"):
        await attach(pb.AttachRequest(tenant="acme", pid=agent.pid, rules="../../etc/passwd"))
    with pytest.raises(BadRequest, match="a process or containers"):
        await attach(pb.AttachRequest(tenant="acme"))
    with pytest.raises(NoSuchObject, match="no tenant"):
        await attach(pb.AttachRequest(tenant="nobody", pid=agent.pid))
    assert not group_of(agent.pid).endswith("/agent")
    await agent.attach()
    with pytest.raises(AlreadyThere, match="is of session"):
        await attach(pb.AttachRequest(tenant="acme", pid=agent.pid))
