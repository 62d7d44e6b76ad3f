"""Who is told what happens to leaves. A new leaf is watched a turn of the loop later: its call has its grant by then.

What was missed in that turn is looked for: a call that has ended already is told as empty at once. A leaf that cannot
be watched (the kernel is out of watches or the daemon out of descriptors) is tried again with each round of samples.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from controller.backend import CallRef
from controller.backends.leaf import Leaf
from controller.cgroup import CgroupFileError, Group, GroupEvent, GroupEventKind, NoSuchGroup, Watcher
from controller.model import CallId

log = structlog.get_logger("corral.watching")

OnGroup = Callable[[CallRef, GroupEvent], None]


class Watching:
    """Of one event loop; made there. ``on_group``: told on it."""

    def __init__(self, on_group: OnGroup) -> None:
        self._on_group = on_group
        self._watcher = Watcher()
        self._loop = asyncio.get_running_loop()
        self._new: dict[CallId, Leaf] = {}
        self._due: asyncio.Handle | None = None
        self._warned = False

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()
        self._watcher.close()

    def add(self, leaf: Leaf) -> None:
        """One that is there already, and may have processes. Raises the errors of controller.cgroup.errors."""
        self._watcher.add(leaf.group, self._telling(leaf))

    def add_new(self, leaf: Leaf) -> None:
        """One that was made just now; with the next turn of the loop."""
        self._new[leaf.ref.call_id] = leaf
        if self._due is None:
            self._due = self._loop.call_soon(self._catch_up)

    def remove(self, leaf: Leaf) -> None:
        """Nothing more is told of it."""
        if self._new.pop(leaf.ref.call_id, None) is None:
            self._watcher.remove(leaf.group)

    def check(self, group: Group) -> None:
        """Counters that this kernel does not notify of."""
        self._watcher.check(group)

    def round(self) -> None:
        """Once a second or so: those that could not be watched before."""
        if self._new and self._due is None:
            self._catch_up()

    def _catch_up(self) -> None:
        self._due = None
        for leaf in list(self._new.values()):
            try:
                self._watcher.add(leaf.group, self._telling(leaf), made_just_now=True)
            except NoSuchGroup:
                del self._new[leaf.ref.call_id]
                self._on_group(leaf.ref, GroupEvent(leaf.group, GroupEventKind.GONE))
            except CgroupFileError as err:
                if not self._warned:
                    self._warned = True
                    log.warning("new calls cannot be watched; what happens to them is seen late", error=str(err))
                return
            else:
                self._warned = False
                del self._new[leaf.ref.call_id]
                self._watcher.look(leaf.group)

    def _telling(self, leaf: Leaf) -> Callable[[GroupEvent], None]:
        return lambda event: self._on_group(leaf.ref, event)
