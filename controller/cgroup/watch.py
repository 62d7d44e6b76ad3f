"""Learns from the kernel what happens to groups, without asking again and again.

One inotify descriptor for cgroup.events, pids.events and (v2) memory.events.local; on v1, where OOM has no file that
notifies, one eventfd for each group, all in one epoll descriptor. The event loop sees two descriptors in all.

The kernel notifies of one file at most every 10 ms (CGROUP_FILE_NOTIFY_MIN_INTV), and once after the last change: what
comes and goes in between is not seen, what is true at the end is. A group that has been populated and is empty again by
the time that we look is therefore told as EMPTY, though POPULATED never was.

Refused forks notify on v2, and on v1 up to some kernel before 6.18 (tried: there pids.events counts and is silent): the
counter is also read when the group has become empty, and whenever ``Watcher.check`` is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from controller.cgroup import core, files, inotify
from controller.cgroup.errors import CgroupFileError, KnobMissing, NoSuchGroup, from_os
from controller.cgroup.group import Group
from controller.cgroup.memory import MemoryEvents

_log: Final = logging.getLogger(__name__)

# v1 tells of an OOM before the killer has chosen: the counter of kills is looked at again after these times (seconds).
_LOOK_AGAIN: Final = (0.002, 0.01, 0.05, 0.25, 1.0)


class GroupEventKind(StrEnum):
    POPULATED = "populated"
    EMPTY = "empty"  # has no process now; may be told twice
    FROZEN = "frozen"
    THAWED = "thawed"
    OOM = "oom"  # reclaim could not help at a limit. v2: this group's own; v1: this one's, or one's above it
    OOM_KILL = "oom_kill"  # a process of this group was ended by the OOM killer
    MEMORY_MAX = "memory_max"  # allocations met this group's limit (v2)
    MEMORY_HIGH = "memory_high"  # allocations were slowed at memory_high (v2)
    PIDS_MAX = "pids_max"  # forks were refused at pids_max
    GONE = "gone"  # the directory was removed; the watch has ended


@dataclass(frozen=True, slots=True)
class GroupEvent:
    """``count``: how many since the last event of this kind; 1 for those that are not counted, 0 for an OOM on v1."""

    group: Group
    kind: GroupEventKind
    count: int = 1


Callback = Callable[[GroupEvent], None]


class _Watch:
    __slots__ = ("again", "callback", "descriptors", "eventfd", "frozen", "group", "memory", "pids_max", "populated")

    def __init__(self, group: Group, callback: Callback) -> None:
        self.group = group
        self.callback = callback
        self.descriptors: list[int] = []
        self.eventfd = -1
        self.populated = False
        self.frozen = False
        self.memory: MemoryEvents | None = None
        self.pids_max: int | None = None
        self.again: asyncio.TimerHandle | None = None


class Watcher:
    """Of one event loop; create it there, and ``close`` it. Callbacks are called on the loop and must not block.

    10,000 groups take 20,000 to 30,000 inotify watches (fs.inotify.max_user_watches) and on v1 10,000 descriptors
    (LimitNOFILE=).
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watches: dict[Group, _Watch] = {}
        self._by_descriptor: dict[int, tuple[_Watch, Callable[[_Watch], None]]] = {}
        self._by_eventfd: dict[int, _Watch] = {}
        self._nought: MemoryEvents | None = None  # what a new group's counters say
        self._inotify = inotify.init()
        self._epoll = select.epoll()
        self._loop.add_reader(self._inotify, self._notified)
        self._loop.add_reader(self._epoll.fileno(), self._oom_signalled)

    def __len__(self) -> int:
        return len(self._watches)

    def __contains__(self, group: Group) -> bool:
        return group in self._watches

    def add(self, group: Group, callback: Callback, *, made_just_now: bool = False) -> None:
        """Watch a group, which must exist; a second time replaces the callback. Add it before its first process comes.

        ``made_just_now``: its counters began at nought a moment ago, and are not read. If its first process may have
        come already, ``look`` afterwards.
        Raises NoSuchGroup, KernelRefused (out of watches or descriptors); nothing half watched is left.
        """
        if (known := self._watches.get(group)) is not None:
            known.callback = callback
            return
        watch = _Watch(group, callback)
        try:
            self._notify(watch, f"{group.path}/cgroup.events", self._look_core)
            if not made_just_now:
                state = core.core_state(group.path)
                watch.populated, watch.frozen = state.populated, state.frozen
            self._add_memory(watch, made_just_now)
            if (pids := group.directory("pids")) is not None:
                self._notify(watch, f"{pids}/pids.events", self._look_pids)
                watch.pids_max = 0 if made_just_now else group.pids_max_events()
        except CgroupFileError:
            self._drop(watch)
            raise
        self._watches[group] = watch

    def remove(self, group: Group) -> None:
        """Stop watching; nothing to do when it is not watched. To be called before the group is deleted: the kernel
        keeps the watch of a removed directory for as long as nobody takes it back."""
        if (watch := self._watches.pop(group, None)) is not None:
            self._drop(watch)

    def look(self, group: Group) -> None:
        """Read now whether a watched group has processes, and tell it: also that it is empty, when it was before."""
        if (watch := self._watches.get(group)) is not None:
            self._look(watch, self._look_core)

    def check(self, group: Group) -> None:
        """Read the counters of a watched group now, and tell what has changed: for those that this host's kernel does
        not notify of (module docstring), from a loop that samples anyway."""
        if (watch := self._watches.get(group)) is not None:
            self._look(watch, self._look_counters)

    def close(self) -> None:
        """End all watches; may be called again."""
        if self._epoll.closed:
            return
        for group in list(self._watches):
            self.remove(group)
        self._loop.remove_reader(self._inotify)
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        os.close(self._inotify)

    # -- setting up

    def _notify(self, watch: _Watch, path: str, look: Callable[[_Watch], None]) -> None:
        descriptor = inotify.add(self._inotify, path)
        watch.descriptors.append(descriptor)
        self._by_descriptor[descriptor] = watch, look

    def _add_memory(self, watch: _Watch, made_just_now: bool) -> None:
        directory = watch.group.directory("memory")
        if directory is None:
            return
        if watch.group.memory_is_v1():
            self._add_eventfd(watch, directory)
        else:
            try:
                self._notify(watch, f"{directory}/memory.events.local", self._look_memory)
            except KnobMissing:  # before 5.2
                self._notify(watch, f"{directory}/memory.events", self._look_memory)
        if not made_just_now or self._nought is None:
            watch.memory = watch.group.memory_events()
            if made_just_now and watch.memory is not None and not _counted(watch.memory):
                self._nought = watch.memory  # which counters this kernel has is the same for all
        else:
            watch.memory = self._nought

    def _add_eventfd(self, watch: _Watch, directory: str) -> None:
        path = f"{directory}/memory.oom_control"
        try:
            watch.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            control = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise from_os(err, path) from err
        try:
            files.write(f"{directory}/cgroup.event_control", f"{watch.eventfd} {control}")
        finally:
            os.close(control)
        self._epoll.register(watch.eventfd, select.EPOLLIN)
        self._by_eventfd[watch.eventfd] = watch

    def _drop(self, watch: _Watch) -> None:
        for descriptor in watch.descriptors:
            del self._by_descriptor[descriptor]
            inotify.remove(self._inotify, descriptor)
        watch.descriptors.clear()
        if watch.eventfd >= 0:
            if self._by_eventfd.pop(watch.eventfd, None) is not None:
                self._epoll.unregister(watch.eventfd)
            os.close(watch.eventfd)
            watch.eventfd = -1
        if watch.again is not None:
            watch.again.cancel()
            watch.again = None

    # -- what the kernel says

    def _notified(self) -> None:
        looks: dict[tuple[_Watch, Callable[[_Watch], None]], None] = {}  # each file once, in the order of events
        for descriptor, mask in inotify.read(self._inotify):
            if mask & inotify.IN_Q_OVERFLOW:
                _log.warning("inotify's queue ran over: all %d watched groups are read again", len(self._watches))
                looks.update(dict.fromkeys(self._by_descriptor.values()))
            elif (found := self._by_descriptor.get(descriptor)) is not None:
                # IN_IGNORED (kernels that tell of a removed file) also lands here: the look finds the group gone
                looks[found] = None
        for watch, look in looks:
            self._look(watch, look)

    def _oom_signalled(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            watch = self._by_eventfd.get(descriptor)
            if watch is None:
                continue
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(descriptor)
            if not watch.group.exists():  # the kernel also signals when the group is removed
                self._gone(watch)
                continue
            self._tell(watch, GroupEventKind.OOM, 0)
            if self._watches.get(watch.group) is watch:
                self._look_for_kill(watch, 0)

    def _look_for_kill(self, watch: _Watch, attempt: int) -> None:
        if watch.again is not None:
            watch.again.cancel()
            watch.again = None
        before = watch.memory
        self._look(watch, self._look_memory)
        if self._watches.get(watch.group) is watch and watch.memory == before and attempt < len(_LOOK_AGAIN):
            watch.again = self._loop.call_later(_LOOK_AGAIN[attempt], self._look_for_kill, watch, attempt + 1)

    def _look(self, watch: _Watch, look: Callable[[_Watch], None]) -> None:
        if self._watches.get(watch.group) is not watch:
            return  # removed by a callback of this very round
        try:
            look(watch)
        except NoSuchGroup:
            self._gone(watch)
        except CgroupFileError:
            _log.exception("a notification of %r could not be followed", watch.group)

    def _look_core(self, watch: _Watch) -> None:
        state = core.core_state(watch.group.path)
        thawed_or_frozen = state.frozen != watch.frozen
        was_populated, watch.populated, watch.frozen = watch.populated, state.populated, state.frozen
        if thawed_or_frozen:
            self._tell(watch, GroupEventKind.FROZEN if state.frozen else GroupEventKind.THAWED)
        if state.populated and not was_populated:
            self._tell(watch, GroupEventKind.POPULATED)
        elif not state.populated and (was_populated or not thawed_or_frozen):
            self._look_counters(watch)  # the cause of an end comes before the end
            self._tell(watch, GroupEventKind.EMPTY)

    def _look_counters(self, watch: _Watch) -> None:
        if watch.memory is not None:
            self._look_memory(watch)
        if watch.pids_max is not None:
            self._look_pids(watch)

    def _look_memory(self, watch: _Watch) -> None:
        before, watch.memory = watch.memory, watch.group.memory_events()
        if before is None or watch.memory is None:
            return
        now = watch.memory
        for kind, old, new in (
            (GroupEventKind.MEMORY_HIGH, before.high, now.high),
            # v1's failcnt counts ordinary reclaim too, and nothing notifies of it: not told
            (GroupEventKind.MEMORY_MAX, before.max, before.max if watch.group.memory_is_v1() else now.max),
            (GroupEventKind.OOM, before.oom, now.oom),
            (GroupEventKind.OOM_KILL, before.oom_kill, now.oom_kill),
        ):
            if old is not None and new is not None and new > old:
                self._tell(watch, kind, new - old)

    def _look_pids(self, watch: _Watch) -> None:
        before, watch.pids_max = watch.pids_max, watch.group.pids_max_events()
        if before is not None and watch.pids_max is not None and watch.pids_max > before:
            self._tell(watch, GroupEventKind.PIDS_MAX, watch.pids_max - before)

    def _gone(self, watch: _Watch) -> None:
        if self._watches.get(watch.group) is watch:
            self._tell(watch, GroupEventKind.GONE)
            self.remove(watch.group)

    def _tell(self, watch: _Watch, kind: GroupEventKind, count: int = 1) -> None:
        """A callback that raises must not cost the others their events: it is logged, as asyncio does."""
        if self._watches.get(watch.group) is not watch:
            return
        try:
            watch.callback(GroupEvent(watch.group, kind, count))
        except Exception as err:  # whatever a callback raises
            self._loop.call_exception_handler(
                {"message": f"callback of {watch.group!r} failed at {kind}", "exception": err}
            )


def _counted(events: MemoryEvents) -> bool:
    return any((events.oom_kill, events.max, events.oom, events.high, events.low, events.oom_group_kill))
