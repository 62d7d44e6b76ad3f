"""The scheduler (sched_ext): loaded and registered, told of calls, and watched, since the kernel may end it.

Nothing is pinned: the registration is a link that this process holds open. When it is closed, by ``close`` or because
the process dies, the kernel takes all tasks back to its own scheduler. See bpf/src/sched.bpf.c for what it does.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bpf.errors import BpfError, InvalidPolicy, Unavailable
from bpf.libbpf import Map, Object
from bpf.loader import KERNEL_TYPES, OBJECTS
from bpf.trial import kernel_has_function

SYSFS: Final = Path("/sys/kernel/sched_ext")
CALL: Final = struct.Struct("=QIIII")  # group, weight, group_weight, latency, pad
CLOCK: Final = struct.Struct("=QII")  # virtual time, runnable tasks, counted weight
END: Final = struct.Struct("=Qq64s192s")
MAX_CALLS: Final = 16_384
MAX_GROUPS: Final = 4_096
MAX_WEIGHT: Final = 10_000
_NAME: Final = "corral"
_KEY: Final = struct.Struct("=Q")
_FIRST: Final = struct.pack("=I", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one call gets. Weights 1 to 10,000, 100 is the default: ``weight`` among the calls of its ``group`` (the v2
    cgroup id of its tenant), ``group_weight`` of that among all. ``latency``: served first while within its share."""

    group: int
    weight: int = 100
    group_weight: int = 100
    latency: bool = False

    def pack(self) -> bytes:
        if not (1 <= self.weight <= MAX_WEIGHT and 1 <= self.group_weight <= MAX_WEIGHT and self.group > 0):
            raise InvalidPolicy(f"{self}: out of range", remedy=f"give weights of 1 to {MAX_WEIGHT}")
        return CALL.pack(self.group, self.weight, self.group_weight, int(self.latency), 0)


def unavailable(sysfs: Path = SYSFS) -> str:
    """Why no scheduler can be loaded here; empty: one can."""
    if not (sysfs / "state").exists():
        return f"this kernel has no sched_ext (there is no {sysfs})"
    if not KERNEL_TYPES.exists():
        return f"the kernel tells no types (BTF): there is no {KERNEL_TYPES}"
    if not kernel_has_function("scx_bpf_dsq_peek"):
        return "this kernel's sched_ext is older than Linux 6.19"
    return ""


def running(sysfs: Path = SYSFS) -> str:
    """The name of the scheduler that is in force; empty: the kernel's own."""
    try:
        if (sysfs / "state").read_text().strip() != "enabled":
            return ""
        return (sysfs / "root" / "ops").read_text().strip()
    except OSError:  # it ends in this very moment, or the kernel has none
        return ""


class Scheduler:
    """In force from ``Scheduler()`` to ``close``. Raises Unavailable, LoadFailed (VerifierRejected) or AttachFailed."""

    def __init__(self, shares: dict[int, Share] | None = None, objects: Path = OBJECTS) -> None:
        why = unavailable()
        if why:
            raise Unavailable(
                why, remedy='boot Linux 6.19 or later with CONFIG_SCHED_CLASS_EXT, or set sched.mode="off"'
            )
        path = objects / "sched.bpf.o"
        if not path.is_file():
            raise Unavailable(f"{path}: no compiled object", remedy="run scripts/build-bpf")
        self._link = -1
        self._shares: dict[int, Share] = {}
        self._members: dict[int, int] = {}
        self._leaving: set[int] = set()
        self._object = Object(path)
        try:
            self._object.prepare_struct_ops(_NAME, sleepable=("corral_init",))
            self._object.load()
            self._calls = self._map("sched_calls", 8, CALL.size)
            self._clocks = self._map("sched_clocks", 8, CLOCK.size)
            self._groups = self._map("sched_groups", 8, 8)
            self._end = self._map("sched_end", 4, END.size)
            for cgroup_id, share in (shares or {}).items():
                self.put(cgroup_id, share)
            self._link = self._object.attach_struct_ops(_NAME)
        except BaseException:
            with suppress(BpfError):
                self.close()
            raise

    def _map(self, name: str, key: int, value: int) -> Map:
        return Map(name, self._object.map_fd(name), key, value)

    def close(self) -> None:
        """The kernel's own scheduler takes over. Takes some milliseconds."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
        self._object.close()

    def put(self, cgroup_id: int, share: Share) -> None:
        """What a call gets from now on; its virtual time goes on. Raises MapError when the maps are full."""
        packed, key, was = share.pack(), _KEY.pack(cgroup_id), self._shares.get(cgroup_id)
        if was == share:
            return
        if was is not None and was.group != share.group:
            raise InvalidPolicy(f"group {cgroup_id}: a call stays in its tenant", remedy="forget it first")
        if was is None:
            self._leaving.discard(cgroup_id)
            self._groups.put_new(_KEY.pack(share.group), bytes(8))
            self._clocks.put_new(key, bytes(CLOCK.size))
        self._calls.put(key, packed)
        if was is None:
            self._members[share.group] = self._members.get(share.group, 0) + 1
        self._shares[cgroup_id] = share

    def forget(self, cgroup_id: int) -> None:
        """The call has ended. Unknown ones are fine."""
        if cgroup_id in self._shares:
            self._leaving.add(cgroup_id)
            self.sweep()

    def sweep(self) -> None:
        """Calls that have ended, and whose tasks (those that were moved elsewhere while they ran) have all slept since:
        before that, they count in their tenant, and would count for ever."""
        for cgroup_id in tuple(self._leaving):
            key = _KEY.pack(cgroup_id)
            raw = self._clocks.get(key)
            if raw is not None and CLOCK.unpack(raw)[1]:
                continue
            self._calls.delete(key)
            self._clocks.delete(key)
            self._leaving.discard(cgroup_id)
            group = self._shares.pop(cgroup_id).group
            self._members[group] -= 1
            if not self._members[group]:
                del self._members[group]
                self._groups.delete(_KEY.pack(group))

    def ended(self) -> str:
        """Why it is not in force any more, in words; empty: it is."""
        raw = self._end.get(_FIRST)
        kind, code, reason, message = END.unpack(raw) if raw else (0, 0, b"", b"")
        if not kind:
            return "" if running() == _NAME else "the kernel says nothing of why"
        words = [part.split(b"\0", 1)[0].decode("utf-8", "replace") for part in (reason, message)]
        return ": ".join(word for word in words if word) or f"exit kind {kind}, code {code}"
