"""A thin client: where to connect, and errors that an operator understands. The requests are the API's own.

    async with connect() as api:
        answer = await api.call(api.operator.Snapshot, pb.SnapshotRequest())

    with connect_sync() as api:
        for update in api.stream(api.operator.Watch, pb.WatchRequest()):
            ...

A target is the path of a unix socket (with or without ``unix:``) or HOST:PORT, which is spoken to with mutual TLS only.

ApiError
 ├─ DaemonAway            nobody answers
 ├─ NotPermitted          this user, token or certificate may not
 ├─ BadRequest            the request is wrong, or this host cannot do it
 │   ├─ NoSuchObject
 │   ├─ AlreadyThere
 │   └─ WrongMoment       not in the state that the object, or the host, is in
 ├─ Rejected              admission or a limit says no; ``code`` says which
 ├─ TimedOut
 ├─ NotSupported          the daemon is older than this client
 └─ DaemonFailed          a fault of the daemon, or of its host
"""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import grpc
import grpc.aio

from agentd.api.errors import CODE_KEY, FIELD_KEY, REMEDY_KEY, VALUE_KEY, decode_part
from agentd.api.identity import TOKEN_KEY
from agentd.proto.corral.v1 import corral_pb2_grpc
from agentd.sockets import OPERATOR, default_socket

DEFAULT_TARGET: Final = "/run/corral/operator.sock"
DEFAULT_TIMEOUT: Final = 30.0  # seconds for an answer; BeginCall may wait in a queue: give None
_START_HINT: Final = "start it with: systemctl start agentd"
_PROBE_SECONDS: Final = 1.0

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class ApiError(Exception):
    """Base of all; the text is for people. ``status`` is gRPC's, ``code`` Corral's stable one (docs/api.md)."""

    def __init__(
        self,
        text: str,
        *,
        status: grpc.StatusCode | None = None,
        code: str = "",
        field: str = "",
        value: str = "",
        remedy: str = "",
    ) -> None:
        self.status = status
        self.code = code
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(text)


class DaemonAway(ApiError):
    pass


class NotPermitted(ApiError):
    pass


class BadRequest(ApiError):
    pass


class NoSuchObject(BadRequest):
    pass


class AlreadyThere(BadRequest):
    pass


class WrongMoment(BadRequest):
    pass


class Rejected(ApiError):
    pass


class TimedOut(ApiError):
    pass


class NotSupported(ApiError):
    pass


class DaemonFailed(ApiError):
    pass


