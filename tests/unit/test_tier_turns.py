"""Turns through the gateway: slots, who waits for them, who is let in."""

from __future__ import annotations

import asyncio

import pytest

from agentd.tier.turns import TurnFacts
from controller.model import (
    SessionId,
    new_session_id,
)
from gpu.policy import KvAction
from tests.unit.tier_bench import SIZE, TENANT, Bench, Script, is_waiting


@pytest.fixture
def session() -> SessionId:
    return new_session_id()


async def test_three_conversations_share_two_slots_through_the_gateway(session: SessionId) -> None:
    bench = Bench(Script())
    sessions = [session, new_session_id(), new_session_id()]
    fields = []
    for one in sessions:
        fields.append(await bench.turns.before(one, TENANT, "local", "c"))
        bench.turn(one, "c")
    # the third took the slot of the one that ran longest ago, whose KV was offloaded first
    assert [one["id_slot"] for one in fields] == [0, 1, 0]
    assert bench.kinds == ["offloaded"]
    again = await bench.turns.before(session, TENANT, "local", "c")
    assert again["id_slot"] == 1
    assert bench.kinds == ["offloaded", "offloaded", "restored"]


async def test_a_turn_waits_for_a_slot_until_another_turn_ends(session: SessionId) -> None:
    bench = Bench(Script(), slots=2)
    others = [new_session_id(), new_session_id()]
    for one in others:
        await bench.turns.before(one, TENANT, "local", "c")
    waiting = asyncio.ensure_future(bench.turns.before(session, TENANT, "local", "c"))
    await asyncio.sleep(0)
    await bench.until(lambda: is_waiting(bench, session))
    assert not waiting.done()
    bench.turn(others[0], "c")
    assert (await waiting)["id_slot"] == 0


async def test_the_policy_orders_who_waits_for_a_slot(session: SessionId) -> None:
    script = Script()
    bench = Bench(script, slots=1)
    running, late = new_session_id(), new_session_id()
    await bench.turns.before(running, TENANT, "local", "c")
    waits = asyncio.ensure_future(bench.turns.before(session, TENANT, "local", "c", priority=10))
    await bench.until(lambda: is_waiting(bench, session))
    first = asyncio.ensure_future(bench.turns.before(late, TENANT, "local", "c", priority=90))
    await bench.until(lambda: is_waiting(bench, late))
    script.by_priority = True
    bench.turn(running, "c")
    assert (await first)["id_slot"] == 0
    assert not waits.done()
    bench.turn(late, "c")
    assert (await waits)["id_slot"] == 0


async def test_a_new_conversation_waits_until_the_policy_admits_it(session: SessionId) -> None:
    script = Script()
    bench = Bench(script, slots=1)
    other = new_session_id()
    await bench.turns.before(other, TENANT, "local", "c")
    bench.turn(other, "c")
    script.admits = False
    waits = asyncio.ensure_future(bench.turns.before(session, TENANT, "local", "c"))
    await bench.until(lambda: is_waiting(bench, session))
    again = await bench.turns.before(other, TENANT, "local", "c")  # one that has run is in
    assert again["id_slot"] == 0
    assert script.needs[-1] == 500  # as long as the others
    script.admits = True
    bench.turn(other, "c")
    assert (await waits)["id_slot"] == 0


async def test_an_engine_that_goes_away_holds_nobody_up(session: SessionId) -> None:
    bench = Bench(Script(), slots=1)
    await bench.turns.before(new_session_id(), TENANT, "local", "c")
    waits = asyncio.ensure_future(bench.turns.before(session, TENANT, "local", "c"))
    await bench.until(lambda: is_waiting(bench, session))
    bench.watch.state = "down"
    assert await waits == {}


async def test_a_turn_that_gives_up_waiting_leaves_nothing(session: SessionId) -> None:
    bench = Bench(Script(), slots=1)
    await bench.turns.before(new_session_id(), TENANT, "local", "c")
    waiting = asyncio.ensure_future(bench.turns.before(session, TENANT, "local", "c"))
    await bench.until(lambda: is_waiting(bench, session))
    entry = bench.coordinator.book.find(session, "local", "c")
    assert entry is not None
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (entry.turns, entry.waiting, entry.slot, entry.lock.locked()) == (0, False, None, False)


async def test_a_server_that_saves_no_slots_gives_them_over(session: SessionId) -> None:
    bench = Bench(Script(), slots=1, offload="no", restore="no", drop="no")
    other = new_session_id()
    await bench.turns.before(other, TENANT, "local", "c")
    entry = bench.turn(other, "c")
    assert (await bench.turns.before(session, TENANT, "local", "c"))["id_slot"] == 0
    assert (entry.kv.residency, bench.acts) == ("dropped", [])


async def test_what_an_agent_claims_does_not_make_others_go(session: SessionId) -> None:
    """A session that reports impossible turns, in conversations that do not exist, changes nothing for the others."""
    script = Script()
    bench = Bench(script)
    bench.turn(session)
    liar = new_session_id()
    for number in range(100):
        bench.turns.after(
            liar,
            TENANT,
            TurnFacts(engine="local", conversation=f"x{number}", prompt=10**9, cached=0, generated=10**9),
        )
    await bench.begin(session)
    assert script.tiers[-1].used == 500
    assert max(view.tokens for view in bench.coordinator.book.views()) == 2048  # the engine's context

    pool = Bench(script, slots=None)
    pool.turn(session, "c")
    pool.turns.after(liar, TENANT, TurnFacts(engine="local", conversation="x", prompt=2000, cached=0, generated=0))
    pool.read(used=700)
    await pool.begin(session, "c")
    assert script.tiers[-1].used == 700  # the engine's own word


async def test_a_copy_outside_that_is_worth_less_makes_room_for_another(session: SessionId) -> None:
    script = Script(action=KvAction.OFFLOAD)
    bench = Bench(script, slots=1, budget=500 * SIZE)  # one copy
    first, second = session, new_session_id()
    await bench.turns.before(first, TENANT, "local", "c")
    away = bench.turn(first, "c")
    await bench.begin(first, "c")
    assert away.kv.residency == "offloaded"
    script.action = KvAction.KEEP
    await bench.turns.before(second, TENANT, "local", "c")
    here = bench.turn(second, "c")
    await bench.begin(second, "c")
    script.victims = (KvAction.OFFLOAD, KvAction.DROP)  # without the drop there is no room
    script.backwards = True
    assert (await bench.turns.before(new_session_id(), TENANT, "local", "c"))["id_slot"] == 0
    assert (away.kv.residency, here.kv.residency) == ("dropped", "offloaded")


async def test_the_budget_for_offloaded_kv_holds_whatever_a_policy_says(session: SessionId) -> None:
    bench = Bench(Script(action=KvAction.OFFLOAD), budget=500 * SIZE)
    other = new_session_id()
    one, two = bench.turn(session), bench.turn(other, "slot:1")
    await bench.begin(session)
    await bench.begin(other, "slot:1")
    assert (one.kv.residency, two.kv.residency) == ("offloaded", "dropped")
    assert "no room to offload to" in bench.log.decisions[-1].reason
