"""The listening socket: who may connect, how many at once, and that there is only one daemon behind it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import structlog

from agentd import wire
from agentd.broker.connection import Connection
from agentd.broker.errors import BadSocketPath, BrokerError, SocketInUse
from agentd.broker.handler import BrokerHandler
from agentd.broker.peer import Peer, credentials
from controller.model import ControllerError

_log = structlog.get_logger(__name__)

_ACCEPTS: Final = 32  # per wake-up, so that a storm of connects leaves the loop to those who are connected
_BACKLOG: Final = 1024  # the kernel cuts it at net.core.somaxconn; a full one makes launchers wait, not fail
_EXHAUSTED_PAUSE: Final = 0.1  # seconds without accepts when the process has no descriptors left
_RESERVED: Final = 16  # connections kept for root: an operator gets in when tenants have taken the rest
_SUN_PATH: Final = 107  # bytes of a unix socket's path, without its NUL


class Broker:
    """Serves launchers on the SOCK_SEQPACKET socket ``path``.

    ``mode``: of the socket. ``max_connections``: in all. ``max_per_uid``: of one user (root excepted), so that one
    tenant cannot keep the others out. ``begin_timeout``: seconds in which a connection must make its request.
    """

    def __init__(
        self,
        path: Path,
        handler: BrokerHandler,
        *,
        mode: int = 0o666,
        max_connections: int = 4096,
        max_per_uid: int = 1024,
        begin_timeout: float = 5.0,
    ) -> None:
        self.path = path
        self.handler = handler
        self.closing = False
        self._mode = mode
        self._max = max_connections
        self._max_per_uid = max_per_uid
        self._begin_timeout = begin_timeout
        self._sock: socket.socket | None = None
        self._lock: int | None = None
        self._identity: tuple[int, int] | None = None  # device and inode of the socket that we made
        self._connections: set[Connection] = set()
        self._per_uid: Counter[int] = Counter()
        self._waiting: dict[Connection, float] = {}  # without a request so far, oldest first; until when
        self._sweep: asyncio.TimerHandle | None = None
        self._paused: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._full_logged = False
        self._complained_at = float("-inf")
        self._complaints_kept = 0

    def limit(self, *, max_connections: int, max_per_uid: int, begin_timeout: float) -> None:
        """New limits for connections that come from now on."""
        self._max = max_connections
        self._max_per_uid = max_per_uid
        self._begin_timeout = begin_timeout

    @property
    def connections(self) -> int:
        return len(self._connections)

    # --- life

    async def start(self) -> None:
        """Listen. Raises SocketInUse, BadSocketPath. A socket that nobody listens on any more is replaced."""
        if len(os.fsencode(self.path)) + len(".new") > _SUN_PATH:
            raise BadSocketPath(
                f"broker socket {self.path}: longer than {_SUN_PATH - len('.new')} bytes; choose a shorter path"
            )
        try:
            self._take_lock()
            self._check_free()
            self._listen()
        except OSError as err:
            self._release()
            raise BadSocketPath(
                f"broker socket {self.path}: {err.strerror}; its directory must exist and be writable for the daemon"
            ) from err
        except BrokerError:
            self._release()
            raise
        self._loop.add_reader(self._listener.fileno(), self._accept)

    async def close(self) -> None:
        """Stop listening and drop every connection. Calls go on: their launchers resume with the next daemon."""
        self.closing = True
        for timer in (self._sweep, self._paused):
            if timer is not None:
                timer.cancel()
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        for connection in tuple(self._connections):
            connection.close()
        await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()
        self._release()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    @property
    def _listener(self) -> socket.socket:
        if self._sock is None:
            raise BrokerError(f"broker socket {self.path}: not started; call start() first")
        return self._sock

    def _take_lock(self) -> None:
        """Two daemons that start together would both find the old socket dead; the lock decides between them."""
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._lock = lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use() from None

    def _check_free(self) -> None:
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise BadSocketPath(
                f"broker socket {self.path}: something that is no socket is there; move it or choose another path"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(self.path))
            except ConnectionRefusedError:
                return  # left by a daemon that was killed
            except OSError as err:
                # EAGAIN: its backlog is full; EPROTOTYPE: it is a listener of another kind
                if err.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                    raise
        raise self._in_use()

    def _in_use(self) -> SocketInUse:
        return SocketInUse(
            f"broker socket {self.path}: another daemon is using it; stop that one or choose another path"
        )

    def _listen(self) -> None:
        # bound beside and renamed: nobody ever sees it without its mode, or a moment without a socket
        beside = Path(f"{self.path}.new")
        beside.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._sock = sock
        sock.bind(os.fspath(beside))
        beside.chmod(self._mode)
        sock.listen(_BACKLOG)
        made = beside.lstat()
        self._identity = (made.st_dev, made.st_ino)
        beside.replace(self.path)

    def _release(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._lock is not None:
            os.close(self._lock)  # and with it the flock; the file stays: removing it would race with the next daemon
            self._lock = None

    # --- accepting

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as err:
                if err.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                # the listener stays readable: without a pause the loop would spin on it
                _log.warning("broker_out_of_descriptors", error=err.strerror, connections=len(self._connections))
                self._loop.remove_reader(self._listener.fileno())
                self._paused = self._loop.call_later(_EXHAUSTED_PAUSE, self._accept_again)
                return
            sock.setblocking(False)
            self._admit(sock)

    def _accept_again(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _admit(self, sock: socket.socket) -> None:
        try:
            peer = credentials(sock)
        except OSError:
            sock.close()
            raise
        refusal = self._why_not(peer)
        if refusal is not None:
            with contextlib.suppress(OSError):  # it may be gone already
                sock.send(wire.encode(refusal), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            sock.close()
            return
        connection = Connection(self, sock, peer, self._loop)
        self._connections.add(connection)
        self._per_uid[peer.uid] += 1
        self.waits(connection)
        connection.opened()

    def _why_not(self, peer: Peer) -> wire.Refused | None:
        if peer.pid <= 0:
            return wire.Refused(
                code="not_allowed",
                message="this process lives in a pid namespace that the daemon cannot see; run the daemon on the host",
            )
        if peer.uid != 0 and self._per_uid[peer.uid] >= self._max_per_uid:
            return wire.Refused(
                code="too_many_connections",
                message=f"user {peer.uid} has {self._max_per_uid} connections; let some calls end first",
            )
        if len(self._connections) >= (self._max if peer.uid == 0 else max(1, self._max - _RESERVED)):
            if not self._full_logged:
                self._full_logged = True
                _log.warning("broker_full", connections=len(self._connections))
            return wire.Refused(
                code="too_many_connections",
                message=f"the daemon serves {len(self._connections)} connections, its maximum; try again later",
            )
        self._full_logged = False
        return None

    # --- half-open connections

    def waits(self, connection: Connection) -> None:
        """``connection`` has no request at work: it has ``begin_timeout`` to make one."""
        self._waiting[connection] = self._loop.time() + self._begin_timeout
        if self._sweep is None and not self.closing:
            self._sweep = self._loop.call_later(self._begin_timeout, self._drop_late)

    def heard(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)

    def _drop_late(self) -> None:
        # one timer for all: a timer for each connection would be made and cancelled on the path of every call
        self._sweep = None
        now = self._loop.time()
        for connection, until in list(self._waiting.items()):
            if until > now:
                self._sweep = self._loop.call_later(until - now, self._drop_late)
                return
            connection.drop()

    # --- for connections

    def forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._waiting.pop(connection, None)
        uid = connection.peer.uid
        self._per_uid[uid] -= 1
        if self._per_uid[uid] <= 0:
            del self._per_uid[uid]

    def complain(self, peer: Peer, problem: str) -> None:
        """Log what a peer did wrong; at most once a second, so that nobody can fill the log."""
        now = self._loop.time()
        if now - self._complained_at < 1.0:
            self._complaints_kept += 1
            return
        kept, self._complaints_kept, self._complained_at = self._complaints_kept, 0, now
        _log.warning(
            "broker_protocol_violation", pid=peer.pid, uid=peer.uid, problem=problem[:300], not_logged_before=kept
        )

    def report_hang_up(self, call_id: str) -> None:
        self._spawn(self._hung_up(call_id))

    async def _hung_up(self, call_id: str) -> None:
        try:
            await self.handler.hung_up(call_id)
        except ControllerError as err:
            _log.warning("broker_hang_up_failed", call=call_id, error=str(err))
        except Exception:  # a defect; nobody waits for this answer, so the log is the only place to tell
            _log.exception("broker_hang_up_failed", call=call_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)
