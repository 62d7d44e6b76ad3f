"""A call that waits is told when it will likely begin."""

from __future__ import annotations

import asyncio
import re

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import end, events_of, go, line, load_program
from tests.support.daemons import DaemonFactory

pytestmark = pytest.mark.host


async def test_a_queued_call_is_told_when(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(tenants={"single": {"max_calls": 1}})
    session = await daemon.open_session("single")
    async with events_of(daemon, session) as events:
        first = await daemon.launch(
            session, load_program(), "say:first", "wait", options=("--duration", "100"), stdin=asyncio.subprocess.PIPE
        )
        assert await line(first) == "first"
        second = await daemon.launch(session, load_program(), "say:second")
        await events.state(pb.CALL_STATE_QUEUED)
        go(first)
        assert (await end(first))[0] == 0
        status, out, err = await end(second)
    assert (status, out) == (0, "second\n")
    told = re.search(r"queued \(about (\d+) s\)", err)
    assert told is not None, err
    assert int(told[1]) <= 100
