"""The control loop over a recording backend: which rounds are made, and what of them reaches calls and their agents."""

from __future__ import annotations

import asyncio

import pytest

from controller.config import HostConfig, TenantConfig
from controller.host import Host
from controller.model import (
    Action,
    CallState,
    Intent,
    Limits,
    OnPressure,
    Reason,
    Refused,
    SessionId,
    Squeeze,
    Tripwire,
    Usage,
)
from controller.queueing import Wait
from controller.registry import Call, now
from tests.support.backend import RecordingBackend
from tests.unit.test_host import MIB, Rig, rig, state, turn

TWO = HostConfig(
    tenants=(
        TenantConfig(name="acme", uids=frozenset({1000})),
        TenantConfig(name="beta", uids=frozenset({1001}), priority=20),
    ),
    memory=1000 * MIB,
    memory_reserve=0.1,
    leftover_grace=0.01,
)


def squeeze_of(r: Rig, call: Call) -> Squeeze:
    squeeze = r.backend.leaves[call.id].squeeze
    assert squeeze is not None
    return squeeze


def uses(r: Rig, call: Call, megabytes: int) -> None:
    """From now on the kernel says so."""
    leaf = r.backend.leaves[call.id]
    before = leaf.memory
    leaf.memory = megabytes * MIB
    leaf.usage = Usage(memory_now=leaf.memory, memory_peak=leaf.memory)
    tenant = call.ref.tenant_id
    r.backend.tenant_use[tenant] = r.backend.tenant_use.get(tenant, 0) + leaf.memory - before


async def ask(r: Rig, session: str, intent: Intent) -> tuple[Call, Wait | None]:
    call = r.host.prepare(r.host.registry.session(session).id, intent=intent, argv=["x"])
    return call, r.host.begin_now(call)


async def test_several_events_in_one_turn_make_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(TWO) as r:
        session = r.open()
        calls = [r.launch(session, Intent(memory_peak=100 * MIB), pid=n) for n in (10, 20)]
        rounds = 0
        decided = r.host.live.round

        def counted() -> None:
            nonlocal rounds
            rounds += 1
            decided()

        monkeypatch.setattr(r.host.live, "round", counted)
        for call in calls:
            uses(r, call, 101)
            r.host.events.on_braked(call.id, call.main_pid, 101 * MIB, 100 * MIB, 0.001)
        r.host.events.on_pressure()
        await turn()
        assert rounds == 1
        assert [state(c) for c in calls] == [CallState.RUNNING] * 2


async def test_slack_is_taken_back_and_given_back() -> None:
    async with rig(TWO) as r:
        session, other = r.open(), r.open("beta", uid=1001)
        roomy = r.launch(session, Intent(memory_typical=50 * MIB, memory_peak=800 * MIB), pid=10)
        assert roomy.grant.tripwire.brake == 800 * MIB
        uses(r, roomy, 20)
        roomy_priority = roomy.grant.priority
        newcomer, wait = await ask(r, other, Intent(memory_peak=400 * MIB))
        assert wait is not None, "a lower priority takes nothing from a higher one"
        waiting = asyncio.create_task(r.host.wait_turn(newcomer, wait))
        await turn()
        r.host.set_priority("beta", roomy_priority)
        r.host.live.tick()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        newcomer, wait = await ask(r, other, Intent(memory_peak=400 * MIB))
        assert wait is None
        assert state(roomy) is CallState.RUNNING, "what it does not use slows nobody"
        assert r.actions(roomy) == [Action.LIMIT]
        brake = r.backend.leaves[roomy.id].grant.tripwire.brake
        assert brake == 50 * MIB, "what it typically uses stays its own"
        await r.host.end(newcomer.id, 0)
        await turn()
        assert r.actions(roomy) == [Action.LIMIT] * 2
        assert (r.backend.leaves[roomy.id].grant.tripwire.brake or 0) > 400 * MIB


async def test_a_call_without_a_threshold_gets_one_only_while_memory_is_short() -> None:
    async with rig(TWO) as r:
        session = r.open()
        call, big = r.launch(session, pid=10), r.launch(session, pid=20)
        assert call.grant.tripwire.brake is None
        assert call.grant.tripwire.notify is not None, "somebody looks before it could take all"
        uses(r, big, 750)
        r.host.events.on_notice(big.id, 750 * MIB, big.grant.tripwire.notify or 0)
        await turn()
        assert r.backend.leaves[call.id].grant.tripwire.brake is not None
        assert big.grant.tripwire.brake is not None
        assert [a for a in r.actions(call) if a is not Action.LIMIT] == [], "nothing was done to it"
        uses(r, big, 100)
        await r.host.sampler.round()
        r.host.live.tick()
        await turn()
        assert r.backend.leaves[call.id].grant.tripwire.brake is None


