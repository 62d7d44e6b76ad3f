"""The daemon as the commands see it: one synchronous call each, and gRPC's errors in words.

grpc is imported only when a connection is made (it costs 80 to 110 ms). A unix socket is tried first with a plain
connect(2), because its errno says what gRPC's UNAVAILABLE does not: no such socket, nobody listens, not permitted.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

from agentd.cli.errors import CliError, DaemonAway, NotFoundError, NotPermitted, UsageError

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

DEFAULT_API: Final = "unix:/run/corral/operator.sock"
AGENTS: Final = "/corral.v1.AgentService/"
OPERATORS: Final = "/corral.v1.OperatorService/"
MAX_MESSAGE: Final = 64 * 1024 * 1024  # a History of 10,000 calls with their decisions and samples
START_IT: Final = "start it with 'systemctl start agentd' (or 'agentd'), or name another with --api or CORRAL_API"

_Reply = TypeVar("_Reply", bound="Message")


@dataclass(frozen=True, slots=True)
class Target:
    """Where the daemon's API is. ``path`` for a unix socket, else ``address`` (host:port, which needs certificates)."""

    path: Path | None
    address: str

    @property
    def grpc(self) -> str:
        return f"unix:{self.path}" if self.path else self.address

    def __str__(self) -> str:
        return str(self.path) if self.path else self.address


def parse_target(text: str) -> Target:
    """``unix:/path``, ``/path`` or ``host:port``. Raises UsageError."""
    bare = text.removeprefix("unix://").removeprefix("unix:")
    if text.startswith("unix:") or bare.startswith(("/", "./", "../")):
        if not bare or "\0" in bare or len(os.fsencode(bare)) > 107:
            raise UsageError(f"--api {text!r} is not a socket's path", remedy="paths have 1 to 107 bytes")
        return Target(Path(bare), "")
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65_536):
        raise UsageError(f"--api {text!r} is neither a socket nor host:port", remedy=f"for example {DEFAULT_API}")
    return Target(None, text)


class Remote:
    """A connection to one daemon. Use as a context manager.

    ``token`` is a session's, sent as metadata "corral-token"; operators need none. ``timeout`` in seconds bounds every
    unary call. Over TCP, CORRAL_TLS_CA, CORRAL_TLS_CERT and CORRAL_TLS_KEY name the PEM files.
    """

    def __init__(self, target: Target, *, token: str = "", timeout: float = 15.0) -> None:
        self.target = target
        self._metadata = (("corral-token", token),) if token else ()
        self._timeout = timeout
        if target.path is not None:
            _try_socket(target.path)
        # gRPC logs its own view of a lost connection to stderr; ours follows, in words.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import grpc

        options = [("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.enable_http_proxy", 0)]
        self._channel: grpc.Channel = (
            grpc.insecure_channel(target.grpc, options=options)
            if target.path is not None
            else grpc.secure_channel(target.grpc, _credentials(os.environ), options=options)
        )

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, service: str, method: str, request: Message, reply: type[_Reply]) -> _Reply:
        """One unary RPC. Raises a CliError whose text is what the daemon said."""
        import grpc

        rpc: grpc.UnaryUnaryMultiCallable[Message, _Reply] = self._channel.unary_unary(
            service + method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        try:
            return rpc(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as err:
            raise _in_words(err, self.target) from None

    def stream(self, service: str, method: str, request: Message, reply: type[_Reply]) -> Iterator[_Reply]:
        """A server stream, until the caller stops iterating. Raises as ``call`` does."""
        import grpc

        rpc: grpc.UnaryStreamMultiCallable[Message, _Reply] = self._channel.unary_stream(
            service + method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        replies = rpc(request, metadata=self._metadata)
        try:
            yield from replies
        except grpc.RpcError as err:
            raise _in_words(err, self.target) from None
        finally:
            replies.cancel()


def _try_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(5.0)
        try:
            probe.connect(str(path))
        except TimeoutError:
            raise DaemonAway(f"agentd does not answer at {path}", remedy="look at 'journalctl -u agentd'") from None
        except OSError as err:
            raise _socket_error(path, err) from None


def _socket_error(path: Path, err: OSError) -> CliError:
    if err.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(
            f"{path}: {err.strerror}",
            remedy="operators are members of the group that owns the socket (by default 'corral'), or root",
        )
    if err.errno == errno.ENOENT:
        return DaemonAway(f"no agentd at {path}: there is no such socket", remedy=START_IT)
    if err.errno == errno.ECONNREFUSED:
        return DaemonAway(f"no agentd at {path}: nobody listens on the socket", remedy=START_IT)
    return DaemonAway(f"{path}: {err.strerror or err}", remedy=START_IT)


def _credentials(environment: Mapping[str, str]) -> grpc.ChannelCredentials:
    import grpc

    pem: dict[str, bytes] = {}
    for name in ("CORRAL_TLS_CA", "CORRAL_TLS_CERT", "CORRAL_TLS_KEY"):
        path = environment.get(name, "")
        if not path:
            raise UsageError(
                f"{name} is not set", remedy="over TCP the daemon wants a client certificate: name the three PEM files"
            )
        try:
            pem[name] = Path(path).read_bytes()
        except OSError as err:
            raise NotFoundError(f"{name}={path}: {err.strerror}", remedy="name a readable PEM file") from None
    return grpc.ssl_channel_credentials(pem["CORRAL_TLS_CA"], pem["CORRAL_TLS_KEY"], pem["CORRAL_TLS_CERT"])


def _in_words(err: grpc.RpcError, target: Target) -> CliError:
    import grpc

    call = cast("grpc.Call", err)  # what a stub raises is both; the type stubs do not know
    code, details = call.code(), (call.details() or "").strip()
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return DaemonAway(f"agentd at {target} went away: {details}", remedy=START_IT)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DaemonAway(f"agentd at {target} did not answer in time", remedy="look at 'journalctl -u agentd'")
        case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
            return NotPermitted(details or "not permitted")
        case grpc.StatusCode.NOT_FOUND:
            return NotFoundError(details or "not found")
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return UsageError(details or "invalid argument")
        case grpc.StatusCode.UNIMPLEMENTED:
            return CliError(
                f"agentd at {target} does not know this request",
                remedy="the daemon is older than this command line: restart it after the upgrade",
            )
        case _:
            return CliError(details or f"agentd answered {code.name}")
