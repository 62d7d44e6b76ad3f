"""The coordinator over recording effects: what each call, turn and answer of an engine leads to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from agentd.config import EngineSection
from agentd.ledger import Switch
from agentd.tier.book import Entry
from agentd.tier.coordinator import Coordinator
from agentd.tier.effects import RecordingEffects
from agentd.tier.engines import EngineWatch, Reading
from agentd.tier.turns import TurnFacts, Turns
from controller.model import (
    CallState,
    CallView,
    Decision,
    Intent,
    Reason,
    SessionId,
    new_call_id,
    new_session_id,
    new_tenant_id,
)
from gpu.engines import (
    Answer,
    Batch,
    Capability,
    Engine,
    EngineInfo,
    EngineKind,
    EngineMetrics,
    Gap,
    KvIndex,
    KvMoved,
    KvRef,
    Removed,
    Slot,
    Stored,
    Support,
)
from gpu.errors import EngineRefused, EngineUnreachable, InvalidValue
from gpu.policy import (
    Admission,
    Defaults,
    HostHint,
    KvAction,
    KvDecision,
    KvPolicy,
    Pause,
    Restore,
    Tier,
    Waiting,
)
from tests.unit.ledger_objects import call as some_call
from tests.unit.ledger_objects import ended

TENANT = new_tenant_id()
SIZE = 100  # bytes a token
MOVED = KvMoved(tokens=500, bytes=500 * SIZE, seconds=0.01)


@dataclass
class Script(Defaults):
    """A policy that says what the test wants, and keeps what it was asked."""

    name: str = "script"
    action: KvAction = KvAction.KEEP
    ttl: float | None = None
    late: KvAction = KvAction.KEEP
    restore: Restore | None = None
    victims: tuple[KvAction, ...] = ()
    pauses: list[Pause] = field(default_factory=list)
    tiers: list[Tier] = field(default_factory=list)
    by_priority: bool = False
    admits: bool = True
    needs: list[int] = field(default_factory=list)

    def order(self, waiting: Sequence[Waiting], tier: Tier) -> tuple[str, ...]:
        if self.by_priority:
            return tuple(one.session for one in sorted(waiting, key=lambda one: -one.priority))
        return super().order(waiting, tier)

    def admit(self, need: int, tier: Tier) -> Admission:
        self.needs.append(need)
        return Admission(admitted=self.admits, why="so says the script")

    def at_pause(self, pause: Pause, tier: Tier) -> KvDecision:
        self.pauses.append(pause)
        self.tiers.append(tier)
        return KvDecision(session=pause.session, action=self.action, why="so says the script", ttl=self.ttl)

    def expired(self, pause: Pause, tier: Tier) -> KvDecision:
        return KvDecision(session=pause.session, action=self.late, why="too late")

    def under_pressure(self, pauses: Sequence[Pause], tier: Tier, need: int) -> tuple[KvDecision, ...]:
        return tuple(
            KvDecision(session=pause.session, action=action, why="no room")
            for pause, action in zip(pauses, self.victims, strict=False)
        )

    def before_return(self, pause: Pause, tier: Tier) -> Restore | None:
        return None if self.restore is None else replace(self.restore, session=pause.session)

    def hints(self, pauses: Sequence[Pause], tier: Tier) -> tuple[HostHint, ...]:
        return tuple(HostHint(session=one.session, urgency=0.5, slack=0.0, why="holds much") for one in pauses)


class Log:
    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.switches: list[Switch] = []

    def decided(self, decision: Decision) -> None:
        self.decisions.append(decision)

    def switched(self, switch: Switch) -> None:
        self.switches.append(switch)


class Adapter:
    """As much of an engine as turns ask of it."""

    def request_fields(self, ref: KvRef, *, priority: int | None = None) -> dict[str, object]:
        return {"id_slot": ref.slot, "cache_prompt": True}


def info(slots: int | None = 2, **no: str) -> EngineInfo:
    capabilities = {one: Support(Answer.YES) for one in Capability} | {
        Capability(name): Support(Answer.NO, why) for name, why in no.items()
    }
    return EngineInfo(
        name="local",
        kind=EngineKind.VLLM if slots is None else EngineKind.LLAMACPP,
        url="http://x:1",
        version="1",
        model="m",
        capabilities=capabilities,
        context_tokens=2048,
        slots=slots,
        kv_tokens=4096,
        kv_bytes_per_token=SIZE,
    )


class Bench:
    def __init__(self, policy: KvPolicy, *, slots: int | None = 2, control: bool = True, **no: str) -> None:
        self.section = EngineSection(url="http://x:1", control=control, declared_slots=True, offload_budget=10**9)
        self.watch = EngineWatch(
            "local",
            self.section,
            on_reading=lambda watch, reading: None,
            on_restart=lambda watch: None,
            on_events=lambda watch: None,
            share=1.0,
        )
        self.watch.info, self.watch.state = info(slots, **no), "up"
        self.watch.engine = cast(Engine, Adapter())
        self.effects = RecordingEffects(moved=MOVED)
        self.log = Log()
        self.hints: list[HostHint] = []
        self.coordinator = Coordinator(
            {"local": self.watch},
            self.effects,
            self.log,
            on_hints=lambda engine, hints: self.hints.extend(hints),
            policies=lambda section: policy,
        )
        self.turns = Turns(self.coordinator, {"local": self.watch})

    def turn(self, session: SessionId, conversation: str = "slot:0", *, prompt: int = 500, cached: int = 0) -> Entry:
        facts = TurnFacts(
            engine="local", conversation=conversation, prompt=prompt, cached=cached, generated=0, prefill=0.5
        )
        self.turns.after(session, TENANT, facts)
        entry = self.coordinator.book.find(session, "local", conversation)
        assert entry is not None
        return entry

    def call(self, session: SessionId, conversation: str = "slot:0", **intent: float) -> CallView:
        return replace(
            some_call(TENANT, session),
            id=new_call_id(),
            state=CallState.RUNNING,
            intent=Intent(tool="t", engine="local", conversation=conversation, duration=intent.get("duration")),
        )

    async def begin(self, session: SessionId, conversation: str = "slot:0", **intent: float) -> CallView:
        call = self.call(session, conversation, **intent)
        self.coordinator.call_begun(call)
        await self.coordinator.settled()
        return call

    async def end(self, call: CallView) -> None:
        self.coordinator.call_ended(ended(call))
        await self.coordinator.settled()

    async def until(self, so: Callable[[], bool]) -> None:
        """Timers and tasks are the coordinator's own and tell nobody: each turn of the loop is looked at."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 30
        while not so():
            assert loop.time() < deadline
            await asyncio.sleep(0.001)
        await self.coordinator.settled()

    @property
    def acts(self) -> list[str]:
        return [what for what, _, _ in self.effects.acts]

    @property
    def kinds(self) -> list[str]:
        return [switch.kind for switch in self.log.switches]

    def read(self, *tokens: int, used: int | None = None) -> None:
        """A look at the engine."""
        slots = tuple(Slot(id=i, context_tokens=2048, busy=False, tokens=one) for i, one in enumerate(tokens))
        reading = Reading(metrics=EngineMetrics(at_nsec=0, kv_total_tokens=4096, kv_used_tokens=used), slots=slots)
        self.watch.reading = reading
        self.turns.looked(self.watch, reading)
        self.coordinator.looked(self.watch)


def is_waiting(bench: Bench, session: SessionId) -> bool:
    entry = bench.coordinator.book.find(session, "local", "c")
    return entry is not None and entry.waiting


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
