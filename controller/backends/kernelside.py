"""What ``enforce.py`` asks of the kernel beyond cgroup files: ``bpf.KernelSide``, or what stands in for it."""

from __future__ import annotations

from typing import Protocol

from bpf import Counters, NetworkPolicy


class KernelSide(Protocol):
    """See bpf.kernel.KernelSide. Parts that could not be loaded are absent from ``parts`` and told in ``problems``."""

    @property
    def parts(self) -> frozenset[str]: ...
    @property
    def problems(self) -> tuple[str, ...]: ...
    def register(
        self,
        cgroup_id: int,
        *,
        notify: int | None = None,
        brake: int | None = None,
        network: NetworkPolicy = NetworkPolicy.ANY,
        gpu: bool = False,
        memory_cgroup: int | None = None,
    ) -> None: ...
    def settle(self, cgroup_id: int) -> None: ...
    def arm(self, cgroup_id: int, *, notify: int | None, brake: int | None) -> None: ...
    def set_network(self, cgroup_id: int, policy: NetworkPolicy) -> None: ...
    def pace(self, cgroup_id: int, rate: int | None) -> None:
        """Bytes a second that may leave a group and all below it. Only where ``parts`` has "network"."""

    def paced(self) -> set[int]:
        """Groups that have a rate."""

    def trace_disk(self, on: bool) -> None:
        """Whether writes that find no space are counted, which makes every system call of the host dearer. Raises
        BpfError. The first time takes some 50 ms, and may run in a thread."""

    def counters(self, cgroup_id: int, *, live: bool = True) -> Counters | None:
        """``live`` False: without the tasks that still run, which is cheaper."""

    def all_counters(self) -> dict[int, Counters]: ...
    def forget(self, cgroup_id: int) -> None: ...
    def registered(self) -> set[int]: ...
    def fileno(self) -> int: ...
    def drain(self) -> int: ...
    def close(self) -> None: ...
