"""Attached sessions over a restart of the daemon."""

from __future__ import annotations

import os
import signal

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.attach_tools import an_agent, group_of, live_calls, two_in
from tests.host.daemon_tools import soon
from tests.support.daemons import DaemonFactory

pytestmark = pytest.mark.host


async def test_a_restarted_daemon_goes_on(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(tenants={"acme": {}})
    async with an_agent(daemon) as agent:
        session = await agent.attach()
        shell = int(await agent.tell(["&", "bash", "-c", "sleep 60; exit 9"]))
        [call] = await live_calls(agent, 1)
        await daemon.restart(kill=True)
        [again] = await live_calls(agent, 1)
        assert again.id == call.id
        assert again.recognition.rule == "generic/shell"
        [same] = [s for s in (await daemon.snapshot()).sessions if s.id == session.id]
        assert same.rules == "generic"
        sleeper = [pid for pid in await soon("both", lambda: two_in(daemon, call)) if pid != shell]
        os.kill(sleeper[0], signal.SIGKILL)
        assert await agent.tell(["wait"]) == "[9]"
        assert await agent.tell(["bash", "-c", "sleep 0.1; exit 6"]) == "6"
        first, second = await agent.ended(2)
        assert first.outcome.wait_status == 9 << 8
        assert second.outcome.wait_status == 6 << 8
        history = await daemon.client.call(
            daemon.client.operator.History, pb.HistoryRequest(session_id=session.id, limit=10)
        )
        assert [c.recognition.rule for c in history.calls] == ["generic/shell"] * 2


async def test_what_was_frozen_waits_again_under_the_next_daemon(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(tenants={"acme": {"max_calls": 1}})
    async with an_agent(daemon) as agent:
        await agent.attach()
        first = int(await agent.tell(["&", "bash", "-c", "exec sleep 60"]))
        await live_calls(agent, 1)
        second = int(await agent.tell(["&", "bash", "-c", "sleep 1; exit 7"]))
        await live_calls(agent, 2)
        await soon("it is frozen", lambda: group_of(second).endswith("/wait"))
        await daemon.restart(kill=True)
        _, queued = await live_calls(agent, 2)
        assert queued.state == pb.CALL_STATE_QUEUED
        await soon("it is frozen again", lambda: group_of(second).endswith("/wait"))
        os.kill(first, signal.SIGKILL)
        assert await agent.tell(["wait"]) == "[-9, 7]"
        _, ended = await agent.ended(2)
        assert ended.outcome.wait_status == 7 << 8
