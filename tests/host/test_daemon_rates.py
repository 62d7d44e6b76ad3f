"""Rates under a real daemon: what leaves a call, a session and a tenant, and what goes to and from a disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

import grpc
import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from bpf.pace import BURST
from controller.cgroup.io import disks
from tests.host.daemon_tools import MIB, end, events_of, go, line, live_call
from tests.host.net_tools import Cable, Received, Receiver, cable, fastest, sender, together
from tests.support.daemons import DaemonFactory, DaemonUnderTest, Session
from tests.unit.cli_support import corral

pytestmark = pytest.mark.host
PIPE = asyncio.subprocess.PIPE
MB = 1_000_000


@pytest.fixture(scope="module")
def between() -> Iterator[Cable]:
    with cable() as made:
        yield made


@contextlib.contextmanager
def receivers(between: Cable, count: int) -> Iterator[list[Receiver]]:
    made = [Receiver(between) for _ in range(count)]
    try:
        yield made
    finally:
        for receiver in made:
            receiver.close()


async def sending(
    daemon: DaemonUnderTest, session: Session, between: Cable, receiver: Receiver, size: int
) -> asyncio.subprocess.Process:
    """A call that will send ``size`` bytes once it is let go."""
    process = await daemon.launch(session, *between.near, *sender(receiver, size), stdin=PIPE)
    assert await line(process) == "ready"
    return process


async def received(receiver: Receiver, size: int) -> Received:
    return await asyncio.to_thread(receiver.result, size)


async def limit(daemon: DaemonUnderTest, target: str, **limits: int) -> None:
    request = pb.SetLimitsRequest(target=target, limits=pb.Limits(**limits))
    await daemon.client.call(daemon.client.operator.SetLimits, request)


async def test_every_call_gets_the_default_and_an_operator_lifts_it(daemons: DaemonFactory, between: Cable) -> None:
    rate, size = 2 * MB, 2 * MB
    daemon = await daemons.start(settings={"call": {"egress_max": rate}})
    session = await daemon.open_session("acme")
    with receivers(between, 2) as (slow, free):
        process = await sending(daemon, session, between, slow, size)
        call = await live_call(daemon, session)
        assert call.grant.limits.egress_bytes_per_second == rate
        go(process)
        got = await received(slow, size)
        assert got.intact
        assert got.seconds >= fastest(size, rate, BURST)
        go(process)
        assert (await end(process))[0] == 0

        process = await sending(daemon, session, between, free, 16 * MB)
        call = await live_call(daemon, session)
        await limit(daemon, call.id, egress_bytes_per_second=-1)
        assert (await live_call(daemon, session)).grant.limits.egress_bytes_per_second == -1
        await limit(daemon, call.id, egress_bytes_per_second=1024)
        go(process)
        await limit(daemon, call.id, egress_bytes_per_second=-1)  # or it would take hours
        assert (await received(free, 16 * MB)).intact
        go(process)
        assert (await end(process))[0] == 0


@pytest.mark.parametrize("whose", ["tenant", "session"])
async def test_calls_share_what_is_above_them(daemons: DaemonFactory, between: Cable, whose: str) -> None:
    """And go on to do so when the daemon is killed and comes again."""
    rate, size = 4 * MB, 2 * MB
    daemon = await daemons.start(tenants={"acme": {"egress_max": rate} if whose == "tenant" else {}})
    session = await daemon.open_session("acme")
    if whose == "session":
        await limit(daemon, session.id, egress_bytes_per_second=rate)
    with receivers(between, 2) as both:
        processes = [await sending(daemon, session, between, receiver, size) for receiver in both]
        await daemon.restart(kill=True)
        for process in processes:
            go(process)
        results = await asyncio.gather(*(received(receiver, size) for receiver in both))
        assert all(got.intact for got in results)
        assert together(results) >= fastest(2 * size, rate, BURST)
        for process in processes:
            go(process)
            assert (await end(process))[0] == 0


async def test_corral_limits_sets_and_shows_rates(daemons: DaemonFactory) -> None:
    daemon = await daemons.start()

    api = f"unix:{daemon.operator_socket}"
    assert (await corral("limits", "acme", "--egress-max", "10M", "--io-max", "50M", api=api)).code == 0
    shown = await corral("limits", "acme", api=api)
    assert [" ".join(row.split()) for row in shown.out.splitlines() if row.startswith(("egress max", "io max"))] == [
        "io max 50 MiB/s",
        "egress max 10 MiB/s",
    ]
    refused = await corral("limits", "acme", "--egress-max", "10", api=api)
    assert refused.code != 0
    assert "limits.egress_bytes_per_second" in refused.err
    assert "1024 to" in refused.err


async def test_a_call_may_not_have_more_than_its_tenant(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(tenants={"acme": {"egress_max": "1M"}})
    session = await daemon.open_session("acme")
    process = await daemon.launch(session, "/bin/sh", "-c", "echo up; read line", stdin=PIPE)
    assert await line(process) == "up"
    call = await live_call(daemon, session)
    with pytest.raises(Exception, match="above the ceiling of tenant") as refused:
        await limit(daemon, call.id, egress_bytes_per_second=2 * MIB)
    assert not isinstance(refused.value, AssertionError | grpc.aio.UsageError)
    go(process)
    await end(process)


def rates(daemon: DaemonUnderTest, call: pb.Call) -> set[tuple[str, int]]:
    """Device and bytes a second that may be read, as the kernel has them for the call's leaf."""
    found = set()
    for path in daemon.groups(call):
        if (v1 := path / "blkio.throttle.read_bps_device").exists():
            found |= {(device, int(rate)) for device, rate in (row.split() for row in v1.read_text().splitlines())}
        if (v2 := path / "io.max").exists():
            rows = (row.split() for row in v2.read_text().splitlines())
            found |= {(device, int(first.removeprefix("rbps="))) for device, first, *_ in rows}
    return found


