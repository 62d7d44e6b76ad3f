"""The dashboard: the host, tenants with their sessions and calls, what was decided, and the keys that act.

A pure client of the API: everything it shows comes from a Source, everything it does goes to one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Label, Static
from textual.widgets.data_table import RowDoesNotExist

from tui.board import Board, Row
from tui.screen import TITLES, cells, decision_line, host_line, state_line
from tui.source import LiveSource, Source, SourceError

TICKER: Final = 5  # lines of decisions: #ticker's height without its border
NOTHING: Final = "nothing is running; try: corral run -- true"


class Confirm(ModalScreen[bool]):
    """A question that only y answers with yes."""

    CSS = """
    Confirm { align: center middle; }
    Confirm > Vertical {
        width: 60; max-width: 90%; height: auto;
        border: thick $error; padding: 1 2; background: $surface;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self._question, markup=False)
            yield Label("y yes    n no")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class CorralApp(App[None]):
    """``clock`` gives unix seconds; tests fix it."""

    TITLE = "corral"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #host { height: 1; background: $panel; padding: 0 1; }
    #state { height: 1; padding: 0 1; }
    #calls { height: 1fr; }
    #nothing { height: 1fr; content-align: center middle; color: $text-muted; display: none; }
    #ticker { height: 6; border-top: solid $panel; padding: 0 1; }
    #host, #state, #ticker { text-wrap: nowrap; text-overflow: ellipsis; }
    #filter { dock: bottom; display: none; height: 3; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("f", "freeze", "freeze"),
        Binding("t", "thaw", "thaw"),
        Binding("k", "kill", "kill"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("p", "pause", "pause"),
        Binding("escape", "unfilter", "clear", show=False),
    ]

    def __init__(self, source: Source, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._source = source
        self._clock = clock
        self.board = Board()
        self._paused = False
        self._wanted = ""
        self._rows: list[Row] = []

    def compose(self) -> ComposeResult:
        yield Static(id="host", markup=False)
        yield Static(id="state", markup=False)
        yield DataTable(id="calls", cursor_type="row", zebra_stripes=False, cell_padding=1)
        yield Static(NOTHING, id="nothing", markup=False)
        yield Static(id="ticker", markup=False)
        yield Input(placeholder="tenant, session, tool, class, state or command", id="filter")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self._table.add_columns(*TITLES)
        self._table.focus()
        self._draw()
        self.run_worker(self._follow(), name="follow", exit_on_error=True)
        # The age of "away since" grows while nothing comes.
        self.set_interval(1.0, self._draw_lines)

    @property
    def _table(self) -> DataTable[Any]:
        return self.query_one("#calls", DataTable)

    async def _follow(self) -> None:
        async for update in self._source.updates():
            self.board.apply(update)
            if not self._paused:
                self._draw()

    # --- drawing

    def _draw(self) -> None:
        self._draw_lines()
        rows = self.board.rows(self._wanted)
        if [row.id for row in rows] == [row.id for row in self._rows]:
            self._update(rows)
        else:
            self._rebuild(rows)
        self._rows = rows
        nothing = self.board.snapshot is not None and not rows
        self._table.display = not nothing
        self.query_one("#nothing").display = nothing

    def _draw_lines(self) -> None:
        width = self.size.width
        self.query_one("#host", Static).update(host_line(self.board, self._source.name, width))
        now = self._clock()
        state = state_line(self.board, paused=self._paused, wanted=self._wanted, now=now)
        self.query_one("#state", Static).update(state)
        ticker = self.query_one("#ticker", Static)
        lines = [decision_line(decision) for decision in list(self.board.decisions)[-TICKER:]]
        ticker.update(
            Text("\n", no_wrap=True, overflow="ellipsis").join(lines) if lines else Text("nothing was decided")
        )

    def _update(self, rows: list[Row]) -> None:
        """The same rows in the same order: only the cells that changed are drawn anew."""
        table = self._table
        for number, (old, new) in enumerate(zip(self._rows, rows, strict=True)):
            if old == new:
                continue
            for column, (before, after) in enumerate(zip(cells(old), cells(new), strict=True)):
                if before != after:
                    table.update_cell_at((number, column), after, update_width=True)  # type: ignore[arg-type]

    def _rebuild(self, rows: list[Row]) -> None:
        table = self._table
        current = self._selected
        table.clear()
        for row in rows:
            table.add_row(*cells(row), key=row.id)
        if current is not None:
            # One that has ended leaves the cursor on the first row.
            with contextlib.suppress(RowDoesNotExist):
                table.move_cursor(row=table.get_row_index(current.id), animate=False)

    # --- acting

    @property
    def _selected(self) -> Row | None:
        number = self._table.cursor_row
        return self._rows[number] if 0 <= number < len(self._rows) else None

    def action_freeze(self) -> None:
        self._act("freeze", self._source.freeze)

    def action_thaw(self) -> None:
        self._act("thaw", self._source.thaw)

    def action_kill(self) -> None:
        row = self._selected
        if row is None:
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._act("kill", self._source.kill, row)

        what = f"{row.kind} {row.label}" + (f"\n{row.command[:200]}" if row.command else "")
        many = f"\nwith {row.calls} calls" if row.kind != "call" else ""
        self.push_screen(Confirm(f"Kill {what}{many}?"), answered)

    def _act(self, verb: str, do: Callable[[str], Coroutine[Any, Any, list[str]]], row: Row | None = None) -> None:
        target = row or self._selected
        if target is None:
            return

        async def work() -> None:
            try:
                reached = await do(target.id)
            except SourceError as err:
                self.notify(f"{verb} {target.label}: {err}", severity="error", markup=False)
                return
            calls = f"{len(reached)} call" + ("" if len(reached) == 1 else "s")
            self.notify(f"{verb} {target.label}: {calls}", markup=False)

        self.run_worker(work(), name=verb)

    def action_pause(self) -> None:
        self._paused = not self._paused
        if self._paused:
            self._draw_lines()
        else:
            self._draw()

    # --- filter

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def action_unfilter(self) -> None:
        field = self.query_one("#filter", Input)
        field.value = ""
        field.display = False
        self._wanted = ""
        self._table.focus()
        self._draw()

    @on(Input.Changed, "#filter")
    def filter_changed(self, event: Input.Changed) -> None:
        self._wanted = event.value
        self._draw()

    @on(Input.Submitted, "#filter")
    def filter_done(self) -> None:
        self.query_one("#filter", Input).display = False
        self._table.focus()

    def on_resize(self) -> None:
        self._draw_lines()


def run(target: str, *, interval: float = 1.0) -> None:
    """The dashboard of the daemon at ``target`` ("unix:/path"), until it is quit."""
    CorralApp(LiveSource(target, interval=interval)).run()
