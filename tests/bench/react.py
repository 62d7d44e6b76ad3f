"""Bursts that leave on record when they touched which page, and who sees when the last of their processes is gone.

All moments are of CLOCK_MONOTONIC, in seconds; the daemon's (Unix time) are turned into it by ``Clocks``.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import select
import threading
import time
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE: Final = 4096


class Record:
    """What react.c writes. In memory of ours that it finds through /proc, so that not a page of it is charged to it."""

    def __init__(self, processes: int, nbytes: int) -> None:
        self.processes: Final = processes
        self.nbytes: Final = nbytes
        self._part: Final = nbytes // processes // PAGE + 2  # numbers of 64 bits of one process
        size = processes * self._part * 8
        self._fd = os.memfd_create("corral-bench-react", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._fd, size)
            self._memory = mmap.mmap(self._fd, size)
            for at in range(0, size, PAGE):
                self._memory[at] = 0
        except BaseException:
            os.close(self._fd)
            raise

    def words(self, program: Path) -> list[str]:
        """The command that makes the burst."""
        return [str(program), str(self.processes), str(self.nbytes), f"/proc/{os.getpid()}/fd/{self._fd}"]

    def read(self) -> Touched:
        """As it is now. The program may run on meanwhile."""
        moments: dict[int, tuple[float, ...]] = {}
        for process in range(self.processes):
            numbers = array("Q")
            at = process * self._part * 8
            numbers.frombytes(self._memory[at : at + self._part * 8])
            pid, count = numbers[0], numbers[1]
            moments[pid] = tuple(nanoseconds / 1e9 for nanoseconds in numbers[2 : 2 + count])
        return Touched(moments)

    def close(self) -> None:
        self._memory.close()
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Touched:
    """The moment before each page, by process."""

    moments: dict[int, tuple[float, ...]]

    def last_before(self, at: float, pid: int | None = None) -> float | None:
        """The last moment before ``at`` at which this process, or any, is known to have run."""
        found = [m[i - 1] for p, m in self.moments.items() if pid in (None, p) and (i := bisect_right(m, at))]
        return max(found, default=None)

    def first_after(self, at: float) -> float | None:
        found = [m[i] for m in self.moments.values() if (i := bisect_right(m, at)) < len(m)]
        return min(found, default=None)

    def crossing(self, nbytes: int) -> float | None:
        """When ``nbytes`` of all processes together had been touched. None: they never were."""
        merged = sorted(moment for one in self.moments.values() for moment in one)
        page = max(0, nbytes) // PAGE
        return merged[page] if page < len(merged) else None

    @property
    def nbytes(self) -> int:
        return sum(len(one) for one in self.moments.values()) * PAGE


@dataclass(frozen=True, slots=True)
class Clocks:
    """How far Unix time is ahead of the monotonic clock. It is read for every burst: somebody may set the former."""

    ahead: float

    @classmethod
    def now(cls) -> Clocks:
        """The reading of three during which least time went by."""
        best = (float("inf"), 0.0)
        for _ in range(3):
            before, unix, after = time.monotonic(), time.time(), time.monotonic()
            best = min(best, (after - before, unix - (before + after) / 2))
        return cls(best[1])

    def monotonic(self, unix: float) -> float:
        return unix - self.ahead


class Empty(threading.Thread):
    """Waits until the kernel says that a v2 group has no process left. A thread: the event loop must not delay it."""

    def __init__(self, group: Path) -> None:
        super().__init__(name="empty", daemon=True)
        self._events = os.open(group / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC)
        self._at: float | None = None

    def run(self) -> None:
        poller = select.poll()
        poller.register(self._events, select.POLLPRI)
        poller.register(self._wake, select.POLLIN)
        while True:
            try:
                text = os.pread(self._events, 256, 0)
            except OSError:  # the group is gone, and it went because it was empty
                text = b"populated 0\n"
            if b"populated 0\n" in text:
                self._at = time.monotonic()
                return
            if any(fd == self._wake for fd, _ in poller.poll()):
                return

    async def wait(self, within: float) -> float | None:
        """When it became empty. None: not ``within`` that many seconds."""
        await asyncio.to_thread(self.join, within)
        return self._at

    def close(self) -> None:
        os.write(self._waker, b"x")
        self.join()
        for descriptor in (self._events, self._wake, self._waker):
            os.close(descriptor)
