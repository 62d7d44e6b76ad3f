"""``config check``, ``config schema`` and ``config show``."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Final, cast

from agentd.cli.context import Context
from agentd.cli.errors import EXIT_OK, CliError, NotFoundError
from agentd.cli.plain import Plain
from agentd.config import Config, ConfigError, ConfigUnreadable, load, schema

DEFAULT_FILE: Final = Path("/etc/corral/corral.toml")


def check(context: Context) -> int:
    path = _file(context)
    _load(path)
    if context.json:
        context.emit({"file": str(path) if path else None, "ok": True})
    else:
        context.say(f"{path}: right" if path else f"{DEFAULT_FILE} does not exist: the embedded defaults hold")
    return EXIT_OK


def show(context: Context) -> int:
    """What the daemon would run with: the file's values, and the defaults of what it leaves out."""
    import msgspec

    path = _file(context)
    values = cast("dict[str, Plain]", msgspec.to_builtins(_load(path), enc_hook=_builtin))
    if context.json:
        context.emit({"file": str(path) if path else None, "config": values})
        return EXIT_OK
    context.say(f"# {path or 'embedded defaults'}")
    context.say(*toml_lines(values))
    return EXIT_OK


def show_schema(context: Context) -> int:
    context.emit(cast("dict[str, Plain]", schema()))
    return EXIT_OK


def _file(context: Context) -> Path | None:
    """The named file; else the default one where there is one; else None, the embedded defaults."""
    named: str | None = context.args.file
    if named:
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def _load(path: Path | None) -> Config:
    try:
        return load(path)
    except ConfigUnreadable as err:
        raise NotFoundError(f"{err.source}: {err.cause}", remedy=err.remedy) from None
    except ConfigError as err:
        raise CliError(str(err)) from None


def _builtin(value: object) -> object:
    if isinstance(value, Path | enum.Enum):
        return str(value)
    return repr(value)


def toml_lines(values: dict[str, Plain], prefix: str = "") -> list[str]:
    """Nested values as TOML that the daemon reads back; what is null is left out (TOML has none)."""
    lines: list[str] = []
    for key, value in values.items():
        if value is not None and not isinstance(value, dict):
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in values.items():
        if isinstance(value, dict):
            inner = toml_lines(value, f"{prefix}{_key(key)}.")
            if inner:
                header = [] if inner[0].startswith("[") else [f"[{prefix}{_key(key)}]"]
                lines += ([""] if lines else []) + header + inner
    return lines


def _key(key: str) -> str:
    import json

    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else json.dumps(key)


def _value(value: Plain) -> str:
    import json

    # JSON's strings, numbers, booleans and lists are TOML's as well, once nulls and tables are out of the way.
    return json.dumps(value, ensure_ascii=False)
