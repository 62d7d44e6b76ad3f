"""taskstats: what a task used, asked for while it lives, and told by the kernel when it ends.

The layout is that of include/uapi/linux/taskstats.h; pyroute2 makes the requests (why it does not read: see
controller.processes.events). The kernel rounds bytes down to KiB, for each task.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pyroute2.netlink import GENL_ID_CTRL, NLM_F_REQUEST, NLMSG_ERROR, ctrlmsg
from pyroute2.netlink.taskstats import TASKSTATS_CMD_GET, tcmd

from controller.processes.errors import NoTaskStats
from controller.processes.events import receive_buffer

_NETLINK_GENERIC: Final = 16  # include/uapi/linux/netlink.h
_CTRL_CMD_GETFAMILY: Final = 3
_RECEIVE: Final = 8 << 20  # bytes: some 6,000 ended tasks
_MESSAGE: Final = 8192
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr
_NUMBER: Final = struct.Struct("=I")
_GENERIC_AT: Final = _HEADER.size
_FIRST_AT: Final = _GENERIC_AT + 4  # after struct genlmsghdr
_TYPE_PID, _TYPE_STATS, _TYPE_AGGR_PID = 1, 3, 4  # TASKSTATS_TYPE_*
_NESTED: Final = 0x3FFF  # what is left of an attribute's type without its flags

_DELAY_AT: Final = 24  # cpu_delay_total
_FAULTS_AT: Final = 168  # ac_minflt, ac_majflt
_USE: Final = struct.Struct("=QQ32xQQ16xQQ8xQQ")  # faults, (memory), characters, (calls), bytes, (cancelled), switches
_DELAY: Final = struct.Struct("=Q")
_VERSION: Final = struct.Struct("=H")
_VERSION_15: Final = 15  # it alone has a maximum and a minimum behind three of the delays; 16 moved them to the end
_SHIFT_15: Final = 48
_LEAST_VERSION: Final = 2  # version 1 ends before what is read here


class TaskUse(NamedTuple):
    """Of one task since its birth. Bytes (in whole KiB), counts, nanoseconds."""

    faults: int
    major_faults: int
    read: int  # through read(2) and its kin
    written: int
    disk_read: int
    disk_written: int
    run_wait: int
    switches: int

    def plus(self, other: TaskUse) -> TaskUse:
        return TaskUse._make(a + b for a, b in zip(self, other, strict=True))

    def beyond(self, other: TaskUse) -> TaskUse:
        """What was used since ``other``."""
        return TaskUse._make(max(0, a - b) for a, b in zip(self, other, strict=True))


NOTHING: Final = TaskUse(0, 0, 0, 0, 0, 0, 0, 0)


class EndedTask(NamedTuple):
    tid: int
    use: TaskUse


class TaskStats:
    """Two sockets: one to ask, one that hears of every task of the host that ends. Raises NoTaskStats.

    ``lost``: how often the kernel dropped the record of an ended task.
    """

    def __init__(self, cpus: str | None = None) -> None:
        self.lost = 0
        self._sockets: list[socket.socket] = []
        try:
            self._asking, self._hearing = self._open(), self._open()
            receive_buffer(self._hearing, _RECEIVE)
            self._family = self._find_family()
            self._use_of(os.getpid())  # raises what the kernel says to somebody who may not ask
            self._cpus = cpus or Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
            self._hearing.send(self._request("TASKSTATS_CMD_ATTR_REGISTER_CPUMASK", self._cpus))
            self._check_registered()
        except OSError as err:
            self.close()
            raise _refused(err) from err

    def fileno(self) -> int:
        """Of the socket that hears of ended tasks."""
        return self._hearing.fileno()

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()  # which also ends the registration
        self._sockets.clear()

    def use(self, tid: int) -> TaskUse | None:
        """Of a task that lives (or is a zombie); None when it is gone. About 14 µs."""
        try:
            return self._use_of(tid)
        except OSError:
            return None

    def read(self) -> EndedTask | None:
        """The next task that ended; None when none waits. Never blocks."""
        while True:
            data = self._receive(self._hearing)
            if data is None:
                return None
            ended = decode(data)
            if ended is not None:
                return ended

    def _open(self) -> socket.socket:
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _NETLINK_GENERIC
        )
        self._sockets.append(sock)
        sock.bind((0, 0))
        return sock

    def _receive(self, sock: socket.socket) -> bytes | None:
        while True:
            try:
                data, sender = sock.recvfrom(_MESSAGE)
            except BlockingIOError:
                return None
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                continue
            if sender[0] == 0:  # from the kernel: any process may send to a netlink socket
                return data

    def _find_family(self) -> int:
        message = ctrlmsg()
        message["cmd"], message["version"] = _CTRL_CMD_GETFAMILY, 1
        message["attrs"].append(["CTRL_ATTR_FAMILY_NAME", "TASKSTATS"])
        message["header"]["type"], message["header"]["flags"] = GENL_ID_CTRL, NLM_F_REQUEST
        message.encode()
        answer = ctrlmsg(self._ask(bytes(message.data)))
        answer.decode()
        family = answer.get_attr("CTRL_ATTR_FAMILY_ID")
        if not isinstance(family, int):
            raise OSError(errno.EPROTO, "the family TASKSTATS has no number")
        return family

    def _request(self, attribute: str, value: int | str) -> bytes:
        message = tcmd()
        message["cmd"], message["version"] = TASKSTATS_CMD_GET, 1
        message["attrs"].append([attribute, value])
        message["header"]["type"], message["header"]["flags"] = self._family, NLM_F_REQUEST
        message.encode()
        return bytes(message.data)

    def _ask(self, question: bytes) -> bytes:
        """The kernel answers while it takes the question: the answer lies in the socket when ``send`` returns."""
        self._asking.send(question)
        data = self._receive(self._asking)
        if data is None:
            raise OSError(errno.EPROTO, "no answer")
        _raise_error(data)
        return data

    def _use_of(self, tid: int) -> TaskUse:
        ended = decode(self._ask(ask_for(self._family, tid)))
        if ended is None:
            raise OSError(errno.EPROTO, "an answer in a form that is not known")
        return ended.use

    def _check_registered(self) -> None:
        """A registration is answered only when it fails. An ended task may have been told already: it is skipped."""
        data = self._receive(self._hearing)
        if data is not None:
            _raise_error(data)


def ask_for(family: int, tid: int) -> bytes:
    """TASKSTATS_CMD_GET for one task: what pyroute2 would encode, without the 100 µs that it takes."""
    return struct.pack("=IHHIIBBHHHI", 28, family, NLM_F_REQUEST, 0, 0, TASKSTATS_CMD_GET, 1, 0, 8, 1, tid)


def decode(data: bytes) -> EndedTask | None:
    """The task's number and use. None for what is not a record of one task (of a whole process, say), or is cut."""
    for kind, start, end in _attributes(data, _FIRST_AT, len(data)):
        if kind != _TYPE_AGGR_PID:
            continue
        tid, use = None, None
        for inner, first, last in _attributes(data, start, end):
            if inner == _TYPE_PID and last - first >= _NUMBER.size:
                (tid,) = _NUMBER.unpack_from(data, first)
            elif inner == _TYPE_STATS:
                use = _decode_use(data, first, last)
        if tid is not None and use is not None:
            return EndedTask(tid, use)
    return None


