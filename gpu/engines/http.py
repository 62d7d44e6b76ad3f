"""A small HTTP client for engines on the local network.

Python's own http.client in a few threads, rather than one more dependency: it has parsed hostile HTTP for decades, and
an engine is asked once a second and once for each tool call (a fresh connection costs 0.2 ms on the loopback). What it
lacks is added here: one deadline for the whole exchange, a size limit, and that a cancelled call lets go of its thread.
Redirects are not followed, proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from gpu.errors import BadAnswer, EngineRefused, EngineUnreachable, InvalidValue

DEFAULT_TIMEOUT: Final = 10.0  # seconds, for the whole exchange
MAX_BYTES: Final = 8 << 20  # a large vLLM's /metrics has about 200 KiB
_THREADS: Final = 4

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes


class _Flight:
    """One exchange; ``abort`` ends it from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._aborted = False

    def hold(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._connection = connection

    @property
    def aborted(self) -> bool:
        return self._aborted

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            sock = None if self._connection is None else self._connection.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads; closing would not
            except OSError:
                return  # it was closed already


class HttpClient:
    """Requests to one engine.

    :param base_url: ``http://host:port`` or ``https://…``, with a path prefix if the engine has one
    :param engine: its name, for messages
    :param api_key: sent as a bearer token
    """

    def __init__(
        self,
        base_url: str,
        *,
        engine: str,
        api_key: str = "",
        timeout: float = DEFAULT_TIMEOUT,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        try:
            parts = urlsplit(base_url)
            port = parts.port
        except ValueError as error:
            raise InvalidValue(f"engine {engine}: URL {base_url!r}: {error}", remedy="give http://HOST:PORT") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidValue(
                f"engine {engine}: URL {base_url!r}", remedy="give http://HOST:PORT or https://HOST:PORT"
            )
        if parts.query or parts.fragment or parts.username is not None:
            raise InvalidValue(
                f"engine {engine}: the URL has a query, a fragment or a user", remedy="give http://HOST:PORT alone"
            )
        if not timeout > 0:
            raise InvalidValue(f"engine {engine}: time-out of {timeout} s", remedy="give more than 0 seconds")
        self.url = base_url.rstrip("/")
        self.engine = engine
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = port
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Accept": "*/*", "User-Agent": "corral"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._pool: ThreadPoolExecutor | None = None

    async def request(self, method: str, path: str, *, body: object = None, limit: float | None = None) -> Response:
        """One exchange, whatever the status.

        :param body: sent as JSON unless None
        :param limit: seconds for the whole exchange; None: the client's own
        :raises EngineUnreachable: no connection, a broken one, or the deadline passed
        :raises BadAnswer: not HTTP, or too large
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"corral-{self.engine}")
        limit = self._timeout if limit is None else limit
        payload = None if body is None else msgspec.json.encode(body)
        flight = _Flight()
        future = asyncio.get_running_loop().run_in_executor(
            self._pool, self._exchange, flight, method, self._prefix + path, payload, limit
        )
        try:
            return await asyncio.wait_for(future, limit)
        except TimeoutError as error:
            flight.abort()
            raise EngineUnreachable(
                f"{method} {path} had no answer within {limit:g} s",
                engine=self.engine,
                remedy="see whether it is overloaded",
            ) from error
        except asyncio.CancelledError:
            flight.abort()
            raise

    async def get_text(self, path: str) -> str:
        response = self._accept("GET", path, await self.request("GET", path))
        return response.body.decode("utf-8", "replace")

    async def get(self, path: str, kind: type[_T]) -> _T:
        """JSON of the given type."""
        return self._decode("GET", path, self._accept("GET", path, await self.request("GET", path)), kind)

    async def send(
        self, method: str, path: str, kind: type[_T], *, body: object = None, limit: float | None = None
    ) -> _T:
        """JSON there and back. ``kind`` NoneType: the answer's body does not matter.

        :raises EngineRefused: a status of 300 or more
        """
        response = self._accept(method, path, await self.request(method, path, body=body, limit=limit))
        if kind is type(None):
            return None
        return self._decode(method, path, response, kind)

    async def ask(self, method: str, path: str, *, body: object = None) -> Response:
        """Whatever it answers, where it agrees.

        :raises EngineRefused: a status of 300 or more
        """
        return self._accept(method, path, await self.request(method, path, body=body))

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            # What is in flight was cancelled by whoever awaited it; its thread ends at its own time-out at the latest.
            pool.shutdown(wait=False, cancel_futures=True)

    def _accept(self, method: str, path: str, response: Response) -> Response:
        if response.status < 300:
            return response
        said = response.body[:300].decode("utf-8", "replace")
        said = "".join(letter if letter.isprintable() else " " for letter in said).strip()
        raise EngineRefused(
            f"{method} {path} was answered with status {response.status}: {said or '(nothing said)'}",
            engine=self.engine,
            status=response.status,
            remedy="check the API key" if response.status in (401, 403) else "see the engine's own log",
        )

    def _decode(self, method: str, path: str, response: Response, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(response.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError is a DecodeError
            raise BadAnswer(
                f"{method} {path}: the answer is not what this engine should say: {error}",
                engine=self.engine,
                remedy="check that the configured kind and URL are right",
            ) from error

    # --- in a thread ------------------------------------------------------------------------------------------------

    def _exchange(self, flight: _Flight, method: str, path: str, payload: bytes | None, limit: float) -> Response:
        connection = self._connect(limit)
        flight.hold(connection)
        try:
            headers = self._headers if payload is None else {**self._headers, "Content-Type": "application/json"}
            connection.request(method, path, body=payload, headers=headers)
            answer = connection.getresponse()
            body = answer.read(self._max_bytes + 1)
            if len(body) > self._max_bytes:
                raise BadAnswer(
                    f"{method} {path}: the answer has more than {self._max_bytes} bytes",
                    engine=self.engine,
                    remedy="check that the URL is this engine's",
                )
            return Response(answer.status, body)
        except http.client.HTTPException as error:
            if flight.aborted or isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
                raise self._unreachable(method, path, error) from error
            raise BadAnswer(
                f"{method} {path}: the answer is not HTTP: {error!r}", engine=self.engine, remedy="check the URL's port"
            ) from error
        except OSError as error:
            raise self._unreachable(method, path, error) from error
        finally:
            connection.close()

    def _connect(self, limit: float) -> http.client.HTTPConnection:
        if self._tls:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=limit, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=limit)

    def _unreachable(self, method: str, path: str, error: BaseException) -> EngineUnreachable:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        return EngineUnreachable(
            f"{method} {self.url}{path}: {reason}",
            engine=self.engine,
            remedy="check that it runs and that the URL is right",
        )


def json_of(response: Response) -> Any:
    """The body as plain JSON, or None where it is none; for answers whose shape depends on the version."""
    try:
        return msgspec.json.decode(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
