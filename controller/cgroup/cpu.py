"""The cpu controller: a quota (cores), a weight, and what was used.

CPU time is read from cpu.stat of the v2 directory, which exists on each kind of host with or without the controller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from controller.cgroup import files, knobs
from controller.cgroup.errors import ValueRefused
from controller.model import UNLIMITED, Limits

PERIOD_USEC: Final = 100_000  # the kernel's default: long enough to cost nothing, short enough not to be felt
_MIN_QUOTA_USEC: Final = 1_000  # min_cfs_quota_period in kernel/sched/core.c
_MAX_CORES: Final = 4096.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuStat:
    """Microseconds of the group and its descendants. Throttling is None where no quota can be set on this group."""

    usage_usec: int
    user_usec: int
    system_usec: int
    throttled_periods: int | None = None
    throttled_usec: int | None = None


class Cpu(Protocol):
    def apply(self, directory: str, limits: Limits) -> list[str]: ...
    def limits(self, directory: str) -> Limits: ...
    def throttled(self, directory: str) -> tuple[int, int] | None:
        """Periods in which the group was throttled, and microseconds; None where it has no quota."""


class CpuV2:
    """cpu.max, cpu.weight."""

    def apply(self, directory: str, limits: Limits) -> list[str]:
        if limits.cpu_max is not None:
            path = f"{directory}/cpu.max"
            quota = quota_usec(path, limits.cpu_max)
            files.write(path, f"{knobs.text(quota, 'max')} {PERIOD_USEC}")
        if limits.cpu_weight is not None:
            path = f"{directory}/cpu.weight"
            files.write(path, str(knobs.weight(path, "cpu_weight", limits.cpu_weight)))
        return []

    def limits(self, directory: str) -> Limits:
        path = f"{directory}/cpu.max"
        weight = f"{directory}/cpu.weight"
        return Limits(
            cpu_max=parse_cpu_max(files.read(path), path), cpu_weight=files.parse_number(files.read(weight), weight)
        )

    def throttled(self, directory: str) -> tuple[int, int] | None:
        path = f"{directory}/cpu.stat"
        values = files.parse_flat(files.read(path), path)
        if b"nr_throttled" not in values:
            return None
        return values[b"nr_throttled"], files.key_of(values, b"throttled_usec", path)


class CpuV1:
    """cpu.cfs_quota_us, cpu.cfs_period_us, cpu.shares.

    v1 refuses a child's quota above its parent's, and a parent's below a child's, where v2 lets the tighter win. Here
    the tighter wins too: a child is set to its parent's ratio, or lowered with it, and a note says so.
    """

    def __init__(self, root: str) -> None:
        self._root = root  # directory of the tree's root: nothing above it is read as ours

    def apply(self, directory: str, limits: Limits) -> list[str]:
        notes: list[str] = []
        if limits.cpu_max is not None:
            path = f"{directory}/cpu.cfs_quota_us"
            quota = quota_usec(path, limits.cpu_max)
            files.write(f"{directory}/cpu.cfs_period_us", str(PERIOD_USEC))
            try:
                files.write(path, str(quota))
            except ValueRefused:
                ceiling = self._ceiling(directory)
                if ceiling is not None and quota > ceiling:
                    quota = ceiling
                    notes.append(f"cpu_max is {quota / PERIOD_USEC:g} cores: no more is allowed above it")
                if lowered := self._lower(directory, quota):
                    notes.append(f"cpu_max of {lowered} groups below came down with it")
                files.write(path, str(quota))
        if limits.cpu_weight is not None:
            path = f"{directory}/cpu.shares"
            files.write(path, str(shares(knobs.weight(path, "cpu_weight", limits.cpu_weight))))
        return notes

    def limits(self, directory: str) -> Limits:
        path = f"{directory}/cpu.shares"
        return Limits(
            cpu_max=self._cores(directory), cpu_weight=weight_of_shares(files.parse_number(files.read(path), path))
        )

    def throttled(self, directory: str) -> tuple[int, int] | None:
        path = f"{directory}/cpu.stat"
        data = files.read_optional(path)
        if data is None:
            return None
        values = files.parse_flat(data, path)
        return (
            files.key_of(values, b"nr_throttled", path),
            files.key_of(values, b"throttled_time", path) // 1000,  # nanoseconds on v1
        )

    def _cores(self, directory: str) -> float:
        quota, period = f"{directory}/cpu.cfs_quota_us", f"{directory}/cpu.cfs_period_us"
        used = files.parse_number(files.read(quota, 32), quota)
        return float(UNLIMITED) if used < 0 else used / files.parse_number(files.read(period, 32), period)

    def _ceiling(self, directory: str) -> int | None:
        """The tightest quota above ``directory``, in microseconds of PERIOD_USEC, up to the tree's root."""
        tightest: int | None = None
        while len(directory) > len(self._root):
            directory = directory.rpartition("/")[0]
            cores = self._cores(directory)
            if cores >= 0:
                quota = int(cores * PERIOD_USEC)
                tightest = quota if tightest is None else min(tightest, quota)
        return tightest

    def _lower(self, directory: str, quota: int) -> int:
        """Bring every group below down to ``quota``, the deepest first; how many there were."""
        lowered = 0
        for name in files.subdirectories(directory):
            child = f"{directory}/{name}"
            lowered += self._lower(child, quota)
            if self._cores(child) * PERIOD_USEC > quota >= 0:
                files.write(f"{child}/cpu.cfs_period_us", str(PERIOD_USEC))
                files.write(f"{child}/cpu.cfs_quota_us", str(quota))
                lowered += 1
        return lowered


def quota_usec(path: str, cores: float) -> int:
    """Cores as microseconds of CPU in each PERIOD_USEC. Raises ValueRefused; also refuses NaN."""
    if cores == UNLIMITED:
        return UNLIMITED
    least = _MIN_QUOTA_USEC / PERIOD_USEC
    if not least <= cores <= _MAX_CORES:
        raise ValueRefused(
            path,
            "cpu_max is out of range",
            value=str(cores),
            remedy=f"give {least:g} to {_MAX_CORES:g} cores, or UNLIMITED (-1)",
        )
    return round(cores * PERIOD_USEC)


def shares(weight: int) -> int:
    """A weight of 1 to 10,000 as v1 shares: weight * 1024 / 100, at least 2 (systemd's cgroup_cpu_weight_to_shares), so
    that the default of one, 100, is the default of the other, 1024."""
    return max(2, min(262_144, weight * 1024 // 100))


def weight_of_shares(value: int) -> int:
    return max(1, min(10_000, round(value * 100 / 1024)))


def parse_cpu_max(data: bytes, path: str) -> float:
    """cpu.max, ``QUOTA PERIOD`` or ``max PERIOD``: cores, or UNLIMITED."""
    quota, _, period = data.strip().partition(b" ")
    limit = files.parse_number(quota, path)
    return float(UNLIMITED) if limit == UNLIMITED else limit / files.parse_number(period, path)


def parse_cpu_stat(data: bytes, path: str) -> CpuStat:
    """cpu.stat of a v2 directory."""
    values = files.parse_flat(data, path)
    return CpuStat(
        usage_usec=files.key_of(values, b"usage_usec", path),
        user_usec=files.key_of(values, b"user_usec", path),
        system_usec=files.key_of(values, b"system_usec", path),
        throttled_periods=values.get(b"nr_throttled"),
        throttled_usec=values.get(b"throttled_usec"),
    )
