"""One client's connection: requests are read within bounds, answers are written as fast as the client takes them.

Clients are agents, and may be hostile: a head has a size and a time, a body has both and a share of the memory that all
bodies may take together, and who does not take an answer is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from agentd.gateway.errors import ClientGone, Refusal
from agentd.gateway.http1 import (
    LAST_CHUNK,
    MAX_HEAD,
    Malformed,
    RequestHead,
    chunk,
    head_bytes,
    parse_request,
    read_body,
)

_HIGH_WATER: Final = 256 * 1024  # bytes that may wait for a client before its engine has to
_LINGER: Final = 1.0  # seconds
_JSON: Final = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one gateway. Bytes and seconds.

    ``buffered``: of all bodies that are under way together, a quarter of it (or one body) of one token's.
    ``streams``: turns at once with one token.
    """

    connections: int = 1024
    streams: int = 64
    body: int = 16 << 20
    buffered: int = 256 << 20
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: float = 75.0
    write_seconds: float = 30.0

    @property
    def share(self) -> int:
        return max(self.body, self.buffered // 4)


class Memory:
    """What all bodies take together, against one bound; and those of one token against ``share`` of it, so that one
    session's uploads leave room for the others'."""

    def __init__(self, limit: int, share: int) -> None:
        self._limit = limit
        self._share = share
        self._of: Counter[str] = Counter()
        self.used = 0

    def take(self, size: int, token: str) -> None:
        """Raises Refusal."""
        if self.used + size > self._limit:
            raise Refusal(
                503,
                "gateway_busy",
                f"requests under way hold {self.used} bytes, {self._limit} are allowed together",
                remedy="try again in a moment",
                retry_after=1.0,
            )
        if self._of[token] + size > self._share:
            raise Refusal(
                429,
                "too_many_bytes",
                f"requests of this session under way hold {self._of[token]} bytes, {self._share} are a session's share",
                remedy="wait for one of them",
                retry_after=1.0,
            )
        self.used += size
        self._of[token] += size

    def give(self, size: int, token: str) -> None:
        self.used -= size
        self._of[token] -= size
        if self._of[token] <= 0:
            del self._of[token]


class Reader(asyncio.StreamReader):
    """Tells at once when the peer has left, also while nobody reads."""

    def __init__(self) -> None:
        super().__init__(limit=MAX_HEAD)
        self.gone = False
        self.on_gone: Callable[[], object] | None = None

    def feed_eof(self) -> None:
        super().feed_eof()
        self._left()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self._left()

    def _left(self) -> None:
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()


class Client:
    """``uid``: of a unix socket's peer; None over TCP."""

    def __init__(self, reader: Reader, writer: asyncio.StreamWriter, limits: Limits, memory: Memory) -> None:
        self.reader: Final = reader
        self._writer = writer
        self._limits = limits
        self._memory = memory
        self._held = 0
        self._holder = ""
        self._chunked = False
        self._framed = False
        self._unread = False
        self.keep_alive = True
        self.began_answer = False
        self.uid: Final = _peer(writer.get_extra_info("socket"))
        writer.transport.set_write_buffer_limits(high=_HIGH_WATER)

    # --- requests ----------------------------------------------------------------------------------------------------

    async def head(self, *, first: bool) -> RequestHead | None:
        """The next request's; None: there is none. Raises Refusal, ClientGone."""
        self.began_answer = False
        try:
            # Between requests a connection may rest; the first byte ends that.
            async with asyncio.timeout(self._limits.head_seconds if first else self._limits.idle_seconds):
                byte = await self.reader.read(1)
            if not byte:
                return None
            async with asyncio.timeout(self._limits.head_seconds):
                raw = byte + await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            raise ClientGone from None
        except TimeoutError:
            return None
        except asyncio.LimitOverrunError:
            self.keep_alive, self._unread = False, True
            raise Refusal(431, "headers_too_large", f"the headers have more than {MAX_HEAD} bytes") from None
        try:
            head = parse_request(raw)
        except Malformed as error:
            self.keep_alive, self._unread = False, True
            raise Refusal(400, "bad_request", f"the request cannot be read: {error}") from None
        self.keep_alive = head.keep_alive
        self._chunked = not head.old
        self._unread = head.chunked or bool(head.length)
        return head

    async def body(self, head: RequestHead, token: str) -> bytes:
        """Charged to ``token``; ``release`` gives its memory back. Raises Refusal, ClientGone."""
        self._holder = token
        if head.get(b"expect").lower() == b"100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await read_body(self.reader, head, limit=self._limits.body, reserve=self._reserve)
        except TimeoutError:
            raise Refusal(
                408, "request_timeout", f"the body did not come within {self._limits.body_seconds:g} s"
            ) from None
        except Malformed as error:
            raise Refusal(400, "bad_request", f"the body cannot be read: {error}") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise ClientGone from None
        self._unread = False
        return body

    def _reserve(self, size: int) -> None:
        self._memory.take(size, self._holder)
        self._held += size

    def release(self) -> None:
        self._memory.give(self._held, self._holder)
        self._held = 0

    # --- answers -----------------------------------------------------------------------------------------------------

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, length: int | None) -> None:
        """``length`` None: in chunks, or (HTTP/1.0) until the connection closes."""
        own: list[tuple[bytes, bytes]] = []
        if length is not None:
            self._framed = False
            own.append((b"content-length", b"%d" % length))
        elif self._chunked:
            self._framed = True
            own.append((b"transfer-encoding", b"chunked"))
        else:
            self._framed = self.keep_alive = False
        own.append((b"connection", b"keep-alive" if self.keep_alive else b"close"))
        self.began_answer = True
        self._writer.write(head_bytes(status, [*headers, *own]))
        await self._taken()

    async def send(self, data: bytes) -> None:
        """A part of an answer. Raises ClientGone where the client does not take it in time."""
        self._writer.write(chunk(data) if self._framed else data)
        await self._taken()

    async def finish(self) -> None:
        if self._framed:
            self._writer.write(LAST_CHUNK)
        await self._taken()

    async def refuse(self, refusal: Refusal) -> None:
        if self._unread:
            self.keep_alive = False  # the rest of its body must not be read as the next request
        headers = [_JSON]
        if refusal.retry_after is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(refusal.retry_after))))
        elif refusal.status in (409, 429, 500, 503):
            headers.append((b"x-should-retry", b"false"))  # OpenAI's own clients would try again at once
        if refusal.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.answer(refusal.status, headers, refusal.body())

    async def answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        await self.start(status, headers, length=len(body))
        await self.send(body)

    async def _taken(self) -> None:
        transport = self._writer.transport
        try:
            if transport.get_write_buffer_size() <= _HIGH_WATER:
                await self._writer.drain()  # only tells whether the connection is lost
                return
            async with asyncio.timeout(self._limits.write_seconds):
                await self._writer.drain()
        except (TimeoutError, ConnectionError):
            self.abort()
            raise ClientGone from None

    def abort(self) -> None:
        self.keep_alive = False
        self._writer.transport.abort()

    async def close(self) -> None:
        """What was written is sent first, unless the client does not take it."""
        if self._unread and not self._writer.is_closing():
            await self._linger()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            try:
                async with asyncio.timeout(self._limits.write_seconds):
                    await self._writer.wait_closed()
            except TimeoutError:
                self._writer.transport.abort()

    async def _linger(self) -> None:
        """A close with bytes unread is a reset, which may overtake the answer: so they are read, for a moment."""
        with contextlib.suppress(ConnectionError, TimeoutError, OSError):
            if self._writer.can_write_eof():
                self._writer.write_eof()
            async with asyncio.timeout(_LINGER):
                while await self.reader.read(64 * 1024):
                    pass


def _peer(sock: socket.socket) -> int | None:
    if sock.family != socket.AF_UNIX:
        return None
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)
