"""Process trees without cgroups: which process belongs to which tree, and what each tree used.

A process belongs where its parent belonged when it was first seen, and stays there when its parent ends and it is given
to another. One that was never seen beside its parent is recognised by a variable in its environment (``marker``), if
it runs as the tree's user and was started after the tree was made. One pass over /proc serves all trees.

What a process used is its own use and that of the children it waited for, as the kernel counts. So the use of one that
has ended is not added again when its parent took it over; that it did is seen by its count of faults, which no process
ends without. What an ended process used after it was last seen is lost where nobody of the tree waited for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from controller.processes import procfs
from controller.processes.procfs import ProcStat

_KILL_PASSES: Final = 32
_MAX_DEPTH: Final = 4096  # parents that are walked up; a longer chain is left alone


class Use(NamedTuple):
    """CPU in ticks, counts, bytes."""

    user: int = 0
    system: int = 0
    faults: int = 0
    major: int = 0
    read: int = 0
    written: int = 0
    disk_read: int = 0
    disk_written: int = 0

    def plus(self, other: Use) -> Use:
        return Use._make(a + b for a, b in zip(self, other, strict=True))

    def minus(self, other: Use) -> Use:
        return Use._make(a - b for a, b in zip(self, other, strict=True))

    def most(self, other: Use) -> Use:
        return Use._make(map(max, self, other))


ZERO: Final = Use()


@dataclass(slots=True, eq=False)
class Member:
    """A process of a tree. ``total``: since its birth, with the children that it waited for. ``baseline``: what of
    that is not the tree's. ``proven``: it came by parentage or was placed, not by its environment. ``taken``: faults of
    children that it waited for since the last look, by which it is known whose use it took over. ``final``: it has
    ended, and ``total`` is all of it."""

    pid: int
    start: int
    ppid: int
    tree: Tree
    proven: bool
    total: Use = ZERO
    baseline: Use = ZERO
    child_faults: int = 0
    taken: int = 0
    rss: int = 0
    alive: bool = True
    final: bool = False

    @property
    def used(self) -> Use:
        return self.total.minus(self.baseline)

    def see(self, stat: ProcStat) -> None:
        """A new reading."""
        io = procfs.read_io(self.pid)
        self.tree.io_known = self.tree.io_known or io is not None
        self.total = self.total.most(
            Use(
                stat.user + stat.child_user,
                stat.system + stat.child_system,
                stat.faults + stat.child_faults,
                stat.major + stat.child_major,
                *(io or self.total[4:]),
            )
        )
        self.taken += stat.child_faults - self.child_faults
        self.child_faults = stat.child_faults
        self.ppid, self.rss, self.alive = stat.ppid, stat.rss, stat.alive

    def take_over(self, waiter: Waiter) -> None:
        """The figures of its launcher, when that has waited for it, are its last ones."""
        total = _taken_over(waiter)
        if total is None or self.final or total.faults < max(1, self.total.faults):
            return
        self.taken += total.faults - self.total.faults  # its children's, and what it added itself meanwhile
        self.total, self.final = self.total.most(total), True


class Waiter(NamedTuple):
    """Who waits for a tree's main process and for nothing else (its launcher), with its children's use at the start."""

    pid: int
    start: int
    before: Use


@dataclass(slots=True, eq=False)
class Tree:
    """``marker``: the value of the forest's variable in the environment of its processes; None: not looked for."""

    marker: bytes | None = None
    begun: int = 0  # ticks since boot
    uid: int | None = None
    members: dict[int, Member] = field(default_factory=dict)
    ended: Use = ZERO
    io_known: bool = False
    rss_peak: int = 0
    main: int = 0
    waiter: Waiter | None = None
    _floor: Use = ZERO

    @property
    def alive(self) -> list[Member]:
        return [m for m in self.members.values() if m.alive]

    @property
    def rss(self) -> int:
        return sum(m.rss for m in self.members.values())

    def use(self) -> Use:
        """Never falls from one reading to the next."""
        total = self.ended
        for member in self.members.values():
            total = total.plus(member.used)
        self._floor = self._floor.most(total)
        return self._floor


def ticks_now() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * procfs.TICKS)


def waiter_of(pid: int) -> Waiter | None:
    stat = procfs.read_stat(pid)
    return Waiter(pid, stat.start, _children_of(stat)) if stat is not None else None


def _children_of(stat: ProcStat) -> Use:
    io = procfs.read_io(stat.pid)
    return Use(stat.child_user, stat.child_system, stat.child_faults, stat.child_major, *(io or ZERO[4:]))


