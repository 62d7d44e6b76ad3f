"""The daemon as the commands see it: ``agentd.api.client``, synchronous, with errors that have an exit status.

grpc comes with this import (some 80 ms): only what speaks to a daemon imports this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

# gRPC logs its own view of a lost connection to stderr; ours follows, in words. It reads this when it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc  # after the variable above

from agentd.api import client
from agentd.api.client import SyncClient, Target
from agentd.cli.errors import CliError, DaemonAway, NotFoundError, NotPermitted, UsageError

ANSWER_WITHIN: Final = 15.0  # seconds
MAX_PORT: Final = 65_535
MAX_SOCKET_PATH: Final = 107  # bytes: sockaddr_un's 108 with their end

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")

# The first that fits. What the request's object does not allow at the moment is a plain failure, and no wrong usage.
_KINDS: Final[tuple[tuple[type[client.ApiError], type[CliError]], ...]] = (
    (client.DaemonAway, DaemonAway),
    (client.TimedOut, DaemonAway),
    (client.NotPermitted, NotPermitted),
    (client.NoSuchObject, NotFoundError),
    (client.AlreadyThere, CliError),
    (client.WrongMoment, CliError),
    (client.BadRequest, UsageError),
    (client.ApiError, CliError),
)


def parse_target(text: str) -> Target:
    """``unix:/path``, ``/path`` or ``host:port``. Raises UsageError."""
    with _in_words():
        target = Target.parse(text)
    if target.path is not None:
        if text in ("unix:", "unix://") or len(os.fsencode(target.path)) > MAX_SOCKET_PATH:
            raise UsageError(f"--api {text[:60]!r} is no socket's path", remedy=f"give 1 to {MAX_SOCKET_PATH} bytes")
    elif not 0 < int(target.address.rpartition(":")[2]) <= MAX_PORT:
        raise UsageError(f"--api {text[:60]!r} has no port that exists", remedy=f"give 1 to {MAX_PORT}")
    return target


class Remote:
    """A connection to one daemon. Use as a context manager.

    ``token`` is a session's. Without one none is sent, also where CORRAL_TOKEN is set: an operator who opened a session
    in this shell still asks as an operator.
    """

    def __init__(self, target: str, *, token: str = "") -> None:
        parse_target(target)
        with _in_words():
            self._client = SyncClient(target, token or None)
        if not token:
            self._client.metadata = ()
        self.agent = self._client.agent
        self.operator = self._client.operator

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def call(self, method: grpc.UnaryUnaryMultiCallable[_Request, _Reply], request: _Request) -> _Reply:
        """One RPC. Raises a CliError whose text is what the daemon said."""
        with _in_words():
            return self._client.call(method, request, timeout=ANSWER_WITHIN)

    def stream(self, method: grpc.UnaryStreamMultiCallable[_Request, _Reply], request: _Request) -> Iterator[_Reply]:
        """A server stream, until the caller stops iterating. Raises as ``call`` does."""
        with _in_words():
            yield from self._client.stream(method, request)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except client.ApiError as err:
        kind: Callable[[str], CliError] = next(ours for theirs, ours in _KINDS if isinstance(err, theirs))
        raise kind(str(err)) from None
