"""Rates of what leaves a group, on the kernel at hand: over a cable between two network namespaces, and loopback."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bpf import InvalidPolicy
from bpf.kernel import KernelSide
from bpf.pace import BURST, MIN_RATE
from tests.host import bpf_support as support
from tests.host.bpf_support import Group, Host
from tests.host.net_tools import NEAR_ADDRESS, Cable, Receiver, cable, fastest, sender, together

pytestmark = pytest.mark.host
MB = 1_000_000


@pytest.fixture
def side(host: Host) -> Iterator[KernelSide]:
    with KernelSide.open(cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=host.events.append, majors=[]) as made:
        assert "network" in made.parts, made.problems
        yield made
        made.unload()


@pytest.fixture(scope="module")
def between() -> Iterator[Cable]:
    support.need_root()
    with cable() as made:
        yield made


@contextlib.contextmanager
def started(group: Group, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """In the group before it opens a socket: a socket belongs to the group in which it was made."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (group.v2 / "cgroup.procs").write_text(str(process.pid))
        yield process
    finally:
        process.kill()
        process.communicate()


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def held(side: KernelSide, group: Group) -> int:
    counters = side.counters(group.id, live=False)
    assert counters is not None
    return counters.paced_packets


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("rate", [2 * MB, 20 * MB])
def test_streams_share_the_rate_and_lose_nothing(
    host: Host, side: KernelSide, between: Cable, rate: int, streams: int
) -> None:
    group, size = host.group(), rate // streams
    side.register(group.id)
    side.pace(group.id, rate)
    receiver = Receiver(between, streams)
    with contextlib.closing(receiver), started(group, [*between.near, *sender(receiver, size)]) as process:
        let_go(process)
        got = receiver.result(size)
    assert got.intact, "TCP keeps what was turned back"
    assert got.size == size * streams
    assert got.seconds >= fastest(got.size, rate, BURST)
    # an emulated guest may not be able to send faster than that
    assert held(side, group) > 0 or got.seconds > got.size / rate


def test_a_rate_above_holds_for_all_below_it(host: Host, side: KernelSide, between: Cable) -> None:
    rate, size = 4 * MB, 2 * MB
    tenant = host.group("tenant")
    calls = [host.group("tenant/one"), host.group("tenant/two")]
    for call in calls:
        side.register(call.id)
    side.pace(tenant.id, rate)
    side.pace(calls[0].id, 100 * MB)  # a looser rate of its own lifts nothing
    receivers = [Receiver(between), Receiver(between)]
    with contextlib.ExitStack() as stack:
        for receiver in receivers:
            stack.enter_context(contextlib.closing(receiver))
        processes = [
            stack.enter_context(started(call, [*between.near, *sender(receiver, size)]))
            for call, receiver in zip(calls, receivers, strict=True)
        ]
        for process in processes:
            let_go(process)
        results = [receiver.result(size) for receiver in receivers]
    assert all(got.intact for got in results)
    assert together(results) >= fastest(2 * size, rate, BURST)
    assert all(held(side, call) > 0 for call in calls), "each was turned back, and it is told of each"


def test_a_download_is_not_held_up_by_its_acknowledgements(host: Host, side: KernelSide, between: Cable) -> None:
    group, size = host.group(), 16 * MB
    side.register(group.id)
    side.pace(group.id, MIN_RATE)
    code = (
        "import socket, sys\nprint('ready', flush=True)\nsys.stdin.readline()\n"
        f"server = socket.create_server(({NEAR_ADDRESS!r}, 0))\nprint(server.getsockname()[1], flush=True)\n"
        "sock, _ = server.accept()\ncount = 0\n"
        "while data := sock.recv(1 << 20): count += len(data)\nprint(count, flush=True)"
    )
    with started(group, [*between.near, sys.executable, "-S", "-c", code]) as process:
        let_go(process)
        port = line(process)
        feed = f"import socket\nsocket.create_connection(({NEAR_ADDRESS!r}, {port})).sendall(bytes({size}))"
        subprocess.run([*between.far, sys.executable, "-S", "-c", feed], check=True, timeout=60)
        assert int(line(process)) == size


def test_datagrams_beyond_the_burst_are_lost_as_at_a_full_queue(host: Host, side: KernelSide) -> None:
    group = host.group()
    side.register(group.id)
    side.pace(group.id, 100_000)  # the burst is a largest packet: 64 KiB
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        code = (
            "import socket, sys\nprint('ready', flush=True)\nsys.stdin.readline()\n"
            "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"for _ in range(400): sock.sendto(bytes(1000), ('127.0.0.1', {receiver.getsockname()[1]}))\nprint('sent')"
        )
        with started(group, [sys.executable, "-S", "-c", code]) as process:
            let_go(process)
            assert line(process) == "sent", "no error reaches the sender"
    counters = side.counters(group.id, live=False)
    assert counters is not None
    assert counters.net_tx_packets + counters.paced_packets == 400
    assert counters.net_tx_packets >= 60
    assert counters.paced_packets > 0


def test_what_is_no_longer_paced_is_not_turned_back(host: Host, side: KernelSide, between: Cable) -> None:
    group, size = host.group(), 8 * MB
    side.register(group.id)
    side.pace(group.id, 50_000)
    side.pace(group.id, None)
    receiver = Receiver(between)
    with contextlib.closing(receiver), started(group, [*between.near, *sender(receiver, size)]) as process:
        let_go(process)
        assert receiver.result(size).intact
    assert held(side, group) == 0


def test_a_stream_that_runs_is_slowed_and_let_go(host: Host, side: KernelSide, between: Cable) -> None:
    """At 1000 bytes a second the rest would take hours: that it ends at all shows that it was let go."""
    group, size = host.group(), 64 * MB
    side.register(group.id)
    receiver = Receiver(between)
    with contextlib.closing(receiver), started(group, [*between.near, *sender(receiver, size)]) as process:
        side.pace(group.id, MIN_RATE)
        let_go(process)
        while not held(side, group):
            assert process.poll() is None
            time.sleep(0.01)  # packets that are turned back tell nobody
        side.pace(group.id, None)
        assert receiver.result(size).intact


def test_rates_live_on_and_go_with_their_group(host: Host, side: KernelSide) -> None:
    tenant, call = host.group("tenant"), host.group("tenant/call")
    side.register(call.id)
    side.pace(tenant.id, 5 * MB)
    side.pace(call.id, MB)
    side.close()
    with KernelSide.open(cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=host.events.append, majors=[]) as after:
        assert after.paced() == {tenant.id, call.id}
        assert (after.paces.rate(tenant.id), after.paces.rate(call.id)) == (5 * MB, MB)
        after.forget(call.id)
        assert after.paced() == {tenant.id}
        after.pace(tenant.id, None)
        assert after.paced() == set()


@pytest.mark.parametrize("rate", [0, -1, MIN_RATE - 1, 1 << 41])
def test_a_rate_out_of_range_is_refused(host: Host, side: KernelSide, rate: int) -> None:
    group = host.group()
    with pytest.raises(InvalidPolicy, match="bytes per second"):
        side.pace(group.id, rate)
    assert side.paced() == set()
