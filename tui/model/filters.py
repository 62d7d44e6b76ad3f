"""The filter that an operator types: ``text``, ``/regular expression/``, and ``!`` in front of either to invert it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MAX_PATTERN = 200  # characters: a longer one is no filter, it is a paste


@dataclass(frozen=True, slots=True)
class Filter:
    """``problem``: why the text is no filter yet (it is being typed); it then lets everything through."""

    text: str = ""
    problem: str = ""
    _found: Callable[[str], object] | None = None
    _inverse: bool = False

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Never raises: what is wrong stands in ``problem``."""
        body = text.strip()
        inverse = body.startswith("!")
        body = body.removeprefix("!")
        if len(body) > MAX_PATTERN:
            return cls(text, f"longer than {MAX_PATTERN} characters: shorten it")
        if body.startswith("/"):
            pattern = body[1:].removesuffix("/") if len(body) > 1 else ""
            if not pattern:
                return cls(text)
            try:
                return cls(text, "", re.compile(pattern, re.IGNORECASE).search, inverse)
            except re.error as err:
                return cls(text, f"no regular expression: {err}")
        if not body:
            return cls(text)
        needle = body.lower()
        return cls(text, "", lambda word: needle in word.lower(), inverse)

    @property
    def active(self) -> bool:
        return self._found is not None

    def matches(self, words: Iterable[str]) -> bool:
        """Whether any of an object's words is meant; inverted: whether none is."""
        if self._found is None:
            return True
        return any(self._found(word) for word in words) is not self._inverse