_KINDS: Final[dict[grpc.StatusCode, type[ApiError]]] = {
    grpc.StatusCode.UNAVAILABLE: DaemonAway,
    grpc.StatusCode.UNAUTHENTICATED: NotPermitted,
    grpc.StatusCode.PERMISSION_DENIED: NotPermitted,
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.OUT_OF_RANGE: BadRequest,
    grpc.StatusCode.NOT_FOUND: NoSuchObject,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyThere,
    grpc.StatusCode.FAILED_PRECONDITION: WrongMoment,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Rejected,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: who signs the daemon's certificate, and this client's own certificate and key."""

    ca: Path
    certificate: Path
    key: Path

    def credentials(self) -> grpc.ChannelCredentials:
        try:
            return grpc.ssl_channel_credentials(
                self.ca.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes()
            )
        except OSError as err:
            raise NotPermitted(f"{err.filename}: {err.strerror}; it is needed for the connection") from err


@dataclass(frozen=True, slots=True)
class Target:
    """Where a daemon listens: exactly one of ``path`` (unix socket) and ``address`` (HOST:PORT)."""

    path: Path | None
    address: str = ""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises BadRequest for anything that is neither."""
        plain = text.removeprefix("unix:")
        if plain != text or plain.startswith(("/", ".")):
            # unix:///a and unix:/a are the same to gRPC
            return cls(Path(f"/{plain.lstrip('/')}" if plain.startswith("//") else plain).absolute())
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal():
            raise BadRequest(
                f"{text!r} is no target; give the path of a socket (such as {DEFAULT_TARGET}) or HOST:PORT"
            )
        return cls(None, text)

    @property
    def uri(self) -> str:
        return f"unix:{quote(os.fsencode(self.path))}" if self.path is not None else self.address

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else self.address


class _Base:
    """What both clients share: how to reach the daemon, and what its errors mean."""

    def __init__(self, target: str | None, token: str | None, tls: TlsFiles | None) -> None:
        self.target = Target.parse(target or os.environ.get("CORRAL_API") or default_socket(OPERATOR))
        token = token or os.environ.get("CORRAL_TOKEN") or None
        self.metadata: tuple[tuple[str, str], ...] = ((TOKEN_KEY, token),) if token else ()
        self._credentials: grpc.ChannelCredentials | None = None
        if self.target.path is None:
            self._credentials = (tls or _tls_from_environment(self.target)).credentials()

    def _options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", -1),  # a snapshot is as long as the host is full
            ("grpc.enable_http_proxy", 0),
            # clients of one process that differ in nothing would share a connection, and its limit of streams
            ("grpc.use_local_subchannel_pool", 1),
            # a command that finds no daemon says so at once
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]

    def _error(self, err: grpc.RpcError) -> ApiError:
        call: Any = err  # every RpcError that a call raises is a Call too, which the class does not say
        status: grpc.StatusCode = call.code()
        details: str = call.details() or ""
        parts = {key: decode_part(value) for key, value in call.trailing_metadata() or () if isinstance(value, str)}
        kind = _KINDS.get(status, DaemonFailed)
        if kind is DaemonAway and CODE_KEY not in parts:
            return self._away(details)
        if kind is TimedOut:
            details = f"{self.target}: no answer in time; the daemon may be busy, or the call waits in its queue"
        elif kind is NotSupported and not parts:
            details = f"{self.target}: the daemon does not know this request ({details}); update the daemon"
        elif status is grpc.StatusCode.RESOURCE_EXHAUSTED and not parts:
            remedy = (
                "shorten the request, or have the operator raise api.max_message_bytes"
                if "larger than max" in details  # gRPC's own words; it says no more
                else "the daemon serves as many requests as it may, try again later"
            )
            details = f"{self.target}: {details}; {remedy}"
        return kind(
            details or status.name,
            status=status,
            code=parts.get(CODE_KEY, ""),
            field=parts.get(FIELD_KEY, ""),
            value=parts.get(VALUE_KEY, ""),
            remedy=parts.get(REMEDY_KEY, ""),
        )

    def _away(self, details: str) -> ApiError:
        """Why nobody answers: only this side can look."""
        status = grpc.StatusCode.UNAVAILABLE
        path = self.target.path
        if path is None:
            return DaemonAway(
                f"{self.target}: agentd cannot be reached there, or refused the certificate ({details}); "
                "check address, firewall, and that the daemon's [api.tcp] client_ca signed this client's certificate",
                status=status,
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_SECONDS)
            try:
                probe.connect(os.fspath(path))
            except PermissionError:
                return NotPermitted(f"{path}: {_who_may(path)}", status=grpc.StatusCode.PERMISSION_DENIED)
            except OSError as err:
                if err.errno == errno.ENOENT:
                    cause = f"agentd is not running: {path} does not exist"
                elif err.errno == errno.ECONNREFUSED:
                    cause = f"agentd is not running: nobody listens on {path}"
                else:
                    cause = f"{path}: {err.strerror or err}"
                return DaemonAway(f"{cause}; {_START_HINT} (or name another socket in CORRAL_API)", status=status)
        return DaemonAway(f"{path}: the connection was lost ({details}); try again", status=status)


def _who_may(path: Path) -> str:
    """Which group opens the socket, as far as this user can see."""
    with suppress(OSError):
        status = path.stat()
        if status.st_mode & stat.S_IWGRP:
            try:
                group = grp.getgrgid(status.st_gid).gr_name
            except KeyError:
                group = str(status.st_gid)
            if group != "root":
                return (
                    f"only members of the group {group!r} may connect; "
                    f"join it: usermod -aG {group} USER, then log in again"
                )
    return "this user may not connect; use root, or ask the operator which group may"


