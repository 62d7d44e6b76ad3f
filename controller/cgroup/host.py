"""Figures of the host as a whole: /proc/meminfo, /proc/pressure, CPUs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from controller.cgroup import files
from controller.cgroup.errors import FormatError
from controller.cgroup.files import Pressure

_HEAD: Final = 128  # bytes of /proc/meminfo that hold MemTotal, MemFree and MemAvailable: the kernel's first lines


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStat:
    """Bytes. ``cpus``: those this process may run on. ``memory_available``: what can be had without swapping, by the
    kernel's estimate. Pressures are None where PSI is off."""

    cpus: int
    memory_total: int
    memory_available: int
    memory_free: int
    swap_total: int
    swap_free: int
    cpu_pressure: Pressure | None
    memory_pressure: Pressure | None
    io_pressure: Pressure | None


def read_host(proc: str = "/proc") -> HostStat:
    """Raises the errors of controller.cgroup.errors."""
    path = f"{proc}/meminfo"
    memory = parse_meminfo(files.read(path, files.LARGE), path)
    return HostStat(
        cpus=len(os.sched_getaffinity(0)),
        memory_total=files.key_of(memory, b"MemTotal", path),
        memory_available=files.key_of(memory, b"MemAvailable", path),
        memory_free=files.key_of(memory, b"MemFree", path),
        swap_total=memory.get(b"SwapTotal", 0),
        swap_free=memory.get(b"SwapFree", 0),
        cpu_pressure=files.read_pressure(f"{proc}/pressure/cpu"),
        memory_pressure=files.read_pressure(f"{proc}/pressure/memory"),
        io_pressure=files.read_pressure(f"{proc}/pressure/io"),
    )


def read_memory(proc: str = "/proc") -> tuple[int, int]:
    """Total and available alone, bytes. On the path of a call: where they are in the first lines, only those are
    parsed. Raises the errors of controller.cgroup.errors."""
    path = f"{proc}/meminfo"
    data = files.read(path, files.LARGE)
    head = data[: data.rfind(b"\n", 0, _HEAD) + 1]
    memory = parse_meminfo(head if b"\nMemAvailable:" in head else data, path)
    return files.key_of(memory, b"MemTotal", path), files.key_of(memory, b"MemAvailable", path)


def parse_meminfo(data: bytes, path: str) -> dict[bytes, int]:
    """Bytes by name. Lines without a unit (huge page counts) are counts."""
    values: dict[bytes, int] = {}
    try:
        for line in data.splitlines():
            name, _, rest = line.partition(b":")
            number, *unit = rest.split()
            values[name] = int(number) * (1024 if unit == [b"kB"] else 1)
    except ValueError:
        raise FormatError(
            path, f"expected 'Name: N kB', found {data[:80]!r}", remedy="this kernel's format is not known; report it"
        ) from None
    return values
