"""What a call is said to have used against what it is known to have used, and many calls at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import (
    MIB,
    end,
    go,
    leaves,
    line,
    load_program,
    one_daemon,
    registered,
    soon,
    until_gone,
)
from tests.support.daemons import DaemonUnderTest

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]
PIPE = asyncio.subprocess.PIPE
PAGE = 4096
MANY = 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon() -> AsyncIterator[DaemonUnderTest]:
    async with one_daemon() as started:
        yield started


async def test_use_is_what_was_used(daemon: DaemonUnderTest) -> None:
    """Two calls at once, each with children, of which some live for microseconds; each gets its own and no more."""
    session = await daemon.open_session("acme")
    big = (f"touch:{48 * MIB}", f"write:{40 * MIB}", f"read:{20 * MIB}", "udp:200:1000", "spawn:150")
    also = ("child", f"touch:{16 * MIB}", f"write:{10 * MIB}", "udp:50:1000", "spawn:50")
    small = (f"write:{MIB}", f"read:{2 * MIB}", "udp:20:500", f"touch:{8 * MIB}")
    results = await asyncio.gather(
        daemon.call(session, load_program(), *big, *also, options=("--tool", "big")),
        daemon.call(session, load_program(), *small, options=("--tool", "small")),
        daemon.call(session, load_program(), "cpu:300", "child", "cpu:300", options=("--tool", "burn")),
    )
    assert [status for status, _, _ in results] == [0, 0, 0]
    used = {c.intent.tool: c.outcome.usage for c in (await daemon.history(session, ended=3)).calls}
    assert used["burn"].cpu_usec == pytest.approx(600_000, rel=0.05)
    assert used["burn"].written_bytes < 1000  # a name or two

    many = used["big"]
    assert many.cpu_usec == pytest.approx(many.cpu_user_usec + many.cpu_system_usec, abs=20)
    assert many.written_bytes == pytest.approx(50 * MIB, rel=0.01)
    assert many.read_bytes == pytest.approx(20 * MIB, rel=0.01)
    assert many.net_tx_bytes == pytest.approx(250 * (1000 + 28), rel=0.01)  # with the headers of IP and UDP
    assert many.net_rx_bytes == pytest.approx(250 * (1000 + 28), rel=0.01)
    assert many.forks == 201
    assert many.execs == 1
    # beside the touched pages, each short child takes some tens, copied and its own
    assert 64 * MIB / PAGE <= many.faults <= 64 * MIB / PAGE + 201 * 64 + 500
    assert 64 * MIB <= many.memory_peak_bytes <= 70 * MIB

    few = used["small"]
    assert few.written_bytes == pytest.approx(MIB, rel=0.02)
    assert few.read_bytes == pytest.approx(2 * MIB, rel=0.02)
    assert few.net_tx_bytes == few.net_rx_bytes == 20 * (500 + 28)
    assert few.forks == 0
    assert 8 * MIB / PAGE <= few.faults <= 8 * MIB / PAGE + 500
    assert 8 * MIB <= few.memory_peak_bytes <= 10 * MIB


async def test_a_live_call_is_seen_to_use(daemon: DaemonUnderTest) -> None:
    """Samples come by themselves; they hold what living processes used so far."""
    session = await daemon.open_session("acme")
    process = await daemon.launch(
        session, load_program(), f"touch:{32 * MIB}", f"write:{8 * MIB}", "say:up", "wait", stdin=PIPE
    )
    assert await line(process) == "up"
    async for update in daemon.client.stream(daemon.client.operator.Watch, pb.WatchRequest(interval_seconds=0.2)):
        calls = [c for c in update.snapshot.calls if c.session_id == session.id]
        if calls and calls[0].usage.memory_now_bytes >= 32 * MIB and calls[0].usage.written_bytes >= 8 * MIB:
            break
    go(process)
    assert (await end(process))[0] == 0


async def test_two_hundred_at_once(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    before = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
    processes = []
    for _ in range(MANY):
        processes.append(
            await daemon.launch(session, load_program(), "say:up", "wait", f"write:{MIB}", "exit:5", stdin=PIPE)
        )
    for process in processes:
        assert await line(process) == "up"
    live = [c for c in (await daemon.snapshot()).calls if c.session_id == session.id]
    assert len({c.cgroup for c in live}) == MANY
    assert {c.state for c in live} == {pb.CALL_STATE_RUNNING}
    assert registered(daemon) == MANY
    for process in processes[1:]:
        go(process)
    processes[0].kill()
    ends = await asyncio.gather(*(end(process) for process in processes))
    assert [e for e in ends[1:] if e != (5, "", "")] == []
    history = await daemon.history(session, ended=MANY)
    reasons = [c.outcome.reason for c in history.calls]
    assert (len(reasons), reasons.count("failed"), reasons.count("cancelled")) == (MANY, MANY - 1, 1)
    wrong = [
        c.usage.written_bytes for c in history.calls if c.outcome.reason == "failed" and c.usage.written_bytes < MIB
    ]
    assert wrong == []
    await soon("all leaves are removed", lambda: not leaves(daemon))
    assert registered(daemon) == 0
    await soon("all descriptors are closed", lambda: len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())) <= before + 2)


async def test_leftovers_are_killed_where_so_configured() -> None:
    async with one_daemon(settings={"daemon": {"leftovers": "kill"}}) as strict:
        await _leave_one(strict)


async def _leave_one(strict: DaemonUnderTest) -> None:
    session = await strict.open_session("acme")
    process = await strict.launch(session, load_program(), f"leave:{MIB}")
    left = int((await line(process)).split()[1])
    assert (await end(process))[0] == 0
    await until_gone(left)
    [call] = (await strict.history(session, ended=1)).calls
    assert (call.outcome.reason, call.outcome.leftovers) == ("exited", 1)
    assert [d.action for d in call.outcome.decisions] == ["kill"]
    assert "outlived" in call.outcome.decisions[0].reason
    await soon("all leaves are removed", lambda: not leaves(strict))


async def test_a_stopped_launcher_does_not_stop_the_daemon(daemon: DaemonUnderTest) -> None:
    """One that reads nothing: what is done to its call must not wait for it."""
    session = await daemon.open_session("acme")
    process = await daemon.launch(session, load_program(), "say:up", "pause")
    assert await line(process) == "up"
    process.send_signal(signal.SIGSTOP)
    [call] = [c for c in (await daemon.snapshot()).calls if c.session_id == session.id]
    for _ in range(50):
        await daemon.client.call(daemon.client.operator.Freeze, pb.FreezeRequest(target=call.id))
        await daemon.client.call(daemon.client.operator.Thaw, pb.ThawRequest(target=call.id))
    await daemon.client.call(daemon.client.operator.Kill, pb.KillRequest(target=call.id))
    process.send_signal(signal.SIGCONT)
    status, _, err = await end(process)
    assert status == -signal.SIGKILL
    assert "ended by an operator" in err