class Forest:
    """All trees of a host. ``variable``: of the environment, that holds a tree's marker."""

    def __init__(self, variable: bytes) -> None:
        self._variable = variable
        self._members: dict[int, Member] = {}
        self._trees: set[Tree] = set()
        self._strangers: set[tuple[int, int]] = set()  # (pid, start) whose environment has been read
        self.looked_at = 0.0  # time.monotonic() of the last look
        self.cost = 0.0  # CPU seconds that it took

    def add(self, tree: Tree) -> None:
        self._trees.add(tree)

    def remove(self, tree: Tree) -> None:
        self._trees.discard(tree)
        for pid in tree.members:
            self._members.pop(pid, None)
        tree.members.clear()

    def place(self, tree: Tree, stat: ProcStat) -> Member:
        """The process belongs to ``tree`` from now on; what it used before does not."""
        member = self._members.get(stat.pid)
        if member is not None and member.start == stat.start:
            member.see(stat)
            self.move(member, tree)
            return member
        if member is not None:  # another process had this number
            self._end(member, {})
        member = self._new(stat, tree, proven=True)
        member.baseline = member.total
        return member

    def move(self, member: Member, tree: Tree) -> None:
        """Its use until now stays with the tree that it leaves."""
        was = member.tree
        was.members.pop(member.pid, None)
        was.ended = was.ended.plus(member.used)
        member.tree, member.baseline, member.proven = tree, member.total, True
        tree.members[member.pid] = member

    def member(self, pid: int, start: int) -> Member | None:
        member = self._members.get(pid)
        return member if member is not None and member.start == start else None

    def proven_tree(self, pid: int) -> Tree | None:
        """Where a process belongs by parentage, from readings of this instant."""
        for _ in range(_MAX_DEPTH):
            stat = procfs.read_stat(pid) if pid > 1 else None
            if stat is None:
                return None
            member = self.member(pid, stat.start)
            if member is not None:
                return member.tree if member.proven else None
            pid = stat.ppid
        return None

    def refresh(self, tree: Tree) -> bool:
        """Whether a process of the tree that is known lives. Reads those alone."""
        self.catch_main(tree)
        found = False
        for member in list(tree.members.values()):
            stat = procfs.read_stat(member.pid)
            member.alive = stat is not None and stat.start == member.start and stat.alive
            found = found or member.alive
        return found

    def catch_main(self, tree: Tree) -> None:
        """To be called at once when the main process has ended: its last figures are there while it is a zombie, and
        then with its launcher, until that has been waited for, too."""
        main = tree.members.get(tree.main)
        if main is None or tree.waiter is None:
            return
        stat = procfs.read_stat(main.pid)
        if stat is not None and stat.start == main.start:
            if not stat.alive:
                main.see(stat)
        else:
            main.take_over(tree.waiter)

    # --- looking -----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """One reading of every process of the host."""
        started = time.thread_time()
        table = procfs.scan()
        vanished: dict[int, Member] = {}
        for member in list(self._members.values()):
            stat = table.get(member.pid)
            if stat is None or stat.start != member.start:
                vanished[member.pid] = member
                del self._members[member.pid]
            else:
                member.see(stat)
        for member in vanished.values():
            if member.pid == member.tree.main and member.tree.waiter is not None:
                member.take_over(member.tree.waiter)
        for member in vanished.values():
            self._end(member, vanished)
        for member in self._members.values():
            member.taken = 0
        self._discover(table)
        for tree in self._trees:
            tree.rss_peak = max(tree.rss_peak, tree.rss)
        self.looked_at = time.monotonic()
        self.cost = time.thread_time() - started

    def _end(self, member: Member, vanished: dict[int, Member]) -> None:
        tree = member.tree
        if self._members.get(member.pid) is member:
            del self._members[member.pid]
        tree.members.pop(member.pid, None)
        heir = self._heir(member, vanished)
        if heir is None or heir.taken < max(1, member.total.faults):
            tree.ended = tree.ended.plus(member.used)
            return
        heir.taken -= member.total.faults
        if heir.tree is tree:
            tree.ended = tree.ended.minus(member.baseline)
        else:  # it waited for a process of another tree: what that used is not its own
            tree.ended = tree.ended.plus(member.used)
            heir.baseline = heir.baseline.plus(member.total)

    def _heir(self, member: Member, vanished: dict[int, Member]) -> Member | None:
        """The nearest process above of which the present figures are known: the one that has its use now, if all in
        between waited."""
        pid = member.ppid
        for _ in range(len(vanished) + 1):
            if (live := self._members.get(pid)) is not None:
                return live
            gone = vanished.get(pid)
            if gone is None or gone.final:
                return gone
            pid = gone.ppid
        return None

    def _discover(self, table: dict[int, ProcStat]) -> None:
        known: dict[int, Member | None] = {}
        for stat in table.values():
            if stat.pid not in self._members:
                parent = self._parent_member(stat.pid, table, known)
                if parent is not None:
                    self._come(stat, parent.tree, proven=parent.proven)
        self._recognise(table)

    def _parent_member(self, pid: int, table: dict[int, ProcStat], known: dict[int, Member | None]) -> Member | None:
        chain: list[int] = []
        found: Member | None = None
        while pid > 1 and len(chain) < _MAX_DEPTH:
            if (member := self._members.get(pid)) is not None:
                found = member
                break
            if pid in known:
                found = known[pid]
                break
            chain.append(pid)
            stat = table.get(pid)
            pid = stat.ppid if stat is not None else 0
        for passed in chain:
            known[passed] = found
        return found

    def _recognise(self, table: dict[int, ProcStat]) -> None:
        """Those whose parents ended before they were seen, by their environment."""
        marked = {tree.marker: tree for tree in self._trees if tree.marker is not None and tree.uid is not None}
        oldest = min((tree.begun for tree in marked.values()), default=None)
        strangers: set[tuple[int, int]] = set()
        for stat in table.values():
            if oldest is None or stat.start < oldest or stat.pid in self._members:
                continue
            key = (stat.pid, stat.start)
            if key not in self._strangers:
                value = procfs.environment_value(stat.pid, self._variable)
                tree = marked.get(value) if value is not None else None
                if tree is not None and stat.start >= tree.begun and procfs.owner(stat.pid) == tree.uid:
                    self._come(stat, tree, proven=False)
                    continue
            strangers.add(key)
        self._strangers = strangers

    def _come(self, stat: ProcStat, tree: Tree, *, proven: bool) -> None:
        member = self._new(stat, tree, proven=proven)
        if stat.start < tree.begun:
            member.baseline = member.total

    def _new(self, stat: ProcStat, tree: Tree, *, proven: bool) -> Member:
        member = Member(stat.pid, stat.start, stat.ppid, tree, proven)
        member.see(stat)
        self._members[stat.pid] = member
        tree.members[stat.pid] = member
        return member

    # --- ending ------------------------------------------------------------------------------------------------------

    def kill(self, trees: Iterable[Tree]) -> list[int]:
        """SIGKILL to every process. They are stopped first, until no new one appears, so that none can fork away.
        Returns those that this user may not signal."""
        trees = list(trees)
        stopped: set[int] = set()
        refused: set[int] = set()
        for _ in range(_KILL_PASSES):
            self.look()
            fresh = [m for tree in trees for m in tree.alive if m.pid not in stopped]
            if not fresh:
                break
            for member in fresh:
                stopped.add(member.pid)
                _send(member, signal.SIGSTOP)
        for tree in trees:
            for member in tree.alive:
                if not _send(member, signal.SIGKILL):
                    refused.add(member.pid)
        return sorted(refused)


