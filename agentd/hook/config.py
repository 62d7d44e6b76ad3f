"""hook.toml: what the hook declares for which class of command, and what it leaves alone.

The first that exists of CORRAL_HOOK_CONFIG, ~/.config/corral/hook.toml and /etc/corral/hook.toml; without any, the
defaults. A mistake in it is told on stderr and makes the hook go on with the defaults: it must not stop the agent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

ETC: Final = "/etc/corral/hook.toml"

# Keys of [default] and [class.NAME], and of what an agent declares beforehand → option of corral-exec.
OPTIONS: Final = {
    "memory": "memory",
    "cpu": "cpu",
    "pids": "pids",
    "duration": "duration",
    "deadline": "deadline",
    "priority": "priority",
    "network": "network",
    "on_pressure": "on-pressure",
}
_CHOICES: Final = {
    "decision": ("none", "ask", "allow"),
    "fail": ("open", "closed"),
    "openhands": ("leave", "deny"),
}


class ConfigError(Exception):
    """Names the file, the key, the cause and the remedy."""


class Config(NamedTuple):
    """``leave``: regular expressions; a command in which one is found is not touched. ``tools``: more names of tools
    that run shell commands. ``decision``: what the agent's own permission system is told (none: it decides as without
    the hook). ``fail``: without a daemon commands run uncontrolled ("open") or not at all. ``openhands``: whose hooks
    cannot rewrite, so that a command is left, or denied with the wrapped one as the reason, for the model to run."""

    enabled: bool = True
    decision: str = "none"
    fail: str = "open"
    shell: str = "bash"
    openhands: str = "leave"
    tools: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    default: Mapping[str, str] = {}
    classes: Mapping[str, Mapping[str, str]] = {}

    def options(self, call_class: str) -> dict[str, str]:
        return {**self.default, **self.classes.get(call_class, {})}


def load(environment: Mapping[str, str] = os.environ) -> Config:
    """Raises ConfigError."""
    named = environment.get("CORRAL_HOOK_CONFIG", "")
    home = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '')}/.config"
    for path in (named,) if named else (f"{home}/corral/hook.toml", ETC):
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            if named:
                raise ConfigError(f"{path}: no such file; correct CORRAL_HOOK_CONFIG or unset it") from None
        except OSError as err:
            raise ConfigError(f"{path}: {err.strerror}; make it readable for this user") from None
        else:
            return parse(path, data)
    return Config()


def parse(path: str, data: bytes) -> Config:
    """Raises ConfigError."""
    import tomllib  # only where there is a file: it costs some milliseconds

    try:
        table = tomllib.loads(data.decode())
    except ValueError as err:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigError(f"{path}: {err}") from None
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{path}: {key}"
        if key == "enabled":
            if not isinstance(value, bool):
                raise ConfigError(f"{where}: {value!r} is neither true nor false")
            values[key] = value
        elif key in _CHOICES:
            if value not in _CHOICES[key]:
                raise ConfigError(f"{where}: {value!r} is unknown; choose {' or '.join(_CHOICES[key])}")
            values[key] = value
        elif key == "shell":
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{where}: {value!r} is no program; give e.g. 'bash' or '/bin/sh'")
            values[key] = value
        elif key in {"tools", "leave"}:
            values[key] = _texts(value, where)
        elif key == "default":
            values[key] = options(value, where)
        elif key == "class" and isinstance(value, dict):
            values["classes"] = {name: options(inner, f"{where}.{name}") for name, inner in value.items()}
        else:
            known = ", ".join(("class", *(name for name in Config._fields if name != "classes")))
            raise ConfigError(f"{where}: unknown key; known here: {known}")
    _check_patterns(path, values.get("leave", ()))
    return Config(**values)


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise ConfigError(f"{where}: {value!r} is no list of texts")
    return tuple(value)


def options(table: object, where: str) -> dict[str, str]:
    """The options of corral-exec that ``table`` declares, as text. Raises ConfigError."""
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: {table!r} is no table")
    found: dict[str, str] = {}
    for key, value in table.items():
        if key not in OPTIONS:
            raise ConfigError(f"{where}.{key}: unknown key; known here: {', '.join(OPTIONS)}")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ConfigError(f"{where}.{key}: {value!r} is neither a text nor a number")
        text = str(value)
        if not text or not text.isprintable() or len(text) > 500:
            raise ConfigError(f"{where}.{key}: {text[:40]!r} is not one line of 1 to 500 characters")
        found[OPTIONS[key]] = text
    return found


def _check_patterns(path: str, patterns: tuple[str, ...]) -> None:
    import re

    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as err:
            raise ConfigError(f"{path}: leave: {pattern!r} is no regular expression: {err}") from None
