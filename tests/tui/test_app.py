"""The dashboard on a screen: pictures at two sizes, keys, and a daemon that goes and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.corral.v1 import corral_pb2_grpc as rpc
from tests.tui.fixtures import BURST, NOW, TEST, away, decision, empty, running, snapshot
from tui.app import Confirm, CorralApp
from tui.source import Away, FixtureSource, LiveSource, SourceError, Update

SIZES = [(80, 24), (160, 48)]


class SnapCompare(Protocol):
    def __call__(
        self, app: CorralApp, *, press: Iterable[str] = (), terminal_size: tuple[int, int], run_before: Any = None
    ) -> bool: ...


def _app(updates: list[Update], **options: str) -> tuple[CorralApp, FixtureSource]:
    source = FixtureSource(updates, **options)
    return CorralApp(source, clock=lambda: NOW), source


async def _settled(pilot: Pilot[None]) -> None:
    """Every update has been taken in, and drawn."""
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


@pytest.mark.parametrize("terminal_size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("updates", [running, empty, away], ids=["running", "empty", "away"])
def test_screens(snap_compare: SnapCompare, updates: Any, terminal_size: tuple[int, int]) -> None:
    app, _ = _app(updates())
    assert snap_compare(app, terminal_size=terminal_size, run_before=_settled)


def test_screen_of_the_question_before_a_kill(snap_compare: SnapCompare) -> None:
    async def ask(pilot: Pilot[None]) -> None:
        await _settled(pilot)
        await pilot.press("down", "down", "k")

    app, _ = _app(running())
    assert snap_compare(app, terminal_size=(80, 24), run_before=ask)


def _shown(app: CorralApp, widget: str) -> str:
    return str(app.query_one(widget, Static).content)


async def test_freeze_and_thaw_act_on_the_row_under_the_cursor() -> None:
    app, source = _app(running())
    async with app.run_test(size=(120, 30)) as pilot:
        await _settled(pilot)
        await pilot.press("f", "down", "t", "down", "f")
        await _settled(pilot)
    assert source.acted == [("freeze", "t-acme"), ("thaw", "s-coder"), ("freeze", TEST)]


async def test_kill_wants_a_yes() -> None:
    app, source = _app(running())
    async with app.run_test(size=(120, 30)) as pilot:
        await _settled(pilot)
        await pilot.press("down", "down", "k")
        assert isinstance(app.screen, Confirm)
        await pilot.press("n")
        assert source.acted == []
        await pilot.press("k", "enter", "y")
        await _settled(pilot)
    assert source.acted == [("kill", TEST)]


async def test_what_the_daemon_refuses_is_shown() -> None:
    app, _ = _app(running(), refuse="call c-1: not yours; ask its owner")
    async with app.run_test(size=(120, 30), notifications=True) as pilot:
        await _settled(pilot)
        await pilot.press("f")
        await _settled(pilot)
        assert [(n.severity, n.message) for n in app._notifications] == [
            ("error", "freeze acme: call c-1: not yours; ask its owner")
        ]


async def test_the_filter_narrows_and_escape_clears_it() -> None:
    app, _ = _app(running())
    async with app.run_test(size=(120, 30)) as pilot:
        await _settled(pilot)
        table = app.query_one(DataTable)
        assert table.row_count == 8
        await pilot.press("slash", *"burst")
        assert [key.value for key in table.rows] == ["t-greedy", "s-rollout", BURST]
        await pilot.press("enter")
        assert app.focused is table
        assert "filter: burst" in _shown(app, "#state")
        await pilot.press("escape")
        assert table.row_count == 8


async def test_letters_typed_into_the_filter_act_on_nothing() -> None:
    app, source = _app(running())
    async with app.run_test(size=(120, 30)) as pilot:
        await _settled(pilot)
        await pilot.press("slash", "k", "f", "t", "q", "p")
        await pilot.pause()
        assert app.is_running
        assert not isinstance(app.screen, Confirm)
    assert source.acted == []


class Stepped(FixtureSource):
    """Gives the next update when the test says so."""

    def __init__(self) -> None:
        super().__init__([])
        self.queue: asyncio.Queue[Update] = asyncio.Queue()

    async def updates(self) -> AsyncIterator[Update]:
        while True:
            yield await self.queue.get()
            self.queue.task_done()

    async def give(self, pilot: Pilot[None], update: Update) -> None:
        await self.queue.put(update)
        await self.queue.join()
        await pilot.pause()


async def test_the_cursor_stays_with_its_row_and_pause_holds_the_picture() -> None:
    source = Stepped()
    app = CorralApp(source, clock=lambda: NOW)
    async with app.run_test(size=(120, 30)) as pilot:
        await source.give(pilot, pb.WatchResponse(snapshot=snapshot()))
        await source.give(pilot, pb.WatchResponse(decision=decision()))
        table = app.query_one(DataTable)
        table.move_cursor(row=table.get_row_index(BURST))
        await pilot.press("p")
        await source.give(pilot, pb.WatchResponse(snapshot=snapshot(later=True)))
        assert table.row_count == 9
        assert "paused" in _shown(app, "#state")
        await pilot.press("p")
        assert table.row_count == 8  # one call has ended meanwhile
        assert table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value == BURST
        assert "■ braked" in str(table.get_row(BURST)[1])


async def test_a_daemon_that_is_away_is_said_and_comes_back() -> None:
    source = Stepped()
    app = CorralApp(source, clock=lambda: NOW)
    async with app.run_test(size=(120, 30)) as pilot:
        await source.give(pilot, pb.WatchResponse(snapshot=snapshot()))
        await source.give(pilot, Away(NOW - 3, "no daemon answers"))
        assert _shown(app, "#state").startswith("daemon away since 07:59:57 (3.0s)")
        assert app.query_one(DataTable).row_count == 9
        await source.give(pilot, pb.WatchResponse(snapshot=snapshot(later=True)))
        assert "away" not in _shown(app, "#state")


class _Daemon(rpc.OperatorServiceServicer):
    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        yield pb.WatchResponse(snapshot=snapshot())
        await asyncio.Event().wait()

    async def Freeze(self, request: pb.FreezeRequest, context: Any) -> pb.FreezeResponse:
        if request.target == "c-none":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no call c-none; see corral ps")
        return pb.FreezeResponse(call_ids=[request.target])


async def _serve(target: str) -> grpc.aio.Server:
    server = grpc.aio.server()
    rpc.add_OperatorServiceServicer_to_server(_Daemon(), server)  # type: ignore[abstract]  # the rest: UNIMPLEMENTED
    server.add_insecure_port(target)
    await server.start()
    return server


async def test_the_live_source_reconnects_and_remembers_since_when_it_was_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tui.source._RETRY", (0.01,))
    target = f"unix:{tmp_path}/api.sock"
    source = LiveSource(target)
    updates = source.updates()
    first = await anext(updates)
    assert isinstance(first, Away)
    assert first.cause == "no daemon answers"
    server = await _serve(target)
    while isinstance(update := await anext(updates), Away):
        assert update.since == first.since
    assert len(update.snapshot.calls) == 4
    assert await source.freeze(TEST) == [TEST]
    with pytest.raises(SourceError, match="no call c-none; see corral ps"):
        await source.freeze("c-none")
    with pytest.raises(SourceError):
        await source.kill(TEST)
    await server.stop(None)
    gone = await anext(updates)
    assert isinstance(gone, Away)
    assert gone.since >= first.since
    await updates.aclose()
