"""A daemon that is killed, or stopped, in the middle, and started again: calls go on and nothing of them is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.embedded import Table
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import (
    MIB,
    end,
    events_of,
    go,
    hierarchies,
    leaves,
    line,
    live_call,
    load_program,
    operate,
    registered,
    soon,
    until_gone,
)
from tests.support.daemons import LAUNCHER, REPOSITORY, DaemonFactory, DaemonUnderTest

pytestmark = pytest.mark.host
PIPE = asyncio.subprocess.PIPE
QUICK = {"daemon": {"restart_grace": "1s"}}

both_ways = pytest.mark.parametrize("kill", [True, False], ids=["SIGKILL", "SIGTERM"])


async def _down(daemon: DaemonUnderTest, kill: bool) -> None:
    await (daemon.kill() if kill else daemon.stop())


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _sockets(pid: int) -> list[str]:
    targets = [str(descriptor.readlink()) for descriptor in Path(f"/proc/{pid}/fd").iterdir()]
    return [target for target in targets if target.startswith("socket:")]


def _cpu_usec(*steps: str) -> int:
    """Of the same steps outside a call, children included: what a start of a process costs differs by machine."""
    with subprocess.Popen([load_program(), *steps], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(b"go\n" * len(steps))
        process.stdin.close()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return int((used.ru_utime + used.ru_stime) * 1e6)


async def _nothing_left(daemon: DaemonUnderTest) -> None:
    await soon("all leaves are removed", lambda: not leaves(daemon))
    assert registered(daemon) == 0


@both_ways
async def test_calls_go_on_and_are_counted_on(daemons: DaemonFactory, kill: bool) -> None:
    """One is quiet, one works while no daemon runs, one stays frozen by its operator; and a token stays good."""
    daemon = await daemons.start(settings=QUICK)
    session = await daemon.open_session("acme")
    steps = (f"write:{8 * MIB}", f"read:{4 * MIB}", "cpu:100", "spawn:20", "say:one", "wait")
    after = ("cpu:200", f"write:{8 * MIB}", f"read:{4 * MIB}", "spawn:20", "say:two", "wait", "exit:7")
    working = await daemon.launch(session, load_program(), *steps, *after, stdin=PIPE)
    assert await line(working) == "one"
    worked = await live_call(daemon, session)
    other = await daemon.open_session("acme")
    frozen = await daemon.launch(other, load_program(), "say:here", "wait", "say:thawed", stdin=PIPE)
    assert await line(frozen) == "here"
    held = await live_call(daemon, other)
    await operate(daemon, "freeze", held.id)

    await _down(daemon, kill)
    go(working)
    go(frozen)
    assert await line(working) == "two"
    await daemon.start()

    assert (await live_call(daemon, other)).state == pb.CALL_STATE_FROZEN
    assert await operate(daemon, "thaw", held.id) == [held.id]
    assert await line(frozen) == "thawed"
    assert (await end(frozen))[0] == 0
    go(working)
    assert await end(working) == (7, "", "")
    assert (await daemon.call(session, load_program(), "say:again"))[:2] == (0, "again\n")  # the token is still good

    calls = {c.id: c for c in (await daemon.history(session, ended=2)).calls}
    assert len(calls) == 2
    counted = calls[worked.id]
    assert (counted.outcome.reason, counted.outcome.wait_status) == ("failed", 7 << 8)
    assert counted.usage.written_bytes == pytest.approx(16 * MIB, rel=0.02)
    assert counted.usage.read_bytes == pytest.approx(8 * MIB, rel=0.02)
    assert counted.usage.cpu_usec > 190_000
    assert counted.usage.cpu_usec == pytest.approx(_cpu_usec(*steps, *after), rel=0.25)
    assert counted.usage.forks == 40
    [thawed] = (await daemon.history(other, ended=1)).calls
    assert thawed.outcome.reason == "exited"
    assert [d.action for d in thawed.outcome.decisions] == ["freeze", "thaw"]
    await _nothing_left(daemon)


@both_ways
async def test_a_brake_without_a_daemon_holds_until_there_is_one(daemons: DaemonFactory, kill: bool) -> None:
    daemon = await daemons.start(settings=QUICK)
    session = await daemon.open_session("acme")
    process = await daemon.launch(
        session,
        load_program(),
        "pid",
        "wait",
        f"touch:{100 * MIB}",
        "say:done",
        "wait",
        options=("--memory", ":64M"),
        stdin=PIPE,
    )
    pid = int((await line(process)).split()[1])
    await _down(daemon, kill)
    go(process)
    await soon("the brake stopped it", lambda: _state(pid) == "T")
    await daemon.start()
    assert await line(process) == "done"
    await soon("the launcher is back", lambda: _sockets(process.pid))
    await daemon.snapshot()  # answered after what the launcher sent before
    go(process)
    status, _, err = await end(process)
    assert status == 0
    assert "was stopped when it used 64 MiB" in err
    [call] = (await daemon.history(session, ended=1)).calls
    assert call.outcome.reason == "braked"
    assert [d.action for d in call.outcome.decisions] == ["brake", "raise"]
    assert call.outcome.decisions[0].evidence["overshoot_bytes"] <= 2 * MIB


@both_ways
async def test_a_held_call_stays_held_until_there_is_room(daemons: DaemonFactory, kill: bool) -> None:
    # 12 MiB above what both use when the second is braked: too little for a raise, enough to keep the OOM killer away
    daemon = await daemons.start(tenants={"small": {"memory_max": "200M"}}, settings=QUICK)
    session = await daemon.open_session("small")
    async with events_of(daemon, session) as events:
        first = await daemon.launch(session, load_program(), f"touch:{140 * MIB}", "say:full", "wait", stdin=PIPE)
        assert await line(first) == "full"
        options = ("--memory", ":48M")
        second = await daemon.launch(session, load_program(), f"touch:{80 * MIB}", "say:done", options=options)
        held = await events.state(pb.CALL_STATE_BRAKED)
    await daemon.restart(kill=kill)
    states = {c.id: c.state for c in (await daemon.snapshot()).calls}
    assert states[held.id] == pb.CALL_STATE_BRAKED
    await soon("both launchers are back", lambda: _sockets(first.pid) and _sockets(second.pid))
    go(first)
    assert (await end(first))[0] == 0
    status, out, err = await end(second)
    assert (status, out) == (0, "done\n")
    assert "There was room, so its threshold was raised" in err
    calls = {c.id: c for c in (await daemon.history(session, ended=2)).calls}
    # the first gives its memory back bit by bit: what is free when the policy looks may be less than one full step
    actions = [d.action for d in calls[held.id].outcome.decisions]
    assert actions == ["brake", "raise"] * (len(actions) // 2)
    assert calls[held.id].outcome.held_seconds > 0


async def test_nested_calls_stay_nested(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(settings=QUICK)
    session = await daemon.open_session("acme")
    inner = f"{LAUNCHER} -- {load_program()} say:nested pause & {load_program()} say:outer pause"
    process = await daemon.launch(session, "/bin/sh", "-c", inner)
    assert {await line(process), await line(process)} == {"nested", "outer"}
    before = {c.id: c.parent_id for c in (await daemon.snapshot()).calls}
    [outer] = [call_id for call_id, parent in before.items() if not parent]
    assert sorted(before.values()) == ["", outer]
    await daemon.restart(kill=True)
    assert {c.id: c.parent_id for c in (await daemon.snapshot()).calls} == before
    assert await operate(daemon, "kill", outer) == [outer]
    assert (await end(process))[0] == -signal.SIGKILL
    reasons = [c.outcome.reason for c in (await daemon.history(session, ended=2)).calls]
    assert reasons == ["operator_killed"] * 2
    await _nothing_left(daemon)


@both_ways
async def test_ends_and_deadlines_while_no_daemon_runs(daemons: DaemonFactory, kill: bool) -> None:
    daemon = await daemons.start(settings=QUICK)
    session = await daemon.open_session("acme")
    ended = await daemon.launch(session, load_program(), f"write:{3 * MIB}", "say:ended", "wait", stdin=PIPE)
    assert await line(ended) == "ended"
    over = await live_call(daemon, session)
    late = await daemon.launch(session, load_program(), "say:late", "pause", options=("--deadline", "1500ms"))
    assert await line(late) == "late"
    orphan = await daemon.launch(session, load_program(), "pid", "pause")
    lonely = int((await line(orphan)).split()[1])
    leaver = await daemon.launch(session, load_program(), f"leave:{MIB}")
    left = int((await line(leaver)).split()[1])
    assert (await end(leaver))[0] == 0
    await daemon.history(session, ended=1)

    await _down(daemon, kill)
    go(ended)
    assert (await end(ended))[0] == 0
    orphan.kill()  # the launcher: nobody waits for the tool any more
    await daemon.start()

    assert (await end(late))[0] == -signal.SIGKILL
    await until_gone(lonely)
    await end(orphan)
    calls = {c.command.split()[1]: c for c in (await daemon.history(session, ended=4)).calls}
    assert len(calls) == 4
    assert calls["say:late"].outcome.reason == "timeout"
    assert calls["pid"].outcome.reason == "cancelled"
    settled = calls[f"write:{3 * MIB}"]
    assert settled.id == over.id
    # its launcher came back with the status if the daemon was quick enough, else nobody can know it
    assert settled.outcome.reason in ("exited", "unknown")
    assert settled.usage.written_bytes == pytest.approx(3 * MIB, rel=0.02)
    assert hierarchies(left)[""].endswith(f"/{session.id}/left")
    await _nothing_left(daemon)
    close = pb.CloseSessionRequest(session_id=session.id, kill=True)
    await daemon.client.call(daemon.client.agent.CloseSession, close)
    await until_gone(left)


async def test_calls_of_the_api_survive(daemons: DaemonFactory) -> None:
    """One that has no process yet, and one that has."""
    daemon = await daemons.start(settings=QUICK)
    session = await daemon.open_session("acme")
    agent = daemon.client.agent
    ids = []
    for _ in range(2):
        begin = pb.BeginCallRequest(session_id=session.id, argv=["tool"], intent=pb.Intent(pids=16))
        ids.append((await daemon.client.call(agent.BeginCall, begin)).call.id)
    process = await asyncio.create_subprocess_exec(
        load_program(), "cgroup", "say:---", "wait", "cgroup", stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    while await line(process) != "---":
        pass
    await daemon.client.call(agent.AttachProcess, pb.AttachProcessRequest(call_id=ids[0], pid=process.pid))
    await daemon.restart(kill=True)
    another = await asyncio.create_subprocess_exec(load_program(), "wait", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    await daemon.client.call(agent.AttachProcess, pb.AttachProcessRequest(call_id=ids[1], pid=another.pid))
    assert hierarchies(process.pid)[""].endswith(ids[0])
    assert hierarchies(another.pid)[""].endswith(ids[1])
    for call_id, attached in zip(ids, (process, another), strict=True):
        go(attached)
        assert (await end(attached))[0] == 0
        done = await daemon.client.call(agent.EndCall, pb.EndCallRequest(call_id=call_id, wait_status=0))
        assert done.outcome.reason == "exited"
    await _nothing_left(daemon)


@both_ways
async def test_a_queued_call_gets_its_turn(daemons: DaemonFactory, kill: bool) -> None:
    daemon = await daemons.start(tenants={"single": {"max_calls": 1}}, settings=QUICK)
    session = await daemon.open_session("single")
    async with events_of(daemon, session) as events:
        first = await daemon.launch(session, load_program(), "say:first", "wait", stdin=PIPE)
        assert await line(first) == "first"
        second = await daemon.launch(session, load_program(), "say:second")
        await events.state(pb.CALL_STATE_QUEUED)
    await daemon.restart(kill=kill)
    async with events_of(daemon, session) as events:
        await events.state(pb.CALL_STATE_QUEUED)  # it came back, and waits behind the one that was adopted
        go(first)
        assert (await end(first))[0] == 0
        assert (await end(second))[:2] == (0, "second\n")
    assert [c.outcome.reason for c in (await daemon.history(session, ended=2)).calls] == ["exited"] * 2


async def test_killed_again_and_again_under_load(daemons: DaemonFactory) -> None:
    """Calls begin and end all the time while the daemon is killed thrice: each that began is in the ledger, once."""
    daemon = await daemons.start(settings=QUICK)
    session = await daemon.open_session("acme")
    begun: set[str] = set()
    statuses: list[tuple[int, str]] = []
    stopping = asyncio.Event()

    async def work(number: int) -> None:
        count = 0
        while not stopping.is_set():
            count += 1
            process = await daemon.launch(session, "/bin/sh", "-c", 'echo "$CORRAL_CALL"; exit 0', f"{number}.{count}")
            status, out, err = await end(process)
            statuses.append((status, err))
            if status == 0:
                begun.add(out.strip())

    async def more(count: int) -> None:
        target = len(begun) + count
        await soon("more calls went through", lambda: len(begun) >= target)

    workers = [asyncio.create_task(work(number)) for number in range(3)]
    for _ in range(3):
        await more(5)
        await daemon.restart(kill=True)
    await more(1)
    stopping.set()
    await asyncio.gather(*workers)
    refused = {err for status, err in statuses if status != 0}
    assert all("no daemon" in err or "daemon" in err for err in refused), refused  # fails closed, in words
    await _nothing_left(daemon)
    history = await daemon.history(session, ended=len(begun))
    recorded = [call.id for call in history.calls]
    assert len(recorded) == len(set(recorded))
    assert begun <= set(recorded)
    assert all(call.HasField("outcome") for call in history.calls)
    assert {call.outcome.reason for call in history.calls if call.id in begun} <= {"exited", "unknown"}


async def test_the_root_of_a_running_daemon_is_not_taken(daemons: DaemonFactory) -> None:
    """A second daemon with the same configuration says so and leaves the first one's calls alone."""
    daemon = await daemons.start()
    session = await daemon.open_session("acme")
    process = await daemon.launch(session, load_program(), "say:here", "wait", stdin=PIPE)
    assert await line(process) == "here"
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentd.main", "--config", str(daemon.config_file)),
        stdout=PIPE,
        stderr=PIPE,
        cwd=daemon.directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    status, _, err = await end(second)
    assert status == 1
    assert "another" in err
    go(process)
    assert await end(process) == (0, "", "")


