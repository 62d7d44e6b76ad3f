"""The host's state machine over a recording backend: what is done to calls, and what is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from controller.backend import KernelProof
from controller.config import CallConfig, HostConfig, TenantConfig
from controller.host import Host
from controller.model import (
    Action,
    CallId,
    CallState,
    CannotEnforce,
    CgroupError,
    Intent,
    InvalidRequest,
    Limits,
    Network,
    NotAllowed,
    NotFound,
    OnPressure,
    Reason,
    Refused,
    SessionId,
    Tripwire,
    Usage,
    WrongState,
)
from controller.registry import Call
from tests.support.backend import FixedReader, RecordingBackend, RecordingJournal

MIB = 1 << 20


class Rig:
    def __init__(self, config: HostConfig, *, enforcing: bool) -> None:
        self.backend = RecordingBackend(enforcing=enforcing)
        self.journal = RecordingJournal()
        self.reader = FixedReader()
        self.host = Host(config, self.backend, self.journal, self.reader)

    def open(self, tenant: str = "acme", uid: int = 1000) -> SessionId:
        return self.host.open_session(tenant=tenant, name="agent", uid=uid, labels={})[0].id

    def launch(self, session: SessionId, intent: Intent | None = None, *, pid: int = 100) -> Call:
        """As the broker does it for a launcher's child."""
        call = self.host.prepare(session, intent=intent or Intent(), argv=["tool"])
        assert self.host.begin_now(call) is None
        self.host.place(call, pid, pid - 1, lambda: None)
        return call

    def exits(self, call: Call, *pids: int) -> None:
        self.backend.leaves[call.id].pids -= set(pids)

    def actions(self, call: Call) -> list[Action]:
        return [d.action for d in call.decisions]


@asynccontextmanager
async def rig(config: HostConfig | None = None, *, enforcing: bool = True) -> AsyncIterator[Rig]:
    made = Rig(
        config
        or HostConfig(
            tenants=(TenantConfig(name="acme", uids=frozenset({1000}), limits=Limits(memory_max=1024 * MIB)),),
            leftover_grace=0.01,
        ),
        enforcing=enforcing,
    )
    made.host.start()
    try:
        yield made
    finally:
        await made.host.stop()


def state(call: Call) -> CallState:
    """A function, since a type checker takes a property to stay as it was."""
    return call.state


def is_frozen(r: Rig, call: Call) -> bool:
    return r.backend.leaves[call.id].frozen