def _tls_from_environment(target: Target) -> TlsFiles:
    names = ("CORRAL_TLS_CA", "CORRAL_TLS_CERT", "CORRAL_TLS_KEY")
    values = [os.environ.get(name, "") for name in names]
    missing = [name for name, value in zip(names, values, strict=True) if not value]
    if missing:
        raise BadRequest(
            f"{target}: is spoken to with mutual TLS only; set {', '.join(missing)} to PEM files "
            "(authority of the daemon, certificate and key of this client)"
        )
    ca, certificate, key = map(Path, values)
    return TlsFiles(ca=ca, certificate=certificate, key=key)


class Client(_Base):
    """For asyncio. ``agent`` and ``operator`` are the generated stubs; ``call`` and ``stream`` translate errors."""

    def __init__(self, target: str | None = None, token: str | None = None, *, tls: TlsFiles | None = None) -> None:
        super().__init__(target, token, tls)
        if self._credentials is not None:
            self._channel = grpc.aio.secure_channel(self.target.uri, self._credentials, self._options())
        else:
            self._channel = grpc.aio.insecure_channel(self.target.uri, self._options())
        self.agent = corral_pb2_grpc.AgentServiceStub(self._channel)
        self.operator = corral_pb2_grpc.OperatorServiceStub(self._channel)

    @property
    def channel(self) -> grpc.aio.Channel:
        """For other services of the socket (health, reflection)."""
        return self._channel

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - of the RPC: the daemon learns of it
    ) -> _Response:
        """One answer. ``timeout`` in seconds, None: as long as it takes. Raises ApiError."""
        try:
            return await method(request, timeout=timeout, metadata=self.metadata)
        except grpc.aio.AioRpcError as err:
            raise self._error(err) from err

    async def stream(
        self, method: grpc.aio.UnaryStreamMultiCallable[_Request, _Response], request: _Request
    ) -> AsyncIterator[_Response]:
        """Answers until the daemon ends them or the caller stops iterating. Raises ApiError."""
        call = method(request, metadata=self.metadata)
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as err:
            raise self._error(err) from err
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class SyncClient(_Base):
    """For threads and scripts; otherwise as Client."""

    def __init__(self, target: str | None = None, token: str | None = None, *, tls: TlsFiles | None = None) -> None:
        super().__init__(target, token, tls)
        if self._credentials is not None:
            self._channel = grpc.secure_channel(self.target.uri, self._credentials, self._options())
        else:
            self._channel = grpc.insecure_channel(self.target.uri, self._options())
        self.agent = corral_pb2_grpc.AgentServiceStub(self._channel)
        self.operator = corral_pb2_grpc.OperatorServiceStub(self._channel)

    @property
    def channel(self) -> grpc.Channel:
        return self._channel

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> _Response:
        """One answer. ``timeout`` in seconds, None: as long as it takes. Raises ApiError."""
        try:
            return method(request, timeout=timeout, metadata=self.metadata)
        except grpc.RpcError as err:
            raise self._error(err) from err

    def stream(
        self, method: grpc.UnaryStreamMultiCallable[_Request, _Response], request: _Request
    ) -> Iterator[_Response]:
        """Answers until the daemon ends them or the caller stops iterating. Raises ApiError."""
        call = method(request, metadata=self.metadata)
        try:
            yield from call
        except grpc.RpcError as err:
            raise self._error(err) from err
        finally:
            call.cancel()

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(target: str | None = None, token: str | None = None, *, tls: TlsFiles | None = None) -> Client:
    """To ``target``, else CORRAL_API, else the operator socket of the user's or the host's daemon;
    ``token``, else CORRAL_TOKEN, else none.

    Connects with the first request: this never waits. TCP takes ``tls``, else CORRAL_TLS_CA, _CERT and _KEY.
    """
    return Client(target, token, tls=tls)


def connect_sync(target: str | None = None, token: str | None = None, *, tls: TlsFiles | None = None) -> SyncClient:
    """As ``connect``, without asyncio."""
    return SyncClient(target, token, tls=tls)
