"""Plots in braille: 2 by 4 dots a cell, so that a history reads in six lines of any terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from rich.text import Text

from tui.model.text import clock

Point = tuple[float, float]  # unix seconds, value
# Dots of a braille cell from the bottom up (Unicode 2800 ff.): left column, right column.
_LEFT: Final = (0x40, 0x04, 0x02, 0x01)
_RIGHT: Final = (0x80, 0x20, 0x10, 0x08)
LABEL: Final = 9  # cells for the numbers at the left
_RULE: Final = "╌"


@dataclass(frozen=True, slots=True)
class Rule:
    """A level that the plot is held against; its word tells it from others without colour."""

    word: str
    value: float
    style: str


def rates(points: Sequence[Point]) -> list[Point]:
    """Growth a second between the points of a counter. A counter never falls: where it does, a new one began."""
    found = []
    for (before, low), (at, high) in pairwise(points):
        if at > before:
            found.append((at, max(0.0, high - low) / (at - before)))
    return found


def columns(points: Sequence[Point], since: float, until: float, count: int) -> list[float | None]:
    """The largest value in each of ``count`` equal parts of the time; a part between two points has that before it."""
    found: list[float | None] = [None] * count
    if until <= since:
        return found
    for at, value in points:
        if not since <= at <= until:
            continue
        place = int((at - since) / (until - since) * count)
        if place == count and at <= until:
            place -= 1
        if 0 <= place < count:
            known = found[place]
            found[place] = value if known is None else max(known, value)
    last: float | None = None
    end = max((number for number, value in enumerate(found) if value is not None), default=-1)
    for number in range(end + 1):
        if found[number] is None:
            found[number] = last
        else:
            last = found[number]
    return found


def plot(
    title: str,
    points: Sequence[Point],
    *,
    since: float,
    until: float,
    width: int,
    height: int = 6,
    number: Callable[[float], str],
    rules: Sequence[Rule] = (),
    style: str = "green",
    least: float = 0.0,
) -> list[Text]:
    """``height`` lines and a title, each ``width`` cells. ``least``: what the top is at least, so that noise near 0
    does not look like a mountain."""
    room = max(4, width - LABEL - 1)
    values = columns(points, since, until, room * 2)
    known = [value for value in values if value is not None]
    # a limit far above what was used would flatten the curve: it is named in the title instead
    highest = max([*known, least, 1e-9])
    drawn = [rule for rule in rules if rule.value <= highest * 4]
    top = max([highest, *(rule.value for rule in drawn)]) * 1.02
    now = f"  now {number(known[-1])}, most {number(max(known))}" if known else "  nothing is kept yet"
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append(title, "bold")
    head.append(now)
    for rule in rules:
        head.append(f"  {_RULE} {rule.word} {number(rule.value)}", rule.style)
    if not known:
        return [_cut(head, width)]
    dots = height * 4
    levels = [None if value is None else min(dots, round(value / top * dots)) for value in values]
    at_row = {min(height - 1, int(rule.value / top * height)): rule for rule in drawn}
    lines = [_cut(head, width)]
    for row in range(height - 1, -1, -1):
        label = number(top / 1.02) if row == height - 1 else number(0) if row == 0 else ""
        line = Text(no_wrap=True)
        line.append(f"{label:>{LABEL}}", "dim")
        line.append("│", "dim")
        level = at_row.get(row)
        for cell in range(room):
            bits = _bits(levels[2 * cell], row, _LEFT) | _bits(levels[2 * cell + 1], row, _RIGHT)
            if bits:
                line.append(chr(0x2800 + bits), style)
            elif level is not None:
                line.append(_RULE, level.style)
            else:
                line.append(" ")
        lines.append(line)
    left, right = clock(since), clock(until)
    axis = Text(f"{'':>{LABEL}}└{left}{'─' * max(1, room - len(left) - len(right))}{right}", "dim", no_wrap=True)
    lines.append(_cut(axis, width))
    return lines


def _bits(level: int | None, row: int, dots: Sequence[int]) -> int:
    """A known value has at least one dot: 0 is something else than nothing known."""
    if level is None:
        return 0
    full = max(1, level) - row * 4
    return sum(dots[: max(0, min(4, full))])


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis", pad=True)
    return text


def side_by_side(left: list[Text], right: list[Text], width: int, gap: int = 2) -> list[Text]:
    """Two blocks of lines in one; ``width`` is that of the left one's lines."""
    made = []
    for number in range(max(len(left), len(right))):
        line = left[number].copy() if number < len(left) else Text(" " * width)
        if number < len(right):
            line.append(" " * gap)
            line.append_text(right[number])
        made.append(line)
    return made
