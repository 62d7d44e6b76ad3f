"""Forks, execs and exits of the processes of attached sessions, as the kernel side tells them.

A process is watched from the moment it is named here; its children are from their birth, in the kernel. A group is
watched for processes that come in from elsewhere: they are known by their first exec.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

from bpf.errors import MapError
from bpf.libbpf import Map, Ring, get_pinned

EVENT: Final = struct.Struct("=IIQQIIIIQ")  # kind, size, entry, at, tgid, ppid, status, group, cpu
EXEC: Final = struct.Struct("=IIQQIIIIQII128s1024s")  # and length, pad, path, argv
MAX_ARGUMENTS: Final = 1023
_KEY: Final = struct.Struct("=I")
_ENTRY: Final = struct.Struct("=Q")
_MEMORY_V1: Final = 1 << 63
_WATCHED, _PLACED = _KEY.pack(1), _KEY.pack(2)
_BPF_EXIST: Final = 2  # update an element that is there
_ROUND: Final = 512


class LineageKind(IntEnum):
    FORK = 1
    EXEC = 2
    EXIT = 3


class LineageEvent(NamedTuple):
    """``pid``: of a fork the child. ``at`` CLOCK_MONOTONIC nanoseconds; ``status`` as of waitpid(2); ``cpu_nsec`` of
    the whole process since its birth. ``arguments``: NUL-separated, the first 1023 bytes; ``cut`` where there were
    more. ``entry``: of an exec, the group by which a process is known that came in from elsewhere, else 0."""

    kind: LineageKind
    at: int
    pid: int
    parent: int
    status: int
    group: int
    cpu_nsec: int
    entry: int = 0
    path: str = ""
    arguments: bytes = b""
    cut: bool = False


class Lineage:
    """``maps``: the directory of the pinned maps. What an earlier daemon watched is forgotten."""

    def __init__(self, maps: Path) -> None:
        self._fds: list[int] = []
        self._ring: Ring | None = None
        try:
            self._lineage = Map("lineage", self._open(maps / "lineage"), 4, 4)
            self._entries = Map("entries", self._open(maps / "entries"), 8, 4)
            self._lost = Map("told_lost", self._open(maps / "told_lost"), 4, 8)
            self._ring = Ring(self._open(maps / "told"), _ROUND)
            for known in (self._lineage, self._entries):
                self._clear(known)
            while self._ring.drain():
                pass
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> int:
        fd = get_pinned(path)
        self._fds.append(fd)
        return fd

    @staticmethod
    def _clear(known: Map) -> None:
        keys, _, count = known.batch(1024)
        for at in range(count):
            known.delete(keys[at * known.key_size : (at + 1) * known.key_size])

    def close(self) -> None:
        """Nothing is watched any more."""
        if self._ring is not None:
            for known in (self._lineage, self._entries):
                self._clear(known)
            self._ring.close()
            self._ring = None
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def watch(self, pid: int) -> None:
        self._lineage.put(_KEY.pack(pid), _WATCHED)

    def placed(self, pid: int) -> None:
        """Its end alone is told from now on. Nothing where it has ended."""
        try:
            self._lineage.put(_KEY.pack(pid), _PLACED, _BPF_EXIST)
        except MapError as err:
            if err.errno != errno.ENOENT:
                raise

    def unwatch(self, pid: int) -> None:
        self._lineage.delete(_KEY.pack(pid))

    def watch_group(self, inode: int, *, memory_v1: bool) -> int:
        """Its entry, as events name it. ``inode`` of its directory, in v2 or in the v1 memory hierarchy."""
        entry = inode | (_MEMORY_V1 if memory_v1 else 0)
        self._entries.put(_ENTRY.pack(entry), _WATCHED)
        return entry

    def unwatch_group(self, entry: int) -> None:
        self._entries.delete(_ENTRY.pack(entry))

    @property
    def lost(self) -> int:
        """Events that the ring had no room for, since the programs were loaded."""
        raw = self._lost.get(_KEY.pack(0))
        return int.from_bytes(raw, "little" if struct.pack("=H", 1)[0] else "big") if raw else 0

    def fileno(self) -> int:
        if self._ring is None:
            raise MapError("ring buffer: closed", remedy="open it again")
        return self._ring.fileno()

    def read(self) -> Iterator[LineageEvent]:
        """What waits, at most 512 of them."""
        for raw in self._ring.drain() if self._ring is not None else ():
            event = decode(raw)
            if event is not None:
                yield event


def decode(raw: bytes) -> LineageEvent | None:
    """None for a record that is none of ours."""
    if len(raw) < EVENT.size:
        return None
    kind, size, entry, at, pid, parent, status, group, cpu = EVENT.unpack_from(raw)
    if kind == LineageKind.EXEC and size == EXEC.size <= len(raw):
        length, _, path, arguments = EXEC.unpack_from(raw)[9:]
        return LineageEvent(
            LineageKind.EXEC,
            at,
            pid,
            parent,
            status,
            group,
            cpu,
            entry,
            path.split(b"\0", 1)[0].decode("utf-8", "replace"),
            arguments[: min(length, MAX_ARGUMENTS)],
            length > MAX_ARGUMENTS,
        )
    if kind in {LineageKind.FORK, LineageKind.EXIT} and size == EVENT.size:
        return LineageEvent(LineageKind(kind), at, pid, parent, status, group, cpu)
    return None
