"""From what tomllib gives to the frozen types of agentd/config/model.py, one key at a time.

msgspec alone would stop at the first error and names no key of a dict; here every wrong key is found, with its path, so
that its line can be named. The types, bounds and choices are still msgspec's to check.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from agentd.config.fields import bare, expected, fields_of, is_section, is_switchable, mapping_value, unit
from agentd.config.lines import KeyPath
from agentd.units import UnitError, parse_duration, parse_size

Report = Callable[[KeyPath, str, str, object], None]
"""Takes a problem: path of the key, cause, remedy, value (None: not worth showing)."""

S = TypeVar("S", bound=msgspec.Struct)

_MAX_CAUSE: Final = 200  # characters; msgspec quotes the value, which may be long
_INDEX: Final = re.compile(r" - at `\$\[([0-9]+)\]`$")
_PERCENT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%", re.ASCII)


def to_struct(kind: type[S], raw: object, path: KeyPath, report: Report) -> S:
    """``raw`` as a ``kind``. What is wrong goes to ``report`` and keeps its default, so that the rest is checked."""
    if not isinstance(raw, Mapping):
        report(path, f"expected a table, got {toml_type(raw)}", f"write it as [{dotted(path)}]", raw)
        return kind()
    known = fields_of(kind)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        here = (*path, str(key))
        if key not in known:
            report(here, "unknown key", suggest(str(key), known), None)
            continue
        hint = known[key]
        of_values = mapping_value(hint)
        if is_section(hint):
            values[key] = to_struct(bare(hint), value, here, report)
        elif of_values is not None:
            values[key] = _mapping(of_values, value, here, report)
        else:
            try:
                values[key] = leaf(hint, value)
            except _Wrong as wrong:
                where = here if wrong.index is None else (*here, wrong.index)
                report(where, wrong.cause, f"give {expected(hint)}", value)
    return kind(**values)


def _mapping(hint: Any, raw: object, path: KeyPath, report: Report) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        report(path, f"expected a table, got {toml_type(raw)}", f"write it as [{dotted(path)}]", raw)
        return {}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        here = (*path, str(key))
        if is_section(hint):
            values[key] = to_struct(bare(hint), value, here, report)
            continue
        try:
            values[key] = leaf(hint, value)
        except _Wrong as wrong:
            report(here, wrong.cause, f"give {expected(hint)}", value)
    return values


class _Wrong(Exception):
    """A value does not fit its key. ``index``: of the element at fault, in a list."""

    def __init__(self, cause: str, index: int | None = None) -> None:
        self.cause = cause
        self.index = index
        super().__init__(cause)


def leaf(hint: Any, value: object) -> Any:
    """One value that is no table: "none" and texts with units are understood, then msgspec checks type and bounds."""
    if value == "none" and is_switchable(hint):
        return None
    try:
        return msgspec.convert(_without_unit(unit(hint), value), hint, dec_hook=_path)
    except (UnitError, msgspec.ValidationError) as err:
        text = str(err)
        found = _INDEX.search(text)
        text = _INDEX.sub("", text).replace("`", "").partition(";")[0]
        raise _Wrong(text[:1].lower() + text[1:_MAX_CAUSE], int(found[1]) if found else None) from None


def _without_unit(kind: str, value: object) -> object:
    if kind == "bytes" and isinstance(value, str):
        return parse_size(value)
    if kind == "seconds" and isinstance(value, str):
        return parse_duration(value)
    if kind == "share" and isinstance(value, str):
        match = _PERCENT.fullmatch(value) if len(value) < 16 else None
        if match is None:
            raise UnitError(f"{value[:40]!r} is not a share")
        return float(match[1]) / 100
    return value


def _path(kind: type, value: object) -> Any:
    """msgspec calls this for types that are not its own: paths alone, here."""
    if kind is not Path:
        raise NotImplementedError(f"no conversion to {kind}")
    if not isinstance(value, str):
        raise msgspec.ValidationError(f"expected text, got {toml_type(value)}")
    if not value.startswith("/") or "\0" in value or ".." in value.split("/"):
        raise msgspec.ValidationError("not an absolute path without '..'")
    return Path(value)


def suggest(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that is not known: the nearest that is, else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known here: {', '.join(names)}" if names else "nothing is known here"


def dotted(path: KeyPath) -> str:
    """A path as TOML would write it: ``tenants."a b".uids[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        key = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else msgspec.json.encode(part).decode("utf-8", "replace")
        text += f".{key}" if text else key
    return text


def toml_type(value: object) -> str:
    """What TOML calls the type of a value."""
    names = {bool: "a boolean", str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), "a date or time")
