"""Gates: destinations and device nodes, on the kernel at hand."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bpf.kernel import KernelSide
from bpf.types import DeniedEvent, DeniedWhat, NetworkPolicy
from tests.host.bpf_support import Group, Host

pytestmark = pytest.mark.host

MEM_MAJOR = 1  # /dev/null, /dev/zero: harmless stand-ins for a GPU


@pytest.fixture
def side(host: Host) -> Iterator[KernelSide]:
    with KernelSide.open(
        cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=host.events.append, majors=[MEM_MAJOR]
    ) as made:
        assert not made.problems
        yield made
        made.unload()


@contextmanager
def listener(family: socket.AddressFamily, address: str) -> Iterator[int]:
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.bind((address, 0))
        server.listen()
        yield server.getsockname()[1]


def denials(host: Host, side: KernelSide) -> list[DeniedEvent]:
    side.drain()
    return [event for event in host.events if isinstance(event, DeniedEvent)]


def test_any_and_none(host: Host, side: KernelSide) -> None:
    group = host.group()
    side.register(group.id)
    with listener(socket.AF_INET, "127.0.0.1") as port:
        assert host.start_in(group, "connect", "127.0.0.1", str(port)).run() == 0
        side.set_network(group.id, NetworkPolicy.NONE)
        refused = host.start_in(group, "connect", "127.0.0.1", str(port))
        assert refused.run() == errno.EPERM
        assert host.start_in(group, "send", "127.0.0.1", "9").run() == errno.EPERM
        assert host.start_in(group, "send", "::1", "9").run() == errno.EPERM
    assert [(event.what, event.address) for event in denials(host, side)] == [
        (DeniedWhat.CONNECT, "127.0.0.1"),
        (DeniedWhat.SEND, "127.0.0.1"),
        (DeniedWhat.SEND, "::1"),
    ]
    first = denials(host, side)[0]
    assert (first.pid, first.comm, first.port, first.protocol) == (refused.pid, "bpf_load", port, socket.IPPROTO_TCP)
    found = side.counters(group.id)
    assert found is not None
    assert found.denied_connects == 3


@pytest.mark.parametrize(
    ("bound", "to", "rules", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1", [("127.0.0.0/8", 0)], True),
        ("127.0.0.1", "127.0.0.1", [("127.0.0.1", 1)], False),
        ("127.0.0.1", "127.0.0.1", [("10.0.0.0/8", 0), ("192.168.0.0/16", 0), ("127.0.0.1", 0)], True),
        ("127.0.0.1", "127.0.0.1", [("::/0", 0)], False),
        ("127.0.0.1", "127.0.0.1", [], False),
        ("127.0.0.1", "0.0.0.0", [("127.0.0.0/8", 0)], True),
        ("127.0.0.1", "0.0.0.0", [("0.0.0.0/32", 0)], False),
        ("127.0.0.1", "::ffff:127.0.0.1", [("127.0.0.0/8", 0)], True),
        ("127.0.0.1", "::ffff:127.0.0.1", [("::/0", 0)], False),
        ("::1", "::1", [("::1/128", 0)], True),
        ("::1", "::1", [("2001:db8::/32", 0), ("0.0.0.0/0", 0)], False),
    ],
)
def test_list(host: Host, side: KernelSide, bound: str, to: str, rules: list[tuple[str, int]], allowed: bool) -> None:  # noqa: PLR0917 - a table
    group = host.group()
    side.register(group.id, network=NetworkPolicy.listed(rules))
    with listener(socket.AF_INET6 if ":" in bound else socket.AF_INET, bound) as port:
        assert host.start_in(group, "connect", to, str(port)).run() == (0 if allowed else errno.EPERM)


def test_the_port_of_a_rule_counts(host: Host, side: KernelSide) -> None:
    group = host.group()
    with listener(socket.AF_INET, "127.0.0.1") as port, listener(socket.AF_INET, "127.0.0.1") as other:
        rules = [(f"10.0.{i}.0/24", 0) for i in range(63)]
        side.register(group.id, network=NetworkPolicy.listed([*rules, ("127.0.0.1", port)]))
        assert host.start_in(group, "connect", "127.0.0.1", str(port)).run() == 0
        assert host.start_in(group, "connect", "127.0.0.1", str(other)).run() == errno.EPERM


def test_a_socket_from_before_is_cut_off_by_none(host: Host, side: KernelSide) -> None:
    group = host.group()
    side.register(group.id)
    worker = host.start_in(group, "connected", "127.0.0.1", "9")
    assert worker.run() == 0
    side.set_network(group.id, NetworkPolicy.NONE)
    # A connected socket passes no gate when it sends: the packet filter stops it.
    assert worker.run() == errno.EPERM
    (event,) = denials(host, side)
    assert (event.what, event.address, event.port, event.pid) == (DeniedWhat.PACKET, "127.0.0.1", 9, 0)


def test_raw_sockets_are_judged_by_what_they_send(host: Host, side: KernelSide) -> None:
    group = host.group()
    side.register(group.id, network=NetworkPolicy.listed([("127.0.0.1", 9)]))
    assert host.start_in(group, "raw", "127.0.0.1", "9").run() == 0
    # The kernel answers a raw send that a filter dropped with EPERM, like any other.
    assert host.start_in(group, "raw", "127.0.0.1", "10").run() == errno.EPERM
    assert host.start_in(group, "raw", "127.0.0.2", "9").run() == errno.EPERM
    assert [event.what for event in denials(host, side)] == [DeniedWhat.PACKET] * 2


def test_devices_need_a_grant(host: Host, side: KernelSide) -> None:
    group, other = host.group(), host.group("other")
    side.register(group.id)
    assert host.start_in(group, "open", "/dev/null").run() == errno.EPERM
    assert host.start_in(other, "open", "/dev/null").run() == 0  # nobody's call
    side.set_gpu(group.id, True)
    assert host.start_in(group, "open", "/dev/null").run() == 0
    side.set_gpu(group.id, False)
    side.set_gpu_majors([])
    assert host.start_in(group, "open", "/dev/null").run() == 0
    (event,) = denials(host, side)
    assert (event.what, event.major, event.minor, event.address) == (DeniedWhat.DEVICE, MEM_MAJOR, 3, "")
    found = side.counters(group.id)
    assert found is not None
    assert found.denied_devices == 1


def test_events_of_refusals_are_few(host: Host, side: KernelSide) -> None:
    group: Group = host.group()
    side.register(group.id, network=NetworkPolicy.NONE)
    assert host.start_in(group, "connects", "127.0.0.1", "9", "2000").run() == errno.EPERM
    found = side.counters(group.id)
    assert found is not None
    assert found.denied_connects == 2000
    assert 16 <= len(denials(host, side)) < 1000
