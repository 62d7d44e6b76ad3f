"""Amounts of what can be used up, as people write them, for the configuration and the command line.

``10h`` of CPU or GPU time, ``500G`` of network traffic (binary), ``16G*8h`` of memory (16 GiB for eight hours), ``2M``
tokens or calls (decimal), ``5kWh`` or ``18MJ`` of energy, ``12.50`` of money. A plain number is in the resource's unit.
A whole budget is ``LIMIT [per PERIOD] [soft|hard|end]``: ``"10h per 1d hard"``; ``end`` is hard, and ends what runs.
"""

from __future__ import annotations

import re
from typing import Final

from agentd.units import UnitError, parse_duration, parse_size
from controller.model import BudgetRule, InvalidRequest, Resource

_MAX_TEXT: Final = 64
_NUMBER: Final = re.compile(r"[0-9]{1,24}(?:\.[0-9]{1,12})?", re.ASCII)
_COUNT: Final = re.compile(r"([0-9]{1,24}(?:\.[0-9]{1,12})?) ?([kMGT]?)", re.ASCII)
_ENERGY: Final = re.compile(r"([0-9]{1,24}(?:\.[0-9]{1,12})?) ?([kMG]?)(J|Wh)", re.ASCII)
_DECIMAL: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_WATT_HOUR: Final = 3600.0  # joules
_FORMS: Final = {
    Resource.CPU_SECONDS: "a duration such as 10h",
    Resource.GPU_SECONDS: "a duration such as 10h",
    Resource.MEMORY_BYTE_SECONDS: "a size times a duration such as 16G*8h",
    Resource.NETWORK_BYTES: "a size such as 500G",
    Resource.CALLS_BEGUN: "a number such as 500 or 20k",
    Resource.TOKENS: "a number such as 50000 or 2M",
    Resource.JOULES: "an energy such as 5kWh or 18MJ",
    Resource.MONEY: "a number such as 12.50",
}


def form(resource: Resource) -> str:
    """How an amount of it is written."""
    return _FORMS[resource]


def parse_amount(resource: Resource, text: str) -> float:
    """In the unit that the resource's name says. Raises UnitError."""
    text = text.strip()
    if len(text) <= _MAX_TEXT:
        if _NUMBER.fullmatch(text):
            return float(text)
        try:
            value = _with_unit(resource, text)
        except UnitError:
            value = None
        if value is not None:
            return value
    raise UnitError(f"{text[:_MAX_TEXT]!r} is no amount of {resource.value}; write {_FORMS[resource]}")


def _with_unit(resource: Resource, text: str) -> float | None:
    match resource:
        case Resource.CPU_SECONDS | Resource.GPU_SECONDS:
            return parse_duration(text)
        case Resource.NETWORK_BYTES:
            return float(parse_size(text))
        case Resource.MEMORY_BYTE_SECONDS:
            size, times, duration = text.partition("*")
            return parse_size(size) * parse_duration(duration) if times else None
        case Resource.CALLS_BEGUN | Resource.TOKENS:
            found = _COUNT.fullmatch(text)
            return float(found[1]) * _DECIMAL[found[2]] if found else None
        case Resource.JOULES:
            found = _ENERGY.fullmatch(text)
            if found is None:
                return None
            return float(found[1]) * _DECIMAL[found[2]] * (_WATT_HOUR if found[3] == "Wh" else 1.0)
        case Resource.MONEY:
            return None


def parse_resource(text: str) -> Resource:
    """Raises UnitError."""
    try:
        return Resource(text)
    except ValueError:
        raise UnitError(f"{text[:_MAX_TEXT]!r} is nothing that can be used up; one of {', '.join(Resource)}") from None


def parse_budget(resource: Resource, text: str) -> BudgetRule:
    """``LIMIT [per PERIOD] [soft|hard|end]``; soft and never full again where nothing is said. Raises UnitError."""
    words = text.split()
    kind = words.pop() if words and words[-1] in ("soft", "hard", "end") else "soft"
    period = None
    if "per" in words:
        at = words.index("per")
        period = parse_duration(" ".join(words[at + 1 :]))
        words = words[:at]
    limit = parse_amount(resource, " ".join(words))
    try:
        return BudgetRule(resource=resource, limit=limit, hard=kind != "soft", period=period, ends_calls=kind == "end")
    except InvalidRequest as err:
        raise UnitError(f"{err.field}: {err.message}; {err.remedy}") from None
