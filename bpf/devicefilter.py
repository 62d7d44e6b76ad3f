"""The device filter of a container, on cgroup v2 a program that is attached to the container's group: what leaves that
group leaves the filter, too, unless it is attached where it goes."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from bpf.errors import AttachFailed, MapError
from bpf.libbpf import library, reason

_CGROUP_DEVICE: Final = 6  # BPF_CGROUP_DEVICE, include/uapi/linux/bpf.h
_ALLOW_MULTI: Final = 2  # BPF_F_ALLOW_MULTI: beside others; a device opens where all of them allow it
_MOST: Final = 64  # programs on one group: the kernel's BPF_CGROUP_MAX_PROGS


def device_programs(group: Path) -> list[int]:
    """Ids of the device filters that are attached to a v2 group itself. Raises MapError."""
    fd = _open(group)
    try:
        ids, count = (ctypes.c_uint32 * _MOST)(), ctypes.c_uint32(_MOST)
        code = -int(library().bpf_prog_query(fd, _CGROUP_DEVICE, 0, None, ids, ctypes.byref(count)))
    finally:
        os.close(fd)
    if code:
        raise MapError(f"{group}: its device filters: {reason(code)}", errno=code, remedy="run agentd as root")
    return list(ids[: count.value])


def copy_device_filter(source: Path, target: Path) -> int:
    """Attach to ``target`` what ``source`` and the groups above it have, as far as it is not there; how many there
    are. Raises MapError or AttachFailed; then the target may have some of them, which only forbid."""
    have = set(device_programs(target))
    wanted = [program for group in _upwards(source) for program in device_programs(group)]
    for program in dict.fromkeys(wanted):
        if program not in have:
            _attach(program, target)
    return len(set(wanted))


def _upwards(group: Path) -> list[Path]:
    """The group and those above it, without the root of the hierarchy, which takes no filter of a container."""
    return [group, *(path for path in group.parents if (path / "cgroup.type").exists())]


def _attach(program: int, group: Path) -> None:
    lib = library()
    fd = int(lib.bpf_prog_get_fd_by_id(program))
    if fd < 0:
        if fd == -errno.ENOENT:
            return  # it was taken away meanwhile
        raise AttachFailed(f"device filter {program}: {reason(-fd)}", errno=-fd, remedy="run agentd as root")
    try:
        directory = _open(group)
        try:
            code = -int(lib.bpf_prog_attach(fd, directory, _CGROUP_DEVICE, _ALLOW_MULTI))
        finally:
            os.close(directory)
    finally:
        os.close(fd)
    if code:
        raise AttachFailed(
            f"{group}: device filter {program} cannot be attached: {reason(code)}",
            errno=code,
            remedy="the container stays as it is, and is not attached",
        )


def _open(group: Path) -> int:
    try:
        return os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise MapError(f"{group}: {err.strerror}", errno=err.errno or 0, remedy="check the container") from err
