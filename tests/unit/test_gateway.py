"""The gateway against a scripted upstream on raw sockets, driven by raw sockets: what passes, what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.gateway import Gateway, Limits, Refusal, Upstream
from tests.support.gateway_port import TOKEN, RecordingPort
from tests.support.peer import CHAT, Peer
from tests.support.scripted import Exchange, Script, Scripted, scripted

ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":null}}],"usage":null}\n\n'
HELLO = b'data: {"choices":[{"delta":{"content":"Hello \\",\\"usage\\":null"}}],"usage":null}\n\n'
WORLD = b'data: {"choices":[{"delta":{"content":" world"}}],"usage":null}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":8}}}\n\n'
)
DONE = b"data: [DONE]\n\n"


class Setup:
    def __init__(self, gateway: Gateway, port: RecordingPort, upstream: Scripted, address: tuple[str, int]) -> None:
        self.gateway, self.port, self.upstream, self.address = gateway, port, upstream, address

    @contextlib.asynccontextmanager
    async def peer(self) -> AsyncIterator[Peer]:
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            yield Peer(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def gateway(
    script: Script, *, limits: Limits | None = None, tells_usage: bool = False, between: float = 10.0
) -> AsyncIterator[Setup]:
    async with scripted(script) as upstream:
        port = RecordingPort(fields={"id_slot": 3})
        made = Gateway(
            port,
            Upstream(upstream.url, engine="e", api_key="secret", between=between, first_byte=10.0),
            limits=limits,
            tells_usage=tells_usage,
        )
        address = await made.listen_tcp("127.0.0.1", 0)
        try:
            yield Setup(made, port, upstream, address)
        finally:
            await made.close()
            assert (port.open, made.buffered) == (0, 0)


async def echo(exchange: Exchange) -> None:
    await exchange.answer(b'{"usage":{"prompt_tokens":5,"completion_tokens":1}}')


# --- what passes ------------------------------------------------------------------------------------------------------


async def test_a_turn_passes_with_the_engines_fields_and_key_and_without_the_clients() -> None:
    async with gateway(echo) as one, one.peer() as peer:
        body = {"model": "m", "id_slot": 0, "priority": 1, "session_id": "s2", "messages": [{"a": [1.5, None]}]}
        peer.ask(body, extra="User-Agent: agent\r\nX-Forwarded-For: 1.2.3.4\r\nCookie: c\r\n")
        status, _, answered = await peer.answer()
        assert (status, answered) == (200, b'{"usage":{"prompt_tokens":5,"completion_tokens":1}}')
        (exchange,) = one.upstream.exchanges
        assert json.loads(exchange.body) == {"model": "m", "messages": [{"a": [1.5, None]}], "id_slot": 3}
        assert b"authorization: Bearer secret\r\n" in exchange.head
        assert b"user-agent: agent\r\n" in exchange.head
        for hidden in (TOKEN.encode(), b"cookie", b"forwarded"):
            assert hidden not in exchange.head
        report = await one.port.report()
        assert (report.prompt, report.generated, report.status, report.estimated) == (5, 1, 200, False)
        assert (one.port.asked[0].model, one.port.asked[0].token) == ("m", TOKEN)
        assert one.gateway.totals.reserved_fields == 1


@pytest.mark.parametrize("cuts", [1, 7, 64, 100_000])
async def test_a_stream_is_measured_and_what_was_asked_for_alone_is_taken_out(cuts: int) -> None:
    """``cuts``: bytes of each of the engine's chunks."""
    whole = ROLE + HELLO + WORLD + USAGE + DONE

    async def script(exchange: Exchange) -> None:
        await exchange.stream(*(whole[i : i + cuts] for i in range(0, len(whole), cuts)))

    async with gateway(script) as one, one.peer() as peer:
        peer.ask({"stream": True, "stream_options": {"x": 1}})
        status, headers, answered = await peer.answer()
        assert json.loads(one.upstream.exchanges[0].body)["stream_options"] == {"x": 1, "include_usage": True}
        assert (status, headers["x-engine"], headers["content-type"]) == (200, "yes", "text/event-stream")
        assert answered == (ROLE + HELLO + WORLD + DONE).replace(b',"usage":null}\n', b"}\n")
        report = await one.port.report()
        assert (report.prompt, report.cached, report.generated) == (12, 8, 2)
        assert report.first_token is not None
        assert report.first_token <= report.seconds
        assert sum(report.gaps) == 1


