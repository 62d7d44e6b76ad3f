"""Where in a TOML file each key stands. tomllib gives values without places, and an error should name its line.

The scanner reads text that tomllib has already accepted, so it may be lenient: it knows just enough of TOML (comments,
the four kinds of strings, bare, quoted and dotted keys, tables, arrays of tables, arrays and inline tables) to follow
the structure. A path is a tuple of keys and, for elements of arrays, indexes: ``("tenants", "ci", "uids", 0)``.
"""

from __future__ import annotations

import re
import tomllib
from typing import Final

KeyPath = tuple[str | int, ...]

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR: Final = re.compile(r"[^,\]}\s#]+(?: \d\d:\d\d[^,\]}\s#]*)?")  # the tail: a date and time parted by a space


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of every table, key and array element of ``text``, which must be valid TOML."""
    return _Scanner(text).scan()


def find_line(lines: dict[KeyPath, int], path: KeyPath) -> int | None:
    """The line of ``path``, or of the nearest table or key around it; None when not even that is in the file."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n")  # as tomllib does, so that offsets agree with lines
        self._at = 0
        self._line = 1
        self._counted = 0  # lines before this offset are in _line
        self._lines: dict[KeyPath, int] = {}
        self._array_sizes: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._skip():
            if self._peek("["):
                table = self._header()
            else:
                self._key_value(table)
        return self._lines

    def _header(self) -> KeyPath:
        line = self._here()
        is_array = self._peek("[[")
        self._at += 2 if is_array else 1
        keys = self._keys()
        self._skip_blanks()
        self._at += 2 if is_array else 1
        path: KeyPath = ()
        for key in keys[:-1]:
            path = (*path, key)
            self._note(path, line)
            path = self._latest(path)
        path = (*path, keys[-1])
        self._note(path, line)
        if is_array:
            index = self._array_sizes.get(path, 0)
            self._array_sizes[path] = index + 1
            path = (*path, index)
            self._note(path, line)
        else:
            path = self._latest(path)
        return path

    def _key_value(self, table: KeyPath) -> None:
        self._skip_blanks()
        line = self._here()
        keys = self._keys()
        path = table
        for key in keys:
            path = (*path, key)
            self._note(path, line)
        self._skip_blanks()
        self._at += 1  # the "="
        self._skip_blanks()
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        char = self._text[self._at : self._at + 1]
        if char in ('"', "'"):
            self._string()
        elif char == "[":
            self._array(path)
        elif char == "{":
            self._inline_table(path)
        else:
            match = _SCALAR.match(self._text, self._at)
            self._at = match.end() if match else self._at + 1

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while self._skip() and not self._peek("]"):
            if self._peek(","):
                self._at += 1
                continue
            element = (*path, index)
            self._note(element, self._here())
            self._value(element)
            index += 1
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while self._skip() and not self._peek("}"):
            if self._peek(","):
                self._at += 1
            else:
                self._key_value(path)
        self._at += 1

    def _keys(self) -> list[str]:
        keys = []
        while True:
            self._skip_blanks()
            start = self._at
            if self._text[start : start + 1] in ('"', "'"):
                self._string()
                # tomllib decodes the escapes of a quoted key, so that both agree on its name
                keys.append(str(tomllib.loads(f"k = {self._text[start : self._at]}")["k"]))
            else:
                match = _BARE.match(self._text, start)
                if match is None:  # cannot happen in valid TOML; going on would not end
                    raise ValueError(f"line {self._here()}: no key at offset {start}")
                keys.append(match[0])
                self._at = match.end()
            self._skip_blanks()
            if not self._peek("."):
                return keys
            self._at += 1

    def _string(self) -> None:
        quote = self._text[self._at]
        long = quote * 3
        if self._peek(long):
            end = self._at + 3
            while not self._text.startswith(long, end):
                end += 2 if quote == '"' and self._text[end] == "\\" else 1
            end += 3
            while self._text.startswith(quote, end):  # up to two quotes may stand before the closing three
                end += 1
            self._at = end
            return
        end = self._at + 1
        while self._text[end] != quote:
            end += 2 if quote == '"' and self._text[end] == "\\" else 1
        self._at = end + 1

    def _skip(self) -> bool:
        """Move past blanks, newlines and comments; whether anything is left."""
        text = self._text
        while self._at < len(text):
            if text[self._at] == "#":
                end = text.find("\n", self._at)
                self._at = len(text) if end < 0 else end
            elif text[self._at] in " \t\n":
                self._at += 1
            else:
                return True
        return False

    def _skip_blanks(self) -> None:
        while self._text[self._at : self._at + 1] in (" ", "\t"):
            self._at += 1

    def _peek(self, token: str) -> bool:
        return self._text.startswith(token, self._at)

    def _here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _note(self, path: KeyPath, line: int) -> None:
        self._lines.setdefault(path, line)

    def _latest(self, path: KeyPath) -> KeyPath:
        """``path`` itself or, where it is an array of tables, its last element: later headers mean that one."""
        size = self._array_sizes.get(path, 0)
        return (*path, size - 1) if size else path
