"""inotify(7) for cgroup files: the four system calls, and the records that come back."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Final

from controller.cgroup.errors import KernelRefused, from_os

IN_MODIFY: Final = 0x002
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_MASK_CREATE: Final = 0x10000000  # 4.18: EEXIST rather than a shared watch
_HEADER: Final = struct.Struct("=iIII")  # wd, mask, cookie, length of the name that follows
_libc: Final = ctypes.CDLL(None, use_errno=True)


def init() -> int:
    """A new, non-blocking descriptor. Raises KernelRefused: fs.inotify.max_user_instances."""
    fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        number = ctypes.get_errno()
        raise KernelRefused(
            "inotify",
            f"{os.strerror(number)}",
            number=number,
            remedy="raise fs.inotify.max_user_instances or the limit of open files",
        )
    return fd


def add(fd: int, path: str) -> int:
    """Watch a file for the kernel's notifications. Raises the typed error; GroupExists when it is watched already."""
    watch = int(_libc.inotify_add_watch(fd, os.fsencode(path), IN_MODIFY | IN_MASK_CREATE))
    if watch < 0:
        number = ctypes.get_errno()
        error = from_os(OSError(number, os.strerror(number)), path)
        if isinstance(error, KernelRefused):
            error.remedy = "raise fs.inotify.max_user_watches"
            error.add_note(error.remedy)
        raise error
    return watch


def remove(fd: int, watch: int) -> None:
    """Stop watching; nothing to do when the kernel has dropped the watch itself."""
    _libc.inotify_rm_watch(fd, watch)


def read(fd: int) -> Iterator[tuple[int, int]]:
    """(watch, mask) of all that is there, without waiting."""
    while True:
        try:
            data = os.read(fd, 65_536)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, offset)
            offset += _HEADER.size + length
            yield watch, mask
