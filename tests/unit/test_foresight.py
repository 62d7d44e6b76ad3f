"""What a running host learns of its calls: ETAs of those that wait."""

from __future__ import annotations

import pytest

from controller.config import HostConfig, TenantConfig
from controller.model import Intent, Reason, Usage
from controller.registry import now
from tests.unit.test_host import Rig, rig

MIB = 1 << 20


async def ended(r: Rig, intent: Intent, seconds: float) -> None:
    """A call of that intent that began ``seconds`` ago and ends now."""
    call = r.launch(next(iter(r.host.registry.sessions)), intent)
    call.begun_at -= seconds
    r.backend.leaves[call.id].usage = Usage(memory_peak=80 * MIB)
    r.exits(call, 100)
    assert (await r.host.end(call.id, 0)).reason is Reason.EXITED


async def test_an_eta_comes_from_calls_of_the_kind_and_nothing_is_guessed() -> None:
    async with rig(HostConfig(tenants=(TenantConfig(name="acme", max_calls=1),))) as r:
        session = r.open(uid=0)
        suite = Intent(tool="pytest", call_class="test")
        running = r.launch(session, suite)
        waiting = r.host.prepare(session, intent=suite, argv=["pytest"])
        assert r.host.begin_now(waiting) is not None
        assert r.host.eta(waiting) is None, "no call has ended yet"
        r.exits(running, 100)
        await r.host.end(running.id, 0)
        for _ in range(20):
            await ended(r, suite, 10.0)
        running = r.launch(session, suite)
        running.begun_at -= 4.0
        assert r.host.eta(waiting) == pytest.approx(6.0, abs=1.0)


async def test_a_killed_call_teaches_nothing() -> None:
    async with rig(HostConfig(tenants=(TenantConfig(name="acme", max_calls=2),))) as r:
        session = r.open(uid=0)
        call = r.launch(session)
        r.host.endings.kill(call, Reason.OPERATOR_KILLED, "ended by operator")
        await r.host.end(call.id, 9)
        other = r.launch(session)
        assert r.host.eta(other) is None


async def test_what_the_ledger_knows_is_learned_at_the_start() -> None:
    config = HostConfig(tenants=(TenantConfig(name="acme", max_calls=1),))
    async with rig(config) as before:
        before.open(uid=0)
        for _ in range(20):
            await ended(before, Intent(tool="pytest", call_class="test"), 10.0)
        past = before.journal.ended
    async with rig(config) as r:
        r.host.learn(past)
        session = r.open(uid=0)
        running = r.launch(session, Intent(tool="pytest", call_class="test"))
        running.begun_at -= 3.0
        waiting = r.host.prepare(session, intent=Intent(), argv=["x"])
        assert r.host.eta(waiting) == pytest.approx(7.0, abs=1.0)


async def test_when_it_grew_is_learned_from_samples() -> None:
    """A suite that is small for a while is forecast to grow still, until the age at which such suites have grown."""
    async with rig(HostConfig(tenants=(TenantConfig(name="acme"),))) as r:
        session = r.open(uid=0)
        suite = Intent(tool="pytest", call_class="test")
        for _ in range(20):
            call = r.launch(session, suite)
            for age, megabytes in ((1.0, 20), (3.0, 21), (5.0, 300)):
                call.begun_at -= age - (call.curve[-1][0] if call.curve else 0.0)
                call.measured(Usage(memory_now=megabytes * MIB))
            r.backend.leaves[call.id].usage = Usage(memory_peak=310 * MIB)
            r.exits(call, 100)
            await r.host.end(call.id, 0)
        young = r.launch(session, suite)
        young.memory = 20 * MIB
        young.begun_at -= 2.0
        assert r.host.foresight.need(young, now()).typical > 250 * MIB
        young.begun_at -= 5.0
        assert r.host.foresight.need(young, now()).claim <= 20 * MIB
