"""The gateway as the daemon holds it: its listeners, its worker's process, and the worker's questions answered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from agentd.gateway.control import (
    MAX_LINE,
    Asked,
    Begin,
    ChannelBroken,
    Counted,
    Ended,
    Granted,
    Left,
    Ready,
    Refused,
    lines,
    send,
    to_daemon,
)
from agentd.gateway.errors import CannotServe, Refusal
from agentd.gateway.metrics import TurnTotals
from agentd.gateway.ports import Admission, Ask, TurnPort, TurnReport
from agentd.log import get_logger

log = get_logger("corral.gateway")

_FIRST_PAUSE: Final = 0.5  # seconds until a worker that ended is started again; doubles
_LONGEST_PAUSE: Final = 30.0
_WELL: Final = 60.0  # seconds after which a worker counts as one that runs well
_END: Final = 5.0  # seconds for a worker to end by itself
_BACKLOG: Final = 256
_LEAST_ASKED: Final = 4096  # admissions at once that a worker may ask for, however few connections it serves


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``listen`` None and ``socket`` None: off. ``begin``: what the worker serves, and within which bounds."""

    begin: Begin
    listen: tuple[str, int] | None = None
    socket: Path | None = None
    socket_mode: int = 0o666
    user: str = ""
    log_level: str = "info"
    log_format: str = "auto"
    instance: str = "corral"


class GatewayService:
    """``start`` and ``stop`` on the event loop. ``port`` is asked for every turn."""

    def __init__(self, port: TurnPort, settings: Settings, *, totals: TurnTotals) -> None:
        self._port = port
        self._settings = settings
        self.totals: Final = totals
        self._listeners: list[socket.socket] = []
        self._task: asyncio.Task[None] | None = None
        self._problem = ""
        self._note = ""
        self.addresses: list[str] = []
        self.pid: int | None = None

    def start(self) -> None:
        """Listens at once; a client that comes before the worker serves waits. Raises CannotServe."""
        settings = self._settings
        try:
            if settings.listen is not None:
                self._listeners.append(_tcp(*settings.listen))
            if settings.socket is not None:
                self._listeners.append(_unix(settings.socket, settings.socket_mode))
        except CannotServe:
            self._close_listeners()
            raise
        self.addresses = [_named(one) for one in self._listeners]
        self._task = asyncio.create_task(self._keep(), name="gateway")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._close_listeners()
        if self._settings.socket is not None:
            self._settings.socket.unlink(missing_ok=True)

    async def change(self, settings: Settings) -> None:
        """After a reload. Where what the worker serves is another engine's URL or key, it is started anew: turns under
        way end with it, new ones wait for it. Addresses are those of the start."""
        if settings.begin == self._settings.begin and settings.log_level == self._settings.log_level:
            return
        self._settings = settings
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self.totals.worker_ended()
            self._task = asyncio.create_task(self._keep(), name="gateway")

    def problems(self) -> list[str]:
        return [text for text in (self._problem, self._note) if text]

    def _close_listeners(self) -> None:
        while self._listeners:
            self._listeners.pop().close()

    async def _keep(self) -> None:
        """A worker that ends is started again, at once at first and then less and less often."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while True:
            began = loop.time()
            try:
                status = await self._worker()
                self._problem = f"the gateway's process ended with status {status}; it is started again"
            except (OSError, ChannelBroken) as error:
                self._problem = f"the gateway's process cannot be run: {error}; it is tried again"
            self.totals.worker_ended()
            self.totals.restarts += 1
            log.error("the gateway is down", problem=self._problem)
            pause = _FIRST_PAUSE if loop.time() - began > _WELL else min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _worker(self) -> int:
        ours, theirs = socket.socketpair()
        try:
            process = await self._spawn(theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid = process.pid
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE)
            send(writer, self._settings.begin)
            most = max(_LEAST_ASKED, 2 * self._settings.begin.connections)  # each asks for one at a time
            await _Answers(self._port, self.totals, self._ready, writer, most=most).serve(reader)
        finally:
            self.pid = None
            await _end(process, ours)
        return process.returncode if process.returncode is not None else -1

    async def _spawn(self, control: socket.socket) -> asyncio.subprocess.Process:
        """By exec, so that nothing of gRPC's threads is in it."""
        settings = self._settings
        command = [sys.executable, "-m", "agentd.gateway.worker", "--control", str(control.fileno())]
        for listener in self._listeners:
            command += ["--listen", str(listener.fileno())]
        command += ["--log-level", settings.log_level, "--log-format", settings.log_format]
        command += ["--instance", settings.instance, "--user", settings.user]
        withheld = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "CORRAL_")
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            env={key: value for key, value in os.environ.items() if not key.startswith(withheld)},
            pass_fds=(control.fileno(), *(one.fileno() for one in self._listeners)),
            start_new_session=True,  # a Ctrl-C is for the daemon, which then ends it in order
        )

    def _ready(self, note: str) -> None:
        self._problem, self._note = "", note
        if note:
            log.warning("the gateway keeps its privileges", problem=note)
        log.info("gateway served", addresses=self.addresses, engine=self._settings.begin.engine)


