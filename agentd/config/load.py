"""Reads the configuration file: TOML, then types and bounds, then the checks across keys; all problems in one error."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agentd.config.checks import check
from agentd.config.convert import dotted, to_struct
from agentd.config.errors import ConfigInvalid, ConfigSyntaxError, ConfigUnreadable, Problem
from agentd.config.lines import KeyPath, find_line, key_lines
from agentd.config.model import Config

MAX_FILE: Final = 4 * 1024 * 1024  # bytes; a larger file is not a configuration
COMMAND_LINE: Final = "command line"
_PLACE: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def load(path: Path | None, *, overrides: Mapping[str, object] | None = None, accounts: bool = True) -> Config:
    """The configuration of the file ``path``; None: the embedded defaults.

    ``overrides`` maps dotted keys ("daemon.state_dir") to values as in the file; they win over the file's.
    ``accounts``: check that the users and groups that are named exist on this host. Raises ConfigError.
    """
    text, source = ("", "embedded defaults") if path is None else (_read(path), str(path))
    return loads(text, source=source, overrides=overrides, accounts=accounts)


def loads(
    text: str, *, source: str = "<text>", overrides: Mapping[str, object] | None = None, accounts: bool = True
) -> Config:
    """Like :func:`load`, of the file's text. ``source`` is named in errors."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise _syntax_error(err, text, source) from None
    except RecursionError:
        raise ConfigSyntaxError("nested too deeply", source=source, line=None, column=None) from None
    lines = key_lines(text)
    problems: list[Problem] = []
    overridden: list[KeyPath] = []
    for key, value in (overrides or {}).items():
        overridden.append(_override(raw, key, value))

    def report(at: KeyPath, cause: str, remedy: str, value: object) -> None:
        forced = any(at[: len(o)] == o for o in overridden)
        problems.append(
            Problem(
                source=COMMAND_LINE if forced else source,
                line=None if forced else find_line(lines, at),
                key=dotted(at),
                cause=cause,
                remedy=remedy,
                value=value,
            )
        )

    config = to_struct(Config, raw, (), report)
    if not problems:  # with defaults in the place of wrong values, the checks across keys would mislead
        check(config, report, accounts=accounts)
    if problems:
        raise ConfigInvalid(problems)
    return config


def parse_override(text: str) -> tuple[str, object]:
    """``"call.hold_max=45s"`` (an option of the command line) as key and value; the value may be TOML or bare text.

    Raises ConfigInvalid.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key):
        raise ConfigInvalid(
            [
                Problem(
                    source=COMMAND_LINE,
                    line=None,
                    key=text[:80],
                    cause="not KEY=VALUE",
                    remedy="write e.g. daemon.mode=observe",
                )
            ]
        )
    try:
        parsed = tomllib.loads(f"v = {value}")
    except tomllib.TOMLDecodeError:
        return key, value
    # more than one key: the value held a newline and another assignment
    return (key, parsed["v"]) if parsed.keys() == {"v"} else (key, value)


def _override(raw: dict[str, Any], key: str, value: object) -> KeyPath:
    path = tuple(key.split("."))
    table = raw
    for part in path[:-1]:
        below = table.get(part)
        if not isinstance(below, dict):  # absent, or wrong: then the override's own table takes its place
            below = table[part] = {}
        table = below
    table[path[-1]] = value
    return path


def _syntax_error(err: tomllib.TOMLDecodeError, text: str, source: str) -> ConfigSyntaxError:
    message = str(err)
    place = _PLACE.search(message)
    line, column = None, None
    if place is not None and place[1]:
        line, column = int(place[1]), int(place[2])
    elif place is not None:
        line = text.count("\n") + (not text.endswith("\n"))
    cause = _PLACE.sub("", message)
    return ConfigSyntaxError(cause[:1].lower() + cause[1:], source=source, line=line, column=column)


def _read(path: Path) -> str:
    source = str(path)
    try:
        # O_NONBLOCK: a fifo in the place of the file must not hang the start
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigUnreadable("not a regular file", source=source, remedy="give the path of a TOML file")
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise ConfigUnreadable(
            "no such file", source=source, remedy="create it, or start without a file for the embedded defaults"
        ) from None
    except OSError as err:
        raise ConfigUnreadable(
            f"cannot be read: {err.strerror}", source=source, remedy="check the path and its permissions"
        ) from None
    if len(data) > MAX_FILE:
        raise ConfigUnreadable(
            f"larger than {MAX_FILE} bytes", source=source, remedy="give the path of a configuration file"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        raise ConfigUnreadable(f"not UTF-8 (line {line})", source=source, remedy="save it as UTF-8") from None
