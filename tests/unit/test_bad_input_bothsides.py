"""Two kernel sides as one: who counts what, what is registered with whom, and what is told when one of them fails."""

from __future__ import annotations

import os
import select
from dataclasses import dataclass, field

import pytest

from bpf import BpfError, Counters, NetworkPolicy, TooManyCalls
from controller.backends.bothsides import BothSides

EBPF = Counters(faults=1, read_bytes=2, execs=3, net_rx_bytes=400, denied_connects=5)
NETLINK = Counters(faults=100, read_bytes=200, execs=300, net_rx_bytes=1, denied_connects=1)


@dataclass
class Side:
    parts: frozenset[str]
    problems: tuple[str, ...]
    counted: Counters
    fails: BpfError | None = None
    known: set[int] = field(default_factory=set)
    armed: dict[int, tuple[int | None, int | None]] = field(default_factory=dict)
    policies: dict[int, NetworkPolicy] = field(default_factory=dict)
    rates: dict[int, int | None] = field(default_factory=dict)
    traces: bool = False
    settled: list[int] = field(default_factory=list)
    event: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    raises: tuple[Exception, ...] = ()

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
        if self.fails is not None:
            raise self.fails
        self.known.add(cgroup_id)
        self.armed[cgroup_id] = (notify, brake)

    def settle(self, cgroup_id: int) -> None:
        self.settled.append(cgroup_id)

    def arm(self, cgroup_id: int, *, notify: int | None, brake: int | None) -> None:
        self.armed[cgroup_id] = (notify, brake)

    def set_network(self, cgroup_id: int, policy: NetworkPolicy) -> None:
        self.policies[cgroup_id] = policy

    def pace(self, cgroup_id: int, rate: int | None) -> None:
        self.rates[cgroup_id] = rate

    def paced(self) -> set[int]:
        return {cgroup_id for cgroup_id, rate in self.rates.items() if rate is not None}

    def trace_disk(self, on: bool) -> None:
        self.traces = on

    def counters(self, cgroup_id: int, *, live: bool = True) -> Counters | None:
        return self.counted if cgroup_id in self.known else None

    def all_counters(self) -> dict[int, Counters]:
        return dict.fromkeys(self.known, self.counted)

    def forget(self, cgroup_id: int) -> None:
        self.known.discard(cgroup_id)

    def registered(self) -> set[int]:
        return set(self.known)

    def fileno(self) -> int:
        return self.event

    def drain(self) -> int:
        if self.raises:
            raise ExceptionGroup("events", self.raises)
        return 1

    def close(self) -> None:
        os.close(self.event)


def sides(*parts: str) -> tuple[Side, Side, BothSides]:
    first = Side(frozenset(parts), ("no eBPF tripwire: no BTF",), EBPF)
    second = Side(frozenset({"lifecycle", "accounting"}), ("no eBPF (in part); netlink stands in", "KiB"), NETLINK)
    return first, second, BothSides(first, second)


def test_each_counts_what_it_can() -> None:
    _, _, both = sides("network", "gates")
    both.register(7)
    wanted = Counters(faults=100, read_bytes=200, execs=300, net_rx_bytes=400, denied_connects=5)
    assert both.counters(7) == wanted
    assert both.all_counters() == {7: wanted}
    assert both.counters(8) is None
    assert both.parts == {"network", "gates", "lifecycle", "accounting"}
    both.close()


def test_what_the_first_counts_is_not_replaced() -> None:
    _, _, both = sides("accounting", "network")
    both.register(7)
    counters = both.counters(7)
    assert counters is not None
    assert (counters.faults, counters.execs) == (1, 300)
    both.close()


def test_what_is_told() -> None:
    _, _, both = sides("network", "gates")
    assert both.problems == (
        "no eBPF tripwire: no BTF",
        "the process connector and taskstats stand in for accounting, lifecycle",
        "KiB",
    )
    both.close()


def test_registered_with_both_or_with_none() -> None:
    first, second, both = sides("network")
    both.register(7, notify=1, brake=2)
    assert first.armed == {7: (1, 2)}
    assert both.registered() == {7}
    second.fails = TooManyCalls("full")
    with pytest.raises(TooManyCalls):
        both.register(8)
    assert first.known == {7}
    first.known.add(9)  # pinned, left by a daemon before: the second side has to be told of it
    assert both.registered() == {7}
    both.settle(7)
    assert first.settled == second.settled == [7]
    both.set_network(7, NetworkPolicy.NONE)
    assert first.policies == {7: NetworkPolicy.NONE}
    both.arm(7, notify=None, brake=5)
    assert first.armed.get(7) == (None, 5)
    both.forget(7)
    assert both.registered() == set()
    both.close()


def test_one_descriptor_for_both_and_nobodys_failure_hides_the_other() -> None:
    first, second, both = sides("network")
    waiting = select.poll()
    waiting.register(both.fileno(), select.POLLIN)
    assert not waiting.poll(0)
    os.eventfd_write(second.event, 1)
    assert waiting.poll(0)
    assert both.drain() == 2
    first.raises = (ValueError("a"),)
    second.raises = (ValueError("b"), ValueError("c"))
    with pytest.raises(ExceptionGroup) as caught:
        both.drain()
    assert [str(err) for err in caught.value.exceptions] == ["a", "b", "c"]
    both.close()
