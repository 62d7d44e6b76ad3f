"""What /proc says about single processes: one read per file, no exception for a process that has ended.

``None`` everywhere means that the process is gone, or that its file may not be read by this user. psutil is not used
here: it builds a map of all processes for every question, and these are asked for many calls at a time.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

TICKS: Final = os.sysconf("SC_CLK_TCK")  # per second: the unit of CPU times and start times
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_READ: Final = os.O_RDONLY | os.O_CLOEXEC
_LARGE: Final = 65_536
_DEAD: Final = frozenset("ZXx")


class ProcStat(NamedTuple):
    """Of /proc/PID/stat, the whole process. CPU times in ticks, ``start`` in ticks since boot, ``rss`` in bytes.

    ``child_*``: of children that were waited for, and theirs. ``faults`` counts minor and major ones.
    """

    pid: int
    state: str
    ppid: int
    start: int
    user: int
    system: int
    child_user: int
    child_system: int
    faults: int
    major: int
    child_faults: int
    child_major: int
    rss: int

    @property
    def alive(self) -> bool:
        """False for a zombie: it runs no more, and waits to be waited for."""
        return self.state not in _DEAD


class ProcIo(NamedTuple):
    """Of /proc/PID/io, in bytes: the process, its ended threads, and the children that it waited for."""

    read: int  # through read(2) and its kin
    written: int
    disk_read: int
    disk_written: int


def read(path: str) -> bytes | None:
    """The beginning of a file below /proc, at most 64 KiB."""
    try:
        fd = os.open(path, _READ)
        try:
            return os.read(fd, _LARGE)
        finally:
            os.close(fd)
    except OSError:  # gone, or not ours: for the caller both are "cannot be known"
        return None


def parse_stat(data: bytes) -> ProcStat | None:
    """``None`` for text in another form. The name in parentheses is the process's own and may hold anything."""
    head, parenthesis, tail = data.rpartition(b")")
    fields = tail.split()
    if not parenthesis or len(fields) < 22:
        return None
    try:
        return ProcStat(
            pid=int(head.split(b" ", 1)[0]),
            state=fields[0].decode("ascii", "replace"),
            ppid=int(fields[1]),
            start=int(fields[19]),
            user=int(fields[11]),
            system=int(fields[12]),
            child_user=int(fields[13]),
            child_system=int(fields[14]),
            faults=int(fields[7]) + int(fields[9]),
            major=int(fields[9]),
            child_faults=int(fields[8]) + int(fields[10]),
            child_major=int(fields[10]),
            rss=int(fields[21]) * PAGE,
        )
    except ValueError:
        return None


def read_stat(pid: int) -> ProcStat | None:
    data = read(f"/proc/{pid}/stat")
    return parse_stat(data) if data else None


def scan() -> dict[int, ProcStat]:
    """Every process that this user may see; about 15 µs each."""
    found: dict[int, ProcStat] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - hot path, no Path objects
        if name.isdecimal() and (stat := read_stat(int(name))) is not None:
            found[stat.pid] = stat
    return found


def parse_io(data: bytes) -> ProcIo | None:
    try:
        values = {key: int(value) for key, _, value in (line.partition(b":") for line in data.splitlines())}
        return ProcIo(values[b"rchar"], values[b"wchar"], values[b"read_bytes"], values[b"write_bytes"])
    except (ValueError, KeyError):
        return None


def read_io(pid: int) -> ProcIo | None:
    """The kernel shows it to the process's own user and to root."""
    data = read(f"/proc/{pid}/io")
    return parse_io(data) if data else None


def environment_value(pid: int, name: bytes) -> bytes | None:
    """A variable as the process was started with it, if it stands in the first 64 KiB."""
    data = read(f"/proc/{pid}/environ")
    if not data:
        return None
    wanted = name + b"="
    return next((entry[len(wanted) :] for entry in data.split(b"\0") if entry.startswith(wanted)), None)


def owner(pid: int) -> int | None:
    """The user that the process runs as (effective uid)."""
    try:
        return os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116 - hot path, no Path objects
    except OSError:
        return None


def v2_path(pid: int) -> str | None:
    """The process's group in the v2 hierarchy, as /proc/PID/cgroup has it ("/a/b")."""
    data = read(f"/proc/{pid}/cgroup")
    if data is None:
        return None
    line = next((line for line in data.splitlines() if line.startswith(b"0::")), None)
    return os.fsdecode(line[3:]) if line is not None else None