@pytest.mark.parametrize("tells", [False, True])
async def test_a_stream_that_needs_no_change_is_byte_exact(tells: bool) -> None:
    whole = (ROLE + HELLO + USAGE + DONE).replace(b"\n\n", b"\r\n\r\n") + b": a comment\n\ndata: half an ev"

    async def script(exchange: Exchange) -> None:
        await exchange.stream(whole[:50], whole[50:])

    async with gateway(script, tells_usage=tells) as one, one.peer() as peer:
        peer.ask({"stream": True} if tells else {"stream": True, "stream_options": {"include_usage": True}})
        assert (await peer.answer())[2] == whole
        assert ("stream_options" in json.loads(one.upstream.exchanges[0].body)) is not tells
        assert (await one.port.report()).prompt == 12


async def test_the_engines_refusals_pass_as_they_are() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(b"no such \xff model", status=418, kind=b"text/x")

    async with gateway(script) as one, one.peer() as peer:
        peer.ask({"stream": True})
        status, headers, body = await peer.answer()
        assert (status, headers["content-type"], body) == (418, "text/x", b"no such \xff model")
        report = await one.port.report()
        assert (report.error, report.prompt, report.generated) == ("status_418", 0, 0)


async def test_connections_are_kept_on_both_sides() -> None:
    async with gateway(echo) as one, one.peer() as peer:
        for _ in range(5):
            peer.ask({"model": "m"})
            assert (await peer.answer())[0] == 200
        assert one.upstream.connections == 1


async def test_a_kept_connection_that_the_engine_closed_is_replaced() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.number == 1 and len(upstream.exchanges) == 2:
            exchange.writer.close()  # instead of an answer to the second request on this connection
        else:
            await echo(exchange)

    async with gateway(script) as one, one.peer() as peer:
        upstream = one.upstream
        for _ in range(2):
            peer.ask({"model": "m"})
            assert (await peer.answer())[0] == 200
        assert upstream.connections == 2


async def test_chunked_requests_and_requests_in_a_row() -> None:
    async with gateway(echo) as one, one.peer() as peer:
        head = f"POST {CHAT} HTTP/1.1\r\nX-Api-Key: {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        peer.send(head + b'5;ext\r\n{"a":\r\n2\r\n1}\r\n0\r\nTrailer: x\r\n\r\n' + head + b"2\r\n{}\r\n0\r\n\r\n")
        assert (await peer.answer())[0] == 200
        assert (await peer.answer())[0] == 200
        assert [json.loads(e.body) for e in one.upstream.exchanges] == [{"a": 1, "id_slot": 3}, {"id_slot": 3}]


