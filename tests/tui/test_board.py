"""Updates to rows, and rows to text: the dashboard without a screen."""

from __future__ import annotations

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.tui.fixtures import BUILD, BURST, NOW, TAR, TEST, away, decision, running, snapshot
from tui.model.board import MAX_DECISIONS, MAX_ENDED, Board
from tui.model.columns import BAR, COLUMNS, DEFAULT, fit
from tui.model.filters import Filter
from tui.model.lines import decision_line, host_line, name_of, state_line
from tui.model.rows import Row, Wanted, build
from tui.model.text import bar, clean, evidence, rate, size, span
from tui.source.protocol import Away

MIB = 1 << 20


def _board(*updates: pb.WatchResponse | Away) -> Board:
    board = Board()
    for update in updates:
        board.apply(update)
    return board


def _rows(board: Board, wanted: str = "", **options: object) -> list[Row]:
    return build(board, Wanted(filter=Filter.parse(wanted), **options))  # type: ignore[arg-type]


def _of(row: Row, name: str) -> object:
    return COLUMNS[name].of(row)


def _text(row: Row, name: str) -> str:
    return "".join(text for text, _ in COLUMNS[name].cell(row))


def test_rows_are_a_tree_of_what_is_open_and_live() -> None:
    rows = _rows(_board(*running()[:1]))
    assert [(row.kind, row.id, row.depth) for row in rows] == [
        ("tenant", "t-acme", 0),
        ("session", "s-coder", 1),
        ("call", TEST, 2),
        ("tenant", "t-greedy", 0),
        ("session", "s-rollout", 1),
        ("call", TAR, 2),
        ("call", BURST, 2),
        ("call", BUILD, 2),
        ("tenant", "t-idle", 0),
    ]
    assert _of(rows[3], "memory") == 113 * MIB  # the sum of its calls: the daemon gave none
    assert _of(rows[3], "ceiling") == 256 * MIB
    assert [_text(row, "state") for row in rows if row.kind == "tenant"] == ["1 call", "3 calls", "0 calls"]


def test_cpu_is_the_rate_between_two_pictures() -> None:
    first, *_, second = running()
    board = _board(first)
    assert _of(_rows(board)[2], "cpu") is None
    board.apply(second)
    assert _of(_rows(board)[2], "cpu") == pytest.approx(0.9)
    assert _of(_rows(board)[0], "cpu") == pytest.approx(0.9)
    board.apply(pb.WatchResponse(snapshot=snapshot(at=NOW - 50)))  # a clock that went back gives no rate
    assert _of(_rows(board)[2], "cpu") == pytest.approx(0.9)


def test_no_rate_is_told_over_a_long_gap_or_of_what_is_not_counted() -> None:
    board = _board(pb.WatchResponse(snapshot=snapshot()), pb.WatchResponse(snapshot=snapshot(at=NOW + 500)))
    assert _of(_rows(board)[2], "cpu") is None
    board.apply(pb.WatchResponse(snapshot=snapshot(at=NOW + 501)))
    assert _of(_rows(board)[2], "cpu") == 0.0
    assert _of(_rows(board)[2], "faults") is None
    assert _text(_rows(board)[2], "faults") == ""


def test_a_call_that_ends_or_begins_between_pictures() -> None:
    board = _board(pb.WatchResponse(snapshot=snapshot()))
    outcome = pb.Outcome(reason="oom_call", wall_seconds=3)
    gone = pb.Call(id=TEST, session_id="s-coder", tenant_id="t-acme", state=pb.CALL_STATE_ENDED, outcome=outcome)
    board.apply(pb.WatchResponse(call=gone))
    assert TEST not in [row.id for row in _rows(board)]
    shown = next(row for row in _rows(board, ended=True) if row.id == TEST)
    assert (_text(shown, "state"), _text(shown, "wall")) == ("✗ oom_call", "3.0s")
    new = pb.Call(id="c-new", session_id="s-coder", tenant_id="t-acme", state=pb.CALL_STATE_RUNNING, begun_at=NOW)
    board.apply(pb.WatchResponse(call=new))
    board.apply(pb.WatchResponse(call=new))
    assert [row.id for row in _rows(board)].count("c-new") == 1


