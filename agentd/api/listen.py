"""Sockets of the API: made safely, replaced when stale, never taken from a daemon that lives.

A unix socket is bound in a directory of mode 0700, gets its owner and mode there, and is then renamed into place: at no
moment can anybody connect who may not, and a stale socket is replaced in one step. gRPC itself would remove whatever
socket has the path, so a second daemon is kept out by a lock beside it, which the kernel drops when its holder dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import ssl
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

import grpc
import grpc.aio

from agentd.api.errors import ListenError, SecondDaemon
from agentd.api.identity import Principal

MAX_SOCKET_PATH: Final = 107  # bytes, of sockaddr_un.sun_path without its final NUL
_PROBE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixListener:
    """``principal``: whom the socket stands for; None: nobody, so that every request needs a session's token.

    ``gid``: the group that may connect (None: the daemon's own). The directory is made when it is missing (0755); one
    that others can write to is refused.
    """

    path: Path
    principal: Principal | None
    mode: int = 0o660
    gid: int | None = None

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpListener:
    """Mutual TLS. ``address`` is HOST:PORT (port 0: any); ``clients`` maps a certificate's name to whom it means."""

    address: str
    certificate: Path
    key: Path
    client_ca: Path
    clients: Mapping[str, Principal] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.address


Listener = UnixListener | TcpListener


class SocketLock:
    """Held as long as the socket beside it is served."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.lock")
        self._descriptor = -1

    def acquire(self) -> Self:
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise ListenError(f"{self.path}: {err.strerror}; the daemon must be able to write its directory") from err
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise second_daemon(self.path.with_suffix("")) from None
        return self

    def release(self) -> None:
        """The file stays: removing it would let two daemons lock two files of one name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class BoundSocket:
    """A unix socket that a gRPC server listens on. ``remove`` takes it away again, if it still is this one."""

    def __init__(self, path: Path, identity: tuple[int, int], lock: SocketLock) -> None:
        self.path = path
        self._identity = identity
        self._lock = lock

    def remove(self) -> None:
        try:
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == self._identity:
                self.path.unlink()
        except FileNotFoundError:
            pass  # a tidy-up of /run was faster
        finally:
            self._lock.release()


def bind_unix(listener: UnixListener, add_port: Callable[[str], int]) -> BoundSocket:
    """``add_port``: a gRPC server's add_insecure_port. Raises ListenError or SecondDaemon, and leaves nothing then."""
    path = listener.path
    _prepare_directory(path)
    lock = SocketLock(path).acquire()
    try:
        _refuse_live_or_foreign(path)
        with tempfile.TemporaryDirectory(prefix=".b", dir=path.parent) as private:
            made = Path(private) / "s"
            if len(os.fsencode(made)) > MAX_SOCKET_PATH or len(os.fsencode(path)) > MAX_SOCKET_PATH:
                raise ListenError(
                    f"{path}: is too long for a socket ({MAX_SOCKET_PATH} bytes with a temporary name beside it); "
                    "configure a shorter directory for the sockets"
                )
            try:
                # the target is a URI: gRPC percent-decodes it
                add_port(f"unix:{quote(os.fsencode(made))}")
                os.chown(made, -1, listener.gid if listener.gid is not None else -1)
                made.chmod(listener.mode)
                status = made.lstat()
                made.rename(path)
            except (OSError, RuntimeError) as err:  # RuntimeError: gRPC's, for whatever bind said
                raise ListenError(f"{path}: cannot be made: {err}; check the directory and the group") from err
    except BaseException:
        lock.release()
        raise
    return BoundSocket(path, (status.st_dev, status.st_ino), lock)


def _prepare_directory(path: Path) -> None:
    directory = path.parent
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as err:
        raise ListenError(f"{path}: its directory: {err.strerror}; make {directory}, owned by the daemon") from err
    if status.st_uid not in {os.geteuid(), 0} or status.st_mode & stat.S_IWOTH:
        raise ListenError(
            f"{path}: {directory} belongs to uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}: "
            "others could put a socket in its place; chown it to the daemon and take away others' write permission"
        )


def _refuse_live_or_foreign(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"{path}: exists and is not a socket; move it away or configure another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except TimeoutError:
            raise second_daemon(path) from None
        except OSError as err:
            if err.errno in (errno.EAGAIN, errno.EACCES, errno.EPERM):  # EAGAIN: it lives and its backlog is full
                raise second_daemon(path) from None
            return  # ECONNREFUSED: nobody listens, a dead daemon left it
    raise second_daemon(path)


def second_daemon(path: Path) -> SecondDaemon:
    return SecondDaemon(
        f"{path}: another daemon serves this socket; stop it first (systemctl stop agentd), or configure another "
        "daemon.runtime_dir"
    )


def server_credentials(listener: TcpListener) -> grpc.ServerCredentials:
    """Raises ListenError, with the file: gRPC itself would only say that the port could not be added."""
    certificate, key, authority = (
        _read(listener.certificate, "certificate"),
        _read(listener.key, "key"),
        _read(listener.client_ca, "client_ca"),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(listener.certificate, listener.key)
    except ssl.SSLError as err:
        raise ListenError(
            f"{listener.certificate} with {listener.key}: {err.reason or err}; "
            "give a PEM certificate chain and its own key"
        ) from err
    try:
        context.load_verify_locations(listener.client_ca)
    except ssl.SSLError as err:
        raise ListenError(
            f"{listener.client_ca}: {err.reason or err}; give the authorities of the clients as PEM certificates"
        ) from err
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=authority, require_client_auth=True)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise ListenError(f"{path}: {err.strerror}; set [api.tcp] {what} to a file that the daemon can read") from err


def bind_tcp(listener: TcpListener, server: grpc.aio.Server) -> int:
    """The port. Raises ListenError."""
    credentials = server_credentials(listener)
    try:
        return server.add_secure_port(listener.address, credentials)
    except RuntimeError as err:
        raise ListenError(
            f"{listener.address}: cannot be listened on ({err}); give HOST:PORT of this host, free, in [api.tcp] listen"
        ) from err
