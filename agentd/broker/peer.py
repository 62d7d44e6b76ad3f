"""Who is at the other end of a connection, as the kernel says it, and the descriptors that came along."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import re
import signal
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_UCRED: Final = struct.Struct("3i")  # pid, uid, gid
_SO_PEERPIDFD: Final = 77  # Linux 6.5; Python 3.11 has no name for it
_FDINFO: Final = 1024  # bytes: what the kernel says of a pidfd is a tenth of it
_PID_LINE: Final = re.compile(rb"^Pid:\s*(-?\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected. ``pid`` is only a number and may be reused; ``pidfd`` names that very process.

    ``pidfd_pid`` is the process that ``pidfd`` names: ``pid`` itself, except on RESUME, where it is the call's process.
    """

    pid: int
    uid: int
    gid: int
    pidfd: int | None = None
    pidfd_pid: int | None = None


def credentials(sock: socket.socket) -> Peer:
    """The peer as of its connect(2). ``pid`` is 0 where it lives in a pid namespace that this one cannot see."""
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def passed_descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what recvmsg(2) returned beside the data. They are open and the caller's to close."""
    passed = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            passed.frombytes(data[: len(data) - len(data) % passed.itemsize])
    return passed.tolist()


def close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # close(2) of a valid descriptor frees it also when it reports an error
            os.close(descriptor)


def pid_of_pidfd(descriptor: int) -> int | None:
    """The pid that ``descriptor`` names (-1: ended and reaped; 0: of another pid namespace); None: it is no pidfd."""
    # a "Pid:" line alone proves nothing: what fdinfo holds for other kinds of file is up to their drivers
    target = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - hot path, no Path objects
    if target != "anon_inode:[pidfd]" and not target.startswith("pidfd:["):
        return None
    info = os.open(f"/proc/self/fdinfo/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = _PID_LINE.search(os.read(info, _FDINFO))
    finally:
        os.close(info)
    return int(found[1]) if found is not None else None


def is_still_peer(sock: socket.socket, peer: Peer) -> bool:
    """Whether ``peer.pid`` still names the process that connected, and not one that got its number after it ended.

    Without this, a process could connect, hand its socket on, end, and have the socket's new owner pass the pidfd of a
    stranger that happened to get the same number. Raises OSError where /proc cannot be read.
    """
    try:
        kernels = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as err:
        if err.errno == errno.ENOPROTOOPT:
            return _effective_uid(peer.pid) == peer.uid  # before 6.5: at least nobody of another user
        if err.errno in (errno.ESRCH, errno.EINVAL, errno.ENODATA):
            return False  # it has ended and was reaped
        raise
    try:
        signal.pidfd_send_signal(kernels, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # the daemon is not root; it exists
    finally:
        os.close(kernels)
    return True


def _effective_uid(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == "Uid":
            return int(value.split()[1])
    return None