async def turn() -> None:
    """Lets callbacks that were scheduled for now run."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_call_from_begin_to_end() -> None:
    async with rig() as r:
        call = r.launch(r.open())
        assert state(call) is CallState.RUNNING
        assert r.backend.leaves[call.id].record is not None, "a restart must know it"
        r.backend.leaves[call.id].usage = Usage(cpu_usec=5)
        r.exits(call, 100)
        outcome = await r.host.end(call.id, 0)
        assert (outcome.reason, outcome.summary, outcome.usage.cpu_usec) == (Reason.EXITED, "", 5)
        assert r.backend.removed == [call.id]
        assert [c.id for c in r.journal.ended] == [call.id]
        assert (await r.host.end(call.id, 0)).call_id == call.id, "asked again, it answers the same"


async def test_the_leaf_stays_until_the_end_is_on_disk() -> None:
    async with rig() as r:
        r.journal.hold_commits = True
        call = r.launch(r.open())
        r.exits(call, 100)
        await r.host.end(call.id, 0)
        assert r.backend.removed == []
        r.journal.commit()
        assert r.backend.removed == [call.id]


async def test_a_brake_is_raised_while_there_is_room() -> None:
    async with rig() as r:
        call = r.launch(r.open(), Intent(memory_peak=100 * MIB))
        leaf = r.backend.leaves[call.id]
        assert leaf.grant.tripwire.brake == 100 * MIB
        leaf.memory = 101 * MIB
        r.host.events.on_braked(call.id, 100, 101 * MIB, 100 * MIB, 0.001)
        assert leaf.frozen
        assert state(call) is CallState.BRAKED
        await turn()
        assert not is_frozen(r, call)
        assert leaf.continued == [100]
        assert leaf.grant.tripwire.brake == 165 * MIB, "by one step of 64 MiB over what it used"
        assert r.actions(call) == [Action.BRAKE, Action.RAISE]
        r.exits(call, 100)
        outcome = await r.host.end(call.id, 0)
        assert outcome.reason is Reason.BRAKED
        assert "stopped when it used 100 MiB" in outcome.summary


async def test_a_late_brake_event_only_resumes_that_process() -> None:
    async with rig() as r:
        call = r.launch(r.open(), Intent(memory_peak=100 * MIB))
        r.host.events.on_braked(call.id, 101, 90 * MIB, 50 * MIB, 0.5)
        leaf = r.backend.leaves[call.id]
        assert leaf.continued == [101]
        assert not leaf.frozen
        assert call.brakes == 0


async def test_a_call_at_its_hard_limit_is_ended_and_told_why() -> None:
    async with rig() as r:
        call = r.launch(r.open(), Intent(tool="pytest", memory_peak=100 * MIB))
        leaf = r.backend.leaves[call.id]
        leaf.memory = 199 * MIB
        leaf.usage = Usage(memory_peak=199 * MIB)
        r.host.events.on_braked(call.id, 100, 199 * MIB, 100 * MIB, 0.001)
        await turn()
        assert leaf.killed
        outcome = await r.host.end(call.id, 9)
        assert outcome.reason is Reason.BRAKE_KILLED
        assert "The 'pytest' call was stopped at its memory threshold and then ended" in outcome.summary
        assert "hard limit of 200 MiB" in outcome.summary
        assert outcome.suggestions


async def test_fail_fast_is_ended_at_once() -> None:
    async with rig() as r:
        call = r.launch(r.open(), Intent(memory_peak=100 * MIB, on_pressure=OnPressure.FAIL_FAST))
        r.backend.leaves[call.id].memory = 101 * MIB
        r.host.events.on_braked(call.id, 100, 101 * MIB, 100 * MIB, 0.001)
        await turn()
        assert r.backend.leaves[call.id].killed


async def test_a_held_call_goes_on_when_another_ends() -> None:
    async with rig() as r:
        session = r.open()
        other = r.launch(session, pid=200)
        call = r.launch(session, Intent(memory_peak=100 * MIB))
        leaf = r.backend.leaves[call.id]
        leaf.memory = 101 * MIB
        r.backend.tenant_use[call.ref.tenant_id] = 1020 * MIB
        r.host.events.on_braked(call.id, 100, 101 * MIB, 100 * MIB, 0.001)
        await turn()
        assert state(call) is CallState.BRAKED, "the tenant is full, and another call of it could free some"
        r.backend.tenant_use[call.ref.tenant_id] = 500 * MIB
        r.exits(other, 200)
        await r.host.end(other.id, 0)
        await turn()
        assert state(call) is CallState.RUNNING


async def test_a_call_that_waits_in_vain_is_ended_at_the_bound() -> None:
    config = HostConfig(
        tenants=(TenantConfig(name="acme", limits=Limits(memory_max=1024 * MIB)),), call=CallConfig(hold_max=0.05)
    )
    async with rig(config) as r:
        session = r.open(uid=0)
        r.launch(session, pid=200)
        call = r.launch(session, Intent(memory_peak=100 * MIB))
        r.backend.leaves[call.id].memory = 101 * MIB
        r.backend.tenant_use[call.ref.tenant_id] = 1020 * MIB
        r.host.events.on_braked(call.id, 100, 101 * MIB, 100 * MIB, 0.001)
        await asyncio.wait_for(call.ended.wait(), 10)
        assert call.outcome is not None
        assert call.outcome.reason is Reason.BRAKE_KILLED


async def test_an_operator_freezes_and_thaws() -> None:
    async with rig() as r:
        call = r.launch(r.open())
        assert await r.host.freeze("acme", by="operator") == [call.id]
        assert await r.host.freeze("acme", by="operator") == [], "twice is once"
        assert state(call) is CallState.FROZEN
        assert await r.host.thaw(call.id, by="operator") == [call.id]
        assert state(call) is CallState.RUNNING
        assert r.actions(call) == [Action.FREEZE, Action.THAW]


async def test_a_braked_call_that_an_operator_froze_stays_frozen() -> None:
    async with rig() as r:
        call = r.launch(r.open(), Intent(memory_peak=100 * MIB))
        r.backend.leaves[call.id].memory = 101 * MIB
        r.host.events.on_braked(call.id, 100, 101 * MIB, 100 * MIB, 0.001)
        await r.host.freeze(call.id, by="operator")
        await turn()
        assert r.backend.leaves[call.id].frozen
        await r.host.thaw(call.id, by="operator")
        await turn()
        assert not is_frozen(r, call)
        assert state(call) is CallState.RUNNING


async def test_kill_ends_nested_calls_too() -> None:
    async with rig() as r:
        session = r.open()
        outer = r.launch(session, pid=100)
        inner = r.host.prepare(session, intent=Intent(), argv=["inner"], parent_id=outer.id)
        assert r.host.begin_now(inner) is None
        r.host.place(inner, 101, 100, lambda: None)
        killing = asyncio.create_task(r.host.kill(outer.id, by="operator"))
        await turn()
        await r.host.end(inner.id, 9)
        outcome = await r.host.end(outer.id, 9)
        assert await killing == [outer.id]
        assert outcome.reason is Reason.OPERATOR_KILLED
        assert r.journal.ended[0].outcome is not None
        assert r.journal.ended[0].outcome.reason is Reason.OPERATOR_KILLED


async def test_a_launcher_that_vanished_cancels_its_call() -> None:
    async with rig() as r:
        call = r.launch(r.open())
        r.host.hung_up(call.id)
        assert call.outcome is not None
        assert call.outcome.reason is Reason.CANCELLED


@pytest.mark.parametrize(
    ("proof", "reason"),
    [
        (KernelProof(oom_kills=1), Reason.OOM_CALL),
        (KernelProof(oom_tenant_kills=1), Reason.OOM_TENANT),
        (KernelProof(oom_host_kills=1), Reason.OOM_HOST),
    ],
)
async def test_an_oom_kill_ends_the_whole_call(proof: KernelProof, reason: Reason) -> None:
    async with rig() as r:
        call = r.launch(r.open())
        leaf = r.backend.leaves[call.id]
        leaf.pids.add(101)
        leaf.proof = proof
        r.host.events.on_oom(call.id, 1)
        assert leaf.killed
        assert (await r.host.end(call.id, 9)).reason is reason


async def test_sigkill_from_elsewhere_is_not_called_oom() -> None:
    async with rig() as r:
        call = r.launch(r.open())
        r.exits(call, 100)
        assert (await r.host.end(call.id, 9)).reason is Reason.SIGNALLED


async def test_leftovers_are_adopted() -> None:
    async with rig() as r:
        call = r.launch(r.open())
        r.backend.leaves[call.id].pids = {555}
        outcome = await r.host.end(call.id, 0)
        assert outcome.leftovers == 1
        assert r.backend.left == [555]
        assert Action.ADOPT in [d.action for d in outcome.decisions]


async def test_leftovers_are_killed_where_so_configured() -> None:
    async with rig(HostConfig(leftovers="kill", leftover_grace=0.01)) as r:
        call = r.launch(r.open("default"))
        leaf = r.backend.leaves[call.id]
        leaf.pids = {555}
        await r.host.end(call.id, 0)
        assert leaf.killed
        assert r.backend.left == []


async def test_a_failed_placement_leaves_nothing() -> None:
    async with rig() as r:
        r.backend.fail_place = CgroupError("no", remedy="none")
        call = r.host.prepare(r.open(), intent=Intent(), argv=["x"])
        assert r.host.begin_now(call) is None
        with pytest.raises(CgroupError):
            r.host.place(call, 100, 99, lambda: None)
        assert r.backend.leaves == {}
        assert r.host.registry.calls == {}


async def test_too_many_calls_wait_in_order() -> None:
    config = HostConfig(tenants=(TenantConfig(name="acme", max_calls=1),))
    async with rig(config) as r:
        session = r.open(uid=0)
        first = r.launch(session)
        order: list[CallId] = []

        async def queued() -> None:
            order.append((await r.host.begin(session, intent=Intent(), argv=["x"])).id)

        waiting = [asyncio.create_task(queued()) for _ in range(2)]
        await turn()
        assert [c.state for c in r.host.snapshot().calls].count(CallState.QUEUED) == 2
        r.exits(first, 100)
        await r.host.end(first.id, 0)
        await turn()
        assert len(order) == 1
        await r.host.end(order[0], 0)
        await asyncio.gather(*waiting)
        assert len(order) == 2
        assert r.host.registry.by_name["acme"].running == 1


async def test_a_cancelled_wait_leaves_the_queue() -> None:
    config = HostConfig(tenants=(TenantConfig(name="acme", max_calls=1),))
    async with rig(config) as r:
        session = r.open(uid=0)
        r.launch(session)
        waiting = asyncio.create_task(r.host.begin(session, intent=Intent(), argv=["x"]))
        await turn()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(r.host.queue) == 0
        assert len(r.host.registry.calls) == 1


async def test_what_does_not_fit_is_refused_with_the_field() -> None:
    async with rig() as r:
        session = r.open()
        with pytest.raises(Refused) as refused:
            await r.host.begin(session, intent=Intent(memory_peak=2048 * MIB), argv=["x"])
        assert refused.value.field == "intent.memory_peak"
        assert refused.value.code == "above_ceiling"
        assert r.backend.leaves == {}
        degraded = await r.host.begin(
            session, intent=Intent(memory_peak=2048 * MIB, on_pressure=OnPressure.DEGRADE), argv=["x"]
        )
        assert degraded.grant.tripwire.brake == 1024 * MIB
        assert degraded.grant.notes


async def test_nobody_raises_his_own_priority() -> None:
    async with rig() as r:
        view = await r.host.begin(r.open(), intent=Intent(priority=99), argv=["x"])
        assert view.grant.priority == 50
        assert "priority" in view.grant.notes[0]


async def test_an_observing_host_refuses_limits() -> None:
    async with rig(enforcing=False) as r:
        session = r.open()
        for intent in (Intent(memory_peak=MIB), Intent(cpu=1), Intent(network=Network.NONE), Intent(pids=5)):
            with pytest.raises(CannotEnforce, match="only observes"):
                await r.host.begin(session, intent=intent, argv=["x"])
        assert not (await r.host.begin(session, intent=Intent(tool="x"), argv=["x"])).grant.enforced


async def test_limits_above_the_tenants_are_refused() -> None:
    async with rig() as r:
        call = r.launch(r.open())
        with pytest.raises(InvalidRequest, match="above the ceiling of tenant 'acme'"):
            r.host.set_limits(call.id, limits=Limits(memory_max=2048 * MIB), tripwire=None)
        r.host.set_limits(call.id, limits=Limits(memory_max=512 * MIB), tripwire=Tripwire(brake=256 * MIB))
        assert r.backend.leaves[call.id].grant.tripwire.brake == 256 * MIB
        r.host.set_limits(call.id, limits=Limits(), tripwire=Tripwire(brake=0))
        assert r.backend.leaves[call.id].grant.tripwire.brake is None


async def test_tokens() -> None:
    async with rig() as r:
        view, token = r.host.open_session(tenant="acme", name="a", uid=1000, labels={})
        assert r.host.authenticate(token).id == view.id
        with pytest.raises(NotAllowed):
            r.host.authenticate(token + "x")
        r.host.registry.sessions[view.id].token_expires = 0
        with pytest.raises(NotAllowed, match="expired"):
            r.host.authenticate(token)


async def test_sessions_close() -> None:
    async with rig() as r:
        session = r.open()
        call = r.launch(session)
        with pytest.raises(WrongState, match="still runs 1 call"):
            await r.host.close_session(session, kill=False)
        closing = asyncio.create_task(r.host.close_session(session, kill=True))
        await turn()
        assert (await r.host.end(call.id, 9)).reason is Reason.CANCELLED
        await closing
        assert r.journal.closed == [session]
        with pytest.raises(NotFound):
            await r.host.begin(session, intent=Intent(), argv=["x"])


async def test_a_deadline_ends_the_call() -> None:
    async with rig() as r:
        call = r.launch(r.open(), Intent(deadline=0.01))
        await asyncio.wait_for(call.ended.wait(), 10)
        assert (await r.host.end(call.id, 9)).reason is Reason.TIMEOUT


async def test_subscribers_see_their_session_only() -> None:
    async with rig() as r:
        mine, other = r.open(), r.open()
        subscription = r.host.subscribe(session_id=mine)
        r.launch(other, pid=100)
        call = r.launch(mine, pid=200)
        update = await anext(subscription)
        assert getattr(update, "id", None) == call.id
        subscription.close()
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)


async def test_a_slow_subscriber_loses_updates_not_memory() -> None:
    async with rig() as r:
        session = r.open()
        subscription = r.host.subscribe()
        for pid in range(2, 1502):
            r.launch(session, pid=pid)
        assert subscription.lost > 0
        subscription.close()


async def test_unknown_names() -> None:
    async with rig() as r:
        with pytest.raises(NotFound, match="acme"):
            r.host.open_session(tenant="nobody", name="", uid=0, labels={})
        with pytest.raises(NotFound):
            await r.host.kill("c-nothing", by="operator")
        with pytest.raises(InvalidRequest):
            r.host.set_tenant("Not A Name", limits=None, priority=None)
