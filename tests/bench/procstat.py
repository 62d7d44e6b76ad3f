"""What a process uses, from /proc."""

from __future__ import annotations

import os
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
