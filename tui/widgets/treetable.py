"""The table of calls: of however many rows only those on the screen are turned into text, at each frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tui.model.columns import Cell, Placed, fit
from tui.model.rows import Row

_MARKS: Final = {(False, False): "  ", (True, False): "› ", (False, True): "+ ", (True, True): "›+"}
_MARK_WIDTH: Final = 2
_PARSED: dict[str, Style] = {"": Style.null()}


def _style(text: str) -> Style:
    found = _PARSED.get(text)
    if found is None:
        found = _PARSED[text] = Style.parse(text)
    return found


class TreeTable(ScrollView, can_focus=True, inherit_bindings=False):
    """Rows in, marks and keys out. The cursor stays with its object when rows come, go and change places."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "treetable--header",
        "treetable--cursor",
        "treetable--marked",
    }
    DEFAULT_CSS = """
    TreeTable {
        background: $surface; color: $foreground; height: 1fr; overflow-x: hidden;
        scrollbar-size-vertical: 1;
    }
    TreeTable > .treetable--header { background: $panel; color: $foreground; text-style: bold; }
    TreeTable > .treetable--cursor { background: $primary 40%; text-style: bold; }
    TreeTable > .treetable--marked { background: $secondary 25%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "end(False)", show=False),
        Binding("end", "end(True)", show=False),
    ]
    cursor: reactive[int] = reactive(0, repaint=False)

    class Opened(Message):
        """Enter or a second click on a row."""

        def __init__(self, row: Row) -> None:
            super().__init__()
            self.row = row

    class Folded(Message):
        """A click on the mark before a tenant or a session."""

        def __init__(self, row: Row) -> None:
            super().__init__()
            self.row = row

    class Sorted(Message):
        """A click on a column's title."""

        def __init__(self, column: str) -> None:
            super().__init__()
            self.column = column

    def __init__(self, *, names: Sequence[str] = (), id: str | None = None) -> None:
        super().__init__(id=id)
        self.names: tuple[str, ...] = tuple(names)
        self.rows: list[Row] = []
        self.marked: set[str] = set()
        self.sort = ""
        self.descending = True
        self._placed: list[Placed] = []
        self._current: str | None = None  # id of the row under the cursor
        self._made: dict[str, tuple[Row, tuple[Cell, ...]]] = {}
        self._drawn: dict[int, tuple[str, tuple[Cell, ...]]] = {}  # what each line on the screen shows

    # --- from the page

    def show(self, rows: list[Row]) -> None:
        """The rows from top to bottom."""
        length = len(self.rows)
        self.rows = rows
        self._made.clear()
        if self._current is not None and not (self.cursor < len(rows) and rows[self.cursor].id == self._current):
            place = next((number for number, row in enumerate(rows) if row.id == self._current), None)
            if place is None:
                # it has ended: stay where it was
                self.cursor = max(0, min(self.cursor, len(rows) - 1))
                self._remember()
            else:
                self.cursor = place
                self._into_view()
        elif self._current is None:
            self.cursor = max(0, min(self.cursor, len(rows) - 1))
            self._remember()
        if self.marked:
            # what is no longer shown is no longer meant: nobody acts on a row that he cannot see
            self.marked &= {row.id for row in rows}
        if length != len(rows):
            self.virtual_size = Size(self.scrollable_content_region.width, len(rows) + 1)
        self._draw_changed()

    def set_columns(self, names: Sequence[str], sort: str = "", *, descending: bool = True) -> None:
        """Which columns, and what the header says the order is."""
        if (tuple(names), sort, descending) == (self.names, self.sort, self.descending) and self._placed:
            return
        self.names, self.sort, self.descending = tuple(names), sort, descending
        self._place()

    @property
    def current(self) -> Row | None:
        return self.rows[self.cursor] if 0 <= self.cursor < len(self.rows) else None

    @property
    def columns(self) -> list[str]:
        """Names of those that have room."""
        return [placed.column.name for placed in self._placed]

    def select(self, object_id: str) -> None:
        """Puts the cursor there, now or when it comes."""
        self._current = object_id
        for number, row in enumerate(self.rows):
            if row.id == object_id:
                self.cursor = number
                self._into_view()
                self.refresh()

    def toggle_mark(self) -> None:
        row = self.current
        if row is not None:
            self.marked ^= {row.id}
            self.refresh()

    # --- drawing

    def _place(self) -> None:
        width = self.scrollable_content_region.width - _MARK_WIDTH
        self._placed = fit(self.names, width) if width > 0 else []
        self._made.clear()
        self._drawn.clear()
        self.refresh()

    def on_resize(self) -> None:
        self.virtual_size = Size(self.scrollable_content_region.width, len(self.rows) + 1)
        self._place()
        self._into_view()

    def _cells(self, row: Row) -> tuple[Cell, ...]:
        """Made once for each row that is shown: a new picture brings new rows."""
        made = self._made.get(row.id)
        if made is None or made[0] is not row:
            made = self._made[row.id] = (row, tuple(placed.column.cell(row) for placed in self._placed))
        return made[1]

    def _draw_changed(self) -> None:
        """Asks for new lines where the text is another one than the screen shows."""
        top = self.scroll_offset.y
        for y in range(1, self.size.height):
            number = top + y - 1
            row = self.rows[number] if number < len(self.rows) else None
            shown = self._drawn.get(y)
            if row is None:
                if shown is not None:
                    self.refresh(Region(0, y, self.size.width, 1))
            elif shown is None or shown != (row.id, self._cells(row)):
                self.refresh(Region(0, y, self.size.width, 1))

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y == 0:
            return self._header(width)
        number = self.scroll_offset.y + y - 1
        if number >= len(self.rows):
            self._drawn.pop(y, None)
            return Strip.blank(width, self.rich_style)
        row = self.rows[number]
        cells = self._cells(row)
        self._drawn[y] = (row.id, cells)
        here, marked = number == self.cursor, row.id in self.marked
        base = self.rich_style
        if marked:
            base += self.get_component_rich_style("treetable--marked", partial=True)
        if here and self.has_focus:
            base += self.get_component_rich_style("treetable--cursor", partial=True)
        segments = [Segment(_MARKS[here, marked], base)]
        for place, (placed, cell) in enumerate(zip(self._placed, cells, strict=True)):
            if place:
                segments.append(Segment(" ", base))
            segments += _fitted(cell, placed, base)
        return Strip(segments).adjust_cell_length(width, base)

    def _header(self, width: int) -> Strip:
        base = self.rich_style + self.get_component_rich_style("treetable--header", partial=True)
        segments = [Segment(" " * _MARK_WIDTH, base)]
        for place, placed in enumerate(self._placed):
            if place:
                segments.append(Segment(" ", base))
            title = placed.column.title
            if placed.column.name == self.sort:
                arrow = "▼" if self.descending else "▲"
                title = f"{title[: placed.width - 1]}{arrow}"
            segments += _fitted(((title, ""),), placed, base)
        return Strip(segments).adjust_cell_length(width, base)

    # --- moving

    def watch_cursor(self, old: int, new: int) -> None:
        top = self.scroll_offset.y
        for number in (old, new):
            self.refresh(Region(0, number - top + 1, self.size.width, 1))

    def watch_has_focus(self, value: bool) -> None:
        super().watch_has_focus(value)
        self.refresh()

    def _remember(self) -> None:
        row = self.current
        self._current = row.id if row is not None else None

    def _into_view(self) -> None:
        height = self.scrollable_content_region.height - 1
        if height <= 0:
            return
        top = self.scroll_offset.y
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, immediate=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, immediate=True)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._drawn.clear()
        self.refresh()

    def _go(self, number: int) -> None:
        self.cursor = max(0, min(number, len(self.rows) - 1))
        self._remember()
        self._into_view()

    def action_move(self, by: int) -> None:
        self._go(self.cursor + by)

    def action_page(self, direction: int) -> None:
        self._go(self.cursor + direction * max(1, self.scrollable_content_region.height - 2))

    def action_end(self, last: bool) -> None:
        self._go(len(self.rows) - 1 if last else 0)

    # --- the mouse

    def on_click(self, event: events.Click) -> None:
        event.stop()
        x = event.x - _MARK_WIDTH
        if event.y == 0:
            left = 0
            for placed in self._placed:
                if left <= x < left + placed.width + 1:
                    self.post_message(self.Sorted(placed.column.name))
                    return
                left += placed.width + 1
            return
        number = self.scroll_offset.y + event.y - 1
        if number >= len(self.rows):
            return
        row = self.rows[number]
        self._go(number)
        if row.folded is not None and 0 <= x <= row.depth * 2 + 1:
            self.post_message(self.Folded(row))
        elif event.ctrl:
            self.toggle_mark()
        elif event.chain == 2:
            self.post_message(self.Opened(row))


def _fitted(cell: Cell, placed: Placed, base: Style) -> list[Segment]:
    """The cell's parts in exactly the column's width, cut with an ellipsis."""
    width = placed.width
    used = sum(cell_len(text) for text, _ in cell)
    segments = []
    if used < width and placed.column.right:
        segments.append(Segment(" " * (width - used), base))
    left = width
    for text, style in cell:
        size = cell_len(text)
        cut = text if size <= left else f"{set_cell_size(text, left - 1).rstrip()}…" if left > 0 else ""
        segments.append(Segment(cut, base + _style(style) if style else base))
        left -= min(size, cell_len(cut)) if size <= left else left
    if used < width and not placed.column.right:
        segments.append(Segment(" " * (width - used), base))
    elif used > width:
        short = width - sum(cell_len(segment.text) for segment in segments)
        if short > 0:
            segments.append(Segment(" " * short, base))
    return segments
