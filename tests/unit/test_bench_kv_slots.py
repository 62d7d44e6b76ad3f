"""Sessions and slots: against an engine that records, in arbitrary orders, and on the real llama.cpp server."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu.engines import EngineConfig, EngineKind, KvMoved, KvRef, LlamaCpp, make_engine
from gpu.errors import EngineUnreachable
from gpu.policy import AlwaysKeep, AlwaysOffload, KvPolicy, LeastRecentlyUsed, Pause, Place, Restore, ShadowPrice, Tier
from tests.bench.kv_costs import Costs
from tests.bench.kv_slots import Slots
from tests.support import tiny_gguf
from tests.support.llamacpp import llamacpp

UNIT = 10  # bytes per token


class Engine:
    """What lies in each slot and in each file, as a server would have it; refuses what a server would."""

    def __init__(self, count: int) -> None:
        self.slots: list[str | None] = [None] * count
        self.files: dict[str, int] = {}
        self.done: list[str] = []
        self.running: set[int] = set()
        self.fails = False
        self.gate: asyncio.Event | None = None

    async def _pass(self, what: str, ref: KvRef) -> int:
        assert ref.slot is not None
        assert ref.slot not in self.running, f"{what} of a slot in which a turn runs"
        if self.gate is not None:
            await self.gate.wait()
        else:
            await asyncio.sleep(0)
        if self.fails:
            raise EngineUnreachable("it is gone", engine="e")
        assert ref.slot not in self.running, f"{what} of a slot in which a turn runs"
        self.done.append(f"{what} {ref.session} {ref.slot}")
        return ref.slot

    async def offload(self, ref: KvRef) -> KvMoved:
        slot = await self._pass("offload", ref)
        assert self.slots[slot] == ref.session, f"{ref.session} offloaded from a slot of {self.slots[slot]}"
        self.slots[slot] = None
        self.files[ref.session] = 1000
        return KvMoved(tokens=100, bytes=1000, seconds=0.001)

    async def restore(self, ref: KvRef) -> KvMoved:
        slot = await self._pass("restore", ref)
        assert ref.session in self.files
        self.slots[slot] = ref.session
        return KvMoved(tokens=100, bytes=1000, seconds=0.001)

    async def drop(self, ref: KvRef) -> KvMoved:
        slot = await self._pass("drop", ref)
        self.slots[slot] = None
        return KvMoved(tokens=100, bytes=1000)


def slots_of(engine: Engine, policy: KvPolicy, *, store: int = 10_000) -> Slots:
    return Slots(engine, count=len(engine.slots), policy=policy, store_bytes=store, bytes_per_token=UNIT)


async def turn(slots: Slots, engine: Engine, session: str) -> int:
    slot = await asyncio.wait_for(slots.acquire(session), 10)
    engine.slots[slot] = session
    slots.release(session, tokens=100)
    return slot


async def settled(slots: Slots) -> None:
    while slots._moves:
        await asyncio.wait(slots._moves)


async def test_a_session_keeps_its_slot_and_another_waits_until_a_turn_ends() -> None:
    engine = Engine(1)
    slots = slots_of(engine, LeastRecentlyUsed())
    assert await slots.acquire("a") == 0
    second = asyncio.ensure_future(slots.acquire("b"))
    third = asyncio.ensure_future(slots.acquire("a"))
    await asyncio.sleep(0)
    assert not second.done()
    assert not third.done()  # turns of one session follow each other
    engine.slots[0] = "a"
    slots.release("a", tokens=100)
    assert await third == 0
    slots.release("a", tokens=100)
    assert await second == 0
    assert engine.done == ["offload a 0"]
    assert slots.where("a") == (Place.OFFLOADED, None, 100)
    engine.slots[0] = "b"
    slots.release("b", tokens=100)
    assert await turn(slots, engine, "a") == 0
    assert engine.done[1:] == ["offload b 0", "restore a 0"]
    assert (slots.totals.offloads, slots.totals.restores, slots.stored) == (2, 1, 1000)
    await slots.close()


async def test_what_has_no_room_outside_is_given_up() -> None:
    engine = Engine(1)
    slots = slots_of(engine, LeastRecentlyUsed(), store=1500)
    for session in ("a", "b", "c"):
        await turn(slots, engine, session)
    # room for one: whoever ran longest ago makes it
    assert engine.done == ["offload a 0", "offload b 0"]
    assert [slots.where(one)[0] for one in "abc"] == [Place.DROPPED, Place.OFFLOADED, Place.RESIDENT]
    assert slots.totals.drops == 1
    await slots.close()
    engine = Engine(1)
    slots = slots_of(engine, LeastRecentlyUsed(), store=500)
    for session in ("a", "b"):
        await turn(slots, engine, session)
    assert (engine.done, slots.where("a")[0]) == ([], Place.DROPPED)
    await slots.close()


async def test_a_pause_puts_out_under_always_offload_and_not_under_always_keep() -> None:
    for policy, done in ((AlwaysOffload(), ["offload a 0"]), (AlwaysKeep(), [])):
        engine = Engine(2)
        slots = slots_of(engine, policy)
        await turn(slots, engine, "a")
        slots.pause_begun("a", expected=5.0)
        await settled(slots)
        assert engine.done == done
        assert slots.where("a")[1] == (None if done else 0)
        slots.pause_ended("a")
        await turn(slots, engine, "a")
        assert slots.totals.held_byte_seconds > 0
        await slots.close()


async def test_ours_puts_out_who_is_back_late_and_gives_up_saved_kv_for_who_is_back_sooner() -> None:
    engine = Engine(2)
    slots = slots_of(engine, ShadowPrice(), store=1500)
    soon, late, never = (0.02,) * 30, (20.0,) * 30, (600.0,) * 30
    for session, durations in (("late", late), ("soon", soon)):
        await turn(slots, engine, session)
        slots.pause_begun(session, durations=durations)
        await settled(slots)
    await turn(slots, engine, "x")
    assert [slots.where(one)[0] for one in ("late", "soon")] == [Place.OFFLOADED, Place.RESIDENT]
    slots.pause_begun("x", durations=never)
    await turn(slots, engine, "y")  # for which x goes, whose KV is worth less outside than late's
    assert [slots.where(one)[0] for one in ("late", "soon", "x")] == [Place.OFFLOADED, Place.RESIDENT, Place.DROPPED]
    await slots.close()


async def test_offloaded_kv_is_back_before_the_call_ends_where_a_slot_is_free() -> None:
    engine = Engine(1)
    slots = slots_of(engine, AlwaysOffloadThenReturn())
    await turn(slots, engine, "a")
    slots.pause_begun("a", expected=0.01)
    async with asyncio.timeout(10):
        while "restore a 0" not in engine.done:  # noqa: ASYNC110  it is the engine that is asked
            await asyncio.sleep(0.001)
    await settled(slots)
    assert slots.where("a") == (Place.RESIDENT, 0, 100)
    await slots.close()


class AlwaysOffloadThenReturn(AlwaysOffload):
    def before_return(self, pause: Pause, tier: Tier) -> Restore | None:
        return Restore(session=pause.session, after=0.0, why="test")


async def test_a_cancelled_turn_leaves_no_trace() -> None:
    engine = Engine(1)
    slots = slots_of(engine, LeastRecentlyUsed())
    await slots.acquire("a")
    waiting = asyncio.ensure_future(slots.acquire("b"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    engine.slots[0] = "a"
    slots.release("a", tokens=100)
    assert await turn(slots, engine, "a") == 0
    assert engine.done == []
    # granted and cancelled in the same moment: the slot is free again
    await slots.acquire("a")
    granted = asyncio.ensure_future(slots.acquire("a"))
    await asyncio.sleep(0)
    slots.release("a", tokens=100)
    granted.cancel()
    await asyncio.gather(granted, return_exceptions=True)
    await turn(slots, engine, "b")
    await slots.close()


async def test_a_move_that_fails_costs_the_kv_and_nothing_else() -> None:
    engine = Engine(1)
    slots = slots_of(engine, LeastRecentlyUsed())
    await turn(slots, engine, "a")
    engine.fails = True
    await turn(slots, engine, "b")
    assert (slots.where("a")[0], slots.totals.failures, slots.stored) == (Place.DROPPED, 1, 0)
    engine.fails = False
    await turn(slots, engine, "a")
    engine.fails = True
    assert slots.where("b")[0] is Place.OFFLOADED
    await turn(slots, engine, "b")  # cannot be restored, runs all the same
    assert slots.totals.failures >= 2
    await slots.close()


async def test_a_session_that_ends_frees_its_slot_also_in_the_middle_of_things() -> None:
    engine = Engine(1)
    slots = slots_of(engine, AlwaysOffload())
    await slots.acquire("a")
    slots.forget("a")
    waiting = asyncio.ensure_future(slots.acquire("b"))
    await asyncio.sleep(0)
    assert not waiting.done()  # its turn still runs
    slots.release("a", tokens=100)
    assert await waiting == 0
    engine.slots[0] = "b"
    slots.release("b", tokens=100)
    engine.gate = asyncio.Event()
    slots.pause_begun("b")
    slots.forget("b")
    engine.gate.set()
    await settled(slots)
    assert (slots.stored, slots._owner) == (0, [None])
    assert await turn(slots, engine, "c") == 0
    await slots.close()


def test_a_few_copies_that_waited_do_not_end_all_copying() -> None:
    costs = Costs(move_rate=1e9)
    for tokens in (100, 500, 1000, 1500) * 4:
        costs.prefilled(tokens, tokens * 0.0003)
    for seconds in (0.004, 0.5, 0.004, 0.4, 0.004, 0.6):
        costs.moved(2_000_000, seconds)
    assert costs.forward.seconds(1000) == pytest.approx(0.3, rel=0.01)
    assert 2 * costs.swap.seconds(2_000_000) < costs.forward.seconds(1000) / 10


STEPS = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from(("turn", "turn", "turn", "pause", "end", "forget", "cancel"))),
    max_size=60,
)


@given(steps=STEPS, seed=st.integers(0, 1000), policy=st.sampled_from([ShadowPrice, LeastRecentlyUsed, AlwaysOffload]))
@settings(max_examples=60, deadline=None)
def test_whatever_happens_in_whatever_order(steps: list[tuple[str, str]], seed: int, policy: type[KvPolicy]) -> None:
    """No slot has two turns, no move touches a running turn (the engine checks), the store is never overfull, every
    turn gets its slot in the end."""

    async def play() -> None:
        chance = random.Random(seed)  # noqa: S311
        engine = Engine(2)
        slots = slots_of(engine, policy(), store=2000)
        tasks: list[asyncio.Task[None]] = []

        async def one(session: str) -> None:
            slot = await slots.acquire(session)
            assert slot not in engine.running
            engine.running.add(slot)
            engine.slots[slot] = session
            try:
                for _ in range(chance.randint(0, 4)):
                    await asyncio.sleep(0)
            finally:
                engine.running.discard(slot)
                slots.release(session, tokens=100)

        for session, what in steps:
            match what:
                case "turn":
                    tasks.append(asyncio.create_task(one(session)))
                case "cancel" if tasks:
                    tasks[-1].cancel()
                case "pause":
                    slots.pause_begun(session, durations=(0.001, 5.0))
                case "end":
                    slots.pause_ended(session)
                case "forget" if not any(not task.done() for task in tasks):
                    slots.forget(session)
            assert slots.stored <= 2000
            for _ in range(chance.randint(0, 3)):
                await asyncio.sleep(0)
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in ended), ended
        await slots.close()
        assert slots.totals.failures == 0

    asyncio.run(play())


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="no llama.cpp server for this machine")
async def test_on_the_real_server_kv_comes_back_in_whatever_slot_is_free(tmp_path: Path) -> None:
    from agentd.gateway import Gateway, Upstream
    from tests.bench.kv_agents import TurnSeen, turn
    from tests.bench.kv_inprocess import Port

    model = tiny_gguf.write(tmp_path / "tiny.gguf")
    async with llamacpp(model, tmp_path, slots=1) as url:
        engine = make_engine(EngineConfig(name="local", url=url), EngineKind.LLAMACPP)
        assert isinstance(engine, LlamaCpp)
        slots = Slots(
            engine,
            count=1,
            policy=ShadowPrice(),
            store_bytes=64 << 20,
            bytes_per_token=tiny_gguf.KV_BYTES_PER_TOKEN,
            directory=tmp_path,
        )
        gateway = Gateway(Port(slots), Upstream(url, engine="local"), tells_usage=True)
        host, number = await gateway.listen_tcp("127.0.0.1", 0)
        clients = {name: Upstream(f"http://{host}:{number}", engine="g", api_key=name) for name in ("one", "two")}
        texts = {name: f"{name} says what it has to say, " * 12 for name in clients}
        turns: list[TurnSeen] = []
        for _ in range(3):
            for name, client in clients.items():
                said, seen = await turn(client, name, texts[name])
                turns.append(seen)
                texts[name] += said + " and more"
        first, again = turns[:2], turns[2:]
        assert all(one.cached <= 1 for one in first)
        assert all(one.cached > 300 for one in again)  # found, though the other had the only slot meanwhile
        assert (slots.totals.failures, slots.totals.offloads, slots.totals.restores) == (0, 5, 4)
        assert len(list(tmp_path.glob("corral-*.kv"))) == 1  # of the one who is out; the other's copy was removed
        for name, client in clients.items():
            slots.forget(name)
            client.close()
        assert not list(tmp_path.glob("corral-*.kv"))
        await gateway.close()
        await slots.close()
        await engine.close()