def test_ended_calls_are_bounded() -> None:
    board = _board(pb.WatchResponse(snapshot=snapshot()))
    for number in range(MAX_ENDED + 3):
        board.apply(pb.WatchResponse(call=pb.Call(id=f"c-{number}", state=pb.CALL_STATE_ENDED)))
    assert len(board.ended) == MAX_ENDED
    assert "c-2" not in board.ended
    assert board.call(f"c-{MAX_ENDED + 2}") is not None


def test_a_session_that_opens_or_closes_between_pictures() -> None:
    board = _board(pb.WatchResponse(snapshot=snapshot()))
    board.apply(pb.WatchResponse(session=pb.Session(id="s-new", tenant_id="t-idle", opened_at=NOW)))
    assert "s-new" in [row.id for row in _rows(board)]
    board.apply(pb.WatchResponse(session=pb.Session(id="s-new", tenant_id="t-idle", opened_at=NOW, closed_at=NOW)))
    assert "s-new" not in [row.id for row in _rows(board)]


def test_a_session_that_closed_is_shown_as_long_as_its_calls_are() -> None:
    board = _board(pb.WatchResponse(snapshot=snapshot()))
    board.apply(pb.WatchResponse(session=pb.Session(id="s-coder", tenant_id="t-acme", closed_at=NOW)))
    assert [row.id for row in _rows(board)][:3] == ["t-acme", "s-coder", TEST]


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
        ("!greedy", {TEST}),
        ("/^make|^tar/", {BUILD, TAR}),
        ("/^MAKE", {BUILD}),
        ("!/pytest|burst/", {BUILD, TAR}),
        ("!", {TEST, BURST, BUILD, TAR}),
        ("/", {TEST, BURST, BUILD, TAR}),
        ("/(/", {TEST, BURST, BUILD, TAR}),  # being typed: everything, and the problem is said
    ],
)
def test_the_filter(wanted: str, calls: set[str]) -> None:
    rows = _rows(_board(pb.WatchResponse(snapshot=snapshot())), wanted)
    assert {row.id for row in rows if row.kind == "call"} == calls
    if not calls:
        assert rows == []


def test_a_filter_that_is_none_says_why() -> None:
    assert "no regular expression" in Filter.parse("/(/").problem
    assert "shorten" in Filter.parse("x" * 300).problem
    assert not Filter.parse("!").active


def test_sorting_is_within_the_tree_and_unknown_values_come_last() -> None:
    board = _board(*running()[:1])
    by_memory = [row.id for row in _rows(board, sort="memory")]
    assert by_memory == ["t-acme", "s-coder", TEST, "t-greedy", "s-rollout", BURST, TAR, BUILD, "t-idle"]
    upwards = [row.id for row in _rows(board, sort="memory", descending=False)]
    assert upwards == ["t-greedy", "s-rollout", TAR, BURST, BUILD, "t-acme", "s-coder", TEST, "t-idle"]
    assert [row.id for row in _rows(board, sort="memory", flat=True)] == [TEST, BURST, TAR, BUILD]


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_sorts_and_shows_every_row(name: str) -> None:
    rows = _rows(_board(*running()), sort=name, ended=True)
    assert len(rows) == 8
    assert all(part.isprintable() for row in rows for part, _ in COLUMNS[name].cell(row))


def test_folding_hides_what_is_below_and_keeps_the_sums() -> None:
    board = _board(*running())
    rows = _rows(board, folded={"t-greedy", "s-coder"})
    assert [row.id for row in rows] == ["t-acme", "s-coder", "t-greedy", "t-idle"]
    assert _of(rows[2], "memory") == 129 * MIB
    assert TEST in [row.id for row in _rows(board, "pytest", folded={"t-acme", "s-coder"})]
    assert [_text(row, "who") for row in rows] == ["▾ acme", "  ▸ coder", "▸ greedy", "  idle"]


