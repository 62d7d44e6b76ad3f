"""Connections to one engine: kept alive, bounded in number, and closed at once when a client leaves.

Our own few lines on asyncio streams: gpu.engines.http asks an engine now and then, in threads; here hundreds of streams
are under way, each byte of which goes on as it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from agentd.gateway.errors import UpstreamError
from agentd.gateway.http1 import MAX_HEAD, Malformed, ResponseHead, chunks, parse_response, request_bytes

_READ: Final = 64 * 1024
_IDLE: Final = 4.0  # seconds that a connection is kept: llama.cpp's server closes its own after 5
_CONNECT: Final = 5.0  # seconds; an engine on the local network answers at once, or is not there
_MAX_INTERIM: Final = 8  # answers of 1xx before the real one


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    idle_since: float = 0.0

    def close(self) -> None:
        self.writer.transport.abort()

    @property
    def stale(self) -> bool:
        """The engine has closed it, or said something that nobody asked for."""
        return self.writer.is_closing() or self.reader.at_eof() or time.monotonic() - self.idle_since > _IDLE


class Response:
    """``read`` gives the body's content as it comes, b"" at its end."""

    def __init__(self, head: ResponseHead, parts: AsyncIterator[bytes]) -> None:
        self.head: Final = head
        self._parts = parts
        self.complete = False

    async def read(self) -> bytes:
        part = await anext(self._parts, b"")
        self.complete = not part
        return part


class Upstream:
    """One engine.

    :param url: http or https, with a path prefix if the engine has one
    :param api_key: sent as a bearer token
    :param first_byte: seconds until an answer begins (a long prompt is computed before it does)
    :param between: seconds between two parts of an answer
    """

    def __init__(
        self,
        url: str,
        *,
        engine: str,
        api_key: str = "",
        connections: int = 256,
        first_byte: float = 600.0,
        between: float = 120.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self.engine: Final = engine
        self.url: Final = url
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._fixed = [(b"host", f"{host}:{self._port}".encode("ascii"))]
        if api_key:
            self._fixed.append((b"authorization", f"Bearer {api_key}".encode("ascii")))
        self._first_byte = first_byte
        self._between = between
        self._idle: deque[_Connection] = deque()
        self._places = asyncio.Semaphore(connections)
        self._closed = False

    @contextlib.asynccontextmanager
    async def exchange(
        self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> AsyncIterator[Response]:
        """One request and its answer. Leaving the block before its end closes the connection, which ends the request
        at the engine. Raises UpstreamError."""
        raw = request_bytes(method, self._prefix + path, [*self._fixed, *headers], body)
        async with self._places:
            connection, head = await self._send(raw)
            response = Response(head, self._content(connection, head, method))
            keep = False
            try:
                yield response
                keep = response.complete and head.keep_alive and (head.chunked or head.length is not None)
            finally:
                if keep and not self._closed:
                    connection.idle_since = time.monotonic()
                    self._idle.append(connection)
                else:
                    connection.close()

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    async def _send(self, raw: bytes) -> tuple[_Connection, ResponseHead]:
        """An engine may close a kept connection just as we use it: then once more, on a fresh one."""
        while self._idle:
            connection = self._idle.pop()  # the newest: the others grow old and are closed
            if connection.stale:
                connection.close()
                continue
            self._shed()
            try:
                return connection, await self._ask(connection, raw, fresh=False)
            except _Stale:
                break
        connection = await self._connect()
        return connection, await self._ask(connection, raw, fresh=True)

    def _shed(self) -> None:
        while self._idle and self._idle[0].stale:
            self._idle.popleft().close()

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(_CONNECT):
                reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=MAX_HEAD)
        except TimeoutError:
            raise self._failed(f"no connection within {_CONNECT:g} s", status=504) from None
        except OSError as error:
            raise self._failed(f"no connection to {self.url}: {error.strerror or error}") from None
        return _Connection(reader, writer)

    async def _ask(self, connection: _Connection, raw: bytes, *, fresh: bool) -> ResponseHead:
        """Closes the connection on every error. Raises _Stale where a kept connection had no answer at all."""
        answered = False
        try:
            async with asyncio.timeout(self._first_byte):
                connection.writer.write(raw)
                await connection.writer.drain()
                for _ in range(_MAX_INTERIM):
                    head = parse_response(await connection.reader.readuntil(b"\r\n\r\n"))
                    answered = True
                    if head.status >= 200:
                        return head
            raise Malformed("interim answers without end")
        except BaseException as error:
            connection.close()
            match error:
                case TimeoutError():
                    raise self._failed(f"no answer within {self._first_byte:g} s", status=504) from None
                case ConnectionError() | asyncio.IncompleteReadError():
                    nothing = not (isinstance(error, asyncio.IncompleteReadError) and error.partial)
                    if not fresh and not answered and nothing:
                        raise _Stale from None
                    raise self._failed("it closed the connection without an answer") from None
                case asyncio.LimitOverrunError():
                    raise self._failed(f"its answer's headers have more than {MAX_HEAD} bytes") from None
                case Malformed():
                    raise self._failed(f"what it answered is not HTTP: {error}") from None
                case _:
                    raise

    async def _content(self, connection: _Connection, head: ResponseHead, method: str) -> AsyncIterator[bytes]:
        if method == "HEAD" or head.status in (204, 304):
            return
        source = self._parts(connection.reader, head)
        try:
            while True:
                try:
                    async with asyncio.timeout(self._between):
                        part = await anext(source, b"")
                except TimeoutError:
                    raise self._failed(f"nothing more of its answer within {self._between:g} s", status=504) from None
                if not part:
                    return
                yield part
        except (ConnectionError, asyncio.IncompleteReadError):
            raise self._failed("it closed the connection in the middle of an answer") from None
        except Malformed as error:
            raise self._failed(f"its answer's body is broken: {error}") from None
        finally:
            await source.aclose()

    async def _parts(self, reader: asyncio.StreamReader, head: ResponseHead) -> AsyncGenerator[bytes, None]:
        if head.chunked:
            async for part in chunks(reader):
                yield part
            return
        left = head.length
        while left is None or left:
            data = await reader.read(_READ if left is None else min(left, _READ))
            if not data:
                if left is not None:
                    raise asyncio.IncompleteReadError(b"", left)
                return
            left = None if left is None else left - len(data)
            yield data

    def _failed(self, cause: str, *, status: int = 502) -> UpstreamError:
        return UpstreamError(self.engine, cause, remedy="see whether it runs, and its log", status=status)


class _Stale(Exception):
    pass
