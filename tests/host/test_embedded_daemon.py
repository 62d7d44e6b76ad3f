"""Real daemons for tests, benchmarks and the demo: they start, survive, and go without a trace."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from agentd.embedded import StartFailed, cgroup_mounts
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.support.daemons import DaemonFactory

pytestmark = pytest.mark.host

# Says that it runs, waits until its stdin ends, and ends with a status that must not be lost.
UNTIL_TOLD = ("/bin/sh", "-c", "echo up; cat; exit 3")


async def test_call_survives_a_crash_of_the_daemon_and_purge_removes_all(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(tenants={"acme": {"memory_max": "512M"}})
    session = await daemon.open_session("acme")
    process = await daemon.launch(session, *UNTIL_TOLD, options=("--memory", "16M:64M"), stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    (call,) = (await daemon.snapshot()).calls
    assert call.state == pb.CALL_STATE_RUNNING
    assert daemon.groups(call), "a running call has a leaf"

    await daemon.restart(kill=True)
    (after,) = (await daemon.snapshot()).calls
    assert (after.id, after.state) == (call.id, pb.CALL_STATE_RUNNING)
    process.stdin.close()
    assert await process.wait() == 3
    (ended,) = (await daemon.history(session, ended=1)).calls
    assert (ended.id, ended.outcome.reason, ended.outcome.wait_status) == (call.id, "failed", 3 << 8)

    await daemon.close()
    assert daemon.leftovers() == []


async def test_purge_ends_what_runs(daemons: DaemonFactory) -> None:
    daemon = await daemons.start()
    session = await daemon.open_session("acme")
    process = await daemon.launch(session, *UNTIL_TOLD, stdin=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    assert any((mount / daemon.name).is_dir() for mount in cgroup_mounts())
    await daemon.purge()
    assert await process.wait() != 0
    assert daemon.leftovers() == []
    assert not any((mount / daemon.name).exists() for mount in cgroup_mounts())


async def test_wrong_configuration_stops_the_start_in_words(daemons: DaemonFactory) -> None:
    daemon = daemons.make(settings={"call": {"hold_max": "soon"}})
    with pytest.raises(StartFailed, match=r"hold_max"):
        await daemon.start()


async def test_two_daemons_side_by_side(daemons: DaemonFactory) -> None:
    first, second = await daemons.start(), await daemons.start()
    for daemon in (first, second):
        session = await daemon.open_session("acme")
        assert await daemon.call(session, "/bin/echo", "hello") == (0, "hello\n", "")
    os.kill(first.pid, signal.SIGKILL)
    assert await first.stop() == -signal.SIGKILL
    session = await second.open_session("acme")
    assert (await second.call(session, "/bin/true"))[0] == 0
