"""Small windows over a page: a question, a line to type, columns to choose, where to export, help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Label, OptionList, Static
from textual.widgets.option_list import Option

from tui.keys import help_lines
from tui.model.columns import COLUMNS, Column


class Confirm(ModalScreen[bool]):
    """A question that only y answers with yes."""

    DEFAULT_CSS = """
    Confirm { align: center middle; }
    Confirm Label { width: 100%; }
    Confirm > Vertical {
        width: 68; max-width: 90%; height: auto;
        border: thick $error; padding: 1 2; background: $surface;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self.question, markup=False)
            yield Label("\ny yes    n no")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class Ask(ModalScreen[str | None]):
    """One line of text. ``check`` raises ValueError with the words that are shown while the text is not right."""

    DEFAULT_CSS = """
    Ask { align: center middle; }
    Ask Label { width: 100%; }
    Ask > Vertical {
        width: 68; max-width: 90%; height: auto;
        border: thick $primary; padding: 0 1; background: $surface;
    }
    Ask #wrong { color: $error; height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "leave")]

    def __init__(self, title: str, hint: str, check: Callable[[str], object], value: str = "") -> None:
        super().__init__()
        self._title = title
        self._hint = hint
        self._check = check
        self._value = value

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self._title, markup=False)
            yield Input(value=self._value, placeholder=self._hint, id="answer", max_length=200)
            yield Static(id="wrong", markup=False)

    @on(Input.Submitted)
    def answered(self, event: Input.Submitted) -> None:
        event.stop()
        try:
            self._check(event.value)
        except ValueError as err:
            self.query_one("#wrong", Static).update(str(err))
            return
        self.dismiss(event.value)

    def action_leave(self) -> None:
        self.dismiss(None)


class Columns(ModalScreen[tuple[str, ...] | None]):
    """Which columns are shown. What has no room on the screen gives way by itself.

    Not Textual's SelectionList: it tells what is chosen by colour alone."""

    DEFAULT_CSS = """
    Columns { align: center middle; }
    Columns > Vertical {
        width: 76; max-width: 95%; height: 90%;
        border: thick $primary; background: $surface;
    }
    Columns OptionList { height: 1fr; border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "mark", "choose"),
        Binding("escape,c", "done", "done"),
        Binding("q", "leave", "leave"),
    ]

    def __init__(self, chosen: Sequence[str]) -> None:
        super().__init__()
        self._chosen = {name for name, column in COLUMNS.items() if name in chosen or not column.rank}

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label("columns: space or click chooses, esc takes them, q leaves it as it was")
            yield OptionList(*(Option(self._line(column), id=name) for name, column in COLUMNS.items() if column.rank))

    def _line(self, column: Column) -> Text:
        mark = "[x]" if column.name in self._chosen else "[ ]"
        return Text(f"{mark} {column.title:15} {column.words}", no_wrap=True, overflow="ellipsis")

    def action_mark(self) -> None:
        self.query_one(OptionList).action_select()

    @on(OptionList.OptionSelected)
    def toggled(self, event: OptionList.OptionSelected) -> None:
        name = event.option.id
        if name is not None:
            self._chosen ^= {name}
            self.query_one(OptionList).replace_option_prompt(name, self._line(COLUMNS[name]))

    def action_done(self) -> None:
        self.dismiss(tuple(name for name in COLUMNS if name in self._chosen))

    def action_leave(self) -> None:
        self.dismiss(None)


class Export(ModalScreen[str | None]):
    DEFAULT_CSS = """
    Export { align: center middle; }
    Export Label { width: 100%; }
    Export > Vertical {
        width: 60; max-width: 90%; height: auto;
        border: thick $primary; padding: 1 2; background: $surface;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "choose('csv')", "CSV"),
        Binding("j", "choose('json')", "JSON"),
        Binding("s", "choose('svg')", "SVG"),
        Binding("escape,q", "choose('')", "leave"),
    ]

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = directory

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(f"Export what is shown into {self._directory}", markup=False)
            yield Label("\nc CSV    j JSON    s SVG picture    esc leave")

    def action_choose(self, form: str) -> None:
        self.dismiss(form or None)


class Help(ModalScreen[None]):
    """All keys, from the table that the bindings are made of."""

    DEFAULT_CSS = """
    Help { align: center middle; }
    Help > VerticalScroll {
        width: 90; max-width: 95%; height: 90%;
        border: thick $primary; padding: 0 1; background: $surface;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark", "leave", "leave")]

    def compose(self) -> ComposeResult:
        text = Text()
        for key, words in help_lines():
            if key:
                text.append(f"  {key:12}", "bold")
                text.append(f" {words}\n")
            else:
                text.append(f"\n{words}\n", "bold underline")
        with VerticalScroll():
            yield Static(text)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_leave(self) -> None:
        self.dismiss(None)
