"""Numbers, times and bars as short text. Pure. (The dashboard knows the API alone, so it brings its own.)"""

from __future__ import annotations

import time
from typing import Final

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"


def size(nbytes: float | None) -> str:
    """Three significant digits: "512 B", "1.5 GiB"; "-" for what is not known."""
    if nbytes is None:
        return "-"
    value = float(nbytes)
    if value < 1024:
        return f"{value:.0f} B"
    for unit in _UNITS:
        value /= 1024
        if value < 1023.5 or unit == _UNITS[-1]:
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            text = f"{value:.{digits}f}"
            return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"
    raise AssertionError("unreachable: the last unit takes every size")


def span(seconds: float) -> str:
    """At most six characters: "9.5s", "59s", "12m05s", "3h07m", "5d02h"."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def clock(at: float) -> str:
    """Unix seconds as local time of the day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def bar(part: float, width: int) -> str:
    """``part`` (0 to 1; more is shown as full) of ``width`` cells, in eighths of a cell."""
    eighths = round(min(1.0, max(0.0, part)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def clean(text: str) -> str:
    """On one line, and nothing in it that could steer a terminal: agents choose these texts."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c in "\t\r\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def evidence(numbers: dict[str, float]) -> str:
    """ "brake 128 MiB, usage 129 MiB": each number in the unit that its name ends with."""
    parts = []
    for name, value in sorted(numbers.items()):
        stem, _, unit = name.rpartition("_")
        if unit == "bytes":
            parts.append(f"{stem.replace('_', ' ')} {size(value)}")
        elif unit == "seconds":
            parts.append(f"{stem.replace('_', ' ')} {span(value)}")
        else:
            parts.append(f"{name.replace('_', ' ')} {value:g}")
    return ", ".join(parts)


def rate(value: float) -> str:
    """Events a second in at most five characters: "0", "0.4", "12", "3.4k", "1.2M"."""
    if value < 0.05:
        return "0"
    if value < 9.95:
        return f"{value:.1f}"
    for unit in ("", "k", "M"):
        if value < 999.5:
            return f"{value:.0f}{unit}" if not unit or value >= 9.95 else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f}G" if value < 9.95 else f"{value:.0f}G"
