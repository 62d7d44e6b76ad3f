"""Pages that are text to scroll through, made anew from what is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from tui.pages.base import Page
from tui.source.protocol import SourceError

REFRESH: float = 5.0  # seconds between questions to the ledger while a page is open


class ScrollPage(Page):
    """``lines`` gives the text; ``load`` asks the source, off the drawing: when the page opens, every REFRESH seconds,
    and when the moment on the screen is another one."""

    DEFAULT_CSS = """
    #page { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    #text { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "scroll(1)", show=False),
        Binding("up", "scroll(-1)", show=False),
        Binding("pagedown", "scroll(10)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.problem = ""  # why the source had no answer
        self._loaded_for: float | None = -1.0  # the moment that was asked for; None: now

    def body(self) -> Iterable[Widget]:
        with VerticalScroll(id="page", can_focus=False):
            yield Static(id="text", markup=False)

    def on_mount(self) -> None:
        super().on_mount()
        self.set_interval(REFRESH, self.reload)

    def draw_body(self) -> None:
        if self.corral.player.at != self._loaded_for:
            self.reload()
        self.query_one("#text", Static).update(Text("\n").join(self.lines(max(40, self.size.width - 3))))

    def reload(self) -> None:
        self._loaded_for = self.corral.player.at
        self.run_worker(self._load(), name="load", group="load", exclusive=True)

    async def _load(self) -> None:
        try:
            await self.load(self.corral.player.at)
            self.problem = ""
        except SourceError as err:
            self.problem = str(err)
        if self.query("#text"):  # the page may have been left meanwhile
            self.draw_loaded()

    def draw_loaded(self) -> None:
        self.query_one("#text", Static).update(Text("\n").join(self.lines(max(40, self.size.width - 3))))

    def action_scroll(self, by: int) -> None:
        self.query_one("#page", VerticalScroll).scroll_relative(y=by, animate=False)

    async def load(self, until: float | None) -> None:
        """Raises SourceError."""

    def lines(self, width: int) -> Sequence[Text]:
        raise NotImplementedError