class _Answers:
    """One worker's questions. What it had open ends with it."""

    def __init__(
        self,
        port: TurnPort,
        totals: TurnTotals,
        on_ready: Callable[[str], None],
        writer: asyncio.StreamWriter,
        *,
        most: int,
    ) -> None:
        self._port = port
        self._totals = totals
        self._on_ready = on_ready
        self._writer = writer
        self._most = most
        self._asked: dict[int, asyncio.Task[None]] = {}
        self._granted: dict[int, Admission] = {}

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Until it is gone. Raises ChannelBroken."""
        try:
            async for line in lines(reader):
                try:
                    message = to_daemon.decode(line)
                except msgspec.DecodeError as error:
                    raise ChannelBroken(f"its process sent what is no message: {error}") from None
                self._take(message)
        finally:
            self._writer.close()
            tasks = list(self._asked.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for number in list(self._granted):
                self._ended(number, _LOST)

    def _take(self, message: Asked | Left | Ended | Counted | Ready) -> None:
        match message:
            case Asked(id=number, ask=ask):
                if number in self._asked or number in self._granted or len(self._asked) >= self._most:
                    raise ChannelBroken(f"its process asked twice, or for more than {self._most} turns at once")
                self._asked[number] = asyncio.ensure_future(self._admit(number, ask))
            case Left(id=number):
                task = self._asked.get(number)
                if task is not None:
                    task.cancel()
                else:
                    self._ended(number, _LOST)
            case Ended(id=number, report=report):
                self._ended(number, report)
            case Counted():
                self._totals.counted(message)
            case Ready(note=note):
                self._on_ready(note)

    async def _admit(self, number: int, ask: Ask) -> None:
        try:
            admission = await self._port.admit(ask)
        except Refusal as refusal:
            send(
                self._writer,
                Refused(number, refusal.status, refusal.code, refusal.message, refusal.retry_after),
            )
        except Exception:  # a defect must cost one turn, not the gateway
            log.exception("a turn could not be admitted", remedy="report this with the lines above")
            send(self._writer, Refused(number, 500, "internal", "the daemon failed; its log says how"))
        else:
            if ask.turn:
                self._granted[number] = admission
            send(self._writer, Granted(number, admission))
        finally:
            self._asked.pop(number, None)

    def _ended(self, number: int, report: TurnReport) -> None:
        admission = self._granted.pop(number, None)
        if admission is not None:
            self._port.ended(admission, report)


_LOST: Final = TurnReport(status=0, seconds=0.0, cancelled=True, error="cancelled")


async def _end(process: asyncio.subprocess.Process, control: socket.socket) -> None:
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_RDWR)  # tells it to end
    try:
        async with asyncio.timeout(_END):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _tcp(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise CannotServe(
            f"the gateway cannot listen on {host} port {port}: {error.strerror}; "
            "give another gateway.listen, or end the program that holds the port (ss -ltnp)"
        ) from None
    return sock


def _unix(path: Path, mode: int) -> socket.socket:
    """A stale socket of an earlier daemon is replaced: the state directory's lock says that there is no other."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if path.is_socket():
            path.unlink()
        sock.bind(str(path))
        path.chmod(mode)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise CannotServe(
            f"the gateway cannot listen on {path}: {error.strerror}; give another gateway.socket"
        ) from None
    return sock


def _named(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return str(sock.getsockname())
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