async def test_an_agent_that_grows_makes_a_round_and_its_notice_comes_nearer() -> None:
    async with rig(HostConfig(memory=1000 * MIB)) as r:
        session = r.open("default")
        identity = r.host.registry.session(session).id
        r.host.enter_session(identity, 4711)
        far = r.backend.watched[identity]
        call = r.launch(session, Intent())
        assert not call.grant.tripwire.brake
        r.backend.tenant_use[call.ref.tenant_id] = 850 * MIB
        assert r.backend.listener is not None
        r.backend.listener.on_agent_grew(identity)
        await turn()
        assert r.backend.leaves[call.id].grant.tripwire.brake, "memory is short, and nobody had to ask"
        assert 8 * MIB <= r.backend.watched[identity] < far
        r.backend.listener.on_agent_grew(SessionId("s-gone"))  # its event was on the way


async def test_an_operators_word_on_thresholds_stands() -> None:
    async with rig(TWO) as r:
        session = r.open()
        free, bound = r.launch(session, pid=10), r.launch(session, pid=20)
        r.host.set_limits(free.id, limits=Limits(), tripwire=Tripwire(brake=0))
        r.host.set_limits(bound.id, limits=Limits(), tripwire=Tripwire(brake=300 * MIB))
        uses(r, bound, 290)
        uses(r, free, 500)
        r.host.live.soon()
        await turn()
        assert free.grant.tripwire.brake is None, "memory is short, and it stays without"
        assert bound.grant.tripwire.brake == 300 * MIB


async def test_the_lowest_priority_is_frozen_then_ended_and_the_rest_goes_on() -> None:
    async with rig(TWO) as r:
        high = r.launch(r.open(), pid=10)
        low = r.launch(r.open("beta", uid=1001), pid=20)
        uses(r, high, 400)
        uses(r, low, 400)
        r.backend.tenant_use[high.ref.tenant_id] = 545 * MIB  # an agent of it uses the rest
        r.host.live.soon()
        await turn()
        assert (state(low), state(high)) == (CallState.FROZEN, CallState.RUNNING)
        assert low.waits_for
        r.backend.tenant_use[high.ref.tenant_id] = 600 * MIB
        r.host.live.soon()
        await turn()
        assert low.killed_as is Reason.PRESSURE_KILLED
        assert state(high) is CallState.RUNNING


async def test_a_frozen_call_goes_on_when_pressure_has_gone() -> None:
    async with rig(TWO) as r:
        high, low = r.launch(r.open(), pid=10), r.launch(r.open("beta", uid=1001), pid=20)
        uses(r, high, 400)
        uses(r, low, 400)
        r.backend.tenant_use[high.ref.tenant_id] = 545 * MIB
        r.host.live.soon()
        await turn()
        assert state(low) is CallState.FROZEN
        uses(r, high, 100)
        await r.host.sampler.round()
        r.host.live.tick()
        await turn()
        assert state(low) is not CallState.FROZEN
        assert r.actions(low)[:2] == [Action.LIMIT, Action.FREEZE]
        assert Action.THAW in r.actions(low)


async def test_page_cache_is_no_reason_to_hold_anybody() -> None:
    async with rig(TWO) as r:
        call = r.launch(r.open(), Intent(memory_peak=600 * MIB), pid=10)
        uses(r, call, 601)
        r.backend.tenant_use[call.ref.tenant_id] = 980 * MIB
        r.backend.tenant_file_cache[call.ref.tenant_id] = 500 * MIB
        r.host.events.on_braked(call.id, 10, 601 * MIB, 600 * MIB, 0.001)
        await turn()
        assert state(call) is CallState.RUNNING
        assert call.killed_as is None


async def test_a_call_full_of_page_cache_gives_that_back_and_goes_on() -> None:
    async with rig(TWO) as r:
        call = r.launch(r.open(), Intent(memory_peak=100 * MIB), pid=10)
        uses(r, call, 190)
        leaf = r.backend.leaves[call.id]
        leaf.page_cache = 150 * MIB
        updates = r.host.subscribe()
        r.host.events.on_braked(call.id, 10, 190 * MIB, 100 * MIB, 0.001)
        async with asyncio.timeout(10):
            async for update in updates:
                if getattr(update, "state", None) is CallState.RUNNING:
                    break
        updates.close()
        assert (leaf.killed, leaf.memory) == (False, 40 * MIB)
        assert r.actions(call) == [Action.BRAKE, Action.LIMIT, Action.RAISE]
        uses(r, call, 190)
        r.host.events.on_braked(call.id, 10, 190 * MIB, call.grant.tripwire.brake or 0, 0.001)
        await turn()
        assert leaf.killed, "what it uses now is no cache"


