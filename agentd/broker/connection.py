"""One connection: a state machine over the packets of one launcher.

    NEW ──BEGIN──▶ BUSY ──GRANT──▶ RUNNING ──END──▶ BUSY ──OUTCOME──▶ closed
    NEW ──RESUME─▶ BUSY ──OK─────▶ RUNNING
    NEW ──OPEN, ENTER──▶ BUSY ──OPENED, OK──▶ NEW

The loop calls ``readable``; a request that has to wait runs in a task. While one runs, what else comes is kept, up to a
small bound (a launcher may send RESUME and END together). A refused request ends the connection.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog

from agentd import wire
from agentd.broker.eager import start
from agentd.broker.peer import Peer, close_all, is_still_peer, passed_descriptors, pid_of_pidfd
from controller.model import ControllerError, InvalidRequest, Refused

if TYPE_CHECKING:
    from agentd.broker.server import Broker

_log = structlog.get_logger(__name__)

_BACKLOG: Final = 4  # messages kept while a request runs; an honest launcher sends one
_BURST: Final = 8  # messages read per wake-up: one chatty peer must not keep the loop from the others
_MAX_ANSWER: Final = 16_000  # characters of a text sent to a launcher: four bytes each still fit in a packet
# one buffer for every connection: what is read is copied out before the loop goes on
_BUFFER: Final = bytearray(wire.MAX_MESSAGE)
_ANCILLARY: Final = socket.CMSG_SPACE(4)
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC

_Request: TypeAlias = Callable[[], Awaitable[None]]


class _State(Enum):
    NEW = auto()
    BUSY = auto()
    RUNNING = auto()
    CLOSED = auto()


class _ProtocolError(Exception):
    """The peer broke the protocol: it is told so and dropped."""


def code_of(error: ControllerError) -> str:
    """The wire's code for ``error``: its own where it has one, else its class in snake case (``invalid_request``)."""
    if isinstance(error, Refused):
        return error.code
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


