"""Every key of the dashboard, once: bindings, help, command palette and docs/dashboard.md are made from this table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from textual.binding import Binding

Where = Literal["everywhere", "calls", "moving", "acting", "time"]


@dataclass(frozen=True, slots=True)
class Key:
    """``key`` as Textual names it, ``shown`` as people do; ``action`` is called ``action_NAME``. ``footer``: short
    words for the bottom line, empty: not there."""

    key: str
    shown: str
    action: str
    words: str
    where: Where
    footer: str = ""

    @property
    def target(self) -> str:
        """The action with who has it: what is the same on all pages is the application's."""
        return f"app.{self.action}" if self.where in ("everywhere", "time") and self.action != "back" else self.action


TITLES: Final[dict[Where, str]] = {
    "everywhere": "Everywhere",
    "moving": "In a table",
    "calls": "On the host's page",
    "acting": "Acting (asks first; on the marked rows, else on the one under the cursor)",
    "time": "Time",
}
KEYS: Final = (
    Key("question_mark", "?", "help", "this help", "everywhere", "help"),
    Key("colon", ": or ctrl+p", "command_palette", "command palette", "everywhere"),
    Key("escape", "esc", "back", "clear the filter and the marks, else back to the page before", "everywhere"),
    Key("h", "h", "host", "the host's page", "everywhere"),
    Key("g", "g", "gpu", "GPUs and inference engines", "everywhere"),
    Key("d", "d", "doctor", "what this host can do and what it cannot", "everywhere"),
    Key("x", "x", "export", "export what is shown: CSV, JSON or SVG", "everywhere"),
    Key("q", "q", "quit", "quit", "everywhere", "quit"),
    Key("enter", "enter", "open", "open the page of a tenant, session or call (or click twice)", "moving", "open"),
    Key("space", "space", "mark", "mark the row, to act on several (or ctrl+click)", "moving"),
    Key("slash", "/", "filter", "filter: text, /regex/, and ! before either to invert it", "calls", "filter"),
    Key("s", "s", "sort(1)", "sort by the next column (or click its title)", "calls", "sort"),
    Key("S", "S", "sort(-1)", "sort by the column before", "calls"),
    Key("r", "r", "reverse", "reverse the order", "calls"),
    Key("left", "←", "fold", "fold the tenant or session, then go to what it is in", "calls"),
    Key("right", "→", "unfold", "unfold", "calls"),
    Key("z", "z", "fold_all", "fold all, or unfold all", "calls"),
    Key("v", "v", "flat", "calls alone in one order, or the tree", "calls"),
    Key("e", "e", "ended", "show calls that ended lately, too", "calls"),
    Key("c", "c", "columns", "choose the columns", "calls"),
    Key("f", "f", "act('freeze')", "freeze: stopped where they are, memory kept", "acting", "freeze"),
    Key("t", "t", "act('thaw')", "thaw", "acting", "thaw"),
    Key("k", "k", "act('kill')", "kill calls, every process of them", "acting", "kill"),
    Key("l", "l", "change('limits')", "change brake, memory limit, CPU or pids", "acting", "limits"),
    Key("P", "P", "change('priority')", "change the priority", "acting"),
    Key("p", "p", "pause", "pause; in the past: play and stop", "time", "pause"),
    Key("comma", ",", "step(-1)", "step back (10 s in the ledger, one picture in a recording)", "time"),
    Key("full_stop", ".", "step(1)", "step forward", "time"),
    Key("left_square_bracket", "[", "decision(-1)", "to the decision before", "time"),
    Key("right_square_bracket", "]", "decision(1)", "to the next decision", "time"),
    Key("j", "j", "jump", 'jump: "10m ago", "14:03", "2026-11-24 14:03:20", "+30s"', "time"),
    Key("less_than_sign", "<", "speed(-1)", "replay slower", "time"),
    Key("greater_than_sign", ">", "speed(1)", "replay faster", "time"),
    Key("n", "n", "now", "back to now", "time"),
)


def bindings(*where: Where) -> list[Binding]:
    """For BINDINGS of what serves these parts."""
    made = []
    for key in KEYS:
        if key.where in where:
            made.append(
                Binding(
                    key.key,
                    key.target,
                    key.footer or key.words,
                    show=bool(key.footer),
                    key_display=key.shown,
                )
            )
    return made


def help_lines(groups: Iterable[Where] = tuple(TITLES)) -> list[tuple[str, str]]:
    """(key, words) for the help; a title has no key."""
    lines: list[tuple[str, str]] = []
    for where in groups:
        lines.append(("", TITLES[where]))
        lines += [(key.shown, key.words) for key in KEYS if key.where == where]
    return lines
