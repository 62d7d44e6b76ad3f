"""Where the events of the recogniser come from, and what /proc adds to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from controller.cgroup import NoSuchProcess
from controller.cgroup.membership import read_membership
from controller.processes import procfs
from controller.processes.events import Kind, ProcessEvents
from controller.recognise.machine import Event, Executed, Exited, Forked

_ARGUMENTS: Final = 4096  # bytes of a command line that are looked at


class Asker(Protocol):
    """What a source needs to know so as not to read of every process of the host."""

    def knows(self, pid: int, /) -> bool: ...
    def asks_about(self, pid: int, /) -> bool: ...
    def scope_of(self, pid: int, /) -> str:
        """The attached container that an unknown process is in; empty for any other."""


class Source(Protocol):
    """``lost``: how often events were dropped before they could be read. ``unseen``: processes that had ended before it
    was known what they executed."""

    @property
    def lost(self) -> int: ...
    @property
    def unseen(self) -> int: ...
    def fileno(self) -> int: ...
    def read(self, most: int, /) -> Iterator[Event]:
        """Events that wait, in order. Each is to be handled before the next is asked for."""

    def watch(self, pid: int, /) -> None:
        """From now on what it forks and executes, and its end, is told; likewise of its children."""

    def placed(self, pid: int, /) -> None:
        """It is in its call's leaf: its end matters, and no more."""

    def unwatch(self, pid: int, /) -> None: ...
    def watch_group(self, group: str, scope: str, /) -> None:
        """What executes something in this group and is not known is of ``scope``."""

    def unwatch_group(self, scope: str, /) -> None: ...
    def close(self) -> None: ...


class NetlinkSource:
    """The process connector: it tells of every process of the host. Raises NoProcessEvents."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._events = ProcessEvents()
        self.unseen = 0

    @property
    def lost(self) -> int:
        return self._events.lost

    def fileno(self) -> int:
        return self._events.fileno()

    def close(self) -> None:
        self._events.close()

    def watch(self, pid: int) -> None:
        pass  # it hears of every process, and asks about each

    placed = unwatch = watch

    def watch_group(self, group: str, scope: str) -> None:
        pass

    def unwatch_group(self, scope: str) -> None:
        pass

    def read(self, most: int) -> Iterator[Event]:
        asker = self._asker
        for _ in range(most):
            event = self._events.read()
            if event is None:
                return
            match event.kind:
                case Kind.FORK:
                    if event.child_tid == event.child_pid and asker.knows(event.pid):
                        yield Forked(event.at, event.pid, event.child_pid)
                case Kind.EXEC:
                    if asker.asks_about(event.pid):
                        ran = executed(event.at, event.pid)
                        self.unseen += not (ran.path or ran.argv)
                        yield ran
                    elif not asker.knows(event.pid) and (scope := asker.scope_of(event.pid)):
                        yield executed(event.at, event.pid, scope)
                case Kind.EXIT:
                    if event.tid == event.pid and asker.knows(event.pid):
                        yield Exited(event.at, event.pid, event.status)


def executed(at: int, pid: int, scope: str = "") -> Executed:
    """What the process executes now. Its words are its own: it can have changed them since, or have ended."""
    return Executed(at, pid, program(pid), arguments(pid), process_group(pid), scope)


def program(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")  # noqa: PTH115 - hot path, no Path objects
    except OSError:
        return ""


def arguments(pid: int) -> tuple[str, ...]:
    data = procfs.read(f"/proc/{pid}/cmdline")
    return split(data) if data else ()


def split(data: bytes) -> tuple[str, ...]:
    """Of /proc/PID/cmdline: words, each ended by a NUL. Bytes that are no UTF-8 are replaced."""
    words = data[:_ARGUMENTS].split(b"\0")
    if not words[-1]:
        words.pop()
    return tuple(word.decode("utf-8", "replace") for word in words)


def process_group(pid: int) -> int:
    data = procfs.read(f"/proc/{pid}/stat")
    fields = data.rpartition(b")")[2].split() if data else []
    return int(fields[2]) if len(fields) > 2 and fields[2].isdigit() else 0


class Spent(NamedTuple):
    """What a process has used so far. CPU of all its threads, in microseconds; memory that is its own, in bytes."""

    cpu_usec: int
    memory: int


def spent(pid: int) -> Spent:
    """CPU to the nanosecond where the kernel has it (schedstat), else in ticks. Zero of a process that is gone."""
    nsec = 0
    try:
        tids = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - hot path, no Path objects
    except OSError:
        return Spent(0, 0)
    for tid in tids:
        data = procfs.read(f"/proc/{pid}/task/{tid}/schedstat")
        if data:
            nsec += int(data.split(b" ", 1)[0])
    if not nsec and (stat := procfs.read_stat(pid)) is not None:
        nsec = (stat.user + stat.system) * (1_000_000_000 // procfs.TICKS)
    data = procfs.read(f"/proc/{pid}/statm")
    pages = data.split() if data else []
    own = int(pages[1]) - int(pages[2]) if len(pages) > 2 else 0
    return Spent(nsec // 1000, max(0, own) * procfs.PAGE)


def group_of(pid: int) -> str:
    """Where a container's processes are told apart from others: their path in the memory hierarchy of v1, or in v2.
    Empty of a process that is gone."""
    try:
        found = read_membership(pid)
    except NoSuchProcess:
        return ""
    return found.get("memory", found.get("", ""))


def is_within(path: str, group: str) -> bool:
    return bool(group) and group != "/" and (path == group or path.startswith(f"{group}/"))
