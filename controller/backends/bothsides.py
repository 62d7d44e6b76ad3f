"""Where eBPF loads in part: what is missing of lifecycle and accounting comes from the process connector and taskstats.

So it is on kernels without BTF, which take the programs at the edge of the network and of devices, and no others.
"""

from __future__ import annotations

import dataclasses
import select
from typing import Final

from bpf import BpfError, Counters, NetworkPolicy
from controller.backends.kernelside import KernelSide

_OF_PART: Final = {
    "accounting": (
        "faults",
        "major_faults",
        "read_bytes",
        "written_bytes",
        "disk_read_bytes",
        "disk_written_bytes",
        "run_wait_nsec",
        "switches",
    ),
    "lifecycle": ("forks", "execs", "exits", "execs_suppressed"),
}
STANDS_IN_FOR: Final = frozenset(_OF_PART)


class BothSides:
    """A KernelSide (see kernelside.py) of two: ``first`` (eBPF) has what it can, ``second`` (netlink) what is left.

    The first problem that the second side tells is that it stands in for all of the first: here it does so for a part.
    """

    def __init__(self, first: KernelSide, second: KernelSide) -> None:
        self._first = first
        self._second = second
        self._taken = tuple(
            name
            for part, names in _OF_PART.items()
            if part in second.parts and part not in first.parts
            for name in names
        )
        self._epoll = select.epoll()
        for side in (first, second):
            self._epoll.register(side.fileno(), select.EPOLLIN)

    @property
    def parts(self) -> frozenset[str]:
        return self._first.parts | self._second.parts

    @property
    def problems(self) -> tuple[str, ...]:
        stands_in = ", ".join(sorted(self._second.parts - self._first.parts))
        said = f"the process connector and taskstats stand in for {stands_in}"
        return (*self._first.problems, said, *self._second.problems[1:])

    def register(
        self,
        cgroup_id: int,
        *,
        notify: int | None = None,
        brake: int | None = None,
        network: NetworkPolicy = NetworkPolicy.ANY,
        gpu: bool = False,
        memory_cgroup: int | None = None,
    ) -> None:
        """With both, or with neither."""
        self._first.register(
            cgroup_id, notify=notify, brake=brake, network=network, gpu=gpu, memory_cgroup=memory_cgroup
        )
        try:
            self._second.register(cgroup_id)
        except BpfError:
            self._first.forget(cgroup_id)
            raise

    def settle(self, cgroup_id: int) -> None:
        self._first.settle(cgroup_id)
        self._second.settle(cgroup_id)

    def arm(self, cgroup_id: int, *, notify: int | None, brake: int | None) -> None:
        self._first.arm(cgroup_id, notify=notify, brake=brake)

    def set_network(self, cgroup_id: int, policy: NetworkPolicy) -> None:
        self._first.set_network(cgroup_id, policy)

    def pace(self, cgroup_id: int, rate: int | None) -> None:
        self._first.pace(cgroup_id, rate)

    def paced(self) -> set[int]:
        return self._first.paced()

    def trace_disk(self, on: bool) -> None:
        self._first.trace_disk(on)

    def counters(self, cgroup_id: int, *, live: bool = True) -> Counters | None:
        return self._merged(self._first.counters(cgroup_id, live=live), self._second.counters(cgroup_id, live=live))

    def all_counters(self) -> dict[int, Counters]:
        second = self._second.all_counters()
        merged = {key: self._merged(own, second.get(key)) for key, own in self._first.all_counters().items()}
        return {key: counters for key, counters in merged.items() if counters is not None}

    def _merged(self, first: Counters | None, second: Counters | None) -> Counters | None:
        if first is None or second is None:
            return first
        return dataclasses.replace(first, **{name: getattr(second, name) for name in self._taken})

    def forget(self, cgroup_id: int) -> None:
        self._first.forget(cgroup_id)
        self._second.forget(cgroup_id)

    def registered(self) -> set[int]:
        """Known to both: after a restart the second knows none, and each is to be registered again."""
        return self._first.registered() & self._second.registered()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def drain(self) -> int:
        failures: list[Exception] = []
        count = 0
        for side in (self._first, self._second):
            try:
                count += side.drain()
            except ExceptionGroup as group:
                failures += group.exceptions
        if failures:
            raise ExceptionGroup("events of the kernel side could not be handled", failures)
        return count

    def close(self) -> None:
        self._epoll.close()
        self._first.close()
        self._second.close()
