"""Updates to rows, and rows to text: the dashboard without a screen."""

from __future__ import annotations

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.tui.fixtures import BUILD, BURST, NOW, TAR, TEST, away, decision, running, snapshot
from tui.board import MAX_DECISIONS, Board, Row
from tui.screen import cells, decision_line, host_line, memory_bar, state_line
from tui.source import Away
from tui.text import bar, clean, evidence, size, span

MIB = 1 << 20


def _board(*updates: pb.WatchResponse | Away) -> Board:
    board = Board()
    for update in updates:
        board.apply(update)
    return board


def test_rows_are_a_tree_of_what_is_open_and_live() -> None:
    rows = _board(*running()[:1]).rows()
    assert [(row.kind, row.id) for row in rows] == [
        ("tenant", "t-acme"),
        ("session", "s-coder"),
        ("call", TEST),
        ("tenant", "t-greedy"),
        ("session", "s-rollout"),
        ("call", TAR),
        ("call", BURST),
        ("call", BUILD),
        ("tenant", "t-idle"),
    ]
    assert rows[3].memory == 113 * MIB  # the sum of its calls: the daemon gave none
    assert rows[3].ceiling == 256 * MIB
    assert [row.calls for row in rows if row.kind == "tenant"] == [1, 3, 0]


def test_cpu_is_the_rate_between_two_pictures() -> None:
    first, *_, second = running()
    board = _board(first)
    assert board.rows()[2].cores is None
    board.apply(second)
    assert board.rows()[2].cores == pytest.approx(0.9)
    assert board.rows()[0].cores == pytest.approx(0.9)
    board.apply(pb.WatchResponse(snapshot=snapshot(at=NOW - 50)))  # a clock that went back gives no rate
    assert board.rows()[2].cores == pytest.approx(0.9)


def test_a_call_that_ends_or_begins_between_pictures() -> None:
    board = _board(pb.WatchResponse(snapshot=snapshot()))
    board.apply(pb.WatchResponse(call=pb.Call(id=TEST, session_id="s-coder", state=pb.CALL_STATE_ENDED)))
    assert TEST not in [row.id for row in board.rows()]
    new = pb.Call(id="c-new", session_id="s-coder", tenant_id="t-acme", state=pb.CALL_STATE_RUNNING, begun_at=NOW)
    board.apply(pb.WatchResponse(call=new))
    board.apply(pb.WatchResponse(call=new))
    assert [row.id for row in board.rows()].count("c-new") == 1


def test_a_session_that_opens_or_closes_between_pictures() -> None:
    board = _board(pb.WatchResponse(snapshot=snapshot()))
    board.apply(pb.WatchResponse(session=pb.Session(id="s-new", tenant_id="t-idle", opened_at=NOW)))
    assert "s-new" in [row.id for row in board.rows()]
    board.apply(pb.WatchResponse(session=pb.Session(id="s-new", tenant_id="t-idle", opened_at=NOW, closed_at=NOW)))
    assert "s-new" not in [row.id for row in board.rows()]


@pytest.mark.parametrize(
    ("wanted", "calls"),
    [
        ("pytest", {TEST}),
        ("GREEDY", {BURST, BUILD, TAR}),
        ("coder", {TEST}),
        ("queued", {BUILD}),
        ("data", {BURST}),
        ("nobody", set()),
        ("  ", {TEST, BURST, BUILD, TAR}),
    ],
)
def test_the_filter(wanted: str, calls: set[str]) -> None:
    rows = _board(pb.WatchResponse(snapshot=snapshot())).rows(wanted)
    assert {row.id for row in rows if row.kind == "call"} == calls
    if not calls:
        assert rows == []


def test_updates_before_the_first_picture_and_of_newer_daemons_do_no_harm() -> None:
    board = _board(
        pb.WatchResponse(call=pb.Call(id="c")), pb.WatchResponse(session=pb.Session(id="s")), pb.WatchResponse()
    )
    assert board.rows() == []
    assert host_line(board, "unix:/x", 80).plain == "corral · unix:/x · waiting for the first picture"


def test_away_is_said_until_something_comes() -> None:
    board = _board(*away())
    line = state_line(board, paused=True, wanted="x", now=NOW).plain
    assert line == "daemon away since 07:59:45 (15s): no daemon answers; reconnecting"
    assert board.rows()  # the last picture stays
    board.apply(running()[0])
    assert state_line(board, paused=False, wanted="", now=NOW).plain == "this host cannot: memory.high (cgroup v1)"


def test_decisions_are_bounded() -> None:
    board = _board(*(pb.WatchResponse(decision=decision(at=NOW + n)) for n in range(MAX_DECISIONS + 5)))
    assert len(board.decisions) == MAX_DECISIONS
    assert board.decisions[-1].at == NOW + MAX_DECISIONS + 4


def test_a_decision_in_words() -> None:
    assert decision_line(decision()).plain == (
        f"08:00:00 brake    {BURST}  its memory passed the armed threshold  (brake 128 MiB, usage 129 MiB)"
    )


def test_the_bar_is_against_the_brake_or_the_limit() -> None:
    braked = Row(kind="call", id="c", label="x", memory=129 * MIB, ceiling=128 * MIB, ceiling_word="brake")
    assert memory_bar(braked).plain == "██████████ brake 128 MiB"
    assert str(memory_bar(braked).spans[0].style) == "red on grey23"
    half = Row(kind="tenant", id="t", label="x", memory=64 * MIB, ceiling=128 * MIB, ceiling_word="limit")
    assert memory_bar(half).plain == "█████      limit 128 MiB"
    assert memory_bar(Row(kind="call", id="c", label="x", memory=5)).plain == ""


def test_a_state_has_a_word_beside_its_colour() -> None:
    states = [cells(row)[1].plain for row in _board(*running()).rows() if row.kind == "call"]
    assert states == ["● running", "■ braked", "… queued"]


def test_an_agent_cannot_steer_the_terminal() -> None:
    rows = _board(pb.WatchResponse(snapshot=snapshot())).rows()
    assert all(cell.plain.isprintable() for row in rows for cell in cells(row))
    assert clean("a\x1b]0;x\x07\nb") == "a\N{REPLACEMENT CHARACTER}]0;x\N{REPLACEMENT CHARACTER} b"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (MIB * 1023.6, "1 GiB")],
)
def test_sizes(value: float | None, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"),
        (9.5, "9.5s"),
        (59.4, "59s"),
        (725, "12m05s"),
        (3599.6, "1h00m"),
        (11220, "3h07m"),
        (439_200, "5d02h"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_bars_and_evidence() -> None:
    assert bar(0, 4) == "    "
    assert bar(0.5, 4) == "██  "
    assert bar(0.53, 4) == "██▏ "
    assert bar(7, 4) == "████"
    assert bar(-1, 2) == "  "
    assert evidence({"waited_seconds": 30.0, "tries": 2.0}) == "tries 2, waited 30s"
