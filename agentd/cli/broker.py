"""The broker's socket from the client's side: open a session as who we are, and become a process of one.

The broker sees the uid that the kernel vouches for (SO_PEERCRED), so neither needs a token or a right on the operator
socket. ``agentd.wire`` is the codec; docs/architecture.md has the messages.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import Mapping
from typing import Final

from agentd import wire
from agentd.cli.errors import CliError, DaemonAway, NotFoundError, NotPermitted, UsageError
from agentd.sockets import BROKER, default_socket

MAX_PACKET: Final = 65_536
ANSWER_WITHIN: Final = 10.0  # seconds; the broker answers in one or two milliseconds
# The daemon's refusals carry the name of its exception in snake case.
_REFUSALS: Final[dict[str, type[CliError]]] = {
    "not_allowed": NotPermitted,
    "not_found": NotFoundError,
    "invalid_request": UsageError,
}


def socket_path(option: str | None, environment: Mapping[str, str]) -> str:
    return option or environment.get("CORRAL_SOCKET") or default_socket(BROKER, environment)


def open_session(path: str, tenant: str, name: str) -> tuple[str, str]:
    """The new session's id and its token. Raises CliError."""
    reply = _ask(path, wire.Open(tenant=tenant, name=name))
    if not isinstance(reply, wire.Opened):
        raise _unexpected(path, reply)
    return reply.session, reply.token


def enter(path: str, *, session: str | None = None, token: str | None = None) -> None:
    """Make this process an agent process of the session: what it execs and forks stays there. Raises CliError.

    Exactly one of ``session`` (its id; our uid must be its owner's) and ``token``.
    """
    pidfd = os.pidfd_open(os.getpid())
    try:
        reply = _ask(path, wire.Enter(session=session, token=token), pidfd)
    finally:
        os.close(pidfd)
    if not isinstance(reply, wire.Ok):
        raise _unexpected(path, reply)


def _ask(path: str, message: wire.Message, *descriptors: int) -> wire.Message:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(ANSWER_WITHIN)
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())] if descriptors else []
        )
        try:
            connection.connect(path)
            connection.sendmsg([wire.encode(message)], ancillary)
            answer = connection.recv(MAX_PACKET)
        except TimeoutError:
            raise DaemonAway(f"the broker at {path} does not answer", remedy="look at 'journalctl -u agentd'") from None
        except OSError as err:
            raise _socket_error(path, err) from None
    if not answer:
        raise DaemonAway(f"the broker at {path} hung up", remedy="look at 'journalctl -u agentd'")
    try:
        reply = wire.decode(answer)
    except wire.WireError as err:
        raise CliError(f"the broker at {path} said what cannot be read: {err}", remedy="is it agentd's?") from None
    if isinstance(reply, wire.Refused):
        raise _refused(reply)
    return reply


def _refused(reply: wire.Refused) -> CliError:
    return _REFUSALS.get(reply.code, CliError)(reply.message or f"refused: {reply.code}")


def _socket_error(path: str, err: OSError) -> CliError:
    if err.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(f"{path}: {err.strerror}", remedy="ask the operator for access to the broker's socket")
    return DaemonAway(
        f"no broker at {path}: {err.strerror or err}",
        remedy="start agentd ('systemctl start agentd'), or name another with --socket or CORRAL_SOCKET",
    )


def _unexpected(path: str, reply: wire.Message) -> CliError:
    return CliError(f"the broker at {path} answered {type(reply).__name__}", remedy="is it of the same version?")
