"""The coordinator over recording effects: what each call, turn and answer of an engine leads to."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from controller.model import (
    Reason,
    SessionId,
    new_session_id,
)
from gpu.engines import (
    Batch,
    Gap,
    KvIndex,
    Removed,
    Slot,
    Stored,
)
from gpu.errors import EngineRefused, EngineUnreachable, InvalidValue
from gpu.policy import (
    KvAction,
    Restore,
)
from tests.unit.ledger_objects import ended
from tests.unit.tier_bench import SIZE, TENANT, Bench, Script


@pytest.fixture
def session() -> SessionId:
    return new_session_id()


async def test_a_pause_that_is_kept_moves_nothing(session: SessionId) -> None:
    script = Script()
    bench = Bench(script)
    bench.turn(session)
    call = await bench.begin(session, duration=9.0)
    (pause,) = script.pauses
    assert (pause.tokens, pause.expected) == (500, 9.0)
    assert script.tiers[0].bytes_per_token == SIZE
    await bench.end(call)
    assert (bench.acts, bench.kinds, bench.log.decisions) == ([], [], [])
    totals = bench.coordinator.pauses["local"]
    assert totals.pauses == 1
    assert totals.resident == pytest.approx(totals.seconds * 500 * SIZE, rel=1e-3)


async def test_offloaded_at_a_pause_and_back_at_its_end(session: SessionId) -> None:
    bench = Bench(Script(action=KvAction.OFFLOAD))
    entry = bench.turn(session)
    call = await bench.begin(session)
    assert (bench.acts, entry.kv.residency, entry.saved_bytes) == (["offload"], "offloaded", 500 * SIZE)
    await bench.end(call)
    assert (bench.acts, entry.kv.residency) == (["offload", "restore"], "resident")
    assert bench.kinds == ["offloaded", "restored"]
    assert [one.action for one in bench.log.decisions] == ["offload", "restore"]
    assert all(one.session_id == session and one.policy == "kv:script" for one in bench.log.decisions)
    assert bench.log.decisions[0].evidence["tokens"] == 500


@pytest.mark.parametrize(("busy", "tokens"), [(True, 0), (False, 700)])
async def test_an_agent_that_is_quicker_than_the_restore_keeps_what_it_computed(
    session: SessionId, busy: bool, tokens: int
) -> None:
    bench = Bench(Script(action=KvAction.OFFLOAD))
    entry = bench.turn(session)
    call = await bench.begin(session)
    bench.effects.slots[0] = Slot(id=0, context_tokens=2048, busy=busy, tokens=tokens)
    await bench.end(call)
    assert (bench.acts, bench.kinds) == (["offload"], ["offloaded", "dropped"])
    bench.turn(session, prompt=700)
    assert (entry.kv.residency, bench.kinds) == ("resident", ["offloaded", "dropped", "recomputed"])


async def test_vllm_tells_by_its_events_that_a_session_was_put_out(session: SessionId) -> None:
    bench = Bench(Script(), slots=None)
    entry = bench.turn(session, "c")
    index = bench.watch.index = KvIndex()
    index.feed(Batch(1, 0.0, (Stored((1, 2), 16, session=entry.key),)))
    bench.turns.indexed(bench.watch)
    index.feed(Batch(2, 0.0, (Removed((1,)),)))
    bench.turns.indexed(bench.watch)
    assert entry.kv.residency == "resident"  # a part is still there
    index.feed(Batch(3, 0.0, (Removed((2,)),)))
    bench.turns.indexed(bench.watch)
    assert (entry.kv.residency, bench.kinds) == ("dropped", ["preempted"])
    bench.turn(session, "c", prompt=600)
    index.feed(Gap(4, 9, "lost"))
    bench.turns.indexed(bench.watch)
    assert entry.kv.residency == "resident"  # an index with holes proves nothing


async def test_the_model_waits_for_the_last_of_several_calls(session: SessionId) -> None:
    bench = Bench(Script(action=KvAction.OFFLOAD))
    entry = bench.turn(session)
    one, other = await bench.begin(session, duration=1.0), await bench.begin(session, duration=5.0)
    assert entry.expected == 5.0
    await bench.end(one)
    assert bench.acts == ["offload"]
    await bench.end(other)
    assert bench.acts == ["offload", "restore"]


async def test_a_policy_fetches_ahead_of_the_end(session: SessionId) -> None:
    restore = Restore(session="", after=0.0, why="the pool is free")
    bench = Bench(Script(action=KvAction.OFFLOAD, restore=restore))
    entry = bench.turn(session)
    await bench.begin(session)
    await bench.until(lambda: entry.kv.residency == "resident")
    assert entry.paused
    assert bench.acts == ["offload", "restore"]


async def test_a_time_to_live_ends_in_what_the_policy_says_then(session: SessionId) -> None:
    bench = Bench(Script(ttl=0.001, late=KvAction.DROP))
    entry = bench.turn(session)
    await bench.begin(session)
    assert entry.keep_until is not None
    await bench.until(lambda: entry.kv.residency == "dropped")
    assert bench.kinds == ["dropped"]


async def test_a_call_that_returns_in_time_cancels_the_time_to_live(session: SessionId) -> None:
    bench = Bench(Script(ttl=0.01, late=KvAction.DROP))
    entry = bench.turn(session)
    await bench.end(await bench.begin(session))
    assert (entry.timer, entry.keep_until) == (None, None)


async def test_nothing_is_done_to_an_engine_that_is_observed_or_away(session: SessionId) -> None:
    for bench in (Bench(Script(action=KvAction.DROP), control=False), Bench(Script(action=KvAction.DROP))):
        if bench.section.control:
            bench.watch.state = "down"
        entry = bench.turn(session)
        bench.read(500, 0, used=4000)
        await bench.end(await bench.begin(session))
        bench.coordinator.session_closed(session)
        await bench.coordinator.settled()
        assert (bench.acts, bench.kinds) == ([], [])
        assert entry.kv.residency == "closed"


REFUSED = EngineRefused("no", engine="local", status=400)
SILENT = EngineUnreachable("no answer", engine="local")
EMPTY = InvalidValue("holds no KV")


@pytest.mark.parametrize(
    ("act", "error", "left"),
    [
        ("offload", REFUSED, "resident"),
        ("offload", SILENT, "resident"),
        ("offload", EMPTY, "dropped"),
        ("drop", REFUSED, "resident"),
        ("drop", SILENT, "resident"),
        ("drop", EMPTY, "dropped"),
        ("restore", REFUSED, "dropped"),
        ("restore", SILENT, "offloaded"),
        ("restore", EMPTY, "offloaded"),
    ],
)
async def test_a_failed_move_ends_in_a_known_state(session: SessionId, act: str, error: Exception, left: str) -> None:
    bench = Bench(Script(action=KvAction.DROP if act == "drop" else KvAction.OFFLOAD))
    entry = bench.turn(session)
    bench.effects.fail[act] = error
    call = await bench.begin(session)
    if act == "restore":
        await bench.end(call)
    assert entry.kv.residency == left
    assert bench.coordinator.moves.failures == 1
    assert [one.action for one in bench.log.decisions] == (["offload"] if act == "restore" else [])
    # and from there it goes on: the next turn is booked, whatever happened
    bench.turn(session)
    assert entry.kv.residency == "resident"


async def test_what_an_engine_cannot_do_is_not_asked_for(session: SessionId) -> None:
    bench = Bench(Script(action=KvAction.OFFLOAD), slots=None, offload="no", restore="no", drop="no")
    entry = bench.turn(session, "c")
    await bench.begin(session, "c")
    assert (bench.acts, entry.kv.residency) == ([], "resident")


async def test_a_restarted_engine_has_lost_what_was_in_its_pool(session: SessionId) -> None:
    bench, other = Bench(Script()), new_session_id()
    entry, away = bench.turn(session), bench.turn(other, "slot:1")
    cast(Script, bench.coordinator.sight.policy(bench.watch)).action = KvAction.OFFLOAD
    await bench.begin(other, "slot:1")
    bench.coordinator.restarted(bench.watch)
    assert (entry.kv.residency, entry.kv.why) == ("dropped", "the engine was restarted")
    assert away.kv.residency == "offloaded"  # its file outlives the server


async def test_a_slot_that_somebody_else_erased(session: SessionId) -> None:
    bench = Bench(Script())
    entry = bench.turn(session)
    bench.read(500, 0)
    bench.read(0, 0)
    assert entry.kv.residency == "resident"  # one look may be older than the turn
    bench.read(0, 0)
    assert (entry.kv.residency, bench.kinds) == ("dropped", ["dropped"])


async def test_what_was_restored_shows_no_tokens_until_a_turn_ran(session: SessionId) -> None:
    bench = Bench(Script(action=KvAction.OFFLOAD))
    entry = bench.turn(session)
    await bench.end(await bench.begin(session))
    for _ in range(3):
        bench.read(0, 0)
    assert entry.kv.residency == "resident"


async def test_turns_that_nobody_reports_are_read_off_the_slot(session: SessionId) -> None:
    bench = Bench(Script())
    await bench.end(await bench.begin(session))  # only the call names the slot
    bench.read(300, 0)
    entry = bench.coordinator.book.find(session, "local", "slot:0")
    assert entry is not None
    assert (entry.kv.residency, entry.kv.tokens) == ("resident", 300)
    bench.read(450, 0)
    assert (entry.kv.tokens, entry.kv.computed_tokens, entry.kv.cached_tokens) == (450, 450, 300)


async def test_under_pressure_the_policy_names_who_goes(session: SessionId) -> None:
    bench = Bench(Script(victims=(KvAction.DROP,)), slots=None)
    entry = bench.turn(session, "c")
    await bench.begin(session, "c")
    bench.read(used=4096)
    await bench.coordinator.settled()
    assert entry.kv.residency == "dropped"
    assert bench.hints[0].urgency == 0.5


async def test_lost_updates_are_made_up_for(session: SessionId) -> None:
    bench = Bench(Script())
    entry = bench.turn(session)
    gone = await bench.begin(session)
    there = bench.call(session)
    bench.coordinator.reconcile({there.id: there})
    assert list(entry.calls) == [there.id]
    assert gone.id not in entry.calls
    bench.coordinator.reconcile({})
    assert not entry.paused
    await bench.coordinator.settled()


async def test_a_session_that_ends_frees_its_slot(session: SessionId) -> None:
    bench = Bench(Script())
    bench.turn(session)
    bench.coordinator.session_closed(session)
    await bench.coordinator.settled()
    assert bench.acts == ["drop"]
    assert bench.coordinator.book.slots("local") == {}
    assert len(bench.coordinator.book) == 0


async def test_an_agent_names_only_so_many_conversations(session: SessionId) -> None:
    bench = Bench(Script())
    for number in range(100):
        bench.coordinator.bind(session, TENANT, "local", f"x{number}")
    assert len(bench.coordinator.book) == 64
    assert bench.coordinator.bind(session, TENANT, "elsewhere", "") is None


async def test_durations_are_learned_of_calls_that_ended_by_themselves(session: SessionId) -> None:
    script = Script()
    bench = Bench(script)
    bench.turn(session)
    for number in range(9):
        finished = ended(bench.call(session))
        assert finished.outcome is not None
        outcome = replace(finished.outcome, reason=Reason.EXITED, wall_seconds=float(number))
        bench.coordinator.call_ended(replace(finished, outcome=outcome))
    killed = replace(outcome, reason=Reason.OPERATOR_KILLED, wall_seconds=99.0)
    bench.coordinator.call_ended(replace(finished, outcome=killed))
    await bench.begin(session)
    assert sorted(script.pauses[-1].durations) == [float(number) for number in range(9)]


async def test_what_is_bound_before_the_engine_was_seen_is_sized_later(session: SessionId) -> None:
    bench = Bench(Script())
    info, bench.watch.info = bench.watch.info, None
    entry = bench.turn(session, "c")
    call = await bench.begin(session, "c")
    (before,) = bench.coordinator.book.views()
    assert (before.bytes, before.tokens, entry.bytes_known) == (0, 500, False)
    bench.watch.info = info
    bench.read(500, 0)
    (after,) = bench.coordinator.book.views()
    assert (after.bytes, entry.bytes_known) == (500 * SIZE, True)
    await bench.end(call)
    totals = bench.coordinator.pauses["local"]
    assert totals.resident == pytest.approx(totals.seconds * 500 * SIZE, rel=1e-3)  # one unit, from its begin
