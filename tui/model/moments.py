"""Moments as people write them: "10m ago", "14:03", "2026-11-24 14:03:20", "+30s", "now"."""

from __future__ import annotations

import re
import time
from typing import Final

from tui.model.text import clock, span

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SPAN: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*([smhd])")
_CLOCK: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_FORMATS: Final = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d")
_LAST: Final = 253_402_300_799.0  # the end of the year 9999


class MomentError(ValueError):
    """The text is no moment; says what would be."""


def parse(text: str, *, now: float, shown: float) -> float | None:
    """Unix seconds; None: now. ``+30s`` and ``-30s`` count from the moment on the screen (``shown``), a time of day
    is the last one before ``now``. Local time. Raises MomentError."""
    words = text.strip().lower()
    if words in ("now", "live", ""):
        return None
    if words[0] in "+-":
        return shown + (-1 if words[0] == "-" else 1) * _seconds(words[1:].strip(), text)
    if words.endswith("ago") or _is_span(words):
        return now - _seconds(words.removesuffix("ago").strip(), text)
    if (found := _CLOCK.fullmatch(words)) is not None:
        return _time_of_day(int(found[1]), int(found[2]), int(found[3] or 0), now, text)
    for form in _FORMATS:
        try:
            at = time.mktime(time.strptime(text.strip(), form))
        except (ValueError, OverflowError):
            continue
        if 0 <= at <= _LAST:
            return at
    raise _wrong(text)


def _is_span(words: str) -> bool:
    return bool(_SPAN.sub("", words).strip() == "" and _SPAN.search(words))


def _seconds(words: str, text: str) -> float:
    if not _is_span(words):
        raise _wrong(text)
    total = sum(float(number) * _UNITS[unit] for number, unit in _SPAN.findall(words))
    if total > 100 * 365 * 86_400:
        raise _wrong(text)
    return total


def _time_of_day(hour: int, minute: int, second: int, now: float, text: str) -> float:
    if hour > 23 or minute > 59 or second > 59:
        raise _wrong(text)
    today = time.localtime(now)

    def on(day: int) -> float:
        return time.mktime((today.tm_year, today.tm_mon, day, hour, minute, second, 0, 0, -1))

    at = on(today.tm_mday)
    # mktime takes the day before the first of a month as it is meant, and knows about changes of the clock
    return at if at <= now else on(today.tm_mday - 1)


def _wrong(text: str) -> MomentError:
    return MomentError(
        f"{text.strip()[:40]!r} is no moment; give 10m ago, 14:03, 2026-11-24 14:03:20, +30s, -30s or now"
    )


def when(at: float, now: float) -> str:
    """ "14:03:20, 12m05s ago"; with the date where it is not within the last 20 hours."""
    ago = now - at
    day = "" if 0 <= ago < 72_000 else time.strftime("%Y-%m-%d ", time.localtime(at))
    return f"{day}{clock(at)}, {span(ago)} ago" if ago >= 0 else f"{day}{clock(at)}"
