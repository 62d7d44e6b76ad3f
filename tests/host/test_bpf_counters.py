"""Counters and process events against work whose amount is exactly known."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from bpf import loader
from bpf.kernel import KernelSide
from bpf.trial import kernel_has_function
from bpf.types import Counters, ExecEvent, OomEvent
from tests.host.bpf_support import HYBRID, MIB, Group, Host

pytestmark = pytest.mark.host

# What a process does besides its task: the loader's reads, a line of output. Far below what is asserted on.
SMALL_IO = 64 * 1024
CHOICES = {name for part in loader.PARTS for name in part.one_of}


@pytest.fixture
def side(host: Host) -> Iterator[KernelSide]:
    with KernelSide.open(cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=host.events.append) as made:
        assert not made.problems
        yield made
        made.unload()


@pytest.fixture
def call(host: Host, side: KernelSide) -> Group:
    group = host.group()
    side.register(group.id)
    return group


def read(side: KernelSide, group: Group) -> Counters:
    """Both ways of reading must agree."""
    one, every = side.counters(group.id), side.all_counters()
    assert one is not None
    assert one.faults <= every[group.id].faults
    assert one.forks == every[group.id].forks
    return every[group.id]


def after(side: KernelSide, group: Group, exits: int) -> Counters:
    """Once so many processes have ended: a parent may know that of a child before the kernel has left it."""
    deadline = time.monotonic() + 20
    while read(side, group).exits < exits and time.monotonic() < deadline:
        time.sleep(0.001)
    assert read(side, group).exits == exits
    return read(side, group)


def test_forks_execs_and_exits(host: Host, side: KernelSide, call: Group) -> None:
    worker = host.start_in(call, "forks", "20")
    assert worker.run() == 0
    found = after(side, call, exits=20)
    assert (found.forks, found.execs) == (20, 0)
    worker.end()
    second = host.start_in(call, "forks", "70", "/bin/true")
    second.run()
    second.end()
    found = after(side, call, exits=92)
    assert (found.forks, found.execs) == (90, 70)
    assert found.execs_suppressed == 70 - 64
    side.drain()
    execs = [event for event in host.events if isinstance(event, ExecEvent)]
    assert len(execs) == 64
    assert {(event.path, event.comm, event.ppid, event.uid) for event in execs} == {
        ("/bin/true", "true", second.pid, 0)
    }
    assert {event.cgroup_id for event in execs} == {call.id}


def test_threads_are_no_processes(host: Host, side: KernelSide, call: Group) -> None:
    worker = host.start_in(call, "touch", str(MIB), "small", "8", "0")
    worker.run()
    worker.end()
    assert after(side, call, exits=1).forks == 0


def test_a_process_ends_once_whichever_of_its_threads_is_the_last(host: Host, side: KernelSide, call: Group) -> None:
    host.start_in(call, "leaders", "20").run()
    host.start_in(call, "leaders", "20", "/bin/true").run()
    assert after(side, call, exits=40).execs == 20


@pytest.mark.parametrize("program_of_choice", ["corral_dead", "corral_switch", "corral_exit"])
def test_whichever_program_sees_the_ends_of_tasks(
    host: Host, monkeypatch: pytest.MonkeyPatch, program_of_choice: str
) -> None:
    fit = loader.ends_of_tasks(told_when_dead=kernel_has_function("cgroup_task_dead"))
    if program_of_choice not in fit:
        pytest.skip(f"this kernel's are {fit}")
    monkeypatch.setattr(loader, "ends_of_tasks", lambda **_: (program_of_choice,))
    with KernelSide.open(cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=host.events.append) as side:
        assert not side.problems
        assert [path.name for path in host.pin_dir.glob("links/accounting-*/*") if path.name in CHOICES] == [
            program_of_choice
        ]
        group = host.group()
        side.register(group.id)
        for work in (("leaders", "10"), ("touch", str(MIB), "small", "8", "4"), ("io", str(MIB), str(MIB), "4")):
            worker = host.start_in(group, *work)
            worker.run()
            worker.end()
        found = after(side, group, exits=10 + 1 + 4 + 1 + 4 + 1)
        assert found.forks == 18
        assert 5 * MIB <= found.read_bytes < 5 * MIB + SMALL_IO
        assert found.faults >= 12 * MIB // 4096
        side.unload()


def test_bytes_of_live_and_ended_processes(host: Host, side: KernelSide, call: Group) -> None:
    worker = host.start_in(call, "io", str(8 * MIB), str(4 * MIB), "3")
    worker.run()
    # Three children have ended, their parent lives: four times the work.
    alive = after(side, call, exits=3)
    assert 32 * MIB <= alive.read_bytes < 32 * MIB + SMALL_IO
    assert 16 * MIB <= alive.written_bytes < 16 * MIB + SMALL_IO
    worker.end()
    ended = after(side, call, exits=4)
    empty = side.counters(call.id, live=False)
    assert empty == ended
    assert alive.read_bytes <= ended.read_bytes < 32 * MIB + SMALL_IO
    assert alive.written_bytes <= ended.written_bytes < 16 * MIB + SMALL_IO


def test_faults(host: Host, side: KernelSide, call: Group) -> None:
    worker = host.start_in(call, "touch", str(32 * MIB), "small", "2", "1")
    worker.run()
    # Two threads and a child, 8192 pages each.
    assert 3 * 8192 <= after(side, call, exits=1).faults < 3 * 8192 + 600
    worker.end()
    assert 3 * 8192 <= after(side, call, exits=2).faults < 3 * 8192 + 600
    assert read(side, call).switches > 0


def test_the_past_stays_outside(host: Host, side: KernelSide, call: Group) -> None:
    # One thread that works on, and one that has a past of its own.
    worker = host.start("early", "io", str(MIB), str(MIB), "0")
    call.add(worker)
    assert read(side, call).read_bytes < SMALL_IO
    worker.run()
    assert MIB <= read(side, call).read_bytes < MIB + SMALL_IO
    worker.end()
    assert MIB <= after(side, call, exits=1).read_bytes < MIB + SMALL_IO


def test_settled_use_stays_when_a_process_moves_on(host: Host, side: KernelSide, call: Group) -> None:
    left = host.group("left")
    side.register(left.id)
    worker = host.start_in(call, "io", str(2 * MIB), "0", "0")
    worker.run()
    side.settle(call.id)
    assert 2 * MIB <= read(side, call).read_bytes < 2 * MIB + SMALL_IO
    left.add(worker)
    worker.end()
    after(side, left, exits=1)
    assert 2 * MIB <= read(side, call).read_bytes < 2 * MIB + SMALL_IO
    assert read(side, left).read_bytes < SMALL_IO


def test_network_bytes(host: Host, side: KernelSide, call: Group) -> None:
    worker = host.start_in(call, "udp", "50", "1000")
    assert worker.run() == 0
    found = read(side, call)
    packet = 1000 + 20 + 8  # IPv4 and UDP headers
    assert (found.net_tx_packets, found.net_tx_bytes) == (50, 50 * packet)
    assert (found.net_rx_packets, found.net_rx_bytes) == (50, 50 * packet)


def test_groups_are_kept_apart_and_many_fit(host: Host, side: KernelSide, call: Group) -> None:
    idle = host.group("idle")
    side.register(idle.id)
    made_up = range(1 << 40, (1 << 40) + 2000)
    for cgroup_id in made_up:
        side.register(cgroup_id, brake=1 << 40)
    host.start_in(call, "forks", "5").run()
    every = side.all_counters()
    assert len(every) == 2002
    assert every[call.id].forks == 5
    assert all(counters == Counters() for cgroup_id, counters in every.items() if cgroup_id != call.id)
    for cgroup_id in made_up:
        side.forget(cgroup_id)
    assert set(side.all_counters()) == {call.id, idle.id}
    assert side.counters(made_up[0]) is None


def test_oom_victims_are_told(host: Host, side: KernelSide, call: Group) -> None:
    limit = call.memory / ("memory.limit_in_bytes" if HYBRID else "memory.max")
    worker = host.start_in(call, "touch", str(64 * MIB), "small", "1", "0")
    limit.write_text(str(16 * MIB))
    worker.go()
    assert worker.process.wait() == -9
    assert read(side, call).oom_kills == 1
    side.drain()
    (event,) = [event for event in host.events if isinstance(event, OomEvent)]
    assert (event.cgroup_id, event.pid, event.comm, event.uid) == (call.id, worker.pid, "bpf_load", 0)


def test_the_event_descriptor_wakes_a_loop(host: Host, side: KernelSide, call: Group) -> None:
    import select

    poller = select.poll()
    poller.register(side.fileno(), select.POLLIN)
    assert poller.poll(0) == []
    host.start_in(call, "forks", "1", "/bin/true").run()
    assert poller.poll(10_000)
    assert side.drain() == 1
    assert poller.poll(0) == []


def test_memory_of_the_maps_is_told(side: KernelSide) -> None:
    assert side.memory_bytes() >= MIB  # the ring buffer alone
    assert side.dropped_events == 0
