"""What a reload (SIGHUP) can apply at once, and what waits for a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from agentd.config.convert import dotted
from agentd.config.fields import fields_of, is_live, is_section, mapping_value
from agentd.config.lines import KeyPath
from agentd.config.model import Config

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Changes:
    """Dotted keys whose values differ, sorted. A tenant that came or went is one key: ``tenants.NAME``."""

    live: tuple[str, ...]
    restart: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.live or self.restart)


def diff(old: Config, new: Config) -> Changes:
    """What changed, by whether the running daemon can apply it."""
    live: list[str] = []
    restart: list[str] = []
    _compare(old, new, (), live, restart)
    return Changes(tuple(sorted(live)), tuple(sorted(restart)))


def effective(old: Config, new: Config) -> Config:
    """What the daemon runs with after a reload: ``new``, with ``old``'s values where a change needs a restart."""
    return _merge(old, new)


def _compare(old: msgspec.Struct, new: msgspec.Struct, path: KeyPath, live: list[str], restart: list[str]) -> None:
    for name, hint in fields_of(type(old)).items():
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        here = (*path, name)
        of_values = mapping_value(hint)
        if is_section(hint):
            _compare(before, after, here, live, restart)
        elif of_values is not None:
            for key in before.keys() | after.keys():
                if key in before and key in after and is_section(of_values):
                    _compare(before[key], after[key], (*here, key), live, restart)
                elif before.get(key) != after.get(key):
                    (live if is_live(hint) else restart).append(dotted((*here, key)))
        else:
            (live if is_live(hint) else restart).append(dotted(here))


def _merge(old: S, new: S) -> S:
    kept: dict[str, Any] = {}
    for name, hint in fields_of(type(old)).items():
        before, after = getattr(old, name), getattr(new, name)
        of_values = mapping_value(hint)
        if is_section(hint):
            kept[name] = _merge(before, after)
        elif of_values is not None and is_section(of_values) and is_live(hint):
            kept[name] = {key: _merge(before[key], value) if key in before else value for key, value in after.items()}
        elif not is_live(hint):
            kept[name] = before
    return msgspec.structs.replace(new, **kept)