def _taken_over(waiter: Waiter) -> Use | None:
    """What a launcher took over from the children that it waited for: its one child, if it has."""
    stat = procfs.read_stat(waiter.pid)
    if stat is None or stat.start != waiter.start:
        return None
    return _children_of(stat).minus(waiter.before)


def open_pidfd(member: Member) -> int | None:
    """A descriptor of exactly this process; None when it is gone. Raises OSError where none is to be had."""
    try:
        fd = os.pidfd_open(member.pid)
    except ProcessLookupError:
        return None
    stat = procfs.read_stat(member.pid)
    if stat is None or stat.start != member.start:
        os.close(fd)
        return None
    return fd


def _send(member: Member, number: signal.Signals) -> bool:
    """False when this user may not. A process that is gone needs no signal."""
    try:
        fd = open_pidfd(member)
    except OSError as err:
        if err.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOSYS):
            raise
        return _send_by_number(member, number)  # a moment's risk that the number is another process's
    if fd is None:
        return True
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
    except PermissionError:
        return False
    finally:
        os.close(fd)
    return True


def _send_by_number(member: Member, number: signal.Signals) -> bool:
    stat = procfs.read_stat(member.pid)
    if stat is None or stat.start != member.start:
        return True
    try:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, number)
    except PermissionError:
        return False
    return True
