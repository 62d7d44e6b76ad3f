"""Aligned tables for terminals and for pipes. Pure: text in, lines out.

Text that comes from agents (commands, names) is shown on an operator's terminal: whatever could steer that terminal is
replaced, and the width of every character is counted in terminal cells, so that columns stay aligned.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

GAP: Final = "  "
ELLIPSIS: Final = "…"


class Style(Enum):
    """What a colour means here; the escape sequence is the value."""

    PLAIN = ""
    HEADING = "1"
    DIM = "2"
    GOOD = "32"
    WARN = "33"
    BAD = "31"
    COLD = "36"


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    style: Style = Style.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """``least`` is the width in cells below which the column is not squeezed (None: never squeezed).

    ``rank`` says what goes first where even that does not fit: columns of the highest rank are left out; those of rank
    0 never are.
    """

    title: str
    right: bool = False
    least: int | None = None
    rank: int = 0


def clean(text: str) -> str:
    """``text`` on one line, with everything that is not printable replaced by U+FFFD (tabs and newlines by a space)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c in "\t\n\r" else "\N{REPLACEMENT CHARACTER}" for c in text)


def cells(text: str) -> int:
    """The terminal cells of ``text``: two for wide East Asian characters and emoji, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(_width(c) for c in text)


def _width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` cells, ending in an ellipsis where something was cut off."""
    if cells(text) <= width:
        return text
    if width <= 0:
        return ""
    kept: list[str] = []
    left = width - 1
    for char in text:
        left -= _width(char)
        if left < 0:
            break
        kept.append(char)
    return "".join(kept).rstrip() + ELLIPSIS


def pad(text: str, width: int, *, right: bool = False) -> str:
    space = " " * max(0, width - cells(text))
    return space + text if right else text + space


def paint(text: str, style: Style, colour: bool) -> str:
    return f"\x1b[{style.value}m{text}\x1b[0m" if colour and style is not Style.PLAIN and text else text


def render(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell | str]],
    *,
    width: int | None = None,
    colour: bool = False,
) -> list[str]:
    """The table as lines without trailing blanks. ``width`` None: as wide as it needs to be (pipes, files)."""
    body = [[_cell(value) for value in row] for row in rows]
    for number, row in enumerate(body):
        if len(row) != len(columns):
            raise ValueError(f"row {number} has {len(row)} cells for {len(columns)} columns")
    shown = _fit(columns, body, width)
    lines = [
        _line([(Cell(columns[i].title, Style.HEADING), columns[i], w) for i, w in shown], colour),
    ]
    lines.extend(_line([(row[i], columns[i], w) for i, w in shown], colour) for row in body)
    return lines


def render_pairs(
    pairs: Iterable[tuple[str, Cell | str]], *, width: int | None = None, colour: bool = False
) -> list[str]:
    """Name and value, one a line, values aligned and folded at the terminal's width."""
    listed = [(name, _cell(value)) for name, value in pairs]
    left = max((cells(name) for name, _ in listed), default=0) + len(GAP)
    lines: list[str] = []
    for name, value in listed:
        head = paint(pad(name, left), Style.DIM, colour)
        folded = fold(value.text, None if width is None else max(20, width - left)) or [""]
        for number, part in enumerate(folded):
            lines.append(((head if number == 0 else " " * left) + paint(part, value.style, colour)).rstrip())
    return lines


def fold(text: str, width: int | None) -> list[str]:
    """``text`` in lines of at most ``width`` cells, broken at blanks; a longer word is broken where it must be."""
    if width is None or cells(text) <= width:
        return [text] if text else []
    lines: list[str] = []
    line = ""
    for whole in text.split(" "):
        word = whole
        if line and cells(line) + 1 + cells(word) <= width:
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line)
        while cells(word) > width:
            head, used = "", 0
            for char in word:
                used += _width(char)
                if used > width:
                    break
                head += char
            head = head or word[0]
            lines.append(head)
            word = word[len(head) :]
        line = word
    return [*lines, line] if line else lines


def _cell(value: Cell | str) -> Cell:
    if isinstance(value, str):
        return Cell(clean(value))
    return Cell(clean(value.text), value.style)


def _fit(columns: Sequence[Column], body: list[list[Cell]], width: int | None) -> list[tuple[int, int]]:
    """Which columns are shown, and how wide: natural width, else squeezed, else without those that matter least."""
    natural = [max([cells(c.title), *(cells(row[i].text) for row in body)]) for i, c in enumerate(columns)]
    kept = list(range(len(columns)))
    if width is None:
        return [(i, natural[i]) for i in kept]
    floor = [
        min(natural[i], max(c.least, cells(c.title))) if c.least is not None else natural[i]
        for i, c in enumerate(columns)
    ]

    def total(widths: list[int]) -> int:
        return sum(widths[i] for i in kept) + len(GAP) * (len(kept) - 1)

    while total(floor) > width and any(columns[i].rank for i in kept):
        kept.remove(max(kept, key=lambda i: (columns[i].rank, i)))
    # One wide column's leaving may have made room for narrower ones that had to leave before it.
    for left_out in sorted(set(range(len(columns))) - set(kept), key=lambda i: (columns[i].rank, i)):
        if total(floor) + len(GAP) + floor[left_out] <= width:
            kept = sorted([*kept, left_out])
    widths = list(natural)
    while total(widths) > width:
        # The column with the most to spare gives first: a long command before a short name.
        widest = max(kept, key=lambda i: widths[i] - floor[i])
        spare = widths[widest] - floor[widest]
        if spare <= 0:
            break
        widths[widest] -= min(spare, total(widths) - width)
    return [(i, widths[i]) for i in kept]


def _line(parts: list[tuple[Cell, Column, int]], colour: bool) -> str:
    shown: list[str] = []
    for number, (cell, column, width) in enumerate(parts):
        text = cut(cell.text, width)
        filled = pad(text, width, right=column.right)
        if number == len(parts) - 1:
            filled = filled.rstrip()
        # Only the text is painted: a coloured blank would show on terminals that underline or reverse.
        shown.append(filled.replace(text, paint(text, cell.style, colour), 1) if text else filled)
    return GAP.join(shown).rstrip()
