"""The brake through the whole daemon: stopped in the kernel at the threshold, then raised, held or ended, and told."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import MIB, Events, end, events_of, go, line, load_program, one_daemon
from tests.support.daemons import DaemonUnderTest, Session

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]
PIPE = asyncio.subprocess.PIPE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon() -> AsyncIterator[DaemonUnderTest]:
    async with one_daemon(tenants={"acme": {}, "small": {"memory_max": "192M"}}) as started:
        if any("brake" in text for text in (await started.snapshot()).host.missing):
            pytest.skip(f"this host has no brake: {list((await started.snapshot()).host.missing)}")
        yield started


async def test_where_there_is_room_the_call_goes_on(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    async with events_of(daemon, session) as events:
        status, out, err = await daemon.call(
            session, load_program(), f"touch:{150 * MIB}", "say:done", options=("--memory", "48M:100M")
        )
        outcome = await events.outcome()
        brake, notice = await events.decision("brake"), await events.decision("advise")
        raised = await events.decision("raise")
    assert (status, out) == (0, "done\n")
    assert outcome.reason == "braked"
    assert brake.evidence["brake_bytes"] == 100 * MIB
    assert 0 <= brake.evidence["overshoot_bytes"] <= 2 * MIB
    assert notice.evidence["notify_bytes"] == 48 * MIB
    assert raised.evidence["new_brake_bytes"] > 150 * MIB
    assert "The call was stopped when it used 100 MiB" in err
    assert "threshold was raised once" in err
    assert "declared a peak of 100 MiB" in err
    assert err == f"corral: {outcome.summary}\n"


async def test_at_its_hard_limit_it_is_ended_and_told_why(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    options = ("--memory", ":64M", "--tool", "burst")
    status, out, err = await daemon.call(session, load_program(), f"touch:{256 * MIB}", "say:done", options=options)
    assert (status, out) == (-signal.SIGKILL, "")
    [call] = (await daemon.history(session, ended=1)).calls
    assert call.outcome.reason == "brake_killed"
    assert call.usage.oom_kills == 0
    assert call.usage.memory_peak_bytes <= 128 * MIB
    assert err == f"corral: {call.outcome.summary}\n"
    assert "The 'burst' call was stopped at its memory threshold and then ended" in err
    assert "of its hard limit of 128 MiB" in err
    assert "What to try: do the work in smaller pieces" in err


async def test_who_asked_to_fail_fast_is_ended_at_the_first_stop(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    options = ("--memory", ":64M", "--on-pressure", "fail-fast")
    status, _, err = await daemon.call(session, load_program(), f"touch:{256 * MIB}", options=options)
    assert status == -signal.SIGKILL
    assert "asked to fail fast" in err
    [call] = (await daemon.history(session, ended=1)).calls
    assert [d.action for d in call.outcome.decisions] == ["brake", "kill"]
    assert call.usage.memory_peak_bytes <= 66 * MIB


async def _full(daemon: DaemonUnderTest, session: Session, events: Events) -> tuple[asyncio.subprocess.Process, ...]:
    """Two calls of a tenant with 192 MiB: one runs with 140, the other is held at 48 and wants 80."""
    first = await daemon.launch(session, load_program(), f"touch:{140 * MIB}", "say:full", "wait", stdin=PIPE)
    assert await line(first) == "full"
    second = await daemon.launch(
        session, load_program(), f"touch:{80 * MIB}", "say:done", options=("--memory", ":48M"), stdin=PIPE
    )
    held = await events.state(pb.CALL_STATE_BRAKED)
    assert held.brakes == 1
    assert held.HasField("held_since")
    return first, second


async def test_a_held_call_goes_on_when_another_ends(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("small")
    async with events_of(daemon, session) as events:
        first, second = await _full(daemon, session, events)
        go(first)
        assert (await end(first))[0] == 0
        status, out, err = await end(second)
        held = await events.state(pb.CALL_STATE_BRAKED)
        outcome = await events.outcome(held.id)
    assert (status, out) == (0, "done\n")
    assert outcome.reason == "braked"
    assert outcome.held_seconds > 0
    assert "There was room, so its threshold was raised once" in err


async def test_a_held_call_goes_on_when_its_threshold_is_taken_away(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("small")
    async with events_of(daemon, session) as events:
        first, second = await _full(daemon, session, events)
        call = await events.state(pb.CALL_STATE_BRAKED)
        request = pb.SetLimitsRequest(target=call.id, brake_bytes=0)
        await daemon.client.call(daemon.client.operator.SetLimits, request)
        go(first)  # or both meet the tenant's limit, which is the kernel's then
        assert (await end(second))[:2] == (0, "done\n")
        assert (await end(first))[0] == 0


async def test_a_held_call_goes_on_when_its_tenant_gets_more(daemon: DaemonUnderTest) -> None:
    operator = daemon.client.operator
    ceiling = pb.SetTenantRequest(name="growing", limits=pb.Limits(memory_max_bytes=192 * MIB))
    await daemon.client.call(operator.SetTenant, ceiling)
    session = await daemon.open_session("growing")
    async with events_of(daemon, session) as events:
        first, second = await _full(daemon, session, events)
        ceiling = pb.SetTenantRequest(name="growing", limits=pb.Limits(memory_max_bytes=384 * MIB))
        await daemon.client.call(operator.SetTenant, ceiling)
        assert (await end(second))[:2] == (0, "done\n")
        go(first)
        assert (await end(first))[0] == 0


async def test_a_held_call_that_is_killed_ends(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("small")
    async with events_of(daemon, session) as events:
        first, second = await _full(daemon, session, events)
        call = await events.state(pb.CALL_STATE_BRAKED)
        await daemon.client.call(daemon.client.operator.Kill, pb.KillRequest(target=call.id))
        assert (await end(second))[0] == -signal.SIGKILL
        assert (await events.outcome(call.id)).reason == "operator_killed"
        go(first)
        assert (await end(first))[0] == 0


async def test_one_of_two_held_calls_makes_room_for_the_other(daemon: DaemonUnderTest) -> None:
    """Nothing else of the tenant runs: the younger is ended, the older finishes."""
    session = await daemon.open_session("small")
    steps = (load_program(), f"touch:{88 * MIB}", "say:up", "wait", f"touch:{60 * MIB}", "say:done")
    async with events_of(daemon, session) as events:
        calls = [
            await daemon.launch(session, *steps, options=("--memory", ":94M", "--deadline", "60s"), stdin=PIPE)
            for _ in range(2)
        ]
        for call in calls:
            assert await line(call) == "up"
        for call in calls:
            go(call)
        ends = await asyncio.gather(*(end(call) for call in calls))
    reasons = [call.outcome.reason for call in (await daemon.history(session, ended=2)).calls]
    assert sorted(reasons) == ["brake_killed", "braked"], events.updates
    assert sorted(status for status, _, _ in ends) == [-signal.SIGKILL, 0]
    assert sorted(out for _, out, _ in ends) == ["", "done\n"]


async def test_a_revised_intent_moves_the_threshold(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    async with events_of(daemon, session) as events:
        process = await daemon.launch(
            session, load_program(), "wait", f"touch:{100 * MIB}", "say:done", options=("--memory", ":48M"), stdin=PIPE
        )
        call = await events.state(pb.CALL_STATE_RUNNING)
        intent = pb.Intent(memory_peak_bytes=160 * MIB)
        request = pb.UpdateIntentRequest(call_id=call.id, intent=intent)
        updated = (await daemon.client.call(daemon.client.agent.UpdateIntent, request)).call
        assert updated.grant.brake_bytes == 160 * MIB
        assert updated.grant.limits.memory_max_bytes == 320 * MIB
        go(process)
        assert (await end(process))[:2] == (0, "done\n")
        outcome = await events.outcome()
    assert outcome.reason == "exited"
    assert [d.action for d in outcome.decisions] == ["limit"]
