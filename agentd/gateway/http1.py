"""HTTP/1.1 as the gateway reads it: strict, and bounded in every direction.

What two readers could understand differently is refused rather than repaired (a length twice, a length beside chunks,
folded or bare-LF headers): such requests are how one client's bytes become another's (RFC 9112, section 11.2).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from agentd.gateway.errors import Refusal

MAX_HEAD: Final = 32 * 1024  # bytes of a first line and its headers
MAX_HEADERS: Final = 100
_MAX_CHUNK: Final = 1 << 20  # of the peer's chunks, what is handed on at a time
_MAX_LINE: Final = 1024  # of a chunk's size with its extensions
_MAX_TRAILERS: Final = 32

_REQUEST: Final = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,8191}) HTTP/1\.([01])")
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t -~\x80-\xff]*)?")
_HEADER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t -~\x80-\xff]*)?\r\n")
_LENGTH: Final = re.compile(rb"[0-9]{1,15}")

#: Meant for the next hop alone (RFC 9110, section 7.6.1), beside what ``Connection`` names.
HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
    | {b"proxy-authenticate", b"proxy-authorization", b"content-length"}
)

Headers = tuple[tuple[bytes, bytes], ...]


class Malformed(ValueError):
    """The peer does not speak HTTP/1.1 as this module reads it. The text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Head:
    """Names of headers are lower case. ``length`` None: none was given."""

    headers: Headers
    length: int | None
    chunked: bool
    keep_alive: bool

    def get(self, name: bytes) -> bytes:
        """The first header of that name; b"" where there is none."""
        return next((value for key, value in self.headers if key == name), b"")

    def end_to_end(self) -> Iterable[tuple[bytes, bytes]]:
        """Without those that concern this connection alone."""
        named = {part.strip().lower() for part in self.get(b"connection").split(b",")}
        return [(key, value) for key, value in self.headers if key not in HOP_BY_HOP and key not in named]


@dataclass(frozen=True, slots=True)
class RequestHead(Head):
    method: str
    target: str
    old: bool  # HTTP/1.0: knows no chunks

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class ResponseHead(Head):
    status: int


def parse_request(raw: bytes) -> RequestHead:
    """``raw`` ends with the empty line. Raises Malformed."""
    first, headers, version = _split(raw, _REQUEST, "no request line of HTTP/1.1")
    length, chunked = _framing(headers)
    return RequestHead(
        headers=headers,
        length=length,
        chunked=chunked,
        keep_alive=_keeps_alive(headers, version),
        method=first[1].decode("ascii"),
        target=first[2].decode("ascii"),
        old=version == b"0",
    )


def parse_response(raw: bytes) -> ResponseHead:
    """``raw`` ends with the empty line. Raises Malformed."""
    first, headers, version = _split(raw, _STATUS, "no status line of HTTP/1.1")
    length, chunked = _framing(headers)
    return ResponseHead(
        headers=headers,
        length=length,
        chunked=chunked,
        keep_alive=_keeps_alive(headers, version),
        status=int(first[2]),
    )


def _split(raw: bytes, first: re.Pattern[bytes], wrong: str) -> tuple[re.Match[bytes], Headers, bytes]:
    lines = raw[:-4].split(b"\r\n")
    found = first.fullmatch(lines[0])
    if found is None:
        raise Malformed(wrong)
    if len(lines) - 1 > MAX_HEADERS:
        raise Malformed(f"{len(lines) - 1} headers, {MAX_HEADERS} are allowed")
    headers = []
    for line in lines[1:]:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise Malformed("a header that is not NAME: VALUE")
        headers.append((header[1].lower(), header[2]))
    version = found[3] if first is _REQUEST else found[1]
    return found, tuple(headers), version


def _framing(headers: Headers) -> tuple[int | None, bool]:
    lengths = [value for key, value in headers if key == b"content-length"]
    codings = [value for key, value in headers if key == b"transfer-encoding"]
    if len(lengths) > 1 or len(codings) > 1 or (lengths and codings):
        raise Malformed("its length is given more than once")
    if codings and codings[0].lower() != b"chunked":
        raise Malformed("a transfer encoding other than chunked")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise Malformed("a content length that is no number")
    return (int(lengths[0]) if lengths else None), bool(codings)


def _keeps_alive(headers: Headers, version: bytes) -> bool:
    tokens = {part.strip().lower() for key, value in headers if key == b"connection" for part in value.split(b",")}
    return b"close" not in tokens if version == b"1" else b"keep-alive" in tokens


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The content of a chunked body, at most 1 MiB at a time; ends after its trailers, which are dropped.

    Raises Malformed, and IncompleteReadError where the peer stops before the end.
    """
    while True:
        size = await _chunk_size(reader)
        if size == 0:
            break
        while size:
            # What is there is handed on at once: a chunk of a stream may come in parts.
            data = await reader.read(min(size, _MAX_CHUNK))
            if not data:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(data)
            yield data
        if await reader.readexactly(2) != b"\r\n":
            raise Malformed("a chunk longer than it says")
    for _ in range(_MAX_TRAILERS):
        if await _line(reader) == b"\r\n":
            return
    raise Malformed("more trailers than anyone needs")


async def _chunk_size(reader: asyncio.StreamReader) -> int:
    found = _CHUNK.fullmatch(await _line(reader))
    if found is None:
        raise Malformed("no size where a chunk begins")
    return int(found[1], 16)


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        line = await reader.readuntil(b"\r\n")
    except asyncio.LimitOverrunError:
        raise Malformed("a line without an end inside a chunked body") from None
    if len(line) > _MAX_LINE:
        raise Malformed("a line without an end inside a chunked body")
    return line


async def read_body(
    reader: asyncio.StreamReader, head: RequestHead, *, limit: int, reserve: Callable[[int], None]
) -> bytes:
    """A request's whole body. ``reserve`` is told of bytes before they are kept, and may refuse them.

    Raises Refusal (too large), Malformed, IncompleteReadError.
    """
    if head.length is not None:
        if head.length > limit:
            raise _too_large(limit)
        reserve(head.length)
        return await reader.readexactly(head.length) if head.length else b""
    if not head.chunked:
        return b""
    parts: list[bytes] = []
    total = 0
    async for part in chunks(reader):
        total += len(part)
        if total > limit:
            raise _too_large(limit)
        reserve(len(part))
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413, "request_too_large", f"the request has more than {limit} bytes", remedy="send less, or ask the operator"
    )


def head_bytes(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A status line and headers with the empty line."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Other"
    lines = [b"HTTP/1.1 %d %b" % (status, phrase.encode("ascii"))]
    lines += [b"%b: %b" % (key, value) for key, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def request_bytes(method: str, target: str, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    lines = [f"{method} {target} HTTP/1.1".encode("ascii")]
    lines += [b"%b: %b" % (key, value) for key, value in headers]
    lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"
