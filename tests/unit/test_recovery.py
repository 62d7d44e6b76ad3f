"""After a restart, and at the end of calls: what needs no kernel to be wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from controller.backend import CallRecord, Found, SessionRecord
from controller.config import HostConfig, TenantConfig
from controller.host import Host
from controller.model import (
    Action,
    CallId,
    CallState,
    CallView,
    Decision,
    Grant,
    Intent,
    Limits,
    Reason,
    SessionView,
    TenantView,
    Tripwire,
    Usage,
    WrongState,
    new_call_id,
    new_session_id,
    new_tenant_id,
)
from tests.support.backend import FakeLeaf, FixedReader, RecordingBackend, RecordingJournal

MIB = 1 << 20
TENANT = TenantView(id=new_tenant_id(), name="acme", limits=Limits(), priority=50)
SESSION = SessionRecord(
    session=SessionView(
        id=new_session_id(), tenant_id=TENANT.id, name="agent", uid=1000, opened_at=time.time(), labels={}
    ),
    token_hash="0" * 64,
    token_expires=time.time() + 60,
)


def decision(action: Action, at: float = 1.0) -> Decision:
    return Decision(
        at=at,
        action=action,
        policy="brake",
        reason="for the test",
        tenant_id=TENANT.id,
        session_id=SESSION.session.id,
        evidence={},
    )


def found_call(*, intent: Intent | None = None, pid: int = 100, held: tuple[str, ...] = ()) -> CallRecord:
    call_id = new_call_id()
    view = CallView(
        id=call_id,
        session_id=SESSION.session.id,
        tenant_id=TENANT.id,
        parent_id=None,
        command="tool",
        intent=intent or Intent(),
        grant=Grant(limits=Limits(), tripwire=Tripwire(brake=64 * MIB), priority=50, enforced=True),
        state=CallState.RUNNING,
        begun_at=time.time(),
        held_since=None,
        held_seconds=0.0,
        brakes=0,
        usage=Usage(),
        cgroup="x",
    )
    return CallRecord(call=view, launcher=True, main_pid=pid, launcher_pid=99, held=held)


class Past:
    def __init__(self, ended: set[CallId] | None = None, decisions: Sequence[Decision] = ()) -> None:
        self._ended = ended or set()
        self._decisions = decisions

    def has_ended(self, call_id: CallId) -> bool:
        return call_id in self._ended

    def decisions(self, call_id: CallId) -> Sequence[Decision]:
        return self._decisions


class Restarted:
    """A host that starts over what an earlier one left."""

    def __init__(self, *calls: CallRecord, session: SessionRecord = SESSION, past: Past | None = None) -> None:
        self.backend = RecordingBackend()
        self.backend.found = Found(tenants=(TENANT,), sessions=(session,), calls=calls)
        self.journal = RecordingJournal()
        config = HostConfig(
            tenants=(TenantConfig(name="acme", uids=frozenset({1000})),), leftover_grace=0.01, restart_grace=60.0
        )
        self.host = Host(config, self.backend, self.journal, FixedReader(), past=past)

    async def __aenter__(self) -> Restarted:
        self.host.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.host.stop()


async def test_a_call_whose_end_is_on_disk_only_loses_its_leaf() -> None:
    record = found_call()
    restarted = Restarted(record, past=Past({record.call.id}))
    restarted.backend.leaves[record.call.id] = FakeLeaf(grant=record.call.grant)
    async with restarted as r:
        assert r.backend.removed == [record.call.id]
        assert not r.host.registry.calls
        assert not r.journal.ended
        assert r.host.registry.by_name["acme"].running == 0


async def test_decisions_of_the_earlier_daemon_are_kept_once() -> None:
    written, unwritten = decision(Action.BRAKE), decision(Action.RAISE, 2.0)
    record = replace(found_call(), decisions=(written, unwritten))
    async with Restarted(record, past=Past(decisions=(written,))) as r:
        call = r.host.registry.call(record.call.id)
        assert call.decisions == [written, unwritten]
        r.backend.leaves[call.id].pids.clear()
        outcome = await r.host.end(call.id, 0)
    assert outcome.reason is Reason.BRAKED
    assert outcome.decisions == (written, unwritten)


async def test_a_call_that_was_being_ended_is_ended_for_the_same_reason() -> None:
    record = replace(found_call(), killed_as=Reason.TIMEOUT, decisions=(decision(Action.KILL),))
    async with Restarted(record) as r:
        assert r.backend.leaves[record.call.id].killed
        outcome = await r.host.end(record.call.id, 9)
    assert outcome.reason is Reason.TIMEOUT


async def test_a_deadline_that_passed_meanwhile() -> None:
    record = found_call(intent=Intent(deadline=1.0))
    late = replace(record, call=replace(record.call, begun_at=time.time() - 2.0))
    async with Restarted(late) as r:
        async with asyncio.timeout(5):
            async for update in r.host.subscribe():
                if isinstance(update, Decision) and update.action is Action.KILL:
                    break
        assert r.backend.leaves[record.call.id].killed
        assert (await r.host.end(record.call.id, 9)).reason is Reason.TIMEOUT


async def test_a_call_that_was_frozen_without_a_record_is_thawed() -> None:
    record, held = found_call(), found_call(pid=101, held=("operator",))
    async with Restarted(record, held) as r:
        assert r.host.registry.call(held.call.id).state is CallState.FROZEN
        assert r.backend.leaves[held.call.id].frozen
        assert not r.backend.leaves[record.call.id].frozen


async def test_the_last_leaf_of_a_closed_session_is_settled() -> None:
    closed = replace(SESSION, session=replace(SESSION.session, closed_at=time.time()))
    record = found_call()
    async with Restarted(record, session=closed) as r:
        assert SESSION.session.id not in r.host.registry.sessions
        r.backend.leaves[record.call.id].pids.clear()
        await r.host.end(record.call.id, 0)
        assert [view.id for view in r.journal.ended] == [record.call.id]


async def test_what_the_brake_stopped_at_the_end_is_not_left_stopped() -> None:
    """A process that outlives its call and crosses the threshold in the grace that it gets."""
    async with Restarted(found_call()) as r:
        [call] = r.host.registry.calls.values()
        leaf = r.backend.leaves[call.id]
        leaf.pids = {200}
        ending = asyncio.ensure_future(r.host.end(call.id, 0))
        await asyncio.sleep(0)
        r.host.events.on_braked(call.id, 200, 65 * MIB, 64 * MIB, 0.001)
        outcome = await ending
    assert outcome.leftovers == 1
    assert leaf.continued == [200]
    assert leaf.grant.tripwire == Tripwire()
    assert r.backend.left == [200]


async def test_closing_a_session_ends_its_queue() -> None:
    async with Restarted() as r:
        r.host.registry.by_name["acme"].max_calls = 1
        session = SESSION.session.id
        first = await r.host.begin(session, intent=Intent(), argv=["one"])
        second = asyncio.ensure_future(r.host.begin(session, intent=Intent(), argv=["two"]))
        await asyncio.sleep(0)
        assert len(r.host.queue) == 1
        closing = asyncio.ensure_future(r.host.close_session(session, kill=True))
        with pytest.raises(WrongState, match="was closed while the call waited"):
            await second
        await closing
        assert [view.id for view in r.journal.begun] == [first.id]
        assert not r.host.registry.calls


async def test_a_disarmed_call_is_let_go() -> None:
    record = replace(found_call(held=("brake",)))
    async with Restarted(record) as r:
        call = r.host.registry.call(record.call.id)
        r.backend.tenant_use[TENANT.id] = 0
        r.host.set_limits(call.id, limits=Limits(), tripwire=Tripwire(brake=0))
        for _ in range(3):  # the review was asked for, and comes in a turn of its own
            await asyncio.sleep(0)
        assert call.grant.tripwire.brake is None
        assert call.state is CallState.RUNNING
        assert not r.backend.leaves[call.id].frozen
