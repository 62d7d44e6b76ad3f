"""What every cgroup v2 directory can do without any controller: membership, freezing, killing, events, attributes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from dataclasses import dataclass
from typing import Final

from controller.cgroup import files
from controller.cgroup.errors import KnobMissing, from_os

MAX_RECORD: Final = 65_536  # bytes of an extended attribute: XATTR_SIZE_MAX; cgroupfs takes all of it
_KILL_PASSES: Final = 100


@dataclass(frozen=True, slots=True)
class CoreState:
    """cgroup.events: whether a live process is in the group or below it, and whether all of them are frozen."""

    populated: bool
    frozen: bool


def parse_core_state(data: bytes, path: str) -> CoreState:
    values = files.parse_flat(data, path)
    # "frozen" came with 5.2: without it nothing can be frozen
    return CoreState(files.key_of(values, b"populated", path) != 0, values.get(b"frozen", 0) != 0)


def core_state(directory: str) -> CoreState:
    path = f"{directory}/cgroup.events"
    return parse_core_state(files.read(path, 128), path)


def processes(directory: str) -> list[int]:
    path = f"{directory}/cgroup.procs"
    return files.parse_processes(files.read_all(path), path)


def set_frozen(directory: str, frozen: bool) -> None:
    files.write(f"{directory}/cgroup.freeze", "1" if frozen else "0")


def kill(directory: str) -> None:
    """SIGKILL to every process of the group and below it. Returns before they are gone.

    The kernel does it at once and no fork escapes (cgroup.kill, 5.14). Before that: the group is frozen, so that
    nothing can fork, signalled, and thawed.
    """
    try:
        files.write(f"{directory}/cgroup.kill", "1")
    except KnobMissing:
        kill_by_signal(directory)


def kill_by_signal(directory: str) -> None:
    """The way of kernels without cgroup.kill. Where freezing is not to be had either, until no new process appears."""
    with contextlib.suppress(KnobMissing):  # before 5.2: the passes below catch what forks
        set_frozen(directory, True)
    try:
        signalled: set[int] = set()
        for _ in range(_KILL_PASSES):
            fresh = set(processes_below(directory)) - signalled
            if not fresh:
                return
            for pid in fresh:
                with contextlib.suppress(ProcessLookupError):  # ended by itself
                    os.kill(pid, signal.SIGKILL)
            signalled |= fresh
    finally:
        with contextlib.suppress(KnobMissing):
            set_frozen(directory, False)


def processes_below(directory: str) -> list[int]:
    """Processes of the group and of every group below it."""
    found = processes(directory)
    for name in files.subdirectories(directory):
        found += processes_below(f"{directory}/{name}")
    return found


def get_attribute(directory: str, name: str) -> bytes | None:
    """The value of an extended attribute; None when it was never set."""
    try:
        return os.getxattr(directory, name)
    except OSError as err:
        if err.errno == errno.ENODATA:
            return None
        raise from_os(err, directory) from err


def set_attribute(directory: str, name: str, value: bytes) -> None:
    """Set or replace; at most MAX_RECORD bytes (ValueRefused beyond). In memory of the kernel: gone with the group."""
    try:
        os.setxattr(directory, name, value)
    except OSError as err:
        raise from_os(err, directory, f"{name}, {len(value)} bytes") from err