READ = """
import mmap, os, sys, time
print("ready", flush=True)
sys.stdin.readline()
fd, block, count, began = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 1 << 20), 0, time.monotonic()
while got := os.readv(fd, [block]):
    count += got
print(count, time.monotonic() - began, flush=True)
"""


async def test_a_disk_is_read_at_the_rate(daemons: DaemonFactory) -> None:
    if not disks():
        pytest.skip("this host has no disk")
    size, rate = 4 * MIB, 4 * MIB
    daemon = await daemons.start(settings={"call": {"io_max": rate}})
    session = await daemon.open_session("acme")
    with tempfile.NamedTemporaryFile(dir="/var/tmp", prefix="corral-test-") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
        async with events_of(daemon, session):
            process = await daemon.launch(session, sys.executable, "-S", "-c", READ, file.name, stdin=PIPE)
            said = await line(process)
            assert said == "ready"
            call = await live_call(daemon, session)
            assert rates(daemon, call) == {(device, rate) for device in disks()}
            go(process)
            status, out, err = await end(process)
            if status and "Invalid argument" in err:
                pytest.skip("the file system of /var/tmp takes no direct I/O")
            count, seconds = out.split()
    assert int(count) == size
    # the kernel lets a tenth of a second's worth go at once, and rounds to slices of as much
    assert float(seconds) >= 0.5 * size / rate


async def test_the_rate_of_a_disk_is_lifted(daemons: DaemonFactory) -> None:
    if not disks():
        pytest.skip("this host has no disk")
    daemon = await daemons.start()
    session = await daemon.open_session("acme")
    process = await daemon.launch(session, "/bin/sh", "-c", "echo up; read line", stdin=PIPE)
    assert await line(process) == "up"
    call = await live_call(daemon, session)
    assert rates(daemon, call) == set()
    await limit(daemon, call.id, io_bytes_per_second=8 * MIB)
    assert rates(daemon, call) == {(device, 8 * MIB) for device in disks()}
    await limit(daemon, call.id, io_bytes_per_second=-1)
    assert rates(daemon, call) == set()
    go(process)
    await end(process)
