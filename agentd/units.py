"""Sizes and durations as people write them ("300M", "2G", "30s", "1h30m"), and back; for configuration and CLI.

Size suffixes are powers of 1024, as in cgroup files and systemd units: ``K``, ``KB`` and ``KiB`` all mean 1024 bytes.
"""

from __future__ import annotations

import math
import re
from typing import Final

_SIZE_UNITS: Final = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([KMGTP])(?:I?B)?|(B?))", re.IGNORECASE | re.ASCII)
_MAX_SIZE: Final = 1 << 63  # the kernel keeps byte counts in signed 64 bit

_TIME_UNITS: Final = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_TIME_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(us|µs|ms|min|s|m|h|d)", re.ASCII)
_MAX_TEXT: Final = 64  # longer is no number; keeps hostile text away from the regular expressions


class UnitError(ValueError):
    """Text that is no size or duration. The message names the text, the cause and the form that is expected."""


def parse_size(value: str | int) -> int:
    """Bytes. ``value`` is a count of bytes or text like ``"300M"``, ``"1.5G"``, ``"64 KiB"``. Raises UnitError."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UnitError(f"{value!r} is not a size; write bytes as a number, or text such as '300M' or '2G'")
    if isinstance(value, int):
        if not 0 <= value < _MAX_SIZE:
            raise UnitError(f"size {value} is out of range; give 0 to 2^63 - 1 bytes")
        return value
    match = _SIZE.fullmatch(value.strip()) if len(value) <= _MAX_TEXT else None
    if match is None:
        raise UnitError(f"{value[:_MAX_TEXT]!r} is not a size; write a number and K, M, G or T, e.g. '300M' or '2G'")
    number, suffix = match[1], (match[2] or match[3] or "").upper()
    # integers stay exact: a float would lose bytes beyond 2^53
    size = int(number) * _SIZE_UNITS[suffix] if "." not in number else round(float(number) * _SIZE_UNITS[suffix])
    if size >= _MAX_SIZE:
        raise UnitError(f"size {value!r} is out of range; give at most 2^63 - 1 bytes")
    return size


def parse_duration(value: str | float) -> float:
    """Seconds. ``value`` is a number of seconds or text like ``"250ms"``, ``"30s"``, ``"1h30m"``. Raises UnitError."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnitError(f"{value!r} is not a duration; write seconds as a number, or text such as '30s' or '5m'")
    if not isinstance(value, str):
        if not (math.isfinite(value) and value >= 0):
            raise UnitError(f"duration {value} is out of range; give a number of seconds that is not negative")
        return float(value)
    text = value.strip() if len(value) <= _MAX_TEXT else ""
    total, position, smallest = 0.0, 0, math.inf
    while position < len(text):
        match = _TIME_PART.match(text, position)
        # units must fall ("1h30m"): "30m1h" and "5s5s" are rather mistakes than durations
        if match is None or _TIME_UNITS[match[2]] >= smallest:
            break
        smallest = _TIME_UNITS[match[2]]
        total += float(match[1]) * smallest
        position = match.end()
        while position < len(text) and text[position] == " ":
            position += 1
    if not text or position < len(text):
        raise UnitError(
            f"{value[:_MAX_TEXT]!r} is not a duration; write a number and us, ms, s, m, h or d, e.g. '30s' or '1h30m'"
        )
    return total


def format_bytes(size: float | None) -> str:
    """For people: ``"512 B"``, ``"1.5 GiB"``, ``"300 MiB"``; three significant digits. ``None`` becomes ``"-"``."""
    if size is None:
        return "-"
    sign, size = ("-" if size < 0 else ""), abs(size)
    if size < 1024:
        return f"{sign}{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        size /= 1024
        # 1023.5 would be shown as "1024", so the next unit takes over there
        if size < 1023.5 or unit == "PiB":
            return f"{sign}{_three_digits(size)} {unit}"
    raise AssertionError("unreachable: the last unit takes every size")


def format_duration(seconds: float | None) -> str:
    """For people: ``"120 us"``, ``"3.4 ms"``, ``"12.5 s"``, ``"5m 12s"``, ``"3d 4h"``. ``None`` becomes ``"-"``."""
    if seconds is None or math.isnan(seconds):
        return "-"
    if math.isinf(seconds):
        return "never" if seconds > 0 else "-never"
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    if seconds < 59.95:
        return sign + _short(seconds)
    whole = round(seconds)
    for (big, big_size), (small, small_size) in (
        (("m", 60), ("s", 1)),
        (("h", 3600), ("m", 60)),
        (("d", 86_400), ("h", 3600)),
    ):
        if whole < big_size * (60 if big == "m" else 24) or big == "d":
            count, rest = divmod(whole, big_size)
            rest //= small_size
            return f"{sign}{count}{big} {rest}{small}" if rest else f"{sign}{count}{big}"
    raise AssertionError("unreachable: days take every duration")


def exact_size(size: int) -> str:
    """A size that :func:`parse_size` reads back as the same number: the largest suffix that divides it."""
    for suffix in ("T", "G", "M", "K"):
        if size and size % _SIZE_UNITS[suffix] == 0:
            return f"{size // _SIZE_UNITS[suffix]}{suffix}"
    return str(size)


def exact_duration(seconds: float) -> str:
    """A duration that :func:`parse_duration` reads back as the same number: the largest unit that divides it."""
    for unit, factor in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds and seconds % factor == 0:
            return f"{int(seconds // factor)}{unit}"
    if seconds == int(seconds):
        return f"{int(seconds)}s"
    millis = round(seconds * 1000)
    return f"{millis}ms" if parse_duration(f"{millis}ms") == seconds else f"{seconds!r}s"


def _short(seconds: float) -> str:
    if seconds == 0:
        return "0 s"
    if seconds < 999.5e-6:
        return f"{_three_digits(seconds * 1e6)} us"
    if seconds < 0.9995:
        return f"{_three_digits(seconds * 1e3)} ms"
    return f"{_three_digits(seconds)} s"


def _three_digits(value: float) -> str:
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
