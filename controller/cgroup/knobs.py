"""What a limit may be, before the kernel is asked: the same range on each kind of host."""

from __future__ import annotations

from controller.cgroup.errors import ValueRefused
from controller.model import UNLIMITED

MIN_WEIGHT = 1
MAX_WEIGHT = 10_000


def whole(path: str, name: str, value: int, *, low: int, high: int, unit: str) -> None:
    """Refuse what is neither UNLIMITED nor within ``low`` to ``high``. Raises ValueRefused."""
    if value != UNLIMITED and not low <= value <= high:
        raise ValueRefused(
            path, f"{name} is out of range", value=str(value), remedy=f"give {low} to {high} {unit}, or UNLIMITED (-1)"
        )


def weight(path: str, name: str, value: int) -> int:
    """The weight to set; UNLIMITED means the kernel's default, 100. Raises ValueRefused."""
    if value == UNLIMITED:
        return 100
    whole(path, name, value, low=MIN_WEIGHT, high=MAX_WEIGHT, unit="(100 is the default)")
    return value


def text(value: int, unlimited: str) -> str:
    return unlimited if value == UNLIMITED else str(value)
