"""Calls under a real daemon on this kernel: where they are placed, what holds them, what is said of their end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agentd.embedded import Table, cgroup_mounts
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import (
    MIB,
    corral_command,
    cpu_quota,
    end,
    events_of,
    go,
    hierarchies,
    leaves,
    line,
    live_call,
    load_program,
    one_daemon,
    operate,
    parse_cgroups,
    soon,
    until_gone,
)
from tests.support.daemons import LAUNCHER, REPOSITORY, DaemonUnderTest

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]
PIPE = asyncio.subprocess.PIPE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon() -> AsyncIterator[DaemonUnderTest]:
    tenants: dict[str, Table] = {
        "acme": {},
        "small": {"memory_max": "192M"},
        "single": {"max_calls": 1},
        "capped": {"cpu_max": 1.5, "pids_max": 400},
    }
    async with one_daemon(tenants=tenants) as started:
        yield started
        assert not leaves(started) or await soon("all leaves are removed", lambda: not leaves(started))


# --- placement -------------------------------------------------------------------------------------------------------


async def test_the_first_instruction_runs_inside(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    status, out, err = await daemon.call(
        session, load_program(), "cgroup", options=("--cpu", "0.5", "--memory", ":64M")
    )
    assert (status, err) == (0, "")
    [call] = (await daemon.history(session, ended=1)).calls
    seen = parse_cgroups(out)
    leaf = f"/{call.cgroup}"
    assert leaf.endswith(f"/{session.tenant_id}/{session.id}/calls/{call.id}")
    assert seen[""] == leaf
    if (await daemon.snapshot()).host.mode == "hybrid":
        for controllers, path in seen.items():
            ours = {"", "memory", "pids", "cpu"} & set(controllers.split(","))
            assert path == leaf if ours else not path.startswith(f"/{daemon.name}"), (controllers, path)


async def test_what_is_allocated_at_once_is_charged_to_the_leaf(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    status, _, _ = await daemon.call(session, load_program(), f"touch:{24 * MIB}")
    assert status == 0
    [call] = (await daemon.history(session, ended=1)).calls
    assert 24 * MIB <= call.usage.memory_peak_bytes < 26 * MIB


async def test_nothing_is_left_of_an_ended_call(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    process = await daemon.launch(session, load_program(), "say:here", "wait", stdin=PIPE, options=("--cpu", "1"))
    assert await line(process) == "here"
    call = await live_call(daemon, session)
    there = daemon.groups(call)
    assert len(there) == (4 if (await daemon.snapshot()).host.mode == "hybrid" else 1)
    go(process)
    assert await end(process) == (0, "", "")
    await soon("its leaf is removed", lambda: not any(path.is_dir() for path in there))
    await daemon.client.call(daemon.client.agent.CloseSession, pb.CloseSessionRequest(session_id=session.id))
    inside = [m / daemon.name / session.tenant_id / session.id for m in cgroup_mounts()]
    await soon("the session's groups are removed", lambda: not any(path.is_dir() for path in inside))


# --- limits ----------------------------------------------------------------------------------------------------------


async def test_an_oom_kill_ends_the_whole_call_and_says_so(daemon: DaemonUnderTest) -> None:
    """Its child crosses the hard limit at once (the brake is off), the main process would have lived on."""
    session = await daemon.open_session("acme")
    async with events_of(daemon, session) as events:
        process = await daemon.launch(
            session, load_program(), "pid", "wait", "beside", f"touch:{96 * MIB}", "pause", stdin=PIPE
        )
        main = int((await line(process)).split()[1])
        call = await events.state(pb.CALL_STATE_RUNNING)
        limits = pb.SetLimitsRequest(target=call.id, limits=pb.Limits(memory_max_bytes=32 * MIB))
        await daemon.client.call(daemon.client.operator.SetLimits, limits)
        go(process)
        status, _, err = await end(process)
        outcome = await events.outcome()
    assert status == -signal.SIGKILL
    assert outcome.reason == "oom_call"
    assert outcome.usage.oom_kills >= 1
    assert "reached its memory limit of 32 MiB" in outcome.summary
    assert f"corral: {outcome.summary}" in err
    assert not Path(f"/proc/{main}").exists()


async def test_an_oom_kill_of_a_call_spares_its_agent(daemon: DaemonUnderTest, tmp_path: Path) -> None:
    """The agent entered its session: it stands in the session's agent leaf, and its call in one of its own."""
    session = await daemon.open_session("acme")
    script = tmp_path / "agent"
    tool = f"{load_program()} wait touch:{96 * MIB}"
    script.write_text(
        "#!/bin/sh\n"
        "read cgroup < /dev/null; cat /proc/self/cgroup; echo ---\n"
        f"{LAUNCHER} -- {tool}\n"
        'echo "tool ended with $?"\nread line\n'
    )
    script.chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        *corral_command("session", "exec", "--", str(script)),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, **session.environment, "CORRAL_QUIET": "1"},
        cwd=REPOSITORY,
    )
    try:
        async with events_of(daemon, session) as events:
            seen = ""
            while (text := await line(process)) != "---":
                seen += f"{text}\n"
            assert parse_cgroups(seen)[""].endswith(f"/{session.id}/agent")
            call = await events.state(pb.CALL_STATE_RUNNING)
            limits = pb.SetLimitsRequest(target=call.id, limits=pb.Limits(memory_max_bytes=32 * MIB))
            await daemon.client.call(daemon.client.operator.SetLimits, limits)
            go(process)
            assert await line(process) == f"tool ended with {128 + signal.SIGKILL}"
            assert (await events.outcome()).reason == "oom_call"
        assert process.returncode is None
        assert hierarchies(process.pid)[""].endswith(f"/{session.id}/agent")
    finally:
        go(process)
        await end(process)


