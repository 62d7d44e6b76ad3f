"""What a process uses, and what the rest of the machine does meanwhile: from /proc."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcStat:
    """``cpu_seconds`` user and system, in steps of a clock tick; ``rss_bytes`` now; ``fds`` open descriptors."""

    cpu_seconds: float
    rss_bytes: int
    fds: int


def read(pid: int) -> ProcStat:
    """Raises FileNotFoundError or ProcessLookupError when the process is gone."""
    directory = Path(f"/proc/{pid}")
    # the name in parentheses may hold anything: count from behind it
    fields = (directory / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    rss = 0
    for line in (directory / "status").read_text("utf-8", "replace").splitlines():
        if line.startswith("VmRSS:"):
            rss = int(line.split()[1]) * 1024
    return ProcStat(
        cpu_seconds=(int(fields[11]) + int(fields[12])) / TICKS,
        rss_bytes=rss,
        fds=sum(1 for _ in (directory / "fd").iterdir()),
    )


class Others:
    """The share of the machine's CPUs that went to others than this process and its children since this was made.

    Children count once they have been waited for, so ask when all have ended. Processes that left us (a container
    engine's shims) count as others.
    """

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def share(self) -> float:
        """0 (this benchmark had the machine to itself) to 1."""
        wall = time.monotonic() - self._began
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return min(1.0, max(0.0, others / (wall * (os.cpu_count() or 1)))) if wall > 0 else 0.0


def _busy_seconds() -> float:
    """CPU time of all CPUs that was not idle, stolen by the hypervisor included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS


def _own_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