class Connection:
    """Also the Link that the handler is given (agentd/broker/handler.py)."""

    __slots__ = (
        "_acted",
        "_backlog",
        "_broker",
        "_call_id",
        "_gone",
        "_loop",
        "_sock",
        "_state",
        "_task",
        "peer",
    )

    def __init__(self, broker: Broker, sock: socket.socket, peer: Peer, loop: asyncio.AbstractEventLoop) -> None:
        self.peer = peer
        self._broker = broker
        self._sock = sock
        self._loop = loop
        self._state = _State.NEW
        self._task: asyncio.Task[None] | None = None
        self._call_id: str | None = None
        self._acted = False
        self._gone = False
        self._backlog: deque[tuple[bytes, int | None]] = deque()

    # --- the Link

    @property
    def closed(self) -> bool:
        return self._state is _State.CLOSED

    def queued(self, eta: float | None, message: str) -> None:
        if self._state is _State.BUSY and self._call_id is None:
            # a launcher that is stopped (Ctrl-Z) in the queue does not read: it can do without news
            self._send(wire.Queued(eta=eta, message=message[:_MAX_ANSWER]), may_skip=True)

    def acted(self) -> None:
        if self.closed or self._acted:
            return
        self._acted = True
        if self._call_id is not None:  # else it follows the grant
            self._send(wire.Acted())

    # --- life

    def drop(self) -> None:
        """Too long without a request: say so and close. The handler never knew of this peer."""
        if self._state is _State.NEW:
            self._refuse("timeout", "no request came in time; send BEGIN right after connecting")

    def close(self) -> None:
        """Close and forget; the call, if any, is not reported (the broker is going away, the call is not)."""
        if self._state is _State.CLOSED:
            return
        self._state = _State.CLOSED
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        close_all(fd for _, fd in self._backlog if fd is not None)
        self._backlog.clear()
        if self._task is not None and self._call_id is None:
            # begin() waits, perhaps in the queue: nobody wants its grant any more. An END is left to finish.
            self._task.cancel()
        self._broker.forget(self)

    def opened(self) -> None:
        """Right after the connect. A launcher says what it wants at once: it is often there already, and the loop is
        told of the connection when that has been answered."""
        self.readable()
        if self._state is not _State.CLOSED and not self._gone:
            self._loop.add_reader(self._sock.fileno(), self.readable)

    @property
    def task(self) -> asyncio.Task[None] | None:
        return self._task

    def _hang_up(self) -> None:
        """The peer is gone (or broke the protocol in the middle of a call)."""
        running = self._state is _State.RUNNING
        self.close()
        if running and self._call_id is not None:
            self._broker.report_hang_up(self._call_id)
            self._call_id = None

    def _peer_gone(self) -> None:
        """The peer closed. What it said before still counts: after a restart of the daemon, a launcher whose child has
        ended sends RESUME and END and leaves."""
        if self._state is _State.BUSY and self._backlog:
            self._gone = True
            self._loop.remove_reader(self._sock.fileno())
        else:
            self._hang_up()

    # --- in

    def readable(self) -> None:
        for _ in range(_BURST):
            if self._state is _State.CLOSED:
                return
            try:
                length, ancillary, flags, _ = self._sock.recvmsg_into([_BUFFER], _ANCILLARY, _FLAGS)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionResetError:
                # It closed with a message of ours (ACTED) unread. The kernel tells that once, and before what it had
                # said itself: its END may still come, and after it the end of file.
                continue
            except OSError:
                self._peer_gone()
                return
            descriptors = passed_descriptors(ancillary)
            if length == 0 and not descriptors:
                # EOF; an empty packet looks the same, and no launcher sends one
                self._peer_gone()
                return
            try:
                fd = self._one_descriptor(descriptors, flags)
            except _ProtocolError as err:
                self._violated(str(err))
                return
            self._received(bytes(memoryview(_BUFFER)[:length]), fd)

    @staticmethod
    def _one_descriptor(descriptors: list[int], flags: int) -> int | None:
        """The descriptor that came along, if any. Whatever else came is closed and is an error."""
        problem = ""
        if flags & socket.MSG_TRUNC:
            problem = f"a message of more than {wire.MAX_MESSAGE} bytes"
        elif flags & socket.MSG_CTRUNC or len(descriptors) > 1:
            # the kernel also cuts what this process has no descriptors left for
            problem = "descriptors beside the message beyond the one that is expected (or the daemon has none left)"
        if problem:
            close_all(descriptors)
            raise _ProtocolError(problem)
        return descriptors[0] if descriptors else None

    def _received(self, packet: bytes, fd: int | None) -> None:
        if self._state is _State.BUSY:
            if len(self._backlog) < _BACKLOG:
                self._backlog.append((packet, fd))
                return
            close_all([] if fd is None else [fd])
            self._violated(f"more than {_BACKLOG} messages while a request is being answered")
            return
        try:
            request = self._request(wire.decode(packet), fd)
        except (wire.WireError, _ProtocolError) as err:
            close_all([] if fd is None else [fd])
            self._violated(str(err))
        except OSError as err:  # of /proc: most likely no descriptors are left
            close_all([] if fd is None else [fd])
            _log.warning("broker_peer_check_failed", pid=self.peer.pid, uid=self.peer.uid, error=str(err))
            self._refuse("internal", f"the daemon cannot check who asks: {err.strerror}; try again in a moment")
        except InvalidRequest as err:
            close_all([] if fd is None else [fd])
            self._refuse(code_of(err), str(err))
        else:
            self._broker.heard(self)
            self._state = _State.BUSY
            task = start(self._run(request), self._loop)
            descriptors = [] if fd is None else [fd]
            if task is None:
                close_all(descriptors)
            else:
                self._task = task
                task.add_done_callback(lambda _: close_all(descriptors))

    def _request(self, message: wire.Message, fd: int | None) -> _Request:
        """The work that ``message`` asks for. Raises _ProtocolError where it is out of turn or lacks its pidfd."""
        kind = type(message).__name__.upper()
        running = self._state is _State.RUNNING
        match message:
            case wire.End() if running:
                return partial(self._end, message)
            case wire.Begin() if not running:
                return partial(self._begin, self._peer_with(fd, kind), message)
            case wire.Resume() if not running:
                return partial(self._resume, self._peer_with(fd, kind, other=True), message)
            case wire.Open() if not running:
                return partial(self._open, message)
            case wire.Close() if not running:
                return partial(self._close_session, message)
            case wire.Enter() if not running:
                return partial(self._enter, self._peer_with(fd, kind), message)
            case _:
                raise _ProtocolError(f"{kind} is not expected {'while a call runs' if running else 'here'}")

    def _peer_with(self, fd: int | None, kind: str, *, other: bool = False) -> Peer:
        """The peer with its verified pidfd. ``other``: the pidfd may name another process, or be absent."""
        if fd is None:
            if other:
                return self.peer
            raise _ProtocolError(f"{kind} came without a pidfd; pass one of the process that connects (SCM_RIGHTS)")
        pid = pid_of_pidfd(fd)
        if pid is None or (not other and pid != self.peer.pid):
            what = "is no pidfd" if pid is None else f"names process {pid}, not {self.peer.pid}, which connected"
            raise _ProtocolError(f"the descriptor beside {kind} {what}; pass a pidfd of the process that connects")
        if not other and not is_still_peer(self._sock, self.peer):
            raise _ProtocolError(f"process {pid} is not the one that connected, which has ended; connect anew")
        return replace(self.peer, pidfd=fd, pidfd_pid=pid if pid > 0 else None)

    # --- requests

    async def _run(self, request: _Request) -> None:
        try:
            await request()
        except ControllerError as err:
            self._failed(code_of(err), str(err))
        except Exception:  # a defect on one request must not cost the others their broker
            _log.exception("broker_handler_failed", pid=self.peer.pid, uid=self.peer.uid, call=self._call_id)
            self._failed("internal", "the daemon failed on this request (its log says why); tell the operator")
        else:
            self._task = None
            while self._backlog and self._state in (_State.NEW, _State.RUNNING):
                self._received(*self._backlog.popleft())
            if self._gone and self._state in (_State.NEW, _State.RUNNING):
                self._hang_up()

    def _failed(self, code: str, message: str) -> None:
        """The request was refused. A failed END is still the end of the call for this connection."""
        self._task = None
        self._send(wire.Refused(code=code, message=message[:_MAX_ANSWER]))
        self.close()

    async def _begin(self, peer: Peer, begin: wire.Begin) -> None:
        granted = await self._broker.handler.begin(peer, begin, self)
        answer = wire.Grant(
            call_id=granted.call_id,
            enforced=granted.enforced,
            notes=tuple(note[:400] for note in granted.notes),  # 32 notes of 400 characters fit in a packet
        )
        self._started(granted.call_id, answer)

    async def _resume(self, peer: Peer, resume: wire.Resume) -> None:
        await self._broker.handler.resume(peer, resume.call_id, self)
        self._started(resume.call_id, wire.Ok())

    def _started(self, call_id: str, answer: wire.Message) -> None:
        if self._state is _State.CLOSED:  # hung up, and the handler finished all the same
            if not self._broker.closing:
                self._broker.report_hang_up(call_id)
            return
        self._call_id = call_id
        self._state = _State.RUNNING
        self._send(answer)
        if self._acted:
            self._send(wire.Acted())

    async def _end(self, end: wire.End) -> None:
        call_id = self._call_id
        if call_id is None:
            raise RuntimeError("END was let through without a call")
        ended = await self._broker.handler.ended(call_id, end.wait_status, end.want)
        if end.want:
            self._send(
                wire.OutcomeReply(
                    reason=ended.reason,
                    paragraph=ended.paragraph[:_MAX_ANSWER],
                    suggestions=tuple(text[:400] for text in ended.suggestions),
                    notes=tuple(note[:400] for note in ended.notes),
                )
            )
        self._task = None
        self.close()

    async def _open(self, request: wire.Open) -> None:
        session_id, token = await self._broker.handler.open_session(self.peer, request.tenant, request.name)
        self._answered(wire.Opened(session=session_id, token=token))

    async def _close_session(self, request: wire.Close) -> None:
        await self._broker.handler.close_session(self.peer, request.token, request.kill)
        self._answered(wire.Ok())

    async def _enter(self, peer: Peer, request: wire.Enter) -> None:
        await self._broker.handler.enter(peer, request.session, request.token)
        self._answered(wire.Ok())

    def _answered(self, answer: wire.Message) -> None:
        if self._state is not _State.CLOSED:
            self._state = _State.NEW
            self._send(answer)
            self._broker.waits(self)

    # --- out

    def _send(self, message: wire.Message, *, may_skip: bool = False) -> None:
        """Send, if the peer is there. One that does not read until its buffer is full is treated as gone. One that has
        closed is heard out first: its END may still be unread, and the end of file behind it is the hang-up."""
        if self.closed:
            return
        try:
            self._sock.send(wire.encode(message), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            if not may_skip:
                self._loop.call_soon(self._hang_up)
        except (BrokenPipeError, ConnectionResetError):
            if self._gone:  # nobody reads from it any more
                self._loop.call_soon(self._hang_up)
        except OSError:
            self._loop.call_soon(self._hang_up)

    def _violated(self, problem: str) -> None:
        self._broker.complain(self.peer, problem)
        self._refuse("protocol", problem)

    def _refuse(self, code: str, message: str) -> None:
        """Answer REFUSED and close. A call that ran is reported as hung up: nobody speaks for it any more."""
        self._send(wire.Refused(code=code, message=message[:_MAX_ANSWER]))
        self._hang_up()
