"""Requests to the broker's socket. It sees who asks (SO_PEERCRED): no secret is needed to open a session."""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import Mapping
from typing import Final

from corral_client import wire
from corral_client.errors import CorralError, DaemonAway, NotPermitted, ProtocolError, Refused
from corral_client.wire import Tag, Type

ANSWER_WITHIN: Final = 10.0  # seconds; the broker answers in one or two milliseconds


def default_socket(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """That of the user's own daemon (``agentd --user``) where there is one, else the host's."""
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    own = f"{runtime}/corral/{name}"
    try:  # `su` keeps the variable: root must not speak to a daemon of whoever it was before
        ours = runtime.startswith("/") and os.stat(own).st_uid == os.geteuid()  # noqa: PTH116
    except OSError:
        ours = False
    return own if ours else f"/run/corral/{name}"


def socket_path(given: str | os.PathLike[str] | None, environment: Mapping[str, str] = os.environ) -> str:
    return os.fspath(given) if given else environment.get("CORRAL_SOCKET") or default_socket("broker.sock", environment)


def open_session(path: str, tenant: str, name: str) -> tuple[str, str]:
    """The new session's id and token. Blocks for milliseconds. Raises CorralError."""
    fields = _ask(path, Type.OPEN, {Tag.TENANT: tenant.encode(), Tag.NAME: name.encode()}, expect=Type.OPENED)
    return wire.text(fields, Tag.SESSION), wire.text(fields, Tag.TOKEN)


def close_session(path: str, token: str, *, kill: bool) -> None:
    """Raises Refused (``wrong_state``) when calls run and ``kill`` is not set."""
    _ask(path, Type.CLOSE, {Tag.TOKEN: token.encode(), Tag.KILL: bytes([kill])}, expect=Type.OK)


def enter(path: str, token: str) -> None:
    """This process, and what it starts from now on outside of calls, become the session's agent: the pressure ladder
    never ends those."""
    pidfd = os.pidfd_open(os.getpid())
    try:
        _ask(path, Type.ENTER, {Tag.TOKEN: token.encode()}, pidfd, expect=Type.OK)
    finally:
        os.close(pidfd)


def _ask(path: str, kind: Type, fields: Mapping[Tag, bytes], *descriptors: int, expect: Type) -> dict[int, bytes]:
    packet = wire.encode(kind, fields.items())
    passed = array.array("i", descriptors).tobytes()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(ANSWER_WITHIN)
        try:
            connection.connect(path)
            connection.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if descriptors else [])
            answer = connection.recv(wire.MAX_PACKET)
        except TimeoutError:
            raise DaemonAway(f"the broker at {path} does not answer; look at 'journalctl -u agentd'") from None
        except OSError as err:
            raise _socket_error(path, err) from None
    if not answer:
        raise DaemonAway(f"the broker at {path} hung up; look at 'journalctl -u agentd'")
    answered, got = wire.decode(answer)
    if answered == Type.REFUSED:
        code, message = wire.text(got, Tag.CODE), wire.text(got, Tag.MESSAGE)
        raise NotPermitted(message) if code in {"not_allowed", "unauthenticated"} else Refused(message, code=code)
    if answered != expect:
        raise ProtocolError(f"{path} answered {kind.name} with type {answered}; is the daemon of another version?")
    return got


def _socket_error(path: str, err: OSError) -> CorralError:
    if err.errno in {errno.EACCES, errno.EPERM}:
        return NotPermitted(f"{path}: {err.strerror}; ask the operator for access to the broker's socket")
    return DaemonAway(
        f"no broker at {path}: {err.strerror or err}; start agentd ('systemctl start agentd'), or name its socket in "
        "CORRAL_SOCKET"
    )