async def test_what_the_ladder_took_is_given_back_by_the_next_daemon(daemons: DaemonFactory) -> None:
    """One call gave its slack to another, a third waits; the daemon dies, and the next one knows all of it."""
    settings: dict[str, Table] = {
        **QUICK,
        "host": {"memory": "300M", "memory_reserve": 0.1, "sample_interval": "100ms"},
    }
    daemon = await daemons.start(settings=settings)
    sessions = [await daemon.open_session("acme") for _ in range(3)]
    waits = (load_program(), f"touch:{20 * MIB}", "say:up", "wait")
    async with events_of(daemon, sessions[0]) as events:
        roomy = await daemon.launch(sessions[0], *waits, options=("--memory", "30M:200M"), stdin=PIPE)
        assert await line(roomy) == "up"
        newcomer = await daemon.launch(sessions[1], *waits, options=("--memory", ":150M"), stdin=PIPE)
        assert await line(newcomer) == "up"
        taken = await events.decision("limit")
    async with events_of(daemon, sessions[2]) as events:
        third = await daemon.launch(sessions[2], *waits, options=("--memory", ":200M"), stdin=PIPE)
        await events.state(pb.CALL_STATE_QUEUED)
    await daemon.restart(kill=True)
    call = await live_call(daemon, sessions[0])
    assert call.id == taken.call_id
    assert call.grant.brake_bytes < 200 * MIB
    async with events_of(daemon, sessions[0]) as events, events_of(daemon, sessions[2]) as others:
        await others.state(pb.CALL_STATE_QUEUED)
        go(newcomer)
        assert (await end(newcomer))[0] == 0
        assert await line(third) == "up"
        go(third)
        assert (await end(third))[0] == 0
        await events.until("all is given back", lambda u: u.call.grant.brake_bytes == 200 * MIB)
        go(roomy)
        assert (await end(roomy))[0] == 0
    [ended] = (await daemon.history(sessions[0], ended=1)).calls
    assert ended.outcome.reason == "exited"
    assert {d.action for d in ended.outcome.decisions} == {"limit"}
    await _nothing_left(daemon)
