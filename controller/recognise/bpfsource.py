"""The events of attached sessions from the kernel side: only theirs, with what was executed, however short it lived."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bpf import BpfError
from bpf.lineage import Lineage, LineageEvent, LineageKind
from controller.cgroup import detect
from controller.cgroup.errors import NoUsableCgroups
from controller.model import CannotEnforce
from controller.recognise.machine import Event, Executed, Exited, Forked
from controller.recognise.source import arguments, split


class BpfSource:
    """See controller.recognise.source.Source."""

    unseen = 0  # the kernel tells with the exec what it was

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage
        self._scopes: dict[int, str] = {}
        self._entries: dict[str, int] = {}

    @property
    def lost(self) -> int:
        return self._lineage.lost

    def fileno(self) -> int:
        return self._lineage.fileno()

    def close(self) -> None:
        self._lineage.close()

    def watch(self, pid: int) -> None:
        self._lineage.watch(pid)

    def placed(self, pid: int) -> None:
        self._lineage.placed(pid)

    def unwatch(self, pid: int) -> None:
        self._lineage.unwatch(pid)

    def watch_group(self, group: str, scope: str) -> None:
        """Raises CannotEnforce where the group's directory is not to be found."""
        try:
            host = detect()
            v1 = host.mounts.get("memory")
            directory = Path(f"{host.v2 if v1 is None or v1 == host.v2 else v1}{group}")
            memory_v1 = v1 is not None and v1 != host.v2
            entry = self._lineage.watch_group(directory.stat().st_ino, memory_v1=memory_v1)
        except (OSError, NoUsableCgroups, BpfError) as err:
            raise CannotEnforce(f"the container's cgroup {group} cannot be watched: {err}", remedy="report it") from err
        self._entries[scope] = entry
        self._scopes[entry] = scope

    def unwatch_group(self, scope: str) -> None:
        entry = self._entries.pop(scope, None)
        if entry is not None:
            self._scopes.pop(entry, None)
            self._lineage.unwatch_group(entry)

    def read(self, most: int) -> Iterator[Event]:
        """One round of the ring, which has a bound of its own."""
        for event in self._lineage.read():
            match event.kind:
                case LineageKind.FORK:
                    yield Forked(event.at, event.parent, event.pid)
                case LineageKind.EXEC:
                    yield self._executed(event)
                case LineageKind.EXIT:
                    yield Exited(event.at, event.pid, event.status, event.cpu_nsec // 1000)

    def _executed(self, event: LineageEvent) -> Executed:
        words = split(event.arguments)
        if event.cut:
            words = arguments(event.pid) or words  # it may have ended: what the kernel told is the rest of it then
        scope = self._scopes.get(event.entry, "") if event.entry else ""
        return Executed(event.at, event.pid, event.path, words, event.group, scope, event.cpu_nsec // 1000)