def test_columns_give_way_to_the_width() -> None:
    assert [placed.column.name for placed in fit(DEFAULT, 400)] == list(DEFAULT)
    for width in (78, 100, 160, 198):
        placed = fit(DEFAULT, width)
        assert sum(one.width + 1 for one in placed) - 1 == width
        assert {"who", "state", "cpu", "memory"} <= {one.column.name for one in placed}
    assert [placed.column.name for placed in fit((), 60)] == ["who", "state", "cpu", "memory"]


def test_updates_before_the_first_picture_and_of_newer_daemons_do_no_harm() -> None:
    board = _board(
        pb.WatchResponse(call=pb.Call(id="c")), pb.WatchResponse(session=pb.Session(id="s")), pb.WatchResponse()
    )
    assert _rows(board) == []
    assert host_line(board, "unix:/x", 80).plain == "corral · unix:/x · waiting for the first picture"


def test_away_is_said_until_something_comes() -> None:
    board = _board(*away())
    line = state_line(board, now=NOW).plain
    assert line == "daemon away since 07:59:45 (15s): no daemon answers; trying again"
    assert _rows(board)  # the last picture stays
    board.apply(Away(NOW - 5, "this user may not", denied=True))
    assert state_line(board, now=NOW).plain.startswith("no permission since 07:59:55 (5.0s): this user may not")
    board.apply(running()[0])
    assert state_line(board, now=NOW).plain == "this host cannot: memory.high (cgroup v1)"


def test_lost_updates_are_said() -> None:
    board = _board(*running(), pb.WatchResponse(lost=pb.Lost(updates=3)))
    assert "3 updates were lost" in state_line(board, now=NOW).plain


def test_decisions_are_bounded() -> None:
    board = _board(*(pb.WatchResponse(decision=decision(at=NOW + n)) for n in range(MAX_DECISIONS + 5)))
    assert len(board.decisions) == MAX_DECISIONS
    assert board.decisions[-1].at == NOW + MAX_DECISIONS + 4


def test_a_decision_in_words() -> None:
    assert decision_line(decision()).plain == (
        f"08:00:00 ■ brake    {BURST}  its memory passed the armed threshold  (brake 128 MiB, usage 129 MiB)"
    )
    board = _board(*running())
    assert "greedy/rollout/Bash" in decision_line(decision(), board).plain
    assert (name_of(board, "t-acme"), name_of(board, "s-coder"), name_of(board, "c-x")) == ("acme", "coder", "c-x")


def test_the_eta_of_a_queued_call_is_that_of_its_last_decision() -> None:
    board = _board(*running()[:1])
    queue = decision("queue", NOW - 1, BUILD)
    queue.evidence["eta_seconds"] = 31.0
    board.apply(pb.WatchResponse(decision=queue))
    row = next(row for row in _rows(board) if row.id == BUILD)
    assert _text(row, "state") == "… queued 30s"


def test_the_bar_is_against_the_brake_or_the_limit() -> None:
    rows = {row.id: row for row in _rows(_board(*running()))}
    assert COLUMNS["bar"].cell(rows[BURST]) == (("█████████!", "red on grey23"),)  # past it, said without colour
    assert COLUMNS["ceiling"].cell(rows[BURST]) == (("brake 128 MiB", "dim"),)
    assert COLUMNS["bar"].cell(rows["t-greedy"]) == ((bar(129 / 256, BAR), "green on grey23"),)
    assert _text(rows["t-greedy"], "ceiling") == "limit 256 MiB"
    assert _text(rows["t-acme"], "bar") == ""


def test_a_state_has_a_word_beside_its_colour() -> None:
    states = [_text(row, "state") for row in _rows(_board(*running())) if row.kind == "call"]
    assert states == ["● running", "■ braked", "… queued"]


def test_an_agent_cannot_steer_the_terminal() -> None:
    rows = _rows(_board(pb.WatchResponse(snapshot=snapshot())))
    assert "\N{REPLACEMENT CHARACTER}" in "".join(_text(row, "command") for row in rows)
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


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.44, "0.4"), (12.4, "12"), (3400, "3.4k"), (34_000, "34k"), (1.2e6, "1.2M")]
)
def test_rates(value: float, text: str) -> None:
    assert rate(value) == text