def _decode_use(data: bytes, start: int, end: int) -> TaskUse | None:
    if end - start < _DELAY_AT + _DELAY.size:
        return None
    (version,) = _VERSION.unpack_from(data, start)
    shift = _SHIFT_15 if version == _VERSION_15 else 0
    if version < _LEAST_VERSION or end - start < _FAULTS_AT + shift + _USE.size:
        return None
    minor, major, read, written, disk_read, disk_written, voluntary, forced = _USE.unpack_from(
        data, start + _FAULTS_AT + shift
    )
    (run_wait,) = _DELAY.unpack_from(data, start + _DELAY_AT)
    return TaskUse(minor + major, major, read, written, disk_read, disk_written, run_wait, voluntary + forced)


def _attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(type, begin and end of its payload) of each attribute; stops at one that does not fit."""
    while start + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size or start + length > end:
            return
        yield kind & _NESTED, start + _ATTRIBUTE.size, start + length
        start += (length + 3) & ~3


def _raise_error(data: bytes) -> None:
    if len(data) >= _HEADER.size + _NUMBER.size:
        _, kind, *_ = _HEADER.unpack_from(data)
        if kind == NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", data, _HEADER.size)
            if code:
                raise OSError(-code, os.strerror(-code))


def _refused(err: OSError) -> NoTaskStats:
    return NoTaskStats(
        f"taskstats: {err.strerror or err}",
        remedy="run as root (CAP_NET_ADMIN) outside of containers, on a kernel with CONFIG_TASKSTATS",
    )
