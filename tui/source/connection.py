"""How the dashboard reaches a daemon: a unix socket, or TCP with mutual TLS (CORRAL_TLS_CA, _CERT and _KEY)."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final, TypeVar, cast
from urllib.parse import unquote

import grpc
from google.protobuf.message import Message

from tui.source.protocol import SourceError

OPERATORS: Final = "/corral.v1.OperatorService/"
AGENTS: Final = "/corral.v1.AgentService/"
ANSWER_WITHIN: Final = 10.0  # seconds
_MAX_MESSAGE: Final = 64 * 1024 * 1024
_PROBE_SECONDS: Final = 0.5
_TLS: Final = ("CORRAL_TLS_CA", "CORRAL_TLS_CERT", "CORRAL_TLS_KEY")
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

_Reply = TypeVar("_Reply", bound=Message)


class Connection:
    """``target``: "unix:/path" or "HOST:PORT". Raises SourceError at once where TLS files are needed and missing."""

    def __init__(self, target: str) -> None:
        self.target: Final = target
        self._credentials = None if target.startswith("unix:") else _credentials(target)
        self._asking: grpc.aio.Channel | None = None

    def channel(self) -> grpc.aio.Channel:
        """A new one; the caller closes it."""
        if self._credentials is not None:
            return grpc.aio.secure_channel(self.target, self._credentials, options=list(_OPTIONS))
        return grpc.aio.insecure_channel(self.target, options=list(_OPTIONS))

    async def ask(self, service: str, method: str, request: Message, reply: type[_Reply]) -> _Reply:
        """One answer within ANSWER_WITHIN. Raises SourceError."""
        if self._asking is None:
            self._asking = self.channel()
        call: grpc.aio.UnaryUnaryMultiCallable[Message, _Reply] = self._asking.unary_unary(
            service + method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        try:
            return await call(request, timeout=ANSWER_WITHIN)
        except grpc.RpcError as err:
            raise SourceError(self.cause(err)) from None

    def cause(self, err: grpc.RpcError) -> str:
        failed = cast("grpc.aio.AioRpcError", err)  # the only RpcError that grpc.aio raises
        match failed.code():
            case grpc.StatusCode.UNAVAILABLE:
                return self._unreachable(failed.details() or "")
            case grpc.StatusCode.UNIMPLEMENTED:
                return "this daemon is older than the dashboard and does not know this; update it"
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"no answer within {ANSWER_WITHIN:.0f} s; the daemon may be busy, try again"
            case code:
                return failed.details() or code.name.lower()

    def denied(self, err: grpc.RpcError) -> bool:
        """Whether a daemon is there, but not for us."""
        failed = cast("grpc.aio.AioRpcError", err)
        if failed.code() is grpc.StatusCode.UNAVAILABLE:
            return self._probe() == errno.EACCES
        return failed.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)

    def _unreachable(self, details: str) -> str:
        if not self.target.startswith("unix:"):
            return (
                f"no daemon answers, or it refused the certificate ({details[:120]})" if details else "nobody answers"
            )
        match self._probe():
            case errno.ENOENT:
                return "no daemon answers: its socket does not exist; systemctl start agentd"
            case errno.EACCES:
                return "this user may not open the socket; ask for the operators' group, or use root"
            case _:
                return "no daemon answers"

    def _probe(self) -> int:
        """errno of a connection to the socket, 0 where somebody listens. gRPC does not say."""
        path = unquote(self.target.removeprefix("unix:"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_SECONDS)
            try:
                probe.connect(path)
            except OSError as err:
                return err.errno or errno.EIO
        return 0

    async def close(self) -> None:
        if self._asking is not None:
            await self._asking.close()
            self._asking = None


def _credentials(target: str) -> grpc.ChannelCredentials:
    missing = [name for name in _TLS if not os.environ.get(name)]
    if missing:
        raise SourceError(f"{target} is spoken to with mutual TLS only; set {', '.join(missing)} to PEM files")
    try:
        authority, certificate, key = (Path(os.environ[name]).read_bytes() for name in _TLS)
    except OSError as err:
        raise SourceError(f"{err.filename}: {err.strerror}; it is needed to connect to {target}") from err
    return grpc.ssl_channel_credentials(authority, key, certificate)
