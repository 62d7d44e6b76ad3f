"""What all pages share: the host's line, what must not be missed, breadcrumbs, body, keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static

from tui.keys import bindings
from tui.model.board import Board
from tui.model.lines import host_line, line, state_line
from tui.model.rows import Row

if TYPE_CHECKING:
    from tui.app import CorralApp

Note = tuple[str, str]  # text, style


def put(widget: Static, text: Text) -> None:
    """Shows ``text`` if it is another one: a widget of fixed height, so that nothing has to be laid out anew."""
    if widget.content != text:
        widget.update(text, layout=False)


class Page(Screen[None]):
    """``draw`` is called when the board has changed, at most some times a second, and when time passes."""

    DEFAULT_CSS = """
    .line { height: 1; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    #host { background: $panel; }
    #crumbs { color: $foreground; }
    #state { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("everywhere", "time")]
    name_words = ""  # in the breadcrumbs

    @property
    def corral(self) -> CorralApp:
        return cast("CorralApp", self.app)

    @property
    def board(self) -> Board:
        return self.corral.player.board

    def compose(self) -> ComposeResult:
        yield Static(id="host", classes="line", markup=False)
        yield Static(id="state", classes="line", markup=False)
        yield Static(id="crumbs", classes="line", markup=False)
        yield from self.body()
        yield Footer(show_command_palette=False, compact=True)

    def body(self) -> Iterable[Widget]:
        raise NotImplementedError

    def on_mount(self) -> None:
        self.draw()

    def on_screen_resume(self) -> None:
        self.draw()

    def on_resize(self) -> None:
        self.draw()

    # --- drawing

    def draw(self) -> None:
        if self.draw_lines():
            self.draw_body()

    def draw_lines(self) -> bool:
        """The lines above the body alone. False: the page is not there yet, or is being taken down."""
        if not self.is_mounted or not self.query("#host"):
            return False
        app = self.corral
        put(self.query_one("#host", Static), host_line(self.board, app.source.name, self.size.width - 2))
        state = state_line(self.board, now=app.clock(), time_words=app.player.words)
        shown = self.query_one("#state", Static)
        shown.display = bool(state)
        put(shown, state)
        put(self.query_one("#crumbs", Static), self._crumbs())
        return True

    def draw_body(self) -> None:
        raise NotImplementedError

    def crumbs(self) -> list[str]:
        """From the host to what this page is about."""
        return ["host", self.name_words]

    def notes(self) -> list[Note]:
        """Beside the breadcrumbs: how the page is set."""
        return []

    def _crumbs(self) -> Text:
        text = line()
        crumbs = [crumb for crumb in self.crumbs() if crumb]
        for number, crumb in enumerate(crumbs):
            text.append(" › " if number else "", "dim")
            text.append(crumb, "bold" if number == len(crumbs) - 1 else "")
        notes = self.notes() + ([("read-only", "dim")] if self.corral.read_only else [])
        for words, style in notes:
            text.append("  ·  ", "dim")
            text.append(words, style)
        return text

    # --- what the keys of all pages mean here

    def targets(self) -> list[Row]:
        """What an action is about: the marked rows, else the current one."""
        return []

    def exported(self) -> tuple[list[Row], list[str]]:
        """Rows and columns for CSV and JSON."""
        return [], []

    def action_back(self) -> None:
        self.corral.back()

    def action_act(self, verb: Any) -> None:
        self.corral.ask_to_act(verb, self.targets())

    def action_change(self, what: Any) -> None:
        self.corral.ask_to_change(what, self.targets())
