"""The endpoint over real sockets: what it serves, and what it does with clients that are slow, greedy or wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from agentd.metrics import CannotListen, Health, Metrics, MetricsServer
from agentd.metrics.server import MAX_CONNECTIONS, MAX_HEAD
from controller.model import HostView, Snapshot

Address = tuple[str, int]
HOST = HostView(
    kernel="k",
    mode="observe",
    cpus=1,
    memory_total=1,
    memory_available=1,
    cpu_pressure=None,
    memory_pressure=None,
    io_pressure=None,
)


def snapshot() -> Snapshot:
    return Snapshot(at=1.0, host=HOST, tenants=(), sessions=(), calls=())


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds: what it waits for happens on this loop, and nothing announces it."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


class Daemon:
    """What the server asks, and where it listens."""

    def __init__(self) -> None:
        self.health = Health()
        self.snapshot: Callable[[], Snapshot] = snapshot
        self.metrics = Metrics(self._now, health=lambda: self.health)
        self.server = MetricsServer(self.metrics, timeout=30.0)
        self.address: Address = ("", 0)

    def _now(self) -> Snapshot:
        return self.snapshot()

    async def ask(self, data: bytes) -> bytes:
        """Everything that comes back for ``data``, until the server closes."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(data)
            async with asyncio.timeout(60):
                return await reader.read()
        finally:
            writer.close()


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    daemon = Daemon()
    daemon.address = await daemon.server.start("127.0.0.1", 0)
    yield daemon
    await daemon.server.close()


def request(path: str = "/metrics", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_metrics_are_served(daemon: Daemon) -> None:
    answer = await daemon.ask(request())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"corral_enforcing 0.0\n" in body
    assert (await daemon.ask(request("/metrics?a=b"))).startswith(b"HTTP/1.1 200")


async def test_head_has_no_body(daemon: Daemon) -> None:
    head, _, body = (await daemon.ask(request(method="HEAD"))).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b""


async def test_health(daemon: Daemon) -> None:
    assert (await daemon.ask(request("/healthz"))).endswith(b"\r\n\r\nok\n")
    daemon.health = Health(problems=("the ledger cannot be written",))
    answer = await daemon.ask(request("/healthz"))
    assert answer.startswith(b"HTTP/1.1 503")
    assert answer.endswith(b"the ledger cannot be written\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("/"), 404),
        (request("/metrics/../etc/passwd"), 404),
        (request(method="POST"), 405),
        (request(method="DELETE"), 405),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
        (b"GET metrics HTTP/1.1\r\n\r\n", 400),
        (b"get /metrics HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\xff\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET /a\nX: y HTTP/1.1\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET /" + b"a" * (MAX_HEAD * 2), 431),
    ],
)
async def test_other_requests_are_refused(daemon: Daemon, data: bytes, status: int) -> None:
    answer = await daemon.ask(data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert (await daemon.ask(request())).startswith(b"HTTP/1.1 200")


async def test_half_a_request_is_dropped(daemon: Daemon) -> None:
    reader, writer = await asyncio.open_connection(*daemon.address)
    writer.write(b"GET /metrics HT")
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.close()


async def test_a_client_that_says_nothing_is_dropped() -> None:
    server = MetricsServer(Metrics(snapshot), timeout=0.05)
    reader, writer = await asyncio.open_connection(*await server.start("127.0.0.1", 0))
    try:
        assert await asyncio.wait_for(reader.read(), 60) == b""
    finally:
        writer.close()
        await server.close()


async def test_a_client_that_takes_nothing_is_dropped() -> None:
    # far more than the sockets' buffers hold, so that the server must wait for the client
    server = MetricsServer(Metrics(snapshot, instance="x" * 64_000_000), timeout=1.0)
    address = await server.start("127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    lost = loop.create_future()

    class Deaf(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(request())
            transport.pause_reading()
            self.transport = transport

        def connection_lost(self, error: Exception | None) -> None:
            lost.set_result(error)

    try:
        _, deaf = await loop.create_connection(Deaf, *address)
        await until(lambda: server.connections == 1)
        await until(lambda: server.connections == 0)
        deaf.transport.resume_reading()  # only a reader learns of the reset
        await asyncio.wait_for(lost, 60)
    finally:
        await server.close()


async def test_connections_beyond_the_bound_are_closed(daemon: Daemon) -> None:
    silent = [await asyncio.open_connection(*daemon.address) for _ in range(MAX_CONNECTIONS)]
    try:
        await until(lambda: daemon.server.connections == MAX_CONNECTIONS)
        reader, writer = await asyncio.open_connection(*daemon.address)
        try:
            assert await asyncio.wait_for(reader.read(), 60) == b""
        except ConnectionResetError:
            pass
        finally:
            writer.close()
        assert daemon.server.connections == MAX_CONNECTIONS
    finally:
        for _, writer in silent:
            writer.close()
    await until(lambda: daemon.server.connections == 0)
    assert (await daemon.ask(request())).startswith(b"HTTP/1.1 200")


async def test_a_failing_snapshot_closes_the_connection_and_is_logged(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Snapshot:
        raise RuntimeError("no snapshot today")

    daemon.snapshot = fail
    with caplog.at_level(logging.ERROR):
        assert await daemon.ask(request()) == b""
    assert "no snapshot today" in caplog.text
    daemon.snapshot = snapshot
    assert (await daemon.ask(request())).startswith(b"HTTP/1.1 200")


async def test_a_taken_port_is_said(daemon: Daemon) -> None:
    second = MetricsServer(daemon.metrics)
    with pytest.raises(CannotListen, match=rf"127\.0\.0\.1 port {daemon.address[1]}: .*; give another metrics\.listen"):
        await second.start(*daemon.address)
    await second.close()


async def test_closing_drops_what_is_under_way(daemon: Daemon) -> None:
    reader, writer = await asyncio.open_connection(*daemon.address)
    await until(lambda: daemon.server.connections == 1)
    await daemon.server.close()
    try:
        assert await asyncio.wait_for(reader.read(), 60) == b""
    except ConnectionResetError:
        pass
    finally:
        writer.close()
