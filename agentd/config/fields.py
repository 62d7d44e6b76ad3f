"""What the types of agentd/config/model.py say about each key: its unit, its bounds, its description, in words."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from agentd.units import exact_duration, exact_size


@functools.cache
def fields_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Name and full type (with its Meta) of each key of a section."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__}


def metas(hint: Any) -> Iterator[msgspec.Meta]:
    """The Meta objects of a type, outermost first, through Annotated and ``X | None``, not into containers."""
    if typing.get_origin(hint) is Annotated:
        inner, *extras = typing.get_args(hint)
        yield from (extra for extra in extras if isinstance(extra, msgspec.Meta))
        yield from metas(inner)
    elif is_union(hint):
        for part in typing.get_args(hint):
            yield from metas(part)


def bare(hint: Any) -> Any:
    """The type without Annotated and without ``| None``."""
    if typing.get_origin(hint) is Annotated:
        return bare(typing.get_args(hint)[0])
    if is_union(hint):
        (inner,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        return bare(inner)
    return hint


def is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def is_optional(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        return is_optional(typing.get_args(hint)[0])
    return is_union(hint)


def is_switchable(hint: Any) -> bool:
    """Whether a file may say "none" for it: optional numbers. (An optional path is derived, not switched off.)"""
    return is_optional(hint) and bare(hint) is not Path


def is_section(hint: Any) -> bool:
    kind = bare(hint)
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def mapping_value(hint: Any) -> Any | None:
    """The type of the values of ``dict[str, X]``; None for every other type."""
    kind = bare(hint)
    return typing.get_args(kind)[1] if typing.get_origin(kind) is dict else None


def unit(hint: Any) -> str:
    """ "bytes", "seconds", "share", "mode" or ""."""
    return next((str(m.extra["unit"]) for m in metas(hint) if m.extra and "unit" in m.extra), "")


def description(hint: Any) -> str:
    return next((m.description for m in metas(hint) if m.description), "")


def is_live(hint: Any) -> bool:
    """Whether a reload applies a change of it without a restart."""
    return any(m.extra and m.extra.get("live") for m in metas(hint))


def bounds(hint: Any) -> tuple[float | None, float | None, bool]:
    """Lowest and highest allowed number, and whether the lowest itself is excluded."""
    low: float | None = None
    high: float | None = None
    exclusive = False
    for meta in metas(hint):
        if meta.gt is not None:
            low, exclusive = meta.gt, True
        if meta.ge is not None:
            low, exclusive = meta.ge, False
        if meta.le is not None:
            high = meta.le
    return low, high, exclusive


def expected(hint: Any) -> str:
    """What may be written for it, for a person: ``a size such as "300M", 1M to 64T``."""
    text = _expected(hint)
    return f'{text}, or "none"' if is_switchable(hint) else text


def _expected(hint: Any) -> str:
    kind = bare(hint)
    origin = typing.get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in typing.get_args(kind))
    if origin is tuple:
        return f"a list; each element {_expected(typing.get_args(kind)[0])}"
    if origin is dict:
        return "a table"
    if kind is bool:
        return "true or false"
    if kind is Path:
        return "an absolute path"
    if kind is str:
        return "text"
    return f"{_NOUNS[unit(hint) or kind.__name__]}{_range(hint)}"


_NOUNS = {
    "bytes": 'a size such as "300M" or "2G"',
    "seconds": 'a duration such as "30s" or "5m"',
    "share": 'a share such as 0.05 or "5%"',
    "mode": "permissions in octal such as 0o660",
    "int": "a whole number",
    "float": "a number",
}


def _range(hint: Any) -> str:
    low, high, exclusive = bounds(hint)
    if low is None or high is None:
        return ""
    kind = unit(hint)
    return f", {'above ' if exclusive else ''}{in_unit(low, kind)} to {in_unit(high, kind)}"


def in_unit(value: float, kind: str) -> str:
    """A number as it would be written in a file."""
    if kind == "bytes":
        return exact_size(int(value))
    if kind == "seconds":
        return exact_duration(value)
    if kind == "mode":
        return f"0o{int(value):03o}"
    return str(int(value)) if value == int(value) else f"{value:g}"
