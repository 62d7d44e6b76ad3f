"""The processes in a call's leaf, read from this host's own cgroup files and /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentd.cli.plain import Plain
from agentd.cli.table import Cell
from agentd.units import format_bytes, format_duration

_STATES: Final = {
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
    memory_bytes: int
    cpu_seconds: float
    command: str

    def row(self) -> list[Cell | str]:
        return [
            str(self.pid),
            self.state,
            format_bytes(self.memory_bytes),
            format_duration(self.cpu_seconds),
            self.command,
        ]

    def plain(self) -> dict[str, Plain]:
        return {
            "pid": self.pid,
            "state": self.state,
            "memory_bytes": self.memory_bytes,
            "cpu_seconds": self.cpu_seconds,
            "command": self.command,
        }


def processes_of(cgroup: str, *, mountinfo: Path = Path("/proc/self/mountinfo")) -> list[Process]:
    """Empty where the leaf is not on this host, has gone, or cannot be read: the list is an extra, not the answer."""
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
    return [process for pid in sorted(pids) if (process := _read(pid)) is not None]


def unified_mount(mountinfo: str) -> Path | None:
    """Where cgroup v2 is mounted (proc(5): the type follows a lone dash). Octal escapes are undone."""
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split()
        if dash and len(fields) >= 5 and after.split()[:1] == ["cgroup2"]:
            return Path(fields[4].encode("latin-1", "replace").decode("unicode_escape"))
    return None


def _read(pid: int) -> Process | None:
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
        state=_STATES.get(fields[0], fields[0]),
        memory_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / tick,
        command=command.replace(b"\0", b" ").decode("utf-8", "replace").strip() or f"[{name}]",
    )
