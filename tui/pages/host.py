"""The first page: the whole host in one table, and the ticker of decisions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final

from rich.text import Text
from textual import on
from textual.binding import BindingType
from textual.widget import Widget
from textual.widgets import Input, Static

from tui.keys import bindings
from tui.model.columns import COLUMNS
from tui.model.filters import Filter
from tui.model.lines import counts, decision_line
from tui.model.rows import Row, Wanted, build
from tui.model.text import clean
from tui.pages.base import Note, Page, put
from tui.widgets.treetable import TreeTable

NOTHING: Final = "nothing is running; try: corral run -- true"
NO_MATCH: Final = "no call matches the filter; esc clears it"
WAITING: Final = "waiting for the daemon"


class HostPage(Page):
    DEFAULT_CSS = """
    #calls { height: 1fr; }
    #nothing {
        height: 1fr; padding: 0 4; content-align: center middle; text-align: center; color: $text-muted; display: none;
    }
    #ticker { height: 6; border-top: solid $panel; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    #filter { display: none; height: 1; border: none; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("moving", "calls", "acting")]

    def __init__(self) -> None:
        super().__init__()
        self._filter = Filter()
        self._folded: set[str] = set()
        self._ticker_lines = 0

    def body(self) -> Iterable[Widget]:
        yield TreeTable(names=self.corral.layout.columns, id="calls")
        yield Static(id="nothing", markup=False)
        yield Input(placeholder="filter: text, /regex/, ! before it inverts", id="filter", max_length=250)
        yield Static(id="ticker", markup=False)

    def on_mount(self) -> None:
        super().on_mount()
        self.table.focus()

    @property
    def table(self) -> TreeTable:
        return self.query_one("#calls", TreeTable)

    # --- drawing

    def draw_body(self) -> None:
        layout = self.corral.layout
        wanted = Wanted(
            filter=self._filter,
            sort=layout.sort,
            descending=layout.descending,
            folded=self._folded,
            flat=layout.flat,
            ended=layout.ended,
        )
        rows = build(self.board, wanted)
        table = self.table
        table.set_columns(layout.columns, layout.sort, descending=layout.descending)
        table.show(rows)
        table.display = bool(rows)
        nothing = self.query_one("#nothing", Static)
        nothing.display = not rows
        if not rows:
            nothing.update(self._why_nothing())
        self._draw_ticker()

    def _why_nothing(self) -> str:
        board = self.board
        if board.at is None:
            away = board.away
            return f"{WAITING}\n\n{clean(away.cause)}" if away is not None else WAITING
        return NO_MATCH if self._filter.active else NOTHING

    def _draw_ticker(self) -> None:
        ticker = self.query_one("#ticker", Static)
        lines = 6 if self.size.height >= 40 else 4 if self.size.height >= 24 else 2
        if self._ticker_lines != lines:
            ticker.styles.height = self._ticker_lines = lines
        newest = list(self.board.decisions)[-(lines - 1) :]
        told = [decision_line(decision, self.board) for decision in newest]
        put(ticker, Text("\n", no_wrap=True, end="").join(told) if told else Text("nothing was decided", "dim"))

    def crumbs(self) -> list[str]:
        return ["host"]

    def notes(self) -> list[Note]:
        layout = self.corral.layout
        notes: list[Note] = [(counts(self.board), "")] if self.board.at is not None and self.size.width < 122 else []
        if self._filter.text:
            wrong = f" ({self._filter.problem})" if self._filter.problem else ""
            notes.append((f"filter: {self._filter.text}{wrong}", "bold cyan"))
        if layout.sort:
            notes.append((f"by {COLUMNS[layout.sort].title.lower()} {'▼' if layout.descending else '▲'}", ""))
        if layout.flat:
            notes.append(("flat", ""))
        if layout.ended:
            notes.append(("with ended", ""))
        if marked := len(self.table.marked):
            notes.append((f"{marked} marked", "bold magenta"))
        return notes

    def targets(self) -> list[Row]:
        marked = [row for row in self.table.rows if row.id in self.table.marked]
        current = self.table.current
        return marked or ([current] if current is not None else [])

    def exported(self) -> tuple[list[Row], list[str]]:
        return self.table.rows, self.table.columns

    # --- keys

    def action_open(self) -> None:
        row = self.table.current
        if row is not None:
            self.corral.open_row(row)

    @on(TreeTable.Opened)
    def opened(self, event: TreeTable.Opened) -> None:
        self.corral.open_row(event.row)

    def action_mark(self) -> None:
        self.table.toggle_mark()
        self.table.action_move(1)
        self.draw_lines()

    def action_back(self) -> None:
        field = self.query_one("#filter", Input)
        self.table.marked.clear()
        field.value = ""
        field.display = False
        self._filter = Filter()
        self.table.focus()
        self.draw()
        self.table.refresh()

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    @on(Input.Changed, "#filter")
    def filter_changed(self, event: Input.Changed) -> None:
        self._filter = Filter.parse(event.value)
        self.draw()

    @on(Input.Submitted, "#filter")
    def filter_done(self) -> None:
        self.query_one("#filter", Input).display = False
        self.table.focus()

    def action_sort(self, by: int) -> None:
        """Through the columns that are shown, and to the order of the tree."""
        layout = self.corral.layout
        names = ["", *self.table.columns]
        place = names.index(layout.sort) if layout.sort in names else 0
        self._sort(names[(place + by) % len(names)])

    @on(TreeTable.Sorted)
    def sorted_by(self, event: TreeTable.Sorted) -> None:
        """A click on the title of what it is sorted by turns the order around."""
        if event.column == self.corral.layout.sort:
            self.action_reverse()
        else:
            self._sort(event.column)

    def _sort(self, name: str) -> None:
        layout = self.corral.layout
        layout.sort = name
        # numbers: the largest first; words: from a on
        layout.descending = bool(name) and COLUMNS[name].right
        self.draw()

    def action_reverse(self) -> None:
        self.corral.layout.descending = not self.corral.layout.descending
        self.draw()

    def action_fold(self) -> None:
        row = self.table.current
        if row is None:
            return
        if row.folded is False:
            self._folded.add(row.id)
            self.draw()
            return
        above = row.session if row.kind == "call" else row.tenant if row.kind == "session" else None
        if above is not None:
            self.table.select(above.id)

    def action_unfold(self) -> None:
        row = self.table.current
        if row is not None:
            self._folded.discard(row.id)
            self.draw()

    @on(TreeTable.Folded)
    def folded(self, event: TreeTable.Folded) -> None:
        self._folded ^= {event.row.id}
        self.draw()

    def action_fold_all(self) -> None:
        self._folded = set() if self._folded else {*self.board.sessions, *self.board.tenants}
        self.draw()

    def action_flat(self) -> None:
        self.corral.layout.flat = not self.corral.layout.flat
        self.draw()

    def action_ended(self) -> None:
        self.corral.layout.ended = not self.corral.layout.ended
        self.draw()

    def action_columns(self) -> None:
        self.corral.choose_columns()
