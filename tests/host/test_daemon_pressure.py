"""Memory pressure under a real daemon on a host that is small by configuration: who waits, gives way, is ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import MIB, corral_command, end, events_of, go, line, load_program, one_daemon
from tests.support.daemons import REPOSITORY, DaemonUnderTest, Session

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]
PIPE = asyncio.subprocess.PIPE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon() -> AsyncIterator[DaemonUnderTest]:
    """270 MiB for all calls and agents, and 30 in reserve."""
    async with one_daemon(
        tenants={"high": {"priority": 80}, "low": {"priority": 20}, "acme": {}, "beta": {}, "few": {"cpu_max": 1.5}},
        settings={"host": {"memory": "300M", "memory_reserve": 0.1, "sample_interval": "100ms"}},
    ) as started:
        if any("brake" in text for text in (await started.snapshot()).host.missing):
            pytest.skip(f"this host has no brake: {list((await started.snapshot()).host.missing)}")
        yield started


async def up(daemon: DaemonUnderTest, session: Session, megabytes: int, *options: str) -> asyncio.subprocess.Process:
    """A call that uses so much, and waits."""
    process = await daemon.launch(
        session, load_program(), f"touch:{megabytes * MIB}", "say:up", "wait", "say:on", stdin=PIPE, options=options
    )
    assert await line(process) == "up"
    return process


async def call_of(daemon: DaemonUnderTest, session: Session) -> pb.Call:
    [call] = [c for c in (await daemon.snapshot()).calls if c.session_id == session.id]
    return call


@contextlib.asynccontextmanager
async def agent_of(
    daemon: DaemonUnderTest, session: Session, megabytes: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """An agent's own process, which wants so much once it is let go."""
    agent = await asyncio.create_subprocess_exec(
        *corral_command(
            "session",
            "exec",
            "--",
            str(load_program()),
            "say:here",
            "wait",
            f"touch:{megabytes * MIB}",
            "say:up",
            "wait",
        ),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, **session.environment},
        cwd=REPOSITORY,
    )
    try:
        assert await line(agent) == "here"
        yield agent
    finally:
        go(agent)
        assert (await end(agent))[0] == 0, "the agent's own process is never ended"


async def test_the_lowest_priority_goes_when_nothing_else_helps(daemon: DaemonUnderTest) -> None:
    """Both calls stand where they are; the agent outgrows what was left to it."""
    high, low = await daemon.open_session("high"), await daemon.open_session("low")
    async with events_of(daemon, low) as events, agent_of(daemon, high, 130) as agent:
        first, second = await up(daemon, high, 90), await up(daemon, low, 90)
        go(agent)
        outcome = await events.outcome()
        assert await line(agent) == "up"
        assert (await end(second))[0] == -signal.SIGKILL
        assert outcome.reason == "pressure_killed"
        assert "for lack of memory, at no fault of its own" in outcome.summary
        assert "begin it again" in outcome.summary
        go(first)
        assert (await end(first))[:2] == (0, "on\n")
    [spared] = (await daemon.history(high, ended=1)).calls
    assert spared.outcome.reason == "exited"


async def test_a_call_is_frozen_for_others_and_thawed(daemon: DaemonUnderTest) -> None:
    """So little is missing that the youngest of the lowest priority only has to stand for a while."""
    high, low = await daemon.open_session("high"), await daemon.open_session("low")
    async with events_of(daemon, low) as events, agent_of(daemon, high, 107) as agent:
        first, second = await up(daemon, high, 90), await up(daemon, low, 90)
        go(agent)
        frozen = await events.state(pb.CALL_STATE_FROZEN)
        assert frozen.waits_for
        go(second)
        go(first)
        assert (await end(first))[0] == 0
        assert (await end(second))[:2] == (0, "on\n")
        outcome = await events.outcome(frozen.id)
    assert outcome.held_seconds > 0
    actions = [d.action for d in outcome.decisions if d.action in {"freeze", "thaw", "raise", "kill"}]
    assert actions[0] == "freeze"
    assert "kill" not in actions


