"""The processes of an agent or a container that run already, as /proc has them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from controller.processes import procfs
from controller.processes.procfs import ProcStat
from controller.recognise.attachment import Attachment
from controller.recognise.source import arguments, group_of, is_within, program

_NANO: Final = 1_000_000_000


class NotAnAgent(Exception):
    """The process cannot be an agent's."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class Found(NamedTuple):
    pid: int
    parent: int
    start: int  # ticks since boot
    executed: bool  # False: it looks like its parent's copy, which has not called exec yet


def descendants(pid: int) -> list[int]:
    """The process and all below it, parents first. Raises NotAnAgent for one that must not be moved."""
    if pid <= 1:
        raise NotAnAgent(f"process {pid} is the host's own", "name the agent's process")
    every = procfs.scan()
    stat = every.get(pid)
    if stat is None:
        return []
    if not arguments(pid) and not program(pid):
        raise NotAnAgent(f"process {pid} is a thread of the kernel, or not visible", "name the agent's process")
    family = _below(pid, every)
    if not in_own_namespace(pid):
        raise NotAnAgent(f"process {pid} is in a container of its own", "attach the container (--container)")
    if os.getpid() in family:
        raise NotAnAgent(f"the daemon itself was started by process {pid}", "start agentd as a service")
    return family


def in_own_namespace(pid: int) -> bool:
    """Whether it numbers processes as the daemon does. True where that cannot be known: it is gone, then."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return True


def found_processes(attachment: Attachment, inside: Sequence[int]) -> list[Found]:
    """Those of the attached session, without its first, parents before children. ``inside``: what is in its group."""
    every = procfs.scan()
    wanted = set(_below(attachment.pid, every)) | set(inside)
    if attachment.group:
        wanted |= {pid for pid in every if is_within(group_of(pid), attachment.group)}
    wanted.discard(attachment.pid)
    alive = [every[pid] for pid in wanted if pid in every and every[pid].alive]
    return [Found(s.pid, s.ppid, s.start, _executed(s)) for s in _parents_first(alive)]


def _parents_first(processes: list[ProcStat]) -> list[ProcStat]:
    left = {s.pid: s for s in processes}
    ordered: list[ProcStat] = []

    def add(one: ProcStat) -> None:
        chain = [one]
        while (parent := left.get(chain[-1].ppid)) is not None and parent not in chain:
            chain.append(parent)
        for stat in reversed(chain):
            if left.pop(stat.pid, None) is not None:
                ordered.append(stat)

    for stat in sorted(processes, key=lambda s: (s.start, s.pid)):
        if stat.pid in left:
            add(stat)
    return ordered


def _below(pid: int, every: dict[int, ProcStat]) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in every.values():
        if stat.alive:
            children.setdefault(stat.ppid, []).append(stat.pid)
    family = [pid]
    for one in family:  # it grows while it is walked
        family += children.get(one, ())
    return family


def _executed(stat: ProcStat) -> bool:
    return (program(stat.pid), arguments(stat.pid)) != (program(stat.ppid), arguments(stat.ppid))


def monotonic_of(start: int) -> int:
    """CLOCK_MONOTONIC nanoseconds of a start time in ticks since boot."""
    asleep = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return max(1, start * (_NANO // procfs.TICKS) - asleep)