async def test_at_the_tenants_limit_a_call_goes_and_the_agent_stays(daemon: DaemonUnderTest) -> None:
    """The agent is the larger of the two: left to itself, the kernel would end it. They run as they like: no brake."""
    session = await daemon.open_session("small")
    agent = await asyncio.create_subprocess_exec(
        *corral_command(
            "session", "exec", "--", str(load_program()), f"touch:{110 * MIB}", "say:up", "wait", "say:well"
        ),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, **session.environment},
        cwd=REPOSITORY,
    )
    try:
        assert await line(agent) == "up"
        status, _, err = await daemon.call(session, load_program(), f"touch:{100 * MIB}")
        assert status == -signal.SIGKILL
        assert "its tenant as a whole ran out of memory" in err
        [call] = (await daemon.history(session, ended=1)).calls
        assert call.outcome.reason == "oom_tenant"
        go(agent)
        assert await line(agent) == "well"
    finally:
        assert (await end(agent))[0] == 0


async def test_the_cpu_quota_is_in_force(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    async with events_of(daemon, session) as events:
        process = await daemon.launch(session, load_program(), "wait", "cpu:200", stdin=PIPE, options=("--cpu", "0.25"))
        call = await events.state(pb.CALL_STATE_RUNNING)
        quota, period = cpu_quota(daemon, call)
        assert quota / period == pytest.approx(0.25)
        go(process)
        assert (await end(process))[0] == 0
        outcome = await events.outcome()
    # what the kernel gives in a period cannot be exceeded, however fast the host is: 200 ms / 0.25, but for a period
    assert outcome.wall_seconds >= 0.2 / 0.25 - 0.2
    assert outcome.usage.cpu_usec == pytest.approx(200_000, rel=0.1)


async def test_a_fork_bomb_meets_its_limit_and_its_neighbour_does_not(daemon: DaemonUnderTest) -> None:
    bomber, neighbour = await daemon.open_session("capped"), await daemon.open_session("acme")
    async with events_of(daemon, bomber) as events:
        bomb = await daemon.launch(
            bomber, load_program(), "bomb:2000", "wait", "exit:3", stdin=PIPE, options=("--pids", "64")
        )
        assert await line(bomb) == "forked 63 errno 11"
        status, out, _ = await daemon.call(neighbour, load_program(), "spawn:200", "say:unharmed")
        assert (status, out) == (0, "unharmed\n")
        call = await live_call(daemon, bomber)
        go(bomb)
        status, _, err = await end(bomb)
        outcome = await events.outcome()
    assert status == 3
    assert outcome.reason == "pids_limit"
    assert "its limit is 64 at once" in err
    assert outcome.leftovers == 63
    await operate(daemon, "kill", call.session_id)
    await daemon.client.call(daemon.client.agent.CloseSession, pb.CloseSessionRequest(session_id=bomber.id, kill=True))


# --- how it ends -----------------------------------------------------------------------------------------------------


async def test_a_kill_from_elsewhere_is_no_oom(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    process = await daemon.launch(session, load_program(), "pid", "pause")
    os.kill(int((await line(process)).split()[1]), signal.SIGKILL)
    assert (await end(process))[0] == -signal.SIGKILL
    [call] = (await daemon.history(session, ended=1)).calls
    assert call.outcome.reason == "signalled"
    assert call.outcome.wait_status == signal.SIGKILL
    assert call.outcome.summary == ""


@pytest.mark.parametrize(("code", "reason"), [(0, "exited"), (3, "failed")])
async def test_a_call_that_nothing_was_done_to_says_nothing(daemon: DaemonUnderTest, code: int, reason: str) -> None:
    session = await daemon.open_session("acme")
    status, _, err = await daemon.call(session, load_program(), f"exit:{code}")
    assert (status, err) == (code, "")
    [call] = (await daemon.history(session, ended=1)).calls
    assert (call.outcome.reason, call.outcome.wait_status) == (reason, code << 8)
    assert call.outcome.summary == ""
    assert not call.outcome.decisions


async def test_a_deadline_ends_all_of_the_call(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    process = await daemon.launch(
        session, load_program(), "pid", "beside", "pid", "pause", options=("--deadline", "300ms")
    )
    pids = [int((await line(process)).split()[1]) for _ in range(2)]
    status, _, err = await end(process)
    assert status == -signal.SIGKILL
    [call] = (await daemon.history(session, ended=1)).calls
    assert call.outcome.reason == "timeout"
    assert "the deadline of 300 ms" in err
    for pid in pids:
        await until_gone(pid)


async def test_a_killed_launcher_takes_its_call_along(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    async with events_of(daemon, session) as events:
        process = await daemon.launch(session, load_program(), "pid", "beside", "pid", "pause")
        pids = [int((await line(process)).split()[1]) for _ in range(2)]
        process.kill()
        outcome = await events.outcome()
        await end(process)
    assert outcome.reason == "cancelled"
    for pid in pids:
        await until_gone(pid)


async def test_leftovers_belong_to_the_session(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    async with events_of(daemon, session) as events:
        process = await daemon.launch(session, load_program(), f"leave:{4 * MIB}")
        left = int((await line(process)).split()[1])
        assert (await end(process))[0] == 0
        adopted = await events.decision("adopt")
        outcome = await events.outcome()
    assert (outcome.reason, outcome.leftovers, adopted.policy) == ("exited", 1, "leftovers")
    seen = hierarchies(left)
    assert seen[""].endswith(f"/{session.id}/left")
    # a CPU group is only made for calls that have such a limit: the rest are in the nearest one above
    assert all(seen[""].startswith(path) for path in seen.values() if daemon.name in path)
    assert seen.get("memory", seen[""]) == seen.get("pids", seen[""]) == seen[""]
    await soon("the call's leaf is removed", lambda: not leaves_of(daemon, outcome.call_id))
    close = pb.CloseSessionRequest(session_id=session.id, kill=True)
    await daemon.client.call(daemon.client.agent.CloseSession, close)
    await until_gone(left)


async def test_nested_calls_are_accounted_apart_and_end_together(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    load = str(load_program())
    inner = f"{load} cpu:300 say:inner-worked pause & {LAUNCHER} -- {load} cpu:200 write:{8 * MIB} say:nested pause"
    async with events_of(daemon, session) as events:
        process = await daemon.launch(session, "/bin/sh", "-c", inner)
        assert {await line(process), await line(process)} == {"inner-worked", "nested"}
        outer = (await events.until("the outer call", lambda u: u.call.id != "" and u.call.parent_id == "")).call
        nested = (await events.until("the nested call", lambda u: u.call.parent_id == outer.id)).call
        assert nested.cgroup != outer.cgroup
        await operate(daemon, "kill", outer.id)
        first, second = await events.outcome(outer.id), await events.outcome(nested.id)
        await end(process)
    assert (first.reason, second.reason) == ("operator_killed", "operator_killed")
    # what the processes' starts cost on top differs by machine, but is far less than what the other call burns
    assert 290_000 < first.usage.cpu_usec < 450_000
    assert 190_000 < second.usage.cpu_usec < 290_000
    assert second.usage.written_bytes == pytest.approx(8 * MIB, rel=0.01)
    assert first.usage.written_bytes < MIB


# --- operators -------------------------------------------------------------------------------------------------------


async def test_freeze_thaw_and_kill(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    async with events_of(daemon, session) as events:
        process = await daemon.launch(session, load_program(), "say:one", "wait", "say:two", "pause", stdin=PIPE)
        assert await line(process) == "one"
        call = await live_call(daemon, session)
        frozen = next(path for path in daemon.groups(call) if (path / "cgroup.events").exists()) / "cgroup.events"
        assert await operate(daemon, "freeze", call.id) == [call.id]
        await soon("the leaf is frozen", lambda: "frozen 1" in frozen.read_text())
        assert await operate(daemon, "freeze", call.id) == []
        go(process)
        assert (await live_call(daemon, session)).state == pb.CALL_STATE_FROZEN
        assert await operate(daemon, "thaw", session.id) == [call.id]
        assert await line(process) == "two"
        assert await operate(daemon, "kill", call.id) == [call.id]
        status, _, err = await end(process)
        outcome = await events.outcome()
    assert status == -signal.SIGKILL
    assert outcome.reason == "operator_killed"
    assert outcome.held_seconds > 0
    assert "was ended by an operator" in err


async def test_a_frozen_call_can_be_killed(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    process = await daemon.launch(session, load_program(), "say:one", "pause")
    assert await line(process) == "one"
    call = await live_call(daemon, session)
    await operate(daemon, "freeze", call.id)
    await operate(daemon, "kill", call.id)
    assert (await end(process))[0] == -signal.SIGKILL


# --- admission -------------------------------------------------------------------------------------------------------


async def test_a_call_waits_for_its_turn_and_says_so(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("single")
    async with events_of(daemon, session) as events:
        first = await daemon.launch(session, load_program(), "say:first", "wait", stdin=PIPE)
        assert await line(first) == "first"
        second = await daemon.launch(session, load_program(), "say:second")
        queued = await events.state(pb.CALL_STATE_QUEUED)
        go(first)
        assert (await end(first))[0] == 0
        status, out, err = await end(second)
        assert (status, out) == (0, "second\n")
        assert "1 allowed at once" in err
        assert (await events.outcome(queued.id)).reason == "exited"


async def test_a_call_that_waits_when_its_session_is_closed_is_told(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("single")
    async with events_of(daemon, session) as events:
        first = await daemon.launch(session, load_program(), "say:first", "pause")
        assert await line(first) == "first"
        second = await daemon.launch(session, load_program(), "say:second")
        await events.state(pb.CALL_STATE_QUEUED)
        close = pb.CloseSessionRequest(session_id=session.id, kill=True)
        await daemon.client.call(daemon.client.agent.CloseSession, close)
        assert (await end(first))[0] == -signal.SIGKILL
        status, out, err = await end(second)
    assert (status, out) == (125, "")
    assert "closed" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--memory", "8M:4M"), ("memory_typical", "declare a peak")),
        (("--memory", ":100"), ("memory_peak", "1048576 to")),
        (("--cpu", "100000"), ("intent.cpu", "0.01 to 4096")),
        (("--pids", "0"), ("intent.pids", "1 to")),
        (("--network", "10.0.0.0/99"), ("intent.egress", "CIDR")),
        (("--tool", "x" * 300), ("intent.tool", "at most 256")),
        (("--session", "s-none"), ("session", "the id that the daemon gave")),
    ],
)
async def test_a_wrong_intent_names_field_and_remedy(
    daemon: DaemonUnderTest, options: tuple[str, ...], says: tuple[str, ...]
) -> None:
    session = await daemon.open_session("acme")
    status, out, err = await daemon.call(session, load_program(), "say:ran", options=options)
    assert (status, out) == (125, "")
    for word in says:
        assert word in err
    assert not [c for c in (await daemon.snapshot()).calls if c.session_id == session.id]
    inside = [m / daemon.name / session.tenant_id / session.id / "calls" for m in cgroup_mounts()]
    assert not [leaf for calls in inside if calls.is_dir() for leaf in calls.iterdir() if leaf.is_dir()]


async def test_more_than_the_tenant_has_is_refused_or_degraded(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("small")
    options = ("--memory", ":1G")
    status, _, err = await daemon.call(session, load_program(), "say:ran", options=options)
    assert status == 125
    assert "1 GiB is above the tenant's ceiling of 192 MiB" in err
    status, out, err = await daemon.call(
        session, load_program(), "say:ran", options=(*options, "--on-pressure", "degrade")
    )
    assert (status, out) == (0, "ran\n")
    assert "192 MiB given" in err


# --- network ---------------------------------------------------------------------------------------------------------


async def test_the_network_gates(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    server = await asyncio.start_server(_hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        steps = (load_program(), f"connect:{port}", "exit:5")
        assert (await daemon.call(session, *steps))[1] == "connect 0\n"
        assert (await daemon.call(session, *steps, options=("--network", f"127.0.0.1:{port}")))[1] == "connect 0\n"
        other = await daemon.call(session, *steps, options=("--network", f"127.0.0.1:{port ^ 1}"))
        none = await daemon.call(session, *steps, options=("--network", "none"))
    assert other[1] == none[1] == "connect 1\n"  # EPERM
    assert "its intent allows no network" in none[2]
    assert "only the destinations that it listed" in other[2]
    reasons = [c.outcome.reason for c in (await daemon.history(session, ended=4)).calls]
    assert reasons == ["network_denied", "network_denied", "failed", "failed"]


# --- helpers ---------------------------------------------------------------------------------------------------------


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def leaves_of(daemon: DaemonUnderTest, call_id: str) -> list[str]:
    return [path for path in leaves(daemon) if path.endswith(call_id)]
