"""The KV ledger: each transition, and properties over any sequence of events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu.errors import LedgerError
from gpu.ledger import (
    Closed,
    ContextSwitch,
    Dropped,
    KvLedger,
    LedgerEvent,
    LedgerRecord,
    Offloaded,
    PauseBegun,
    PauseEnded,
    PauseRecord,
    Preempted,
    Residency,
    Restored,
    SessionKv,
    SwitchKind,
    Turn,
)

SECOND = 1_000_000_000
KV = 2048  # bytes a token


def turn(at: float, computed: int, cached: int = 0, generated: int = 0, seconds: float = 0.0) -> Turn:
    return Turn(at_nsec=int(at * SECOND), computed=computed, cached=cached, generated=generated, seconds=seconds)


def at(seconds: float) -> int:
    return int(seconds * SECOND)


def ledger() -> KvLedger:
    return KvLedger(bytes_per_token=KV, gamma=0.5)


def play(book: KvLedger, *events: LedgerEvent, session: str = "s") -> list[LedgerRecord]:
    return [record for event in events for record in book.apply(session, event)]


def state(book: KvLedger, session: str = "s") -> SessionKv:
    found = book.session(session)
    assert found is not None
    return found


def test_a_first_turn_makes_it_resident_and_costs_its_prefill() -> None:
    book = ledger()
    assert play(book, turn(1, 1000, 0, 10)) == []
    now = state(book)
    assert (now.residency, now.tokens, now.bytes, now.since_nsec) == (Residency.RESIDENT, 1010, 1010 * KV, at(1))
    assert now.prefill_equivalents == 1000 + 0.5 * 1010 * 10


def test_kept_over_a_tool_call_it_costs_byte_seconds_and_no_tokens() -> None:
    book = ledger()
    records = play(
        book,
        turn(0, 1000),
        PauseBegun(at_nsec=at(1), call="c1"),
        PauseEnded(at_nsec=at(4)),
        turn(5, 50, 1000),
    )
    assert records == [
        PauseRecord(
            session="s",
            call="c1",
            begun_nsec=at(1),
            ended_nsec=at(4),
            resident_byte_seconds=3 * 1000 * KV,
            offloaded_byte_seconds=0,
        )
    ]
    assert (state(book).recomputed_tokens, state(book).since_nsec) == (0, 0)


def test_dropped_in_a_tool_call_it_is_computed_again_and_the_reason_is_kept() -> None:
    book = ledger()
    dropped, pause, recomputed = play(
        book,
        turn(0, 1000),
        PauseBegun(at_nsec=at(1), call="c1"),
        Dropped(at_nsec=at(2), why="continuum: its time to live has passed"),
        PauseEnded(at_nsec=at(9)),
        turn(10, 1100, 0, 0, seconds=2.2),
    )
    assert isinstance(dropped, ContextSwitch)
    assert (dropped.kind, dropped.tokens, dropped.bytes) == (SwitchKind.DROPPED, 1000, 1000 * KV)
    assert isinstance(pause, PauseRecord)
    assert pause.resident_byte_seconds == 1000 * KV  # for one second of eight
    assert isinstance(recomputed, ContextSwitch)
    assert (recomputed.kind, recomputed.tokens) == (SwitchKind.RECOMPUTED, 1000)
    assert recomputed.why == "continuum: its time to live has passed"
    assert recomputed.seconds == pytest.approx(2.0)  # its part of the prefill
    assert (state(book).recomputed_tokens, state(book).switches) == (1000, 2)


def test_offloaded_and_restored_it_is_not_computed_again() -> None:
    book = ledger()
    out, back = play(
        book,
        turn(0, 1000),
        Offloaded(at_nsec=at(1), why="infercept", tokens=1000, bytes=2_100_000, seconds=0.003),
        Restored(at_nsec=at(6), why="its tool is about to end", seconds=0.002),
        turn(7, 20, 1000),
    )
    assert isinstance(out, ContextSwitch)
    assert isinstance(back, ContextSwitch)
    assert (out.kind, out.bytes, out.seconds) == (SwitchKind.OFFLOADED, 2_100_000, 0.003)
    assert (back.kind, back.tokens, back.seconds) == (SwitchKind.RESTORED, 1000, 0.002)
    now = state(book)
    assert (now.offloaded_byte_seconds, now.resident_byte_seconds) == (5 * 1000 * KV, 2 * 1000 * KV)
    assert now.recomputed_tokens == 0


def test_an_engine_that_restores_by_itself() -> None:
    book = ledger()
    _, restored = play(book, turn(0, 1000), Offloaded(at_nsec=at(1), why="x"), turn(2, 10, 1000))
    assert isinstance(restored, ContextSwitch)
    assert (restored.kind, restored.why) == (SwitchKind.RESTORED, "the engine restored it for the turn")


def test_an_offloaded_copy_that_was_not_used() -> None:
    book = ledger()
    _, again = play(book, turn(0, 1000), Offloaded(at_nsec=at(1), why="x"), turn(2, 1000, 0))
    assert isinstance(again, ContextSwitch)
    assert (again.kind, again.why, again.tokens) == (SwitchKind.RECOMPUTED, "its offloaded copy was not used", 1000)


def test_a_silent_eviction_shows_at_the_next_turn() -> None:
    book = ledger()
    (again,) = play(book, turn(0, 1000), turn(1, 700, 300))
    assert isinstance(again, ContextSwitch)
    assert (again.kind, again.tokens, again.why) == (SwitchKind.RECOMPUTED, 700, "the engine had evicted it")


def test_the_last_block_is_always_computed_and_is_no_recomputation() -> None:
    book = ledger()
    assert play(book, turn(0, 1000), turn(1, 32, 968)) == []


def test_a_shorter_prompt_is_no_recomputation() -> None:
    book = ledger()
    assert play(book, turn(0, 1000), turn(1, 0, 400)) == []  # the agent began anew from a common prefix
    assert state(book).context == 400


def test_a_preemption() -> None:
    book = ledger()
    (one,) = play(book, turn(0, 500), Preempted(at_nsec=at(1)))
    assert isinstance(one, ContextSwitch)
    assert one.kind is SwitchKind.PREEMPTED
    assert (state(book).residency, state(book).tokens, state(book).context) == (Residency.DROPPED, 0, 500)


def test_a_session_that_ends_in_a_pause_leaves_its_record() -> None:
    book = ledger()
    (pause,) = play(book, turn(0, 10), PauseBegun(at_nsec=at(1), call="c"), Closed(at_nsec=at(3)))
    assert isinstance(pause, PauseRecord)
    assert pause.resident_byte_seconds == 2 * 10 * KV
    assert state(book).bytes == 0
    book.forget("s")
    assert book.sessions() == ()


@pytest.mark.parametrize(
    "events",
    [
        [Dropped(at_nsec=0, why="x")],
        [Preempted(at_nsec=0)],
        [Offloaded(at_nsec=0, why="x")],
        [turn(0, 10), Restored(at_nsec=0, why="x")],
        [turn(0, 10), Offloaded(at_nsec=0, why="x"), Offloaded(at_nsec=0, why="x")],
        [turn(0, 10), Offloaded(at_nsec=0, why="x"), Preempted(at_nsec=0)],
        [PauseEnded(at_nsec=0)],
        [PauseBegun(at_nsec=0, call="a"), PauseBegun(at_nsec=0, call="b")],
        [Closed(at_nsec=0), turn(0, 1)],
        [turn(5, 10), turn(4, 10)],
        [turn(0, -1)],
        [turn(0, 10), Offloaded(at_nsec=0, why="x", tokens=-1)],
    ],
)
def test_what_cannot_follow_is_refused_and_changes_nothing(events: list[LedgerEvent]) -> None:
    book = ledger()
    play(book, *events[:-1])
    before = book.session("s")
    with pytest.raises(LedgerError, match="session s"):
        book.apply("s", events[-1])
    assert book.session("s") == before


def test_bytes_by_residency() -> None:
    book = ledger()
    play(book, turn(0, 10), session="a")
    play(book, turn(0, 20), Offloaded(at_nsec=1, why="x"), session="b")
    assert (book.bytes_in(Residency.RESIDENT), book.bytes_in(Residency.OFFLOADED)) == (10 * KV, 20 * KV)


_steps = st.lists(
    st.tuples(
        st.sampled_from(["turn", "preempt", "offload", "restore", "drop", "pause", "unpause"]),
        st.integers(0, 10 * SECOND),
        st.integers(0, 5000),
        st.integers(0, 5000),
    ),
    max_size=40,
)


def _event(kind: str, now: int, one: int, two: int) -> LedgerEvent:
    match kind:
        case "turn":
            return Turn(at_nsec=now, computed=one, cached=two, generated=one % 7, seconds=one / 1000)
        case "preempt":
            return Preempted(at_nsec=now)
        case "offload":
            return Offloaded(at_nsec=now, why="p")
        case "restore":
            return Restored(at_nsec=now, why="p")
        case "drop":
            return Dropped(at_nsec=now, why="p")
        case "pause":
            return PauseBegun(at_nsec=now, call=str(one))
        case _:
            return PauseEnded(at_nsec=now)


@given(_steps)
def test_byte_seconds_add_up_and_nothing_falls(steps: list[tuple[str, int, int, int]]) -> None:
    book = ledger()
    now = 0
    resident = offloaded = in_pauses = 0.0
    records: list[LedgerRecord] = []
    for kind, wait, one, two in steps:
        before = book.session("s")
        now += wait
        event = _event(kind, now, one, two)
        if before is not None:
            try:
                records += book.apply("s", event)
            except LedgerError:
                now -= wait  # as if it had not come
                continue
            held = before.bytes * (event.at_nsec - before.at_nsec) / 1e9
            resident += held if before.residency is Residency.RESIDENT else 0
            offloaded += held if before.residency is Residency.OFFLOADED else 0
            after = state(book)
            assert after.recomputed_tokens >= before.recomputed_tokens
            assert after.recomputed_tokens <= after.computed_tokens
            assert after.switches >= before.switches
            assert after.tokens >= 0
            assert (after.tokens == 0) or after.residency in (Residency.RESIDENT, Residency.OFFLOADED)
        else:
            try:
                book.apply("s", event)
            except LedgerError:
                now -= wait
    found = book.session("s")
    if found is None:
        return
    assert found.resident_byte_seconds == pytest.approx(resident)
    assert found.offloaded_byte_seconds == pytest.approx(offloaded)
    in_pauses = sum(one.resident_byte_seconds for one in records if isinstance(one, PauseRecord))
    assert in_pauses <= found.resident_byte_seconds * 1.000001 + 1
    assert found.switches == sum(isinstance(one, ContextSwitch) for one in records)
