"""The JSON schema of the configuration (docs/corral.schema.json) and its reference in Markdown, from the types alone.

Editors that know TOML schemas complete and check the file with it. The schema accepts what the loader accepts, except
what only the loader can see: checks across keys, and accounts of the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from agentd.config.fields import (
    bare,
    description,
    expected,
    fields_of,
    in_unit,
    is_live,
    is_section,
    is_switchable,
    mapping_value,
    unit,
)
from agentd.config.lines import KeyPath
from agentd.config.model import Config

# The forms with a unit, as ECMA regular expressions (agentd/units.py is stricter about the order of units)
_FORMS: Final = {
    "bytes": r"^[0-9]+(\.[0-9]+)? ?([KMGTPkmgtp]([iI]?[bB])?|[bB]?)$",
    "seconds": r"^([0-9]+(\.[0-9]+)? ?(us|µs|ms|min|s|m|h|d) *)+$",
    "share": r"^[0-9]+(\.[0-9]+)? ?%$",
}
_PATH: Final = {"type": "string", "pattern": "^/"}


def schema() -> dict[str, Any]:
    """The schema, JSON Schema 2020-12."""
    whole = msgspec.json.schema(Config, schema_hook=_hook)
    definitions = whole.pop("$defs")
    for kind in kinds(Config):
        properties = definitions[kind.__name__]["properties"]
        default = kind()
        for name, hint in fields_of(kind).items():
            if not is_section(hint) and mapping_value(hint) is None:
                properties[name] = _property(hint, getattr(default, name))
            elif description(hint):
                properties[name]["description"] = description(hint)
    definitions["Config"]["properties"]["tenants"]["propertyNames"] = {
        "pattern": "^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$",
        "not": {"const": "refuse"},
    }
    definitions["Config"]["properties"]["engines"]["propertyNames"] = {"pattern": "^[A-Za-z0-9_-]{1,64}$"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **definitions.pop("Config"),
        "title": "Corral configuration",
        "$defs": definitions,
    }


def reference() -> str:
    """Every key as Markdown tables: what may be written, the default, whether a reload applies it, what it means."""
    parts = []
    for path, kind in _tables(Config, ()):
        heading = ".".join(map(str, path))
        parts.append(f"### `[{heading}]`\n\n{_first_line(kind)}\n")
        parts.append("| key | value | default | reload | meaning |\n|---|---|---|---|---|")
        default = kind()
        for name, hint in fields_of(kind).items():
            if not is_section(hint):
                cells = (
                    f"`{name}`",
                    expected(hint),
                    _shown(hint, getattr(default, name)),
                    "live" if is_live(hint) else "restart",
                    description(hint),
                )
                parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("")
    return "\n".join(parts)


def _hook(kind: type) -> dict[str, Any]:
    if kind is not Path:
        raise NotImplementedError(f"no schema of {kind}")
    return dict(_PATH)


def kinds(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    """The section ``kind`` and all that it contains."""
    yield kind
    for hint in fields_of(kind).values():
        of_values = mapping_value(hint)
        inner = hint if of_values is None else of_values
        if is_section(inner):
            yield from kinds(bare(inner))


def _property(hint: Any, default: object) -> dict[str, Any]:
    text = description(hint)
    found = msgspec.json.schema(hint, schema_hook=_hook)
    found.pop("$defs", None)
    found.pop("description", None)
    choices = [c for c in found.pop("anyOf", [found]) if c != {"type": "null"}]
    form = _FORMS.get(unit(hint))
    if form is not None:
        choices.append({"type": "string", "pattern": form})
    if is_switchable(hint):
        choices.append({"const": "none"})
    result: dict[str, Any] = {"description": text}
    result.update(choices[0] if len(choices) == 1 else {"anyOf": choices})
    if default is not None and default != ():
        result["default"] = str(default) if isinstance(default, Path) else _written(hint, default)
    return result


def _written(hint: Any, default: Any) -> Any:
    kind = unit(hint)
    return in_unit(default, kind) if kind in ("bytes", "seconds") else default


def _shown(hint: Any, default: Any) -> str:
    if default is None or default in ((), {}, ""):
        return "none" if is_switchable(hint) else ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int | float):
        text = in_unit(default, unit(hint))
        return f'`"{text}"`' if unit(hint) in ("bytes", "seconds") else f"`{text}`"
    return f'`"{default}"`'


def _tables(kind: type[msgspec.Struct], path: KeyPath) -> Iterator[tuple[KeyPath, type[msgspec.Struct]]]:
    for name, hint in fields_of(kind).items():
        of_values = mapping_value(hint)
        if is_section(hint):
            yield (*path, name), bare(hint)
            yield from _tables(bare(hint), (*path, name))
        elif of_values is not None and is_section(of_values):
            yield (*path, name, "NAME"), bare(of_values)


def _first_line(kind: type[msgspec.Struct]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]
