"""Wakes the control loop when tasks of the host stall for memory: the kernel tells, nobody asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from controller.cgroup.errors import CgroupFileError
from controller.cgroup.pressure import PressureTrigger

log = structlog.get_logger("corral.stalls")

_PATH: Final = "/proc/pressure/memory"
_STALL: Final = 100_000  # microseconds in which some task stood still for want of memory, of
_WINDOW: Final = 2_000_000  # so many; without CAP_SYS_RESOURCE the kernel takes multiples of 2 s alone


def watch(callback: Callable[[], None], path: str = _PATH) -> PressureTrigger | None:
    """Calls ``callback`` on the running loop, at most once in a window. None where this kernel has no PSI triggers:
    samples and the brake's notices wake the loop then, as they do anyway; the daemon's start says what PSI lacks."""
    try:
        return PressureTrigger(path, callback, stall_usec=_STALL, window_usec=_WINDOW)
    except CgroupFileError as err:
        log.info("memory pressure does not wake the control loop", error=str(err))
        return None
