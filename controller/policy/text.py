"""Numbers for people and for language models."""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """``1.5 GiB``, ``300 MiB``, ``12 KiB``: binary units, three significant digits."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1023.5:  # beyond, three digits would round to 1024
            return f"{_three_digits(value)} {unit}"
        value /= 1024
    return f"{_three_digits(value)} TiB"


def human_seconds(seconds: float) -> str:
    """``1.5 ms``, ``2.5 s``, ``42 s``, ``3 min 20 s``."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.0995 else f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _three_digits(value: float) -> str:
    """Without an exponent, which "g" resorts to where rounding makes a fourth digit."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
