"""An HTTP server that answers as an engine would: from a table of routes, keeping what it was asked.

The answers in the tests are built from what the engines' own sources and pages say; where they were recorded from a
running engine, the test says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[int, Any]


@dataclass
class FakeEngine:
    """``routes``: "METHOD /path" to (status, body); a str body is sent as text, else as JSON. Others get 404."""

    routes: Mapping[str, Answer]
    asked: list[tuple[str, Any]] = field(default_factory=list)
    url: str = ""

    def bodies(self, route: str) -> list[Any]:
        return [body for one, body in self.asked if one == route]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, path, _ = head.split("\r\n", 1)[0].split(" ")
            length = next(
                (int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length:")),
                0,
            )
            raw = await reader.readexactly(length)
            route = f"{method} {path}"
            self.asked.append((route, json.loads(raw) if raw else None))
            status, body = self.routes.get(route, (404, {"detail": "Not Found"}))
            text = body if isinstance(body, str) else json.dumps(body)
            payload = text.encode()
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n".encode())
            writer.write(payload)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the client went away, as some tests want it to
        finally:
            writer.close()


@asynccontextmanager
async def fake_engine(routes: Mapping[str, Answer]) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(routes)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield engine


def openapi(*paths: str) -> Answer:
    return 200, {"openapi": "3.1.0", "paths": {path: {} for path in paths}}