async def test_slack_is_taken_for_one_that_waits_and_given_back(daemon: DaemonUnderTest) -> None:
    acme, beta = await daemon.open_session("acme"), await daemon.open_session("beta")
    async with events_of(daemon, acme) as events:
        first = await up(daemon, acme, 20, "--memory", "30M:200M", "--tool", "roomy")
        assert (await call_of(daemon, acme)).grant.brake_bytes == 200 * MIB
        second = await up(daemon, beta, 100, "--memory", ":150M", "--tool", "newcomer")
        taken = await events.decision("limit")
        assert taken.evidence["new_brake_bytes"] < 120 * MIB
        assert "its threshold is" in taken.reason
        go(second)
        assert (await end(second))[0] == 0
        await events.until("all is given back", lambda u: u.call.grant.brake_bytes == 200 * MIB)
        go(first)
        assert (await end(first))[:2] == (0, "on\n")
        outcome = await events.outcome()
    assert (outcome.reason, outcome.summary) == ("exited", "")


async def test_a_call_is_slowed_while_an_agent_needs_the_memory(daemon: DaemonUnderTest) -> None:
    acme, beta = await daemon.open_session("acme"), await daemon.open_session("beta")
    async with events_of(daemon, acme) as events:
        first = await up(daemon, acme, 20, "--memory", "30M:200M", "--tool", "roomy")
        async with agent_of(daemon, beta, 120) as agent:
            go(agent)
            slowed = await events.state(pb.CALL_STATE_THROTTLED)
            assert slowed.grant.brake_bytes < 100 * MIB
            assert slowed.squeeze.cpu_weight == 25
            assert await line(agent) == "up"
        await events.decision("relax")
        go(first)
        assert (await end(first))[0] == 0
        outcome = await events.outcome()
    assert outcome.reason == "exited"
    assert "slowed" in outcome.summary


async def test_the_tenant_that_has_less_comes_first(daemon: DaemonUnderTest) -> None:
    acme, beta = await daemon.open_session("acme"), await daemon.open_session("beta")
    keeper = await up(daemon, acme, 50, "--memory", ":60M", "--tool", "keeper")
    second, third = await daemon.open_session("acme"), await daemon.open_session("acme")
    holder = await up(daemon, third, 140, "--memory", ":150M", "--tool", "holder", "--duration", "50")
    steps = (load_program(), "say:begun", "wait")
    async with events_of(daemon, second) as mine, events_of(daemon, beta) as theirs:
        options = ("--memory", ":150M", "--tool", "big")
        early = await daemon.launch(second, *steps, options=options, stdin=PIPE)
        queued = await mine.state(pb.CALL_STATE_QUEUED)
        assert "free" in queued.waits_for
        assert 0 < queued.eta_seconds <= 50
        late = await daemon.launch(beta, *steps, options=options, stdin=PIPE)
        await theirs.state(pb.CALL_STATE_QUEUED)
        go(holder)
        assert await line(late) == "begun"
        assert (await call_of(daemon, second)).state == pb.CALL_STATE_QUEUED
        go(late)
        assert await line(early) == "begun"
        go(early)
        go(keeper)
        assert [(await end(p))[0] for p in (holder, late, early, keeper)] == [0, 0, 0, 0]


async def test_who_does_not_wait_takes_less_or_is_refused(daemon: DaemonUnderTest) -> None:
    acme, beta = await daemon.open_session("acme"), await daemon.open_session("beta")
    holder = await up(daemon, acme, 200, "--memory", ":210M", "--tool", "holder")
    options = ("--memory", ":150M", "--tool", "big", "--on-pressure")
    status, out, err = await daemon.call(beta, load_program(), "say:ran", options=(*options, "fail-fast"))
    assert (status, out) == (125, "")
    assert "such a call takes about 150 MiB" in err
    status, out, err = await daemon.call(beta, load_program(), "say:ran", options=(*options, "degrade"))
    assert (status, out) == (0, "ran\n")
    assert "150 MiB asked" in err
    go(holder)
    assert (await end(holder))[0] == 0


