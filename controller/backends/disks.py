"""Which file systems of this host are nearly full: whether a call's write met that can be proven only while one is.

To listen for writes that fail makes every system call of the host dearer (bpf/disk.py), so it is done only while a
file system has little room left and calls run. What fills up a disk that had more than that between two looks is not
proven; then what statvfs says at the end of the call is told as what it is, a hint.
"""

from __future__ import annotations

import os
import re
import select
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from controller.policy.text import human_bytes

log = structlog.get_logger("corral.disks")

# On this machine, and of a kind whose statvfs answers from memory: one on a network may hang, and the loop with it.
_LOCAL: Final = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "tmpfs", "xfs", "zfs"})
_NOT_THEIRS: Final = ("/boot", "/proc", "/sys", "/dev/mqueue")
_MOST: Final = 64  # file systems that are looked at
_LITTLE: Final = 2 << 30  # bytes: what a fast disk writes between two looks
_LITTLE_SHARE: Final = 0.25  # of a small file system
_FEW_NAMES: Final = 100_000  # inodes: what a fast host makes between two looks
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_NOTHING: Final = 1 << 20  # bytes: with less left, a failed call is told of it


@dataclass(frozen=True, slots=True)
class Disk:
    """``device`` as stat(2) gives it for files on it (btrfs and overlayfs make up others: those are not matched)."""

    path: str
    device: int


@dataclass(frozen=True, slots=True)
class Room:
    """What is left for those who are not root. Bytes; ``names``: inodes, None where there is no limit of them."""

    left: int
    size: int
    names: int | None
    names_in_all: int = 0

    @property
    def little(self) -> bool:
        return self.left < min(_LITTLE, self.size * _LITTLE_SHARE) or self.few_names

    @property
    def few_names(self) -> bool:
        return self.names is not None and self.names < min(_FEW_NAMES, self.names_in_all * _LITTLE_SHARE)

    @property
    def none(self) -> bool:
        return self.left < min(_NOTHING, self.size * _LITTLE_SHARE) or self.names == 0

    def describe(self) -> str:
        if self.names == 0:
            return "no room for one more file"
        return f"{human_bytes(self.left)} left of {human_bytes(self.size)}"


class Disks:
    """``look`` at most once a second; it reads the list of mounts only when that has changed."""

    def __init__(self, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
        self._descriptor = os.open(mountinfo, os.O_RDONLY | os.O_CLOEXEC)
        self._changes = select.poll()
        self._changes.register(self._descriptor, select.POLLPRI | select.POLLERR)
        self._disks: tuple[Disk, ...] = ()
        self._stale = True
        self.nearly_full: tuple[Disk, ...] = ()

    def close(self) -> None:
        os.close(self._descriptor)

    def look(self) -> bool:
        """Whether any file system is nearly full now."""
        disks = self._mounted()
        self.nearly_full = tuple(d for d in disks if (room := room_of(d.path)) is not None and room.little)
        return bool(self.nearly_full)

    def _mounted(self) -> tuple[Disk, ...]:
        if self._stale or self._changes.poll(0):
            self._stale = False
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            text = b""
            while piece := os.read(self._descriptor, 65_536):
                text += piece
            self._disks = parse(text.decode("utf-8", "surrogateescape"))
        return self._disks

    def full(self, device: int) -> str:
        """In words, that the file system with ``device`` has no room now; empty where it has, or is not known."""
        for disk in self._mounted():
            if disk.device == device and (room := room_of(disk.path)) is not None:
                return f"{disk.path} has {room.describe()}" if room.none else ""
        return ""

    def most_wanting(self) -> str:
        """The fullest of those that were nearly full at the last look, in words; empty without one."""
        rooms = [(room.left, disk.path, room) for disk in self.nearly_full if (room := room_of(disk.path)) is not None]
        if not rooms:
            return ""
        _, path, room = min(rooms, key=lambda found: found[:2])
        return f"{path} has {room.describe()}"


def parse(mountinfo: str) -> tuple[Disk, ...]:
    """The local file systems that can be written to, each once, where it was mounted first (proc_pid_mountinfo(5))."""
    found: dict[int, Disk] = {}
    for line in mountinfo.splitlines():
        mount, _, rest = line.partition(" - ")
        fields, (kind, *more) = mount.split(" "), rest.split(" ") or [""]
        if kind not in _LOCAL or len(fields) < 6 or len(more) < 2:
            continue
        path = _ESCAPED.sub(lambda octal: chr(int(octal.group(1), 8)), fields[4])
        if "rw" not in fields[5].split(",") or "rw" not in more[1].split(",") or path.startswith(_NOT_THEIRS):
            continue
        major, _, minor = fields[2].partition(":")
        if major.isdecimal() and minor.isdecimal():
            device = os.makedev(int(major), int(minor))
            found.setdefault(device, Disk(path, device))
        if len(found) == _MOST:
            break
    return tuple(found.values())


def room_of(path: str) -> Room | None:
    """None where it cannot be said: unmounted meanwhile, or without a size."""
    try:
        said = os.statvfs(path)
    except OSError as err:
        log.debug("a file system cannot be asked for its room", path=path, error=str(err))
        return None
    if not said.f_blocks:
        return None
    return Room(
        said.f_bavail * said.f_frsize,
        said.f_blocks * said.f_frsize,
        said.f_favail if said.f_files else None,
        said.f_files,
    )
