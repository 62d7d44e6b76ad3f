"""The places of keys in TOML files: tables written by hand, and every document that hypothesis can think of."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.config.lines import KeyPath, find_line, key_lines

DOCUMENT = '''# a comment with [brackets] and = signs
top = 1

[daemon]            # a table
"quoted key" = "a # no comment"
'literal' = 'C:\\no\\escape'
a.b . "c d" = true  # dotted
text = """
[not.a.table]
key = 1 \\"""
still text"""""
lit = \'\'\'
it's = 'here'
\'\'\'
after = 2024-01-01 10:00:00

[tenants.ci]
uids = [
  1001,   # first
  1002,

  { deep = [1, 2] },
]
inline = { x = 1, y.z = "}" , w = [ "]" ] }
[tenants."a.b"]
memory_max = "1G"

[[list]]
name = "one"
[list.sub]
k = 1
[[list]]
name = "two"
  [list.sub]
  k = 2
[[list.more]]
v = 1
[[list.more]]
v = 2
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("daemon",), 4),
        (("daemon", "quoted key"), 5),
        (("daemon", "literal"), 6),
        (("daemon", "a", "b", "c d"), 7),
        (("daemon", "text"), 8),
        (("daemon", "lit"), 12),
        (("daemon", "after"), 15),
        (("tenants",), 17),
        (("tenants", "ci"), 17),
        (("tenants", "ci", "uids"), 18),
        (("tenants", "ci", "uids", 0), 19),
        (("tenants", "ci", "uids", 1), 20),
        (("tenants", "ci", "uids", 2, "deep", 1), 22),
        (("tenants", "ci", "inline", "y", "z"), 24),
        (("tenants", "ci", "inline", "w", 0), 24),
        (("tenants", "a.b", "memory_max"), 26),
        (("list", 0, "name"), 29),
        (("list", 0, "sub", "k"), 31),
        (("list", 1, "name"), 33),
        (("list", 1, "sub", "k"), 35),
        (("list", 1, "more", 0, "v"), 37),
        (("list", 1, "more", 1, "v"), 39),
    ],
)
def test_each_key_has_its_line(path: KeyPath, line: int) -> None:
    assert key_lines(DOCUMENT)[path] == line


def test_the_document_is_toml_and_no_path_is_invented() -> None:
    assert set(key_lines(DOCUMENT)) == set(_paths(tomllib.loads(DOCUMENT), ()))


def test_windows_line_ends_count_once() -> None:
    assert key_lines(DOCUMENT.replace("\n", "\r\n")) == key_lines(DOCUMENT)


def test_a_key_that_is_not_there_has_the_line_of_what_is_around_it() -> None:
    lines = key_lines("[a.b]\nc = 1\n")
    assert find_line(lines, ("a", "b", "missing")) == 1
    assert find_line(lines, ("a", "b", "c", 0)) == 2
    assert find_line(lines, ("elsewhere", "x")) is None


_KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
_VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_KEYS, inner, max_size=4)),
    max_leaves=12,
)


@given(st.dictionaries(_KEYS, st.dictionaries(_KEYS, _VALUES, max_size=4), max_size=4))
def test_every_path_of_any_document_is_found(tables: dict[str, dict[str, Any]]) -> None:
    text, line = "", 1
    expected: dict[KeyPath, int] = {}
    for name, table in tables.items():
        text += f"[{_quoted(name)}]\n"
        expected[(name,)] = line
        line += 1
        for key, value in table.items():
            text += f"{_quoted(key)} = {_toml(value)}\n"
            expected |= dict.fromkeys(_paths({key: value}, (name,)), line)
            line += 1
    assert tomllib.loads(text) == tables  # else the test's own writer is wrong
    assert key_lines(text) == expected


def _paths(value: Any, path: KeyPath) -> list[KeyPath]:
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [found for key, inner in items for found in ((*path, key), *_paths(inner, (*path, key)))]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return str(value).lower()
