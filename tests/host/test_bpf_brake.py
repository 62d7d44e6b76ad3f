"""The brake and the notice, on the kernel at hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.kernel import KernelSide
from bpf.types import BrakeEvent, NotifyEvent
from tests.host import bpf_support as support
from tests.host.bpf_support import MIB, Host

pytestmark = pytest.mark.host

BRAKE = 48 * MIB
SLACK = 2 * MIB


@pytest.fixture
def side(host: Host) -> Iterator[KernelSide]:
    with KernelSide.open(cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=host.events.append) as made:
        assert "tripwire" in made.parts, made.problems
        yield made
        made.unload()


def brakes(host: Host) -> list[BrakeEvent]:
    return [event for event in host.events if isinstance(event, BrakeEvent)]


def expect_few(events: list[BrakeEvent], pids: list[int], threads: int = 1) -> None:
    """Each process is named, and hardly more than once: since 6.14 the kernel sends the signal a few microseconds
    later (from an interrupt), and until then the same thread, or another, may fault once more."""
    assert {event.tgid for event in events} == set(pids)
    assert len(events) <= 3 * threads * len(pids)


@pytest.mark.parametrize("pages", ["small", "huge"])
def test_stops_just_past_the_brake(host: Host, side: KernelSide, pages: str) -> None:
    group = host.group()
    worker = host.start_in(group, "touch", str(256 * MIB), pages, "1", "0")
    side.register(group.id, brake=BRAKE, memory_cgroup=group.memory_id)
    worker.go()
    worker.wait_stopped()
    # One huge page is 2 MiB by itself.
    assert BRAKE - SLACK < group.usage < BRAKE + SLACK + (2 * MIB if pages == "huge" else 0)
    side.drain()
    expect_few(brakes(host), [worker.pid])
    event = brakes(host)[0]
    assert (event.cgroup_id, event.threshold) == (group.id, BRAKE)
    assert BRAKE < event.usage < BRAKE + SLACK + MIB
    found = side.counters(group.id)
    assert found is not None
    assert found.brakes == len(brakes(host))


def test_every_process_stops_and_is_named(host: Host, side: KernelSide) -> None:
    group = host.group()
    side.register(group.id, brake=BRAKE, memory_cgroup=group.memory_id)
    workers = [host.start_in(group, "touch", str(64 * MIB), "small", "1", "0") for _ in range(8)]
    for worker in workers:
        worker.go()
    for worker in workers:
        worker.wait_stopped()
    assert group.usage < BRAKE + SLACK
    side.drain()
    expect_few(brakes(host), [worker.pid for worker in workers])


def test_all_threads_stop_at_once(host: Host, side: KernelSide) -> None:
    group = host.group()
    side.register(group.id, brake=BRAKE, memory_cgroup=group.memory_id)
    worker = host.start_in(group, "touch", str(64 * MIB), "small", "8", "0")
    worker.go()
    worker.wait_stopped()
    assert group.usage < BRAKE + SLACK
    side.drain()
    expect_few(brakes(host), [worker.pid], threads=8)
    tasks = Path(f"/proc/{worker.pid}/task").iterdir()
    states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]
    assert set(states) == {"T"}


def test_children_stop(host: Host, side: KernelSide) -> None:
    group = host.group()
    side.register(group.id, brake=BRAKE, memory_cgroup=group.memory_id)
    worker = host.start_in(group, "touch", str(64 * MIB), "small", "1", "3")
    worker.go()
    worker.wait_stopped()
    side.drain()
    assert worker.pid in {event.tgid for event in brakes(host)}
    assert group.usage < BRAKE + SLACK


def test_raised_and_resumed_it_goes_on(host: Host, side: KernelSide) -> None:
    group = host.group()
    side.register(group.id, brake=BRAKE, memory_cgroup=group.memory_id)
    worker = host.start_in(group, "touch", str(80 * MIB), "small", "1", "0")
    worker.go()
    worker.wait_stopped()
    os.kill(worker.pid, signal.SIGCONT)
    worker.wait_stopped()  # still past the brake: it does not get away by continuing
    side.arm(group.id, notify=None, brake=128 * MIB)
    os.kill(worker.pid, signal.SIGCONT)
    assert worker.line() == "0"


def test_notice_once_per_arming(host: Host, side: KernelSide) -> None:
    group = host.group()
    side.register(group.id, notify=16 * MIB, memory_cgroup=group.memory_id)
    worker = host.start_in(group, "touch", str(64 * MIB), "small", "2", "0")
    assert worker.run() == 0
    side.drain()
    (first,) = [event for event in host.events if isinstance(event, NotifyEvent)]
    assert (first.cgroup_id, first.tgid, first.threshold) == (group.id, worker.pid, 16 * MIB)
    assert 16 * MIB < first.usage < 18 * MIB
    side.arm(group.id, notify=8 * MIB, brake=None)
    assert host.start_in(group, "touch", str(32 * MIB), "small", "1", "0").run() == 0
    side.drain()
    assert [event.threshold for event in host.events if isinstance(event, NotifyEvent)] == [16 * MIB, 8 * MIB]


def test_others_and_the_forgotten_are_left_alone(host: Host, side: KernelSide) -> None:
    armed, free, former = host.group("armed"), host.group("free"), host.group("former")
    side.register(armed.id, brake=BRAKE, memory_cgroup=armed.memory_id)
    side.register(free.id)
    side.register(former.id, brake=8 * MIB)
    side.forget(former.id)
    for group in (free, former):
        assert host.start_in(group, "touch", str(64 * MIB), "small", "1", "0").run() == 0
    assert side.registered() == {armed.id, free.id}


def test_memory_charged_elsewhere_does_not_brake(host: Host, side: KernelSide) -> None:
    group = host.group()
    side.register(group.id, brake=8 * MIB, memory_cgroup=group.memory_id + 100_000)
    assert host.start_in(group, "touch", str(32 * MIB), "small", "1", "0").run() == 0


DAEMON = """
import sys
from pathlib import Path
from bpf.kernel import KernelSide
side = KernelSide.open(cgroup=Path(sys.argv[1]), pin_dir=Path(sys.argv[2]), on_event=print)
side.register(int(sys.argv[3]), brake=int(sys.argv[4]), memory_cgroup=int(sys.argv[5]))
print("armed", flush=True)
sys.stdin.read()
"""


def test_brakes_while_the_daemon_is_dead_and_the_next_one_goes_on(host: Host) -> None:
    group = host.group()
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, host.root.v2, host.pin_dir, str(group.id), str(BRAKE), str(group.memory_id)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=support.REPO,
        text=True,
    )
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "armed\n"
    finally:
        daemon.kill()
        daemon.communicate()
    worker = host.start_in(group, "touch", str(256 * MIB), "small", "1", "0")
    worker.go()
    worker.wait_stopped()
    assert group.usage < BRAKE + SLACK
    with KernelSide.open(cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=host.events.append) as side:
        try:
            assert side.adopted == side.parts
            assert side.registered() == {group.id}
            assert side.thresholds(group.id) == (None, BRAKE)
            side.drain()
            expect_few(brakes(host), [worker.pid])
            found = side.counters(group.id)
            assert found is not None
            assert found.brakes == len(brakes(host))
        finally:
            side.unload()