async def test_a_token_in_the_base_url_the_models_and_health() -> None:
    async with gateway(echo) as one, one.peer() as peer:
        peer.ask({}, path=f"/session/{TOKEN}/v1/completions", token="")
        assert (await peer.answer())[0] == 200
        peer.send(f"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert (await peer.answer())[0] == 200
        assert one.upstream.exchanges[-1].head.startswith(b"GET /v1/models HTTP/1.1\r\n")
        peer.send(b"GET /health HTTP/1.1\r\n\r\n")
        assert await peer.answer() == (
            200,
            {"content-type": "application/json", "content-length": "15", "connection": "keep-alive"},
            b'{"status":"ok"}',
        )
        assert len(one.upstream.exchanges) == 2


async def test_http_1_0_gets_its_answer_until_the_connection_closes() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream(HELLO, DONE)

    async with gateway(script, tells_usage=True) as one, one.peer() as peer:
        peer.send(f"POST {CHAT} HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 15\r\n\r\n".encode())
        peer.send(b'{"stream":true}')
        async with asyncio.timeout(10):
            head, _, body = (await peer.reader.read()).partition(b"\r\n\r\n")
        assert (b"transfer-encoding" in head, body) == (False, HELLO + DONE)


async def test_over_a_unix_socket_the_peers_uid_is_known(tmp_path: Path) -> None:
    async with gateway(echo) as one:
        await one.gateway.listen_unix(tmp_path / "g.sock")
        reader, writer = await asyncio.open_unix_connection(tmp_path / "g.sock")
        peer = Peer(reader, writer)
        peer.ask({})
        assert (await peer.answer())[0] == 200
        assert one.port.asked[0].uid == os.getuid()
        writer.close()
        await writer.wait_closed()


# --- who may, and budgets ---------------------------------------------------------------------------------------------


async def test_a_budget_that_is_used_up_is_said_before_the_engine_hears_of_it() -> None:
    async with gateway(echo) as one, one.peer() as peer:
        one.port.refusal = Refusal(429, "budget_exhausted", "tokens: 100 of 100 used", remedy="ask the operator")
        peer.ask({})
        status, headers, body = await peer.answer()
        assert status == 429
        assert headers["x-should-retry"] == "false"
        assert json.loads(body)["error"] == {
            "message": "tokens: 100 of 100 used; ask the operator",
            "type": "insufficient_quota",
            "param": None,
            "code": "budget_exhausted",
        }
        one.port.refusal = Refusal(429, "budget_exhausted", "tokens", retry_after=12.4)
        peer.ask({})
        status, headers, _ = await peer.answer()
        assert (headers["retry-after"], "x-should-retry" in headers) == ("12", False)
        one.port.refusal = None
        peer.ask({})
        assert (await peer.answer())[0] == 200
        assert len(one.upstream.exchanges) == 1


@pytest.mark.parametrize("token", ["", "another-session-token", "x y", "ü"])
async def test_without_a_valid_token_nothing_passes(token: str) -> None:
    async with gateway(echo) as one, one.peer() as peer:
        peer.ask({}, token=token)
        assert await peer.refused() == (401, "invalid_api_key")
        assert not one.upstream.exchanges


# --- hostile and broken clients ---------------------------------------------------------------------------------------

AUTH = f"Authorization: Bearer {TOKEN}\r\n".encode()


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
            assert await third.ended()


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


# --- broken engines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: " + b"b" * 40_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 99 X\r\n\r\n",
        b"HTTP/1.1 100 C\r\n\r\n" * 20,
        b"HTTP/1.1 200 O",
        b"",
    ],
)
async def test_an_engine_that_does_not_speak_http_is_said(raw: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.say(raw)
        exchange.writer.close()

    async with gateway(script) as one, one.peer() as peer:
        peer.ask({})
        assert await peer.refused() == (502, "engine_unreachable")
        report = await one.port.report()
        assert (report.status, report.error, report.prompt) == (502, "engine", 0)
        peer.ask({})
        assert await peer.refused() == (502, "engine_unreachable")


async def test_an_engine_that_is_not_there() -> None:
    async with gateway(echo) as one, one.peer() as peer:
        one.gateway._relay._upstream._port = 1
        peer.ask({})
        status, headers, body = await peer.answer()
        assert (status, headers["retry-after"]) == (502, "2")
        assert "engine e: no connection" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "cut",
    [b"", b"5\r\nab", b"zz\r\n", b"2\r\nabXX"],
    ids=["between chunks", "inside a chunk", "no size", "longer than it says"],
)
async def test_a_stream_that_is_cut_ends_as_it_was_cut(cut: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(HELLO)
        await exchange.say(cut)
        exchange.writer.close()

    async with gateway(script, tells_usage=True) as one, one.peer() as peer:
        peer.ask({"stream": True})
        with pytest.raises(asyncio.IncompleteReadError):
            await peer.answer()
        report = await one.port.report()
        assert (report.error, report.generated, report.estimated) == ("engine", 1, True)


async def test_an_engine_that_falls_silent() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(HELLO)
        await exchange.gone()

    async with gateway(script, between=0.1) as one, one.peer() as peer:
        peer.ask({"stream": True})
        with pytest.raises(asyncio.IncompleteReadError):
            await peer.answer()
        assert (await one.port.report()).error == "engine"


async def test_counts_that_cannot_be_read_are_counted_and_pass() -> None:
    answer = b'{"usage":{"prompt_tokens":"many"}}'

    async def script(exchange: Exchange) -> None:
        await exchange.answer(answer)

    async with gateway(script) as one, one.peer() as peer:
        peer.ask({"a": "b" * 400})
        assert (await peer.answer())[2] == answer
        report = await one.port.report()
        assert report.estimated
        assert report.prompt >= 100
        assert one.gateway.totals.unreadable == 1


async def test_an_event_without_end_passes_uncounted() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream(*[b"x" * 100_000] * 15, b"\n\n" + USAGE)

    async with gateway(script) as one, one.peer() as peer:
        peer.ask({"stream": True})
        assert (await peer.answer())[2] == b"x" * 1_500_000 + b"\n\n" + USAGE
        assert (await one.port.report()).estimated
