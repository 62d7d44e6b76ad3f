"""Apps under test, and a source that gives its updates when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from textual.pilot import Pilot
from textual.widgets import Input, Static

from tests.tui.fixtures import NOW, source
from tui.app import CorralApp
from tui.pages.host import HostPage
from tui.source.fixture import FixtureSource
from tui.source.protocol import Update
from tui.widgets.treetable import TreeTable


def make(updates: list[Update], *, exports: Path | None = None, **options: Any) -> tuple[CorralApp, FixtureSource]:
    """``options`` named ``read_only``, ``state`` or ``begin`` are the app's, others the source's."""
    own = {name: options.pop(name) for name in ("read_only", "state", "begin") if name in options}
    given = source(updates, **options)
    return CorralApp(given, clock=lambda: NOW, exports=exports, **own), given


async def settled(pilot: Pilot[None]) -> None:
    """Every update has been taken in, every question answered, and all of it drawn."""
    app = pilot.app
    assert isinstance(app, CorralApp)
    await pilot.pause()
    await app.workers.wait_for_complete()
    app.draw()
    await app.workers.wait_for_complete()  # a page asks again when the moment on the screen is another one
    await pilot.pause()


async def press(pilot: Pilot[None], *keys: str) -> None:
    """``>text`` is put into the field in one piece, as a paste is: each key waits for the screen to be idle."""
    for key in keys:
        if key.startswith(">") and len(key) > 1:
            field = pilot.app.focused
            assert isinstance(field, Input), f"{key}: no field has the focus"
            if not field.selection.is_empty:
                field.clear()
            field.insert_text_at_cursor(key[1:])
            await pilot.pause()
        else:
            await pilot.press(key)
    await settled(pilot)


def table(app: CorralApp) -> TreeTable:
    return app.screen.query_one(TreeTable)


def ids(app: CorralApp) -> list[str]:
    return [row.id for row in table(app).rows]


def shown(app: CorralApp, widget: str) -> str:
    return str(app.screen.query_one(widget, Static).content)


def host_page(app: CorralApp) -> HostPage:
    assert isinstance(app.screen, HostPage)
    return app.screen


def told(app: CorralApp) -> list[str]:
    """What was notified, the oldest first."""
    return [notification.message for notification in app._notifications]


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
        app = pilot.app
        assert isinstance(app, CorralApp)
        app.draw()
        await pilot.pause()
