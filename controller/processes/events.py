"""The kernel's process connector: fork, exec and exit of every process and thread of the host, as they happen.

pyroute2 makes the request and names the numbers. Its socket is not used for reading: it runs an event loop of its own
and decodes a message field by field, which costs more than the fork that it tells of. The layouts are those of
include/uapi/linux/cn_proc.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from pyroute2.netlink import NLMSG_DONE
from pyroute2.netlink.connector.cn_proc import (
    CN_IDX_PROC,
    CN_VAL_PROC,
    PROC_CN_MCAST_LISTEN,
    PROC_EVENT_EXEC,
    PROC_EVENT_EXIT,
    PROC_EVENT_FORK,
    PROC_EVENT_NONE,
    proc_event_control,
)

from controller.processes.errors import NoProcessEvents

_NETLINK_CONNECTOR: Final = 11  # include/uapi/linux/netlink.h
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h; not in Python's socket module
_RECEIVE: Final = 8 << 20  # bytes: some 10,000 events
_BODY: Final = struct.Struct("=IIQIIII")  # what, cpu, nanoseconds, and the event's first four numbers
_BODY_AT: Final = 16 + 20  # after struct nlmsghdr and struct cn_msg
_FILTER: Final = struct.Struct("=II")
_MESSAGE: Final = 1024  # larger than any of them (76 bytes)


class Kind(IntEnum):
    FORK = PROC_EVENT_FORK
    EXEC = PROC_EVENT_EXEC
    EXIT = PROC_EVENT_EXIT


class ProcEvent(NamedTuple):
    """``tid`` and ``pid``: thread and process that called exec or ended; of a fork the parent, with ``child_*``.
    ``status``: of one that ended, as of waitpid(2).

    Of a new thread the kernel names the parent of its process, and the process itself as ``child_pid``. ``at``:
    CLOCK_MONOTONIC nanoseconds.
    """

    kind: Kind
    at: int
    tid: int
    pid: int
    child_tid: int
    child_pid: int
    status: int = 0


def receive_buffer(sock: socket.socket, size: int = _RECEIVE) -> None:
    """As large as asked for where we may (CAP_NET_ADMIN), else as large as the kernel lets us."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


class ProcessEvents:
    """Listens from the moment it is made. Raises NoProcessEvents. ``lost``: how often the kernel dropped events."""

    def __init__(self) -> None:
        self.lost = 0
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR
            )
        except OSError as err:
            raise _refused(err) from err
        try:
            receive_buffer(self._socket)
            self._socket.bind((0, CN_IDX_PROC))
            self._listen()
        except OSError as err:
            self._socket.close()
            raise _refused(err) from err
        except NoProcessEvents:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_receive_buffer(self, size: int) -> None:
        """Bytes. The kernel doubles it, and gives a few KiB at the least."""
        receive_buffer(self._socket, size)

    def close(self) -> None:
        self._socket.close()

    def read(self) -> ProcEvent | None:
        """The next event; None when none waits. Never blocks. Events of other kinds are passed over."""
        while (data := self._receive()) is not None:
            event = decode(data)
            if event is not None:
                return event
        return None

    def _receive(self) -> bytes | None:
        while True:
            try:
                data, sender = self._socket.recvfrom(_MESSAGE)
            except BlockingIOError:
                return None
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                continue
            if sender[0] == 0:  # from the kernel: any process may send to a netlink socket
                return data

    def _listen(self) -> None:
        """Kernels from 6.6 on take a filter; older ones ignore such a request, and are asked again without."""
        wanted = PROC_EVENT_FORK | PROC_EVENT_EXEC | PROC_EVENT_EXIT
        for payload in (_FILTER.pack(PROC_CN_MCAST_LISTEN, wanted), struct.pack("=I", PROC_CN_MCAST_LISTEN)):
            self._socket.send(request(payload))
            code = self._acknowledged()
            if code == 0:
                return
            if code is not None:
                raise _refused(OSError(code, os.strerror(code)))
        raise _refused(OSError(errno.EPERM, "the request was not answered"))

    def _acknowledged(self) -> int | None:
        """The errno of the answer, which lies in the socket as soon as the request was sent; None: there is none."""
        while (data := self._receive()) is not None:
            if len(data) >= _BODY_AT + _BODY.size:
                what, _, _, code, *_ = _BODY.unpack_from(data, _BODY_AT)
                if what == PROC_EVENT_NONE:
                    return int(code)
        return None


def request(payload: bytes) -> bytes:
    """A control message of the connector with ``payload`` (struct proc_input, or the operation alone)."""
    message = proc_event_control()
    message["action"] = 0
    message["idx"], message["val"], message["len"] = CN_IDX_PROC, CN_VAL_PROC, len(payload)
    message["header"]["type"] = NLMSG_DONE
    message.encode()
    head = bytearray(message.data[:_BODY_AT]) + payload
    struct.pack_into("=I", head, 0, len(head))  # nlmsg_len
    return bytes(head)


def decode(data: bytes) -> ProcEvent | None:
    """``None`` for a kind that is not one of ours, or for a message that is cut."""
    if len(data) < _BODY_AT + _BODY.size:
        return None
    what, _, at, tid, pid, child_tid, child_pid = _BODY.unpack_from(data, _BODY_AT)
    if what == PROC_EVENT_FORK:
        return ProcEvent(Kind.FORK, at, tid, pid, child_tid, child_pid)
    if what == PROC_EVENT_EXEC:
        return ProcEvent(Kind.EXEC, at, tid, pid, 0, 0)
    if what == PROC_EVENT_EXIT:
        return ProcEvent(Kind.EXIT, at, tid, pid, 0, 0, child_tid)  # exit_code, in this kind's third place
    return None


def _refused(err: OSError) -> NoProcessEvents:
    return NoProcessEvents(
        f"the process connector: {err.strerror or err}",
        remedy="run as root in the host's own pid and user namespaces, on a kernel with CONFIG_PROC_EVENTS",
    )
