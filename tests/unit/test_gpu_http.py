"""The HTTP client: statuses, limits, deadlines, cancellation, and servers that are hostile or broken."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from gpu.engines.http import HttpClient
from gpu.errors import BadAnswer, EngineRefused, EngineUnreachable, InvalidValue
from tests.support.engine_fake import fake_engine

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Raw:
    """A server that sends fixed bytes, and may then hold the connection until it is closed from the other side."""

    def __init__(self, payload: bytes, *, hold: bool = False) -> None:
        self.payload = payload
        self.hold = hold
        self.asked = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.payload)
            await writer.drain()
            self.asked.set()
            if self.hold:
                await reader.read()  # until the client lets go
                self.left.set()
        except ConnectionError:
            self.left.set()
        finally:
            writer.close()

    async def __aenter__(self) -> str:
        self.server = await asyncio.start_server(self, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        await self.server.wait_closed()


async def test_json_there_and_back_with_the_key_and_the_prefix() -> None:
    async with fake_engine({"POST /v1/x?a=1": (200, {"n": 3})}) as engine:
        client = HttpClient(f"{engine.url}/v1/", engine="e", api_key="secret")
        assert await client.send("POST", "/x?a=1", dict[str, int], body={"q": [1]}) == {"n": 3}
        assert engine.asked == [("POST /v1/x?a=1", {"q": [1]})]
        assert client.engine == "e"
        await client.close()


async def test_a_refusal_carries_status_and_words_made_printable() -> None:
    async with fake_engine({"GET /x": (503, "busy\x1b[31m now\n")}) as engine:
        client = HttpClient(engine.url, engine="e")
        with pytest.raises(EngineRefused, match="status 503") as caught:
            await client.get("/x", int)
        assert caught.value.status == 503
        assert str(caught.value).isprintable()
        await client.close()


async def test_redirects_are_not_followed() -> None:
    async with fake_engine({"GET /x": (302, "elsewhere")}) as engine:
        client = HttpClient(engine.url, engine="e")
        with pytest.raises(EngineRefused, match="status 302"):
            await client.get_text("/x")
        assert len(engine.asked) == 1
        await client.close()


@pytest.mark.parametrize("body", ["", "nonsense", '"text"', "[1,", "\udcff"])
async def test_an_answer_of_another_shape(body: str) -> None:
    payload = body.encode("utf-8", "surrogateescape")
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(payload), payload)
    async with Raw(raw) as url:
        client = HttpClient(url, engine="e")
        with pytest.raises(BadAnswer, match="engine e: GET /x"):
            await client.get("/x", dict[str, int])
        await client.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 banana\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_not_http(raw: bytes) -> None:
    async with Raw(raw) as url:
        client = HttpClient(url, engine="e")
        with pytest.raises(BadAnswer, match="not HTTP"):
            await client.get_text("/x")
        await client.close()


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"])
async def test_a_connection_that_breaks(raw: bytes) -> None:
    async with Raw(raw) as url:
        client = HttpClient(url, engine="e")
        with pytest.raises(EngineUnreachable):
            await client.get_text("/x")
        await client.close()


async def test_too_much_is_not_read() -> None:
    async with Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n" + b"x" * 5000, hold=True) as url:
        client = HttpClient(url, engine="e", max_bytes=1000)
        with pytest.raises(BadAnswer, match="more than 1000 bytes"):
            await client.get_text("/x")
        await client.close()


async def test_one_deadline_for_the_whole_exchange_frees_the_thread() -> None:
    server = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome", hold=True)
    async with server as url:
        client = HttpClient(url, engine="slow", timeout=0.2)
        with pytest.raises(EngineUnreachable, match=r"no answer within 0\.2 s|timed out"):
            await client.get_text("/x")
        await server.left.wait()
        await client.close()


async def test_a_cancelled_request_lets_go_of_its_connection_at_once() -> None:
    server = Raw(b"", hold=True)
    async with server as url:
        client = HttpClient(url, engine="slow", timeout=3600)
        task = asyncio.create_task(client.get_text("/x"))
        await server.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.left.wait()  # the suite's own time-out is far below the client's
        await client.close()
    for thread in threading.enumerate():
        if thread.name.startswith("corral-slow"):
            await asyncio.to_thread(thread.join)


async def test_nobody_listens() -> None:
    async with Raw(b"") as url:
        pass
    client = HttpClient(url, engine="e")
    with pytest.raises(EngineUnreachable, match="check that it runs"):
        await client.get_text("/x")
    await client.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:80",
        "ftp://h",
        "http://",
        "http://h:99999",
        "http://user:pw@h",
        "http://h/?q",
        "http://h/#f",
        "http://[::1",
        "file:///etc/passwd",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        HttpClient(url, engine="e")
    assert "pw" not in str(caught.value)
