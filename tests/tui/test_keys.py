"""Every key, pressed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from textual.widgets import Input

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.tui.fixtures import BUILD, BURST, NOW, TAR, TEST, away, decision, empty, running, snapshot
from tests.tui.support import Stepped, host_page, ids, make, press, settled, shown, table, told
from tui.app import CorralApp
from tui.keys import KEYS, help_lines
from tui.layout import Layout
from tui.pages.call import CallPage
from tui.pages.dialogs import Ask, Columns, Confirm, Export, Help
from tui.pages.groups import SessionPage, TenantPage
from tui.pages.host import HostPage
from tui.pages.machine import DoctorPage, GpuPage
from tui.source.protocol import Action, Away

SIZE = (120, 40)
ROWS = ["t-acme", "s-coder", TEST, "t-greedy", "s-rollout", BURST, BUILD, "t-idle"]


def _action(verb: str, target: str) -> Action:
    return Action(verb=verb, target=target)  # type: ignore[arg-type]


async def test_the_cursor_moves_to_both_ends_and_no_further() -> None:
    app, _ = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        assert ids(app) == ROWS
        await press(pilot, "up")
        assert table(app).cursor == 0
        await press(pilot, "down", "down")
        assert table(app).current is not None
        assert table(app).current.id == TEST  # type: ignore[union-attr]
        await press(pilot, "end", "down")
        assert table(app).cursor == 7
        await press(pilot, "pageup")
        assert table(app).cursor == 0
        await press(pilot, "pagedown", "home")
        assert table(app).cursor == 0


async def test_acting_asks_first_and_says_what_will_happen() -> None:
    app, source = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await press(pilot, "down", "down", "k")
        assert isinstance(app.screen, Confirm)
        assert app.screen.question.startswith("Kill 1 call?\ncall Bash: pytest -q tests/unit")
        assert "210 MiB become free" in app.screen.question
        await press(pilot, "n")
        assert source.acted == []
        await press(pilot, "k", "enter", "y")
        await press(pilot, "f", "y", "t", "y")
        await press(pilot, "up", "f", "y")
    assert source.acted == [
        _action("kill", TEST), _action("freeze", TEST), _action("thaw", TEST), _action("freeze", "s-coder"),
    ]  # fmt: skip


async def test_marked_rows_are_acted_on_together_and_none_twice() -> None:
    app, source = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await press(pilot, "down", "space", "space", "end", "up", "space")  # a session, its call, and another call
        assert table(app).marked == {"s-coder", TEST, BUILD}
        assert "3 marked" in shown(app, "#crumbs")
        await press(pilot, "k")
        assert isinstance(app.screen, Confirm)
        assert app.screen.question.startswith("Kill 2 calls?")
        await press(pilot, "y")
        assert source.acted == [_action("kill", "s-coder"), _action("kill", BUILD)]
        await press(pilot, "escape")
        assert table(app).marked == set()


async def test_limits_and_priority_are_typed_checked_and_confirmed() -> None:
    app, source = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        table(app).select(BURST)
        await press(pilot, "l", ">brake 1x", "enter")
        assert isinstance(app.screen, Ask)
        assert "no size" in shown(app, "#wrong")
        await press(pilot, "backspace", "M", "comma", "> memory off, cpu 1.5, pids 40", "enter")
        assert isinstance(app.screen, Confirm)
        question = app.screen.question
        assert "brake: 128 MiB to 1 MiB\n  it uses 129 MiB, above this brake: it is stopped at once" in question
        assert "CPU: none to 1.5 cores" in question
        await press(pilot, "y")
        await press(pilot, "P", ">101", "enter")
        assert "no priority" in shown(app, "#wrong")
        await press(pilot, "backspace", "backspace", "backspace", ">70", "enter", "y")
        await press(pilot, "l", "escape")
    assert source.acted == [
        Action(verb="limits", target=BURST, brake_bytes=1 << 20, memory_max_bytes=-1, cpu_cores=1.5, pids=40),
        Action(verb="priority", target=BURST, priority=70),
    ]


async def test_what_the_daemon_refuses_is_shown() -> None:
    app, _ = make(running(), refuse="call c-1: not yours; ask its owner")
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await settled(pilot)
        await press(pilot, "f", "y")
        assert told(app) == ["freeze acme: call c-1: not yours; ask its owner"]


async def test_read_only_acts_on_nothing_and_says_so() -> None:
    app, source = make(running(), read_only=True)
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await settled(pilot)
        await press(pilot, "k", "f", "t", "l", "P")
        assert isinstance(app.screen, HostPage)
        assert len(told(app)) == 5
        assert "--read-only" in told(app)[0]
        assert "read-only" in shown(app, "#crumbs")
    assert source.acted == []


async def test_the_filter_narrows_and_escape_clears_it() -> None:
    app, source = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await press(pilot, "slash", ">burst")
        assert ids(app) == ["t-greedy", "s-rollout", BURST]
        await press(pilot, "enter")
        assert app.focused is table(app)
        assert "filter: burst" in shown(app, "#crumbs")
        await press(pilot, "slash", ">zzz")
        assert shown(app, "#nothing").startswith("no call matches")
        await press(pilot, "escape")
        assert ids(app) == ROWS
        await press(pilot, "slash", "/", "(")
        assert "no regular expression" in shown(app, "#crumbs")
        assert ids(app) == ROWS
        # letters that are keys elsewhere are text here
        await press(pilot, "escape", "slash", "k", "f", "t", "q", "p", "l")
        assert isinstance(app.screen, HostPage)
        assert app.screen.query_one("#filter", Input).value == "kftqpl"
    assert source.acted == []


async def test_sorting_by_keys() -> None:
    app, _ = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await press(pilot, "s")
        assert (app.layout.sort, app.layout.descending) == ("who", False)
        await press(pilot, "S", "S")
        assert app.layout.sort == table(app).columns[-1]
        while app.layout.sort != "memory":
            await press(pilot, "s")
        assert app.layout.descending
        assert ids(app)[0] == "t-acme"
        await press(pilot, "r")
        assert ids(app)[0] == "t-greedy"
        assert "by memory ▲" in shown(app, "#crumbs")


async def test_folding_by_keys() -> None:
    app, _ = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await press(pilot, "down", "down", "left")  # from the call to its session
        assert table(app).cursor == 1
        await press(pilot, "left")
        assert ids(app)[:3] == ["t-acme", "s-coder", "t-greedy"]
        await press(pilot, "right")
        assert ids(app) == ROWS
        await press(pilot, "z")
        assert ids(app) == ["t-acme", "t-greedy", "t-idle"]
        await press(pilot, "z", "v")
        assert set(ids(app)) == {TEST, BURST, BUILD}
        assert app.layout.flat
        await press(pilot, "v")
        assert ids(app) == ROWS


async def test_ended_calls_are_shown_on_request() -> None:
    gone = pb.Call(id=TAR, session_id="s-rollout", tenant_id="t-greedy", state=pb.CALL_STATE_ENDED, begun_at=NOW - 9)
    app, _ = make([*running(), pb.WatchResponse(call=gone)])
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        assert TAR not in ids(app)
        await press(pilot, "e")
        assert TAR in ids(app)


async def test_columns_are_chosen() -> None:
    app, _ = make(running())
    async with app.run_test(size=(200, 40)) as pilot:
        await settled(pilot)
        assert "command" in table(app).columns
        assert "time" not in table(app).columns
        await press(pilot, "c")
        assert isinstance(app.screen, Columns)
        await press(pilot, "end", "space", "escape")  # the last one is the command
        assert "command" not in table(app).columns
        await press(pilot, "c", "home", "space", "q")  # left as it was
        assert "wall" in table(app).columns


def page(app: CorralApp) -> object:
    """As an object: the type checker holds that a page which was one kind stays it."""
    return app.screen


async def test_enter_opens_pages_and_escape_goes_back() -> None:
    app, _ = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await press(pilot, "enter")
        assert isinstance(page(app), TenantPage)
        assert shown(app, "#crumbs") == "host › acme"
        await press(pilot, "enter")
        assert isinstance(page(app), SessionPage)
        assert shown(app, "#crumbs") == "host › acme › coder"
        await press(pilot, "enter")
        assert isinstance(page(app), CallPage)
        assert shown(app, "#crumbs") == "host › acme › coder › Bash"
        await press(pilot, "down", "pagedown", "up", "escape")
        assert isinstance(page(app), SessionPage)
        await press(pilot, "h")
        assert isinstance(app.screen, HostPage)
        await press(pilot, "escape")
        assert isinstance(app.screen, HostPage)


async def test_pages_of_the_machine() -> None:
    app, _ = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await press(pilot, "g")
        assert isinstance(app.screen, GpuPage)
        assert "NVIDIA's driver" in shown(app, "#text")
        await press(pilot, "d")
        assert isinstance(app.screen, DoctorPage)
        assert shown(app, "#text").startswith("✗ tripwire")
        await press(pilot, "escape", "escape")
        assert isinstance(app.screen, HostPage)


async def test_help_has_every_key_of_the_table() -> None:
    app, _ = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await press(pilot, "question_mark")
        assert isinstance(app.screen, Help)
        await press(pilot, "escape")
        bound = {binding.key for _, binding, _, _ in app.screen.active_bindings.values()}
        assert {key.key for key in KEYS} <= bound
    assert [shown for shown, _ in help_lines() if shown] == [
        key.shown for where in ("everywhere", "moving", "calls", "acting", "time") for key in KEYS if key.where == where
    ]


async def test_the_palette_does_what_the_keys_do() -> None:
    app, _ = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        commands = {command.help: command.callback for command in app.get_system_commands(app.screen)}
        assert len(commands) == len(KEYS)  # all but itself, and the theme
        await press(pilot, "colon")
        assert type(app.screen).__name__ == "CommandPalette"
        await press(pilot, "escape")
        commands["calls alone in one order, or the tree  (v)"]()
        await settled(pilot)
        assert app.layout.flat


async def test_the_mouse() -> None:
    app, _ = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await pilot.click(table(app), offset=(10, 3))
        await settled(pilot)
        assert table(app).cursor == 2
        await pilot.click(table(app), offset=(10, 5), control=True)
        assert table(app).marked == {"s-rollout"}
        await pilot.click(table(app), offset=(2, 1))  # the mark before a tenant
        await settled(pilot)
        assert ids(app)[:2] == ["t-acme", "t-greedy"]
        await pilot.click(table(app), offset=(3, 0))
        await settled(pilot)
        assert (app.layout.sort, app.layout.descending) == ("who", False)
        await pilot.click(table(app), offset=(3, 0))
        await settled(pilot)
        assert app.layout.descending
        await pilot.double_click(table(app), offset=(10, 1))
        await settled(pilot)
        assert isinstance(app.screen, TenantPage)


@pytest.mark.parametrize("form", ["csv", "json", "svg"])
async def test_export(form: str, tmp_path: Path) -> None:
    app, _ = make(running(), exports=tmp_path)
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await settled(pilot)
        await press(pilot, "x")
        assert isinstance(app.screen, Export)
        await press(pilot, form[0])
        await press(pilot, "x", form[0])
        assert len(told(app)) == 2
    first, second = sorted(tmp_path.iterdir(), key=lambda path: len(path.name))
    assert (first.name, second.name) == (f"corral-20270115T080000.{form}", f"corral-20270115T080000-2.{form}")
    assert first.stat().st_mode & 0o777 == 0o600
    text = first.read_text("utf-8")
    if form == "csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert [row["id"] for row in rows] == ROWS
        assert float(rows[2]["memory"]) == 210 << 20
        assert (rows[2]["tenant"], rows[2]["session"], rows[2]["state"]) == ("acme", "coder", "running")
    elif form == "json":
        content = json.loads(text)
        assert (content["at"], len(content["rows"])) == (NOW + 1, 8)
        assert content["rows"][5]["ceiling"] == 128 << 20
    else:
        assert text.startswith("<svg")


async def test_export_where_nobody_may_write(tmp_path: Path) -> None:
    app, _ = make(running(), exports=tmp_path / "missing")
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await settled(pilot)
        await press(pilot, "x", "c")
        assert "No such file or directory" in told(app)[0]
        await press(pilot, "g", "x", "j")
        assert "no table here" in told(app)[1]


async def test_quit_remembers_the_layout(tmp_path: Path) -> None:
    state = tmp_path / "corral" / "top.json"
    app, _ = make(running(), state=state)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        app.theme = "nord"
        await press(pilot, "v", "s", "q")
    assert json.loads(state.read_text())["version"] == 1
    again, _ = make(running(), state=state)
    async with again.run_test(size=SIZE) as pilot:
        await settled(pilot)
        assert (again.layout.flat, again.layout.sort, again.theme) == (True, "who", "nord")


async def test_a_damaged_layout_is_said_and_not_followed(tmp_path: Path) -> None:
    state = tmp_path / "top.json"
    state.write_text("{")
    app, _ = make(running(), state=state)
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await settled(pilot)
        assert "is no layout" in told(app)[0]
        assert app.layout == Layout()


async def test_the_cursor_stays_with_its_row_and_pause_holds_the_picture() -> None:
    source = Stepped()
    app = CorralApp(source, clock=lambda: NOW)
    async with app.run_test(size=SIZE) as pilot:
        await source.give(pilot, pb.WatchResponse(snapshot=snapshot()))
        await source.give(pilot, pb.WatchResponse(decision=decision()))
        table(app).select(BURST)
        await pilot.press("p")
        await pilot.pause()
        await source.give(pilot, pb.WatchResponse(snapshot=snapshot(later=True)))
        assert len(ids(app)) == 9
        assert shown(app, "#state").startswith("paused at 08:00:00")
        await pilot.press("p")
        await pilot.pause()
        assert len(ids(app)) == 8  # one call has ended meanwhile
        assert table(app).current is not None
        assert table(app).current.id == BURST  # type: ignore[union-attr]


async def test_a_daemon_that_is_away_is_said_and_comes_back() -> None:
    source = Stepped()
    app = CorralApp(source, clock=lambda: NOW)
    async with app.run_test(size=SIZE) as pilot:
        await source.give(pilot, pb.WatchResponse(snapshot=snapshot()))
        await source.give(pilot, Away(NOW - 3, "no daemon answers"))
        assert shown(app, "#state").startswith("daemon away since 07:59:57 (3.0s)")
        assert len(ids(app)) == 9
        await source.give(pilot, pb.WatchResponse(snapshot=snapshot(later=True)))
        assert "away" not in shown(app, "#state")


@pytest.mark.parametrize(("updates", "words"), [(empty, "corral run"), (list, "waiting for the daemon")])
async def test_nothing_to_show_is_said(updates: object, words: str) -> None:
    app, _ = make(updates())  # type: ignore[operator]
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        assert words in shown(app, "#nothing")
        await press(pilot, "enter", "k", "f", "l", "space", "left", "right", "s", "x", "c")
        host_page(app)


async def test_away_from_the_start() -> None:
    app, _ = make(away()[-1:])
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        assert "daemon away" in shown(app, "#state")
