"""What a group has used, as typed values. A part that this host cannot give is None."""

from __future__ import annotations

from dataclasses import dataclass

from controller.cgroup.cpu import CpuStat
from controller.cgroup.files import Pressure
from controller.cgroup.io import IoStat
from controller.cgroup.memory import MemoryStat, MemoryUse
from controller.cgroup.pids import PidsStat


@dataclass(frozen=True, slots=True, kw_only=True)
class FastStat:
    """What the control loop reads of each call, several times a second. Microseconds and bytes."""

    cpu_usec: int
    cpu_user_usec: int
    cpu_system_usec: int
    memory_now: int | None
    memory_peak: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupUse:
    """What a group has used in the end. ``io`` on hybrid hosts only with an io_weight: the twin is made for it."""

    cpu: CpuStat
    memory: MemoryUse | None
    pids: PidsStat | None
    io: IoStat | None
    cpu_pressure: Pressure | None
    memory_pressure: Pressure | None
    io_pressure: Pressure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStat(GroupUse):
    """All that cgroup files say of a group."""

    memory: MemoryStat | None
