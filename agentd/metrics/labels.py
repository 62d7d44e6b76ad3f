"""Label values of bounded number: what exceeds the bound is counted together, so that no agent can grow the series."""

from __future__ import annotations

from typing import Final

OTHER: Final = "other"
MAX_TENANTS: Final = 256
MAX_CODES: Final = 64
_MAX_LENGTH: Final = 64


class Labels:
    """The first ``limit`` different values keep their names; every later one is "other"."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._known:
            return value
        if len(self._known) >= self._limit or len(value) > _MAX_LENGTH:
            return OTHER
        self._known.add(value)
        return value
