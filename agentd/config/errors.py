"""The exceptions of the configuration.

ConfigError
 ├─ ConfigUnreadable    the file is missing, closed to us, too large or not UTF-8
 ├─ ConfigSyntaxError   the file is not TOML
 └─ ConfigInvalid       TOML, but keys or values are wrong; carries every problem found, not the first alone

Every message has the file, the line and the key, then the cause, then the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_SHOWN: Final = 80  # characters of a wrong value that are worth showing


class ConfigError(Exception):
    """Base of all. ``source`` is the file (or "command line")."""

    def __init__(self, text: str, *, source: str) -> None:
        self.source = source
        super().__init__(text)


class ConfigUnreadable(ConfigError):
    def __init__(self, cause: str, *, source: str, remedy: str) -> None:
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"{source}: {cause}; {remedy}", source=source)


class ConfigSyntaxError(ConfigError):
    """``line`` and ``column`` count from 1; None where the parser gave none (it reached the end of the file)."""

    def __init__(self, cause: str, *, source: str, line: int | None, column: int | None) -> None:
        self.cause = cause
        self.line = line
        self.column = column
        place = "".join(f":{n}" for n in (line, column) if n is not None)
        super().__init__(
            f"{source}{place}: not valid TOML: {cause}; correct this line (https://toml.io)", source=source
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One wrong key or value. ``line`` is None where the value came from elsewhere than a file."""

    source: str
    line: int | None
    key: str
    cause: str
    remedy: str
    value: object = None

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        shown = "" if self.value is None else f" = {_show(self.value)}"
        return f"{place}: {self.key}{shown}: {self.cause}; {self.remedy}"


class ConfigInvalid(ConfigError):
    """``problems`` in the order of their lines."""

    def __init__(self, problems: list[Problem]) -> None:
        if not problems:
            raise ValueError("ConfigInvalid without a problem")
        self.problems = tuple(sorted(problems, key=lambda p: (p.line is None, p.line or 0)))
        super().__init__("\n".join(map(str, self.problems)), source=self.problems[0].source)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