async def test_urgency_goes_ahead_in_the_queue() -> None:
    async with rig(TWO) as r:
        one, two = r.open(), r.open()
        holder = r.launch(one, Intent(memory_peak=800 * MIB), pid=10)
        uses(r, holder, 800)
        waiting = []
        for session in (one, two):
            call, wait = await ask(r, session, Intent(memory_peak=500 * MIB))
            assert wait is not None
            waiting.append(asyncio.create_task(r.host.wait_turn(call, wait)))
            await turn()
        r.host.set_urgency(two, 30.0)
        r.exits(holder, 10)
        uses(r, holder, 0)
        await r.host.end(holder.id, 0)
        await turn()
        assert [w.done() for w in waiting] == [False, True]
        waiting[0].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_queued_launcher_is_told_again_when_its_time_has_changed_much() -> None:
    async with rig(TWO) as r:
        session = r.open()
        holder = r.launch(session, Intent(memory_peak=800 * MIB, duration=100.0), pid=10)
        uses(r, holder, 800)
        call, wait = await ask(r, session, Intent(memory_peak=500 * MIB))
        assert wait is not None
        assert wait.eta == pytest.approx(100.0, abs=1.0)
        told: list[float | None] = []
        call.tell_queued = lambda eta, _: told.append(eta)
        waiting = asyncio.create_task(r.host.wait_turn(call, wait))
        await turn()
        r.host.live.round()
        assert told == []
        holder.begun_at -= 60.0
        r.host.live.round()
        assert told == [pytest.approx(40.0, abs=1.0)]
        [view] = [c for c in r.host.snapshot().calls if c.state is CallState.QUEUED]
        assert view.eta == pytest.approx(now() + 40.0, abs=1.0)
        assert "are free" in view.waits_for
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


@pytest.mark.parametrize("pressure", [OnPressure.FAIL_FAST, OnPressure.DEGRADE])
async def test_who_does_not_wait_is_refused_or_gets_less(pressure: OnPressure) -> None:
    async with rig(TWO) as r:
        session = r.open()
        holder = r.launch(session, Intent(memory_peak=800 * MIB), pid=10)
        uses(r, holder, 800)
        intent = Intent(memory_typical=300 * MIB, memory_peak=500 * MIB, on_pressure=pressure)
        if pressure is OnPressure.FAIL_FAST:
            with pytest.raises(Refused) as refused:
                await ask(r, session, intent)
            assert (refused.value.code, refused.value.field) == ("no_memory", "intent.memory_typical")
            return
        call, wait = await ask(r, session, intent)
        assert wait is None
        assert call.grant.tripwire.brake == 100 * MIB
        assert "500 MiB asked, 100 MiB given" in call.grant.notes[0]


async def test_a_host_that_observes_keeps_nobody_waiting_for_memory() -> None:
    async with rig(TWO, enforcing=False) as r:
        session = r.open()
        for pid in range(10, 40):
            call = r.launch(session, Intent(memory_typical=900 * MIB), pid=pid)
            assert state(call) is CallState.RUNNING


async def test_what_is_squeezed_under_pressure_is_slowed_too() -> None:
    async with rig(TWO) as r:
        low = r.launch(r.open("beta", uid=1001), Intent(memory_peak=500 * MIB), pid=20)
        uses(r, low, 100)
        r.backend.tenant_use[low.ref.tenant_id] = 800 * MIB  # agents: 700 of 900, and 500 are promised
        r.host.live.soon()
        await turn()
        squeeze = squeeze_of(r, low)
        assert (squeeze.cpu_weight, squeeze.memory_high) == (25, 108 * MIB)
        assert r.actions(low) == [Action.THROTTLE]
        assert state(low) is CallState.THROTTLED
        r.backend.tenant_use[low.ref.tenant_id] = 110 * MIB
        uses(r, low, 109)
        r.host.events.on_braked(low.id, 20, 109 * MIB, 108 * MIB, 0.001)
        await turn()
        assert squeeze_of(r, low).memory_high == low.grant.tripwire.brake, "no lower than what it was given"
        r.host.live.tick()
        await turn()
        assert r.actions(low) == [Action.THROTTLE, Action.BRAKE, Action.RAISE, Action.RELAX]
        assert r.backend.leaves[low.id].squeeze is None


def test_the_facade_is_what_others_build_on() -> None:
    assert callable(Host.set_urgency)
    assert RecordingBackend().can_brake
