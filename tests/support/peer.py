"""A client of the gateway on a raw connection, well-behaved or not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from tests.support.gateway_port import TOKEN

CHAT = "/v1/chat/completions"
WITHIN = 30.0  # seconds: far more than anything takes, the start of a process on a busy machine included


class Peer:
    """A client's raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    def ask(self, body: object, *, path: str = CHAT, token: str = TOKEN, extra: str = "") -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        key = f"Authorization: Bearer {token}\r\n" if token else ""
        self.send(f"POST {path} HTTP/1.1\r\nHost: x\r\n{key}{extra}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, and the body's content. IncompleteReadError where the other side stops before its end."""
        async with asyncio.timeout(WITHIN):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
            if "content-length" in headers:
                return status, headers, await self.reader.readexactly(int(headers["content-length"]))
            body = b""
            async for part in self.parts():
                body += part
            return status, headers, body

    async def parts(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readexactly(2) == b"\r\n"

    async def refused(self) -> tuple[int, str]:
        status, headers, body = await self.answer()
        assert headers["content-type"] == "application/json", (status, headers, body)
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return status, error["code"]

    async def ended(self) -> bool:
        """The other side closes the connection without another byte."""
        async with asyncio.timeout(WITHIN):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True

    async def json(self) -> Any:
        """The answer's object; an error's text where the status is not 200."""
        status, _, body = await self.answer()
        assert status == 200, body
        return json.loads(body)
