"""The HTTP endpoint that Prometheus scrapes: GET or HEAD of /metrics and /healthz, and nothing else.

Our own few lines on asyncio streams rather than prometheus_client's WSGI server: that one makes a thread for every
connection, without a bound on their number, the time that a request may take, or the size of its head, and reads the
daemon's state from those threads. Here the state is read on the event loop, where it is consistent, and the text is
rendered in one worker thread, so that a scrape of a thousand calls does not delay a BEGIN. Requests are bounded in
size, time and number; one that breaks a bound is closed. There is no keep-alive: a scrape comes every few seconds.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from agentd.log import get_logger
from agentd.metrics.errors import CannotListen
from agentd.metrics.metrics import Metrics

log = get_logger(__name__)

MAX_HEAD: Final = 8192  # bytes of the request line and headers
MAX_CONNECTIONS: Final = 16
REQUEST_TIMEOUT: Final = 10.0  # seconds, from the connection to the last byte that the client took

_REQUEST: Final = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,2000}) HTTP/1\.[01]\r\n")
_TEXT: Final = "text/plain; charset=utf-8"


class MetricsServer:
    """One listening socket. ``timeout`` seconds per request."""

    def __init__(self, metrics: Metrics, *, timeout: float = REQUEST_TIMEOUT) -> None:
        self._metrics = metrics
        self._timeout = timeout
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="metrics")

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen on an IP address; returns the address and the port that it got. Raises CannotListen."""
        try:
            self._server = await asyncio.start_server(self._connected, host, port, limit=MAX_HEAD, backlog=64)
        except OSError as err:
            raise CannotListen(host, port, err.strerror or str(err)) from None
        address = self._server.sockets[0].getsockname()
        log.info("metrics served", address=address[0], port=address[1])
        return address[0], address[1]

    @property
    def connections(self) -> int:
        """Requests under way."""
        return len(self._tasks)

    async def close(self) -> None:
        """Stop listening and drop the requests under way."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None
        self._renderer.shutdown(wait=False, cancel_futures=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  asyncio runs this in a task
        if len(self._tasks) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._tasks.add(task)
        try:
            async with asyncio.timeout(self._timeout):
                # with no buffer allowed, drain() waits until the client took everything: the timeout covers it
                writer.transport.set_write_buffer_limits(0)
                await self._serve(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # a client that is slow, went away or sent half a request: nobody is left to tell
        except Exception:  # a defect in one scrape must not end the daemon's metrics
            log.exception("a scrape failed", remedy="report this with the lines above")
        finally:
            self._tasks.discard(task)
            if writer.transport.get_write_buffer_size():  # not taken in time: close() would go on waiting for it
                writer.transport.abort()
            else:
                writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            await _answer(writer, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {MAX_HEAD} bytes\n")
            return
        request = _REQUEST.match(head)
        if request is None:
            await _answer(writer, HTTPStatus.BAD_REQUEST, "not a request of HTTP/1.1\n")
            return
        method, path = request[1].decode(), request[2].split(b"?", 1)[0]
        if method not in ("GET", "HEAD"):
            await _answer(writer, HTTPStatus.METHOD_NOT_ALLOWED, "GET or HEAD\n", extra="Allow: GET, HEAD\r\n")
            return
        body = method == "GET"
        if path == b"/metrics":
            collector = self._metrics.collector()
            text = await asyncio.get_running_loop().run_in_executor(self._renderer, generate_latest, collector)
            await _answer(writer, HTTPStatus.OK, text, kind=CONTENT_TYPE_LATEST, body=body)
        elif path == b"/healthz":
            problems = self._metrics.health.problems
            status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
            await _answer(writer, status, "".join(f"{line}\n" for line in problems or ("ok",)), body=body)
        else:
            await _answer(writer, HTTPStatus.NOT_FOUND, "/metrics or /healthz\n", body=body)


async def _answer(
    writer: asyncio.StreamWriter,
    status: HTTPStatus,
    content: str | bytes,
    *,
    kind: str = _TEXT,
    extra: str = "",
    body: bool = True,
) -> None:
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
        f"{extra}X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode("ascii") + (data if body else b""))
    await writer.drain()
