"""Tables: alignment, width, what gives way first, and text that tries to steer the terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.cli.table import Cell, Column, Style, cells, clean, cut, fold, render, render_pairs

COLUMNS = (
    Column(title="NAME", least=6),
    Column(title="SIZE", right=True),
    Column(title="NOTE", least=6, rank=1),
    Column(title="EXTRA", rank=2),
)
ROWS = [["alpha", "10 MiB", "a rather long note", "xx"], ["be", "9 B", "-", "y"]]


def test_numbers_are_aligned_right_and_nothing_is_cut_without_a_width() -> None:
    assert render(COLUMNS, ROWS) == [
        "NAME     SIZE  NOTE                EXTRA",
        "alpha  10 MiB  a rather long note  xx",
        "be        9 B  -                   y",
    ]


def test_a_squeezable_column_gives_before_one_is_left_out() -> None:
    assert render(COLUMNS, ROWS, width=30) == [
        "NAME     SIZE  NOTE      EXTRA",
        "alpha  10 MiB  a rathe…  xx",
        "be        9 B  -         y",
    ]


def test_the_highest_rank_is_left_out_first() -> None:
    assert render(COLUMNS, ROWS, width=24) == [
        "NAME     SIZE  NOTE",
        "alpha  10 MiB  a rather…",
        "be        9 B  -",
    ]


def test_a_narrow_column_returns_when_a_wide_one_had_to_go() -> None:
    columns = (Column(title="A"), Column(title="WIDE", rank=1), Column(title="B", rank=2))
    assert render(columns, [["1", "x" * 50, "2"]], width=10) == ["A  B", "1  2"]


@pytest.mark.parametrize("width", [1, 5, 13, 40, 200])
def test_columns_of_rank_zero_never_go(width: int) -> None:
    heading = render(COLUMNS, ROWS, width=width)[0]
    assert "NAME" in heading
    assert "SIZE" in heading


def test_colours_do_not_change_the_alignment() -> None:
    rows: list[list[Cell | str]] = [[Cell("bad", Style.BAD), "1", "n", "x"], ["plain", "22", "n", "x"]]
    plain = render(COLUMNS, rows)
    coloured = render(COLUMNS, rows, colour=True)
    assert [line.replace("\x1b[31m", "").replace("\x1b[1m", "").replace("\x1b[0m", "") for line in coloured] == plain
    assert "\x1b[31mbad\x1b[0m" in coloured[1]


def test_no_escape_sequence_of_an_agent_reaches_the_terminal() -> None:
    lines = render((Column(title="C"),), [["\x1b]0;owned\x07\r\nrm\t\u202e"]], colour=False)
    assert all(c.isprintable() for line in lines for c in line)


def test_a_row_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 cells for 4 columns"):
        render(COLUMNS, [ROWS[0], ["x"]])


def test_wide_characters_count_two_cells_and_combining_ones_none() -> None:
    assert cells("ab") == 2
    assert cells("日本") == 4
    assert cells("e\u0301") == 1
    assert cut("日本語", 5) == "日本…"
    lines = render((Column(title="C"), Column(title="N", right=True)), [["日本", "1"], ["abcd", "2"]])
    assert lines == ["C     N", "日本  1", "abcd  2"]


@given(st.text(), st.integers(0, 60))
def test_cut_text_fits(text: str, width: int) -> None:
    assert cells(cut(text, width)) <= width


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp"))), st.integers(2, 60))
def test_folding_keeps_every_word_and_fits(text: str, width: int) -> None:
    lines = fold(clean(text), width)
    assert all(cells(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(clean(text).split())


def test_pairs_fold_their_values_under_themselves() -> None:
    assert render_pairs([("a", "one two three four five six"), ("long", "x"), ("none", "")], width=26) == [
        "a     one two three four",
        "      five six",
        "long  x",
        "none",
    ]