async def test_promised_cores_are_not_promised_twice(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("few")
    first = await up(daemon, session, 1, "--cpu", "1")
    status, _, err = await daemon.call(
        session, load_program(), "say:ran", options=("--cpu", "1", "--on-pressure", "fail-fast")
    )
    assert status == 125
    assert "1 of the tenant's 1.5 cores are promised" in err
    other = await daemon.open_session("few")
    async with events_of(daemon, other) as events:
        second = await daemon.launch(other, load_program(), "say:ran", options=("--cpu", "1"))
        await events.state(pb.CALL_STATE_QUEUED)
        go(first)
        assert (await end(first))[0] == 0
        assert (await end(second))[:2] == (0, "ran\n")


async def test_page_cache_keeps_nobody_out(daemon: DaemonUnderTest, tmp_path: Path) -> None:
    """More files were written than all calls may use of memory; the kernel gives that back when it is needed."""
    session, other = await daemon.open_session("beta"), await daemon.open_session("beta")
    file = tmp_path / "file"
    writer = ("/bin/sh", "-c", f"dd if=/dev/zero of={file} bs=1M count=320 2>/dev/null; echo written; read line")
    process = await daemon.launch(session, *writer, stdin=PIPE)
    assert await line(process) == "written"
    assert (await daemon.call(other, load_program(), f"touch:{60 * MIB}", "say:done"))[:2] == (0, "done\n")
    go(process)
    assert (await end(process))[0] == 0
    file.unlink()
    for call in (await daemon.history(session, ended=1)).calls[0], (await daemon.history(other, ended=1)).calls[0]:
        assert call.outcome.reason == "exited", call.outcome.summary
        assert not [d for d in call.outcome.decisions if d.action in {"freeze", "kill", "queue"}]


async def test_a_call_is_not_ended_for_the_files_that_it_wrote(daemon: DaemonUnderTest, tmp_path: Path) -> None:
    """Its hard limit is 128 MiB; it writes more, and then uses 30 of its own."""
    session = await daemon.open_session("acme")
    file = tmp_path / "file"
    steps = f"dd if=/dev/zero of={file} bs=1M count=160 2>/dev/null; {load_program()} touch:{30 * MIB} say:done"
    status, out, _ = await daemon.call(session, "/bin/sh", "-c", steps, options=("--memory", ":64M"))
    file.unlink()
    assert (status, out) == (0, "done\n")
    [call] = (await daemon.history(session, ended=1)).calls
    assert call.outcome.reason == "braked"
    assert any("page cache" in d.reason for d in call.outcome.decisions)


async def test_an_idle_host_brakes_nobody_that_declared_nothing(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    assert (await daemon.call(session, load_program(), f"touch:{120 * MIB}", "say:done"))[:2] == (0, "done\n")
    [call] = (await daemon.history(session, ended=1)).calls
    assert call.outcome.reason == "exited", call.outcome.decisions
    assert call.brakes == 0


async def test_an_agents_growth_is_seen_without_a_sample() -> None:
    """Nobody asks, nobody is stopped, and the next sample is a minute away: the kernel tells that the agent has grown,
    and the call gets a threshold before it could take what is left."""
    async with one_daemon(
        tenants={"acme": {}},
        settings={"host": {"memory": "300M", "memory_reserve": 0.1, "sample_interval": "1m"}},
    ) as daemon:
        if any("brake" in text for text in (await daemon.snapshot()).host.missing):
            pytest.skip(f"this host has no brake: {list((await daemon.snapshot()).host.missing)}")
        session = await daemon.open_session("acme")
        async with events_of(daemon, session) as events, agent_of(daemon, session, 170) as agent:
            running = await up(daemon, session, 40)
            assert (await call_of(daemon, session)).grant.brake_bytes == 0
            go(agent)
            armed = await events.decision("limit")
            assert armed.reason.startswith("memory gets short"), armed.reason
            go(running)
            assert (await end(running))[0] == 0
