"""sd_notify against a real datagram socket."""

from __future__ import annotations

import array
import asyncio
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.notify import Notifier, NotifyError


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        yield sock


@pytest.fixture
def notifier(systemd: socket.socket) -> Iterator[Notifier]:
    with Notifier(systemd.getsockname()) as found:
        yield found


def received(systemd: socket.socket) -> list[str]:
    return systemd.recv(65_536).decode().split("\n")


def test_each_message(systemd: socket.socket, notifier: Notifier) -> None:
    assert notifier.enabled
    assert notifier.ready("serving")
    assert received(systemd) == ["READY=1", "STATUS=serving"]
    assert notifier.ready()
    assert received(systemd) == ["READY=1"]
    assert notifier.status("3 calls")
    assert received(systemd) == ["STATUS=3 calls"]
    assert notifier.stopping("draining")
    assert received(systemd) == ["STOPPING=1", "STATUS=draining"]
    assert notifier.ping()
    assert received(systemd) == ["WATCHDOG=1"]
    assert notifier.main_pid(7)
    assert received(systemd) == ["MAINPID=7"]
    assert notifier.extend_timeout(1.5)
    assert received(systemd) == ["EXTEND_TIMEOUT_USEC=1500000"]


def test_a_reload_carries_the_monotonic_time(systemd: socket.socket, notifier: Notifier) -> None:
    before = time.monotonic_ns() // 1000
    assert notifier.reloading()
    first, second = received(systemd)
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_status_cannot_smuggle_another_assignment(systemd: socket.socket, notifier: Notifier) -> None:
    notifier.status("a\nMAINPID=1\0\x1b" + "x" * 10_000)
    (line,) = received(systemd)
    assert line.startswith("STATUS=a MAINPID=1  xxx")
    assert len(line) < 600


def test_an_empty_status_sends_nothing(notifier: Notifier) -> None:
    assert not notifier.status("")


def test_an_abstract_socket() -> None:
    name = f"corral-test-{os.getpid()}-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        systemd.settimeout(30)
        with Notifier("@" + name) as notifier:
            assert notifier.ready()
        assert received(systemd) == ["READY=1"]


def test_descriptors_are_stored(systemd: socket.socket, notifier: Notifier) -> None:
    reader, writer = os.pipe()
    try:
        assert notifier.store_fds("broker", [reader])
        data, ancillary, _, _ = systemd.recvmsg(4096, socket.CMSG_SPACE(64))
        assert data.decode().split("\n") == ["FDSTORE=1", "FDNAME=broker"]
        ((level, kind, raw),) = ancillary
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        (passed,) = array.array("i", raw)
        try:
            os.write(writer, b"x")
            assert os.read(passed, 1) == b"x"
        finally:
            os.close(passed)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    ("name", "count"), [("", 1), ("a:b", 1), ("a\nb", 1), ("é", 1), ("a" * 256, 1), ("a", 0), ("a", 254)]
)
def test_wrong_stores_are_refused(notifier: Notifier, name: str, count: int) -> None:
    with pytest.raises(ValueError, match=r"give|FDNAME"):
        notifier.store_fds(name, [0] * count)


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier.from_environment({})
    assert not notifier.enabled
    assert not notifier.ready()
    assert not notifier.reloading()
    assert notifier.failures == 0
    notifier.close()


def test_the_environment_is_read_and_emptied(systemd: socket.socket) -> None:
    environ = {
        "NOTIFY_SOCKET": systemd.getsockname(),
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "OTHER": "stays",
    }
    with Notifier.from_environment(environ) as notifier:
        assert environ == {"OTHER": "stays"}
        assert notifier.enabled
        assert notifier.watchdog_seconds == 30.0


def test_a_watchdog_of_another_process_is_not_ours() -> None:
    assert Notifier.from_environment({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_seconds is None
    assert Notifier.from_environment({"WATCHDOG_USEC": "1000"}).watchdog_seconds == 0.001


@pytest.mark.parametrize(
    "environ", [{"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": "@"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-5"}]
)
def test_a_wrong_environment_is_said(environ: dict[str, str]) -> None:
    with pytest.raises(NotifyError, match="unset it"):
        Notifier.from_environment(environ)


def test_a_socket_that_went_away_is_counted_not_raised(systemd: socket.socket, notifier: Notifier) -> None:
    systemd.close()
    assert not notifier.ready()
    assert notifier.failures == 1


def test_a_full_queue_does_not_block(systemd: socket.socket, notifier: Notifier) -> None:
    sent = 0
    while notifier.ping():
        sent += 1
        assert sent < 100_000
    assert notifier.failures == 1
    assert received(systemd) == ["WATCHDOG=1"]


async def test_the_watchdog_pings_until_cancelled(systemd: socket.socket) -> None:
    systemd.setblocking(False)
    loop = asyncio.get_running_loop()
    with Notifier(systemd.getsockname(), watchdog_seconds=0.002) as notifier:
        task = asyncio.create_task(notifier.watchdog())
        try:
            for _ in range(3):
                assert await asyncio.wait_for(loop.sock_recv(systemd, 100), 30) == b"WATCHDOG=1"
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_an_unhealthy_daemon_does_not_ping(systemd: socket.socket) -> None:
    systemd.setblocking(False)
    asked = 0
    enough = asyncio.Event()

    def healthy() -> bool:
        nonlocal asked
        asked += 1
        if asked >= 3:
            enough.set()
        return False

    with Notifier(systemd.getsockname(), watchdog_seconds=0.002) as notifier:
        task = asyncio.create_task(notifier.watchdog(healthy))
        try:
            await asyncio.wait_for(enough.wait(), 30)
            with pytest.raises(BlockingIOError):
                systemd.recv(100)
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_without_a_watchdog_the_task_ends_at_once(notifier: Notifier) -> None:
    await notifier.watchdog()
    await Notifier("", watchdog_seconds=1.0).watchdog()
