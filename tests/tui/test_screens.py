"""Every page and state as a picture, at two sizes and with a fixed clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import pytest
from textual.pilot import Pilot

from tests.tui.fixtures import BUILD, BURST, NOW, TEST, away, empty, ended_call, loaded, running
from tests.tui.support import make, press, settled, table
from tui.app import CorralApp
from tui.pages.call import CallPage
from tui.source.protocol import Away, Update

SIZES = [(80, 24), (200, 60)]


class SnapCompare(Protocol):
    def __call__(
        self, app: CorralApp, *, press: Iterable[str] = (), terminal_size: tuple[int, int], run_before: Any = None
    ) -> bool: ...


def denied() -> list[Update]:
    return [Away(NOW - 15, "operators only; ask for the operators' group", denied=True)]


sizes = pytest.mark.parametrize("terminal_size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


@sizes
@pytest.mark.parametrize("updates", [running, empty, away, denied, list], ids=lambda made: made.__name__)
def test_host(snap_compare: SnapCompare, updates: Callable[[], list[Update]], terminal_size: tuple[int, int]) -> None:
    app, _ = make(updates())
    assert snap_compare(app, terminal_size=terminal_size, run_before=settled)


# name: keys from the host's page, with the cursor on the braked call
PAGES = {
    "marked": ["up", "space", "space", "space"],
    "filtered": ["slash", ">!/bash/", "enter"],
    "sorted-flat": ["v", "s", "s", "s", "r"],
    "folded": ["z"],
    "call": ["enter"],
    "session": ["up", "enter"],
    "tenant": ["up", "up", "enter"],
    "gpu": ["g"],
    "doctor": ["d"],
    "help": ["question_mark"],
    "columns": ["c"],
    "export": ["x"],
    "kill": ["k"],
    "limits": ["l", ">brake 1", "enter"],
    "jump": ["j", ">soon", "enter"],
    "paused": ["p"],
    "past": ["j", ">30m ago", "enter"],
    "past-call": ["j", ">30m ago", "enter", "enter"],
}


@sizes
@pytest.mark.parametrize("name", PAGES)
def test_pages(snap_compare: SnapCompare, name: str, terminal_size: tuple[int, int]) -> None:
    async def go(pilot: Pilot[None]) -> None:
        await settled(pilot)
        app = pilot.app
        assert isinstance(app, CorralApp)
        table(app).select(BURST)
        await press(pilot, *PAGES[name])
        # cursors of fields blink: not in a picture
        for field in app.screen.query("Input"):
            field.cursor_blink = False  # type: ignore[attr-defined]
        await pilot.pause()

    # where exports go is on the screen: the same for every checkout
    app, _ = make(running(), exports=Path("/var/tmp"))
    assert snap_compare(app, terminal_size=terminal_size, run_before=go)


# with budgets, forecasts, a throttled and a queued call, a model and a tier
LOADED = {
    "host": (BURST, []),
    "gpu": (BURST, ["g"]),
    "throttled": (TEST, ["enter"]),
    "queued": (BUILD, ["enter"]),
    "session": ("s-rollout", ["enter"]),
    "tenant": ("t-greedy", ["enter"]),
}


@sizes
@pytest.mark.parametrize("name", LOADED)
def test_everything_told(snap_compare: SnapCompare, name: str, terminal_size: tuple[int, int]) -> None:
    row, keys = LOADED[name]

    async def go(pilot: Pilot[None]) -> None:
        await settled(pilot)
        app = pilot.app
        assert isinstance(app, CorralApp)
        table(app).select(row)
        await press(pilot, *keys)

    app, _ = make(loaded())
    assert snap_compare(app, terminal_size=terminal_size, run_before=go)


@sizes
def test_ended_call(snap_compare: SnapCompare, terminal_size: tuple[int, int]) -> None:
    async def go(pilot: Pilot[None]) -> None:
        await settled(pilot)
        past = ended_call().call
        assert past is not None
        pilot.app.push_screen(CallPage(past.id))
        await settled(pilot)

    app, _ = make(running())
    assert snap_compare(app, terminal_size=terminal_size, run_before=go)


def test_without_colours(snap_compare: SnapCompare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app, _ = make(running())
    assert snap_compare(app, terminal_size=(120, 30), run_before=settled)
