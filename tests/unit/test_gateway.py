"""The gateway before a scripted upstream, driven by raw sockets: what passes, and who may."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from agentd.gateway import Refusal
from tests.support.gateway_port import TOKEN
from tests.support.gateways import DONE, HELLO, ROLE, USAGE, WORLD, echo, gateway
from tests.support.peer import CHAT, Peer
from tests.support.scripted import Exchange


async def test_a_turn_passes_with_the_engines_fields_and_key_and_without_the_clients() -> None:
    async with gateway(echo) as one, one.peer() as peer:
        body = {"model": "m", "id_slot": 0, "priority": 1, "session_id": "s2", "messages": [{"a": [1.5, None]}]}
        body |= {"request_id": "another's", "background": True}
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
