"""The gateway before broken engines: what a client is told, and what is charged."""

from __future__ import annotations

import asyncio
import json

import pytest

from agentd.gateway import relay
from tests.support.gateways import HELLO, USAGE, echo, gateway
from tests.support.scripted import Exchange


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


async def test_an_event_without_end_passes_and_counts_by_its_length() -> None:
    """Else a prompt whose log-probabilities fill the first event would make the rest of the answer free."""
    told = b'data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":2}}\n\n'

    async def script(exchange: Exchange) -> None:
        await exchange.stream(told, *[b"x" * 100_000] * 15, b"\n\n" + USAGE)

    async with gateway(script) as one, one.peer() as peer:
        peer.ask({"stream": True, "stream_options": {"include_usage": True}})
        assert (await peer.answer())[2] == told + b"x" * 1_500_000 + b"\n\n" + USAGE
        report = await one.port.report()
        assert report.estimated
        assert report.generated >= 2 + 1_500_000 // 4


async def test_an_answer_that_is_too_large_to_be_read_counts_by_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_MAX_COUNTED", 1000)
    answer = json.dumps({"logprobs": "x" * 4000, "usage": {"prompt_tokens": 5, "completion_tokens": 1}}).encode()

    async def script(exchange: Exchange) -> None:
        await exchange.answer(answer)

    async with gateway(script) as one, one.peer() as peer:
        peer.ask({})
        assert (await peer.answer())[2] == answer
        report = await one.port.report()
        assert (report.estimated, report.generated) == (True, len(answer) // 4)
