"""The processes in a call's leaf, read from this host's own cgroup files and /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_PROCESSES: Final = 1000  # of one leaf; a fork bomb must not make the answer one, too
MAX_COMMAND: Final = 2000  # characters

STATES: Final = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for disk",
    "T": "stopped",
    "t": "traced",
    "Z": "zombie",
    "X": "dead",
    "I": "idle",
}


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    state: str
    memory_bytes: int  # resident
    cpu_seconds: float
    command: str
    parent: int = 0


def processes_of(cgroup: str, *, mountinfo: Path = Path("/proc/self/mountinfo")) -> list[Process]:
    """By pid, at most MAX_PROCESSES. Empty where the leaf is not on this host, has gone, or cannot be read: the list is
    an extra, not the answer."""
    mount = unified_mount(mountinfo.read_text(encoding="utf-8", errors="replace"))
    parts = Path(cgroup.lstrip("/")).parts
    if mount is None or not parts or ".." in parts:
        return []
    leaf = mount.joinpath(*parts)
    pids: list[int] = []
    # A nested call's group lies inside its parent's: every group below belongs to the call.
    for folder, _, files in os.walk(leaf):
        if "cgroup.procs" not in files:
            continue
        try:
            pids += [int(line) for line in (Path(folder) / "cgroup.procs").read_text(encoding="ascii").split()]
        except (OSError, ValueError):
            continue
    return [process for pid in sorted(pids)[:MAX_PROCESSES] if (process := read(pid)) is not None]


def unified_mount(mountinfo: str) -> Path | None:
    """Where cgroup v2 is mounted (proc(5): the type follows a lone dash). Octal escapes are undone."""
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split()
        if dash and len(fields) >= 5 and after.split()[:1] == ["cgroup2"]:
            return Path(fields[4].encode("latin-1", "replace").decode("unicode_escape"))
    return None


def read(pid: int) -> Process | None:
    """None for one that has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None  # it ended in between
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    tick = os.sysconf("SC_CLK_TCK")
    return Process(
        pid=pid,
        state=STATES.get(fields[0], fields[0]),
        memory_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / tick,
        command=command.replace(b"\0", b" ").decode("utf-8", "replace").strip()[:MAX_COMMAND] or f"[{name}]",
        parent=int(fields[1]),
    )
