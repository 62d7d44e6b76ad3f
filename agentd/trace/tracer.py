"""Starts the worker, reads its lines, and sees to it that it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from controller.model import WrongState

TOOLS: Final = ("offcpu", "syscalls", "files", "blockio", "processes")
MAX_SECONDS: Final = 600.0
MAX_TRACES: Final = 2  # at once: each compiles with LLVM (about 150 MB) and slows its call
MAX_LINE: Final = 1 << 20  # bytes: a table of 40 rows, each with a stack
PATIENCE: Final = 20.0  # seconds for the tables, after the end was asked for
_WORKER: Final = Path(__file__).with_name("worker.py")
_log = structlog.get_logger()


class TraceError(WrongState):
    """Nothing can be traced: the cause and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """``value``: of an exit the seconds that it lived, of an open its result."""

    tool: str
    at: float  # unix seconds
    pid: int
    command: str
    text: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    tool: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """What could not be traced, or was lost, in words."""

    text: str


Line = Event | Table | Notice


class Tracer:
    """``python``: the interpreter that has bcc, else the system's. ``worker``: the program (tests bring theirs)."""

    def __init__(self, *, python: str | None = None, worker: Path = _WORKER) -> None:
        self._python = python or shutil.which("python3", path="/usr/bin:/bin:/usr/local/bin")
        self._worker = worker
        self._running = 0
        self._live: set[asyncio.subprocess.Process] = set()
        self._reaping: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Ends all workers. An iterator that is still read then ends, too."""
        for process in self._live:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*(process.wait() for process in tuple(self._live)))
        await asyncio.gather(*tuple(self._reaping), return_exceptions=True)

    async def trace(
        self, group: Path, *, tools: Sequence[str], seconds: float, ended: asyncio.Event
    ) -> AsyncGenerator[Line, None]:
        """What the worker finds in ``group``, for ``seconds`` or until ``ended``; its tables come last. Leaving the
        iterator ends the worker. Raises TraceError where none can be started."""
        if self._python is None:
            raise TraceError("there is no system Python, which bcc needs", remedy="apt-get install python3-bpfcc")
        if self._running >= MAX_TRACES:
            raise TraceError(f"{MAX_TRACES} calls are being traced, which is the most", remedy="wait until one ends")
        self._running += 1
        try:
            process = await asyncio.create_subprocess_exec(
                self._python, "-I", str(self._worker), str(group),
                "--tools", ",".join(tools), "--seconds", str(seconds),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                limit=MAX_LINE, env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
        except OSError as err:
            self._running -= 1
            raise TraceError(f"{self._python}: {os.strerror(err.errno or 0)}", remedy="install python3") from None
        self._live.add(process)
        # stderr has the compiler's words; it must be read, or the worker would stand still
        complaints = asyncio.create_task(_tail(process.stderr))
        stopping = asyncio.create_task(_stop(process, ended))
        try:
            async for line in _lines(process.stdout):
                yield line
            await process.wait()
            if process.returncode not in (0, 3):
                said = (await complaints).strip().rpartition("\n")[2]
                yield Notice(f"the tracing worker ended with {process.returncode}: {said or 'it said nothing'}")
        finally:
            stopping.cancel()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            # a task of its own: the reader may be cancelled, the worker is waited for all the same
            reaping = asyncio.create_task(self._reap(process, complaints, stopping))
            self._reaping.add(reaping)
            reaping.add_done_callback(self._reaping.discard)
            await asyncio.shield(reaping)

    async def _reap(self, process: asyncio.subprocess.Process, *tasks: asyncio.Task[Any]) -> None:
        await process.wait()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._live.discard(process)
        self._running -= 1


async def _stop(process: asyncio.subprocess.Process, ended: asyncio.Event) -> None:
    """Asks the worker for its tables once the call has ended, and ends it where they do not come."""
    await ended.wait()
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        await asyncio.sleep(PATIENCE)
        process.kill()


async def _tail(stream: asyncio.StreamReader | None) -> str:
    """The last 8 KiB of what was said."""
    kept = b""
    while stream is not None and (part := await stream.read(4096)):
        kept = (kept + part)[-8192:]
    return kept.decode("utf-8", "replace")


async def _lines(stream: asyncio.StreamReader | None) -> AsyncGenerator[Line, None]:
    while stream is not None:
        try:
            raw = await stream.readline()
        except ValueError:  # a line beyond MAX_LINE
            _log.warning("the tracing worker said too much on one line")
            return
        if not raw:
            return
        try:
            said = json.loads(raw)
            line = _parsed(said)
        except (ValueError, KeyError, TypeError) as err:
            _log.warning("the tracing worker said what is not understood", line=raw[:200], error=str(err))
            continue
        if line is not None:
            yield line


def _parsed(said: dict[str, Any]) -> Line | None:
    if "event" in said:
        fields: dict[str, Any] = said["event"]
        return Event(
            tool=str(fields["tool"]), at=float(fields["at"]), pid=int(fields["pid"]),
            command=str(fields["command"]), text=str(fields["text"]), value=float(fields["value"]),
        )  # fmt: skip
    if "table" in said:
        fields = said["table"]
        return Table(
            tool=str(fields["tool"]),
            columns=tuple(map(str, fields["columns"])),
            rows=tuple(tuple(map(str, row)) for row in fields["rows"]),
        )
    if "notice" in said:
        return Notice(str(said["notice"]))
    tools = [str(tool) for tool in said["ready"]]
    return Notice(f"tracing {', '.join(tools)}") if tools else None
