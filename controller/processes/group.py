"""A cgroup v2 directory by its id, and how /proc/PID/cgroup names it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from controller.cgroup.detect import parse_mountinfo
from controller.processes.procfs import read

_FILEID_KERNFS: Final = 0xFE  # include/linux/exportfs.h: a handle that is the 64-bit id alone
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PIECE: Final = 65_536
_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Handle(ctypes.Structure):
    # struct file_handle with room for 8 bytes of f_handle
    _fields_ = (("handle_bytes", ctypes.c_uint), ("handle_type", ctypes.c_int), ("id", ctypes.c_uint64))


def path_of(root: str, cgroup_id: int) -> str | None:
    """The directory with that id (inode), if it is below ``root``. By its handle where the kernel lets us
    (CAP_DAC_READ_SEARCH), which costs the same in a tree of any size, else by looking through the tree."""
    fd = _open_by_id(root, cgroup_id)
    if fd is None:
        return _search(root, cgroup_id)
    try:
        found = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - hot path, no Path objects
    finally:
        os.close(fd)
    return found if found.startswith(f"{root}/") else None


def _open_by_id(root: str, cgroup_id: int) -> int | None:
    try:
        top = os.open(root, _DIRECTORY)
    except OSError:
        return None
    try:
        handle = _Handle(ctypes.sizeof(ctypes.c_uint64), _FILEID_KERNFS, cgroup_id)
        fd = int(_libc.open_by_handle_at(top, ctypes.byref(handle), _DIRECTORY))
    finally:
        os.close(top)
    return fd if fd >= 0 else None


def _search(root: str, cgroup_id: int) -> str | None:
    for directory, _, _ in os.walk(root):
        if directory != root and _inode(directory) == cgroup_id:
            return directory
    return None


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - hot path, no Path objects
    except OSError:
        return None  # removed meanwhile


class Naming:
    """How /proc/PID/cgroup names the directories of one v2 mount: no mount point, and in containers another top."""

    def __init__(self, root: str, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
        mounts = [m for m in parse_mountinfo(mountinfo.read_text(errors="surrogateescape")) if m.version == 2]
        inside = [m for m in mounts if root == str(m.path) or root.startswith(f"{str(m.path).rstrip('/')}/")]
        mount = max(inside, key=lambda m: len(str(m.path)), default=None)
        self._mount = str(mount.path).rstrip("/") if mount is not None else ""
        self._top = mount.root.rstrip("/") if mount is not None else ""

    def shown(self, path: str) -> str:
        return f"{self._top}{path[len(self._mount) :]}" or "/"


def threads(path: str) -> list[int]:
    """The live threads of a group; none when it was removed meanwhile, or is not there."""
    try:
        fd = os.open(f"{path}/cgroup.threads", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        pieces = []
        while piece := os.read(fd, _PIECE):
            pieces.append(piece)
    except OSError:
        return []
    finally:
        os.close(fd)
    # 0 stands for a thread of another pid namespace
    return [tid for text in b"".join(pieces).split() if (tid := int(text)) > 0]


def command_of(pid: int) -> tuple[str, str, int, int]:
    """(comm, path of the program, parent, uid) of a process, as far as it is still there; made printable."""
    comm = read(f"/proc/{pid}/comm") or b""
    try:
        program = os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115 - hot path, no Path objects
    except OSError:
        program = ""
    parent, uid = 0, 0
    for line in (read(f"/proc/{pid}/status") or b"").splitlines():
        name, _, value = line.partition(b":")
        if name == b"PPid":
            parent = int(value)
        elif name == b"Uid":
            uid = int(value.split()[1])
    return printable(comm.strip(b"\n").decode(errors="replace")), printable(program), parent, uid


def printable(text: str) -> str:
    """An agent's own words, cut to 127 characters, without any that a terminal would act upon."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:127])
