"""The gateway under hostile, broken, slow and leaving clients: nothing passes, nothing grows, nothing is left."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from agentd.gateway import Limits
from tests.support.gateways import AUTH, HELLO, WORLD, echo, gateway
from tests.support.peer import Peer
from tests.support.scripted import Exchange


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        b"GET http://other/ HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/2.0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 0x10\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nA : b\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nA: \x00\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        b"POST /v1/completions HTTP/1.1\r\n" + AUTH + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\n" + AUTH + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
    ],
)
async def test_what_is_not_a_request_is_refused_and_the_connection_ends(raw: bytes) -> None:
    async with gateway(echo) as one, one.peer() as peer:
        peer.send(raw)
        assert await peer.refused() == (400, "bad_request")
        assert await peer.ended()
        assert not one.upstream.exchanges


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a":1}x', b"\xff", b"null", b'{"a":' + b"[" * 100_000])
async def test_a_body_that_is_no_object_is_refused_and_the_connection_stays(body: bytes) -> None:
    async with gateway(echo) as one, one.peer() as peer:
        peer.ask(body)
        assert await peer.refused() == (400, "invalid_json")
        peer.ask({})
        assert (await peer.answer())[0] == 200


async def test_paths_methods_and_conversations_that_are_not_served() -> None:
    async with gateway(echo) as one, one.peer() as peer:
        peer.ask({}, path="/slots/0?action=erase")
        assert await peer.refused() == (404, "unknown_path")
        assert await peer.ended()  # its body was not read
    async with gateway(echo) as one, one.peer() as peer:
        peer.send(b"GET /v1/completions HTTP/1.1\r\n" + AUTH + b"\r\n")
        assert await peer.refused() == (405, "method_not_allowed")
        peer.ask({}, extra="X-Corral-Conversation: ../x\r\n")
        assert await peer.refused() == (400, "bad_conversation")
        assert not one.upstream.exchanges


async def test_sizes_are_bounded() -> None:
    limits = Limits(body=1000, buffered=1500)
    async with gateway(echo, limits=limits) as one:
        async with one.peer() as peer:
            peer.ask(b" " * 1001)
            assert await peer.refused() == (413, "request_too_large")
            assert await peer.ended()
        async with one.peer() as peer:
            head = b"POST /v1/completions HTTP/1.1\r\n" + AUTH + b"Transfer-Encoding: chunked\r\n\r\n"
            peer.send(head + b"3e8\r\n" + b" " * 1000 + b"\r\n1\r\n \r\n")
            assert await peer.refused() == (413, "request_too_large")
        async with one.peer() as peer:
            peer.send(b"GET /" + b"a" * 40_000)
            assert await peer.refused() == (431, "headers_too_large")
            assert await peer.ended()
        async with one.peer() as slow, one.peer() as peer:
            slow.send(b"POST /v1/completions HTTP/1.1\r\n" + AUTH + b"Content-Length: 1000\r\n\r\n{")
            async with asyncio.timeout(10):
                while one.gateway.buffered < 1000:  # noqa: ASYNC110  nobody tells when a head was read
                    await asyncio.sleep(0.01)
            peer.ask(b" " * 1000)
            assert await peer.refused() == (503, "gateway_busy")


async def test_times_are_bounded() -> None:
    async with gateway(echo, limits=Limits(head_seconds=0.05, body_seconds=0.05, idle_seconds=0.05)) as one:
        async with one.peer() as silent:
            assert await silent.ended()
        async with one.peer() as half:
            half.send(b"POST /v1/compl")
            assert await half.ended()
        async with one.peer() as slow:
            slow.send(b"POST /v1/completions HTTP/1.1\r\n" + AUTH + b"Content-Length: 1000\r\n\r\n{")
            assert await slow.refused() == (408, "request_timeout")
            assert await slow.ended()
        async with one.peer() as idle:
            idle.ask({})
            assert (await idle.answer())[0] == 200
            assert await idle.ended()


async def test_connections_and_streams_are_bounded() -> None:
    waiting = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        waiting.set()
        await exchange.gone()

    async with gateway(script, limits=Limits(connections=2, streams=1)) as one, one.peer() as first:
        first.ask({})
        await asyncio.wait_for(waiting.wait(), 10)
        async with one.peer() as second:
            second.ask({})
            assert await second.refused() == (429, "too_many_streams")
            assert await second.ended()
        async with one.peer() as second, one.peer() as third:
            second.send(b"GET ")
            assert await second.ended()  # who asks for nothing gives way to a newcomer
            third.send(b"GET /health HTTP/1.1\r\n\r\n")
            assert (await third.answer())[0] == 200


async def test_places_of_turns_under_way_are_nobody_elses() -> None:
    waiting = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        waiting.set()
        await exchange.gone()

    async with gateway(script, limits=Limits(connections=1)) as one, one.peer() as first:
        first.ask({})
        await asyncio.wait_for(waiting.wait(), 10)
        async with one.peer() as second:
            assert await second.ended()
        assert one.gateway.connections == 1


@pytest.mark.parametrize("framing", [b"Content-Length: 70000\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_no_large_body_is_read_of_a_token_that_nobody_has(framing: bytes) -> None:
    async with gateway(echo) as one, one.peer() as peer:
        peer.send(b"POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer made-up\r\n" + framing + b"\r\n")
        assert await peer.refused() == (401, "invalid_api_key")  # before a byte of it was sent
        assert one.gateway.buffered == 0
    async with gateway(echo) as one, one.peer() as peer:
        for _ in range(2):
            peer.ask({"prompt": "x" * 70_000})
            assert (await peer.answer())[0] == 200
        assert [ask.turn for ask in one.port.asked] == [False, True, True]  # once asked, it is known


async def test_of_a_body_that_comes_with_a_question_for_health_nothing_is_kept() -> None:
    async with gateway(echo) as one, one.peer() as peer:
        peer.send(b"GET /health HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n{}")
        status, headers, _ = await peer.answer()
        assert (status, headers["connection"], one.gateway.buffered) == (200, "close", 0)
        assert await peer.ended()


async def test_one_sessions_bodies_leave_room_for_anothers() -> None:
    async with gateway(echo, limits=Limits(body=1000, buffered=4000)) as one:
        one.port.tokens["another-session-token"] = "s2"
        async with one.peer() as slow, one.peer() as peer:
            slow.send(b"POST /v1/completions HTTP/1.1\r\n" + AUTH + b"Content-Length: 1000\r\n\r\n{")
            async with asyncio.timeout(10):
                while one.gateway.buffered < 1000:  # noqa: ASYNC110  nobody tells when a head was read
                    await asyncio.sleep(0.01)
            peer.ask({}, token="another-session-token")  # noqa: S106  a made-up one
            assert (await peer.answer())[0] == 200
            peer.ask({})
            assert await peer.refused() == (429, "too_many_bytes")


async def test_a_client_that_leaves_ends_the_engines_request() -> None:
    begun, over = asyncio.Event(), asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(HELLO + WORLD)
        begun.set()
        await exchange.gone()
        over.set()

    async with gateway(script, tells_usage=True) as one:
        async with one.peer() as peer:
            peer.ask({"stream": True, "messages": "x" * 368})
            await asyncio.wait_for(begun.wait(), 10)
            assert await anext(aiter(_content(peer))) == HELLO + WORLD
        await asyncio.wait_for(over.wait(), 10)
        report = await one.port.report()
        assert (report.cancelled, report.error, report.generated, report.estimated) == (True, "cancelled", 2, True)
        assert report.prompt == 100  # about four bytes a token: leaving early is not free


async def _content(peer: Peer) -> AsyncIterator[bytes]:
    await peer.reader.readuntil(b"\r\n\r\n")
    async for part in peer.parts():
        yield part


async def test_a_client_that_leaves_while_it_waits_for_its_admission_leaves_nothing() -> None:
    async with gateway(echo) as one:
        asked, cancelled = asyncio.Event(), asyncio.Event()

        async def admit(ask: object) -> None:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        one.port.admit = admit  # type: ignore[method-assign,assignment]
        async with one.peer() as peer:
            peer.ask({})
            await asyncio.wait_for(asked.wait(), 10)
        await asyncio.wait_for(cancelled.wait(), 10)
        assert not one.upstream.exchanges


async def test_a_client_that_takes_nothing_is_let_go_and_its_engine_waits_meanwhile() -> None:
    """The engine could send without end; what waits for the client is bounded."""
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.begin_stream()
        while True:
            await exchange.chunk(b"data: " + b"x" * 60_000 + b"\n\n")
            sent += 60_000

    async with gateway(script, limits=Limits(write_seconds=0.3)) as one:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, one.address)
        body = b'{"stream":true}'
        await loop.sock_sendall(
            sock, b"POST /v1/completions HTTP/1.1\r\n" + AUTH + b"Content-Length: 15\r\n\r\n" + body
        )
        report = await one.port.report()
        assert report.cancelled
        assert sent < 64 << 20
        sock.close()
