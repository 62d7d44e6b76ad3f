"""A gateway in this process, before a scripted upstream on raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from agentd.gateway import Gateway, Limits, Upstream
from tests.support.gateway_port import TOKEN, RecordingPort
from tests.support.peer import Peer
from tests.support.scripted import Exchange, Script, Scripted, scripted

AUTH = f"Authorization: Bearer {TOKEN}\r\n".encode()
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
