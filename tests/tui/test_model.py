"""Plots, lines of time, what will happen, the layout's file, exports: without a screen."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.tui.fixtures import BUDGETS, BURST, NOW, PROCESSES, TEST, ended_call, loaded, running, samples, snapshot
from tui.export import to_csv, to_json
from tui.layout import Layout, LayoutError, default_path
from tui.model import acting, details
from tui.model.board import Board
from tui.model.columns import COLUMNS, DEFAULT
from tui.model.gantt import gantt, held_spans, turns
from tui.model.plot import Rule, columns, plot, rates, side_by_side
from tui.model.rows import Row, Wanted, build
from tui.model.text import size
from tui.model.tier import NOTHING, tier_lines
from tui.source.protocol import Action

MIB = 1 << 20


def _rows() -> dict[str, Row]:
    board = Board()
    for update in running():
        board.apply(update)
    return {row.id: row for row in build(board, Wanted())}


# --- plots


def test_rates_of_a_counter() -> None:
    assert rates([(0.0, 0.0), (2.0, 10.0), (2.0, 11.0), (4.0, 5.0)]) == [(2.0, 5.0), (4.0, 0.0)]


def test_columns_hold_the_largest_value_and_the_last_known_one() -> None:
    points = [(0.0, 1.0), (0.1, 5.0), (5.0, 2.0), (10.0, 3.0), (11.0, 99.0), (-1.0, 99.0)]
    assert columns(points, 0.0, 10.0, 4) == [5.0, 5.0, 2.0, 3.0]
    assert columns(points[:3], 0.0, 10.0, 4) == [5.0, 5.0, 2.0, None]  # nothing is known of what comes after
    assert columns(points, 5.0, 5.0, 2) == [None, None]


def test_a_plot_has_its_size_its_limits_and_its_numbers() -> None:
    points = [(float(second), second * 10.0 * MIB) for second in range(11)]
    rules = [Rule("brake", 80.0 * MIB, "yellow"), Rule("limit", 1e12, "red")]
    lines = plot("memory", points, since=0.0, until=10.0, width=60, height=5, number=size, rules=rules)
    assert len(lines) == 7
    assert all(line.cell_len == 60 for line in lines)
    assert lines[0].plain.startswith("memory  now 100 MiB, most 100 MiB  ╌ brake 80 MiB  ╌ limit ")
    assert lines[1].plain.startswith("  100 MiB│")
    assert lines[5].plain.startswith("      0 B│")
    assert sum("╌" in line.plain for line in lines[1:6]) == 1  # the limit is far above: it would flatten the curve
    full = [sum(char > "\u2800" for char in line.plain) for line in lines[1:6]]
    assert full == sorted(full)  # a ramp: the lower, the wider
    assert full[-1] == 50


def test_a_plot_of_nothing_is_one_line() -> None:
    lines = plot("CPU", [], since=0.0, until=1.0, width=40, number=str)
    assert [line.plain.rstrip() for line in lines] == ["CPU  nothing is kept yet"]
    both = side_by_side(lines, plot("x", [(0.5, 0.0)], since=0.0, until=1.0, width=20, height=2, number=str), 40)
    assert len(both) == 4
    assert all(line.cell_len == 62 for line in both)
    assert "\u28c0" in both[2].plain or "\u2840" in both[2].plain or "\u2880" in both[2].plain  # 0 is a dot, not a gap


# --- the line of time


def _call(begun: float, ended: float | None = None, **more: object) -> pb.Call:
    call = pb.Call(id=f"c-{begun:g}", begun_at=begun, state=pb.CALL_STATE_RUNNING, **more)  # type: ignore[arg-type]
    if ended is not None:
        call.state = pb.CALL_STATE_ENDED
        call.outcome.MergeFrom(pb.Outcome(ended_at=ended, reason="exited"))
    return call


def test_the_models_turns_are_the_gaps_between_calls() -> None:
    calls = [_call(10, 20), _call(15, 30), _call(50), _call(40, 45)]
    assert turns(calls, 0, 60) == [(0, 10), (30, 40), (45, 50)]
    assert turns([], 0, 60) == [(0, 60)]


def test_holds_are_read_from_decisions() -> None:
    call = _call(0)
    told = [
        pb.Decision(at=at, action=action, call_id=call.id)
        for at, action in ((9, "freeze"), (2, "brake"), (3, "freeze"), (4, "raise"), (1, "advise"))
    ]
    assert held_spans(call, told, 10) == [(2, 4), (9, 10)]
    assert held_spans(_call(1), told, 10) == []


def test_the_line_of_time() -> None:
    calls = [_call(0, 50, command="one"), _call(50, command="two"), _call(90, command="a\x1b[2Jb")]
    told = [pb.Decision(at=60, action="brake", call_id="c-50"), pb.Decision(at=80, action="raise", call_id="c-50")]
    lines = [line.plain for line in gantt(calls, told, since=0, until=100, width=128, most=2)]
    assert lines[1].startswith("model's turns")
    assert lines[1].endswith(" 0%")
    assert lines[2][19:].startswith(" " * 50 + "█" * 10 + "▒" * 20 + "█" * 20)
    assert "\x1b" not in lines[3]
    assert lines[4].strip() == "1 earlier calls are not shown"


# --- pages


def test_processes_are_a_tree_and_bounded() -> None:
    lines = [line.plain for line in details.process_tree(PROCESSES)]
    assert [line.index(word) for line, word in zip(lines, ("python", "└ sh", "└ sleep"), strict=True)] == [39, 41, 43]
    assert all(line.isprintable() for line in lines)
    many = [pb.Process(pid=number, parent_pid=number - 1) for number in range(1, 200)]
    assert details.process_tree(many)[-1].plain == "and 159 more"
    # a pid that is its own parent, or a ring, must not hang the page
    assert len(details.process_tree([pb.Process(pid=1, parent_pid=1)])) == 1
    assert details.process_tree([pb.Process(pid=1, parent_pid=2), pb.Process(pid=2, parent_pid=1)])


def test_budgets_say_what_is_left() -> None:
    lines = [line.plain for line in details.budgets(BUDGETS, 100)]
    assert lines[0].endswith("129 MiB of 256 MiB, 127 MiB left")
    assert lines[1].endswith("8 of 8, 0 left")
    assert "corral tenant set" in details.budgets([], 80)[0].plain


@pytest.mark.parametrize("width", [40, 80, 119, 120, 198])
def test_a_calls_plots_fit_any_width(width: int) -> None:
    call = ended_call().call
    assert call is not None
    lines = details.call_plots(call, samples(call.id), NOW, width, 4)
    assert max(line.cell_len for line in lines) <= width


# --- acting


def test_questions_name_the_targets_and_count_the_calls_once() -> None:
    rows = _rows()
    question = acting.question("kill", [rows["t-greedy"], rows["s-rollout"], rows[BURST]])
    assert question.splitlines()[0] == "Kill 2 calls?"
    assert "1 of them is held and will go on" in acting.question("thaw", [rows["t-greedy"]])
    many = [rows[BURST]] * 9
    assert "and 4 more" in acting.question("freeze", many)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("brake 512M", {"brake_bytes": 512 * MIB}),
        ("brake off", {"brake_bytes": 0}),
        ("memory 1.5G , pids 9", {"memory_max_bytes": 1536 * MIB, "pids": 9}),
        ("memory max,cpu off,pids none", {"memory_max_bytes": -1, "cpu_cores": -1.0, "pids": -1}),
        ("cpu 0.5", {"cpu_cores": 0.5}),
        ("memory 100 KiB", {"memory_max_bytes": 102_400}),
    ],
)
def test_limits_as_people_write_them(text: str, action: dict[str, object]) -> None:
    row = _rows()[BURST]
    assert acting.parse_limits(text, row) == Action(verb="limits", target=BURST, **action)  # type: ignore[arg-type]
    assert "Change limits of call Bash?" in acting.describe(acting.parse_limits(text, row), row)


@pytest.mark.parametrize(
    "text",
    ["", "brake", "brake x", "512M", "cpu 0", "cpu nan", "cpu inf", "pids 1.5", "pids -3", "cpu 1,cpu 2", "io 5"],
)
def test_what_is_no_limit_says_what_would_be(text: str) -> None:
    with pytest.raises(acting.ChangeError, match=r"give|number"):
        acting.parse_limits(text, _rows()[BURST])


def test_only_calls_have_a_brake() -> None:
    with pytest.raises(acting.ChangeError, match="only calls have a brake"):
        acting.parse_limits("brake 1G", _rows()["t-acme"])
    told = acting.describe(acting.parse_limits("memory 100M", _rows()["t-greedy"]), _rows()["t-greedy"])
    assert "memory limit: 256 MiB to 100 MiB" in told


# --- the layout's file


def test_a_layout_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "top.json"
    layout = Layout(columns=("who", "cpu"), sort="cpu", descending=False, flat=True, ended=True, theme="nord")
    layout.save(path)
    assert Layout.load(path) == layout
    assert [one.name for one in path.parent.iterdir()] == ["top.json"]
    assert Layout.load(tmp_path / "none") == Layout()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"version": 2, "columns": []}', '{"version": 1}', '{"version": 1, "columns": [1]}', "[" * 9999],
)
def test_a_layout_that_is_none_says_so(tmp_path: Path, content: str) -> None:
    path = tmp_path / "top.json"
    path.write_text(content)
    with pytest.raises(LayoutError, match=r"top\.json"):
        Layout.load(path)


def test_a_layout_of_a_newer_dashboard_is_taken_as_far_as_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "top.json"
    path.write_text(json.dumps({"version": 1, "columns": ["who", "aura"], "sort": "aura", "theme": 7, "flat": "yes"}))
    assert Layout.load(path) == Layout(columns=("who",))
    path.write_text(json.dumps({"version": 1, "columns": ["aura"]}))
    assert Layout.load(path).columns == DEFAULT


def test_where_the_layout_is_kept() -> None:
    assert default_path({"XDG_STATE_HOME": "/s"}) == Path("/s/corral/top.json")
    assert default_path({"XDG_STATE_HOME": "s", "HOME": "/h"}) == Path("/h/.local/state/corral/top.json")


# --- exports


def test_a_command_cannot_be_a_formula_in_a_spreadsheet() -> None:
    picture = snapshot()
    picture.calls[0].command = '=HYPERLINK("http://evil","x")'
    board = Board()
    board.apply(pb.WatchResponse(snapshot=picture))
    text = to_csv(build(board, Wanted()), ["who", "command", "memory"])
    row = next(row for row in csv.DictReader(text.splitlines()) if row["id"] == TEST)
    assert row["command"].startswith("'=")
    assert float(row["memory"]) == 210 * MIB


def test_exports_have_all_columns() -> None:
    rows = list(_rows().values())
    content = json.loads(to_json(rows, list(COLUMNS), at=NOW))
    assert set(content["rows"][0]) == {"kind", "id", "tenant", "session", *COLUMNS}
    assert len(to_csv(rows, list(COLUMNS)).splitlines()) == len(rows) + 1


# --- budgets and the tier


def test_the_scarcest_stock_is_what_the_table_shows() -> None:
    board = Board()
    for update in loaded():
        board.apply(update)
    rows = {row.id: row for row in build(board, Wanted())}
    column = COLUMNS["budget"]
    assert column.cell(rows["s-rollout"]) == (("7% tokens", "bold red"),)
    assert column.cell(rows["t-greedy"]) == (("58% CPU", ""),)
    assert column.cell(rows["s-coder"]) == (("", ""),)
    assert next(row.id for row in build(board, Wanted(sort="budget", descending=False))) == "t-greedy"


def test_a_stock_says_its_band_and_when_it_is_full_again() -> None:
    stock = pb.Budget(
        resource="cpu_seconds", scope="session", limit=3600, used=3500, remaining=100, hard=True, refills_at=NOW,
        band=pb.BUDGET_BAND_CRITICAL,
    )  # fmt: skip
    (line,) = details.budgets([stock], 120)
    assert "58m20s of 1h00m, 1m40s left  critical  hard  full again at" in line.plain
    soft = pb.Budget(resource="money", limit=2, used=3, remaining=0, band=pb.BUDGET_BAND_CRITICAL)
    assert "told only" in details.budgets([soft], 120)[0].plain


def test_the_tier_says_what_is_lost_down_and_nobodys() -> None:
    board = Board()
    for update in loaded():
        board.apply(update)
    text = "\n".join(line.plain for line in tier_lines(board, 160, NOW))
    assert "lost: fell off the bus" in text
    assert "down: nobody answers at 10.0.0.7:8000" in text
    assert "nobody of ours  llama-server" in text
    assert "greedy/rollout/Bash  python burst.py" in text
    assert "kept 30s more" in text
    board.apply(pb.WatchResponse(snapshot=snapshot()))
    assert NOTHING in "\n".join(line.plain for line in tier_lines(board, 160, NOW))


def test_a_tier_without_numbers_is_no_error() -> None:
    board = Board()
    bare = snapshot()
    bare.tier.MergeFrom(
        pb.TierStatus(
            nvml="no_driver", nvml_detail="no driver", engines=[pb.InferenceEngine(name="e", state="up")],
            sessions=[pb.KvSession(session_id="s", residency="later")], switches=[pb.ContextSwitch(kind="later")],
        )
    )  # fmt: skip
    board.apply(pb.WatchResponse(snapshot=bare))
    text = "\n".join(line.plain for line in tier_lines(board, 80, NOW))
    assert "no_driver: no driver" in text
