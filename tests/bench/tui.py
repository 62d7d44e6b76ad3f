"""The dashboard in a terminal: first paint, key press to painted frame, CPU and memory with 1,000 calls that all change
every second; and jumps into 24 hours of history in the ledger of a real daemon.

The dashboard is the real ``corral top`` in a pseudo terminal of 200 by 60, of which this program is the other side: a
key is painted when what only that key can bring to the screen has arrived here.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import random
import signal
import sqlite3
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from agentd.ledger import Ledger
from agentd.ledger.codec import slot_of
from controller.model import Grant, Intent, Limits, Tripwire
from tests.bench import procstat
from tests.bench.harness import BenchError, Context, corral, line_of
from tests.bench.result import REPOSITORY, Figure, Result
from tests.bench.stats import percentile
from tui.model.board import Board
from tui.model.rows import Wanted, build
from tui.source.live import LiveSource

CALLS: Final = 1_000
ROWS, COLUMNS = 60, 200
WITHIN: Final = 20.0  # seconds for what must come
MIB: Final = 1 << 20
DAY: Final = 86_400
SAMPLES: Final = 1_000_000
SAMPLE_EVERY: Final = 10.0  # seconds: the daemon's default
_CALL: Final = """
INSERT INTO calls (id, tenant_id, session_id, command, tool, call_class, intent, grant, priority, enforced, state,
    begun_at, held_seconds, brakes, cgroup, ended_at, reason, wait_status, wall_seconds, leftovers, summary,
    suggestions, cpu_usec, cpu_user_usec, cpu_system_usec)
VALUES (?, ?, ?, ?, 'pytest', 'test', ?, ?, 50, 1, 'ended', ?, 0, 0, '', ?, 'exited', 0, ?, 0, '', '[]', 0, 0, 0)"""


async def measure(context: Context) -> Result:
    result = Result(runs=context.count(full=200, quick=40))
    await _live(context, result)
    await _jumps(context, result)
    return result


# --- live


class Terminal:
    """The other side of the dashboard's terminal. Reads all the time: a full pipe would hold the dashboard up."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self._fd = fd
        self._seen = bytearray()
        self._came = asyncio.Event()
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 1 << 20)
        except BlockingIOError:
            return
        except OSError:  # EIO: the dashboard has ended
            asyncio.get_running_loop().remove_reader(self._fd)
            return
        self._seen += data
        self._came.set()

    def forget(self) -> None:
        self._seen.clear()

    def press(self, key: str) -> None:
        os.write(self._fd, key.encode())

    async def shows(self, text: str) -> None:
        """Returns when ``text`` has been painted since ``forget``. Raises BenchError after WITHIN."""
        wanted = text.encode()
        async with asyncio.timeout(WITHIN):
            while wanted not in self._seen:
                self._came.clear()
                await self._came.wait()

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        handle = os.pidfd_open(self.pid)
        ended = asyncio.Event()
        loop.add_reader(handle, ended.set)
        self.press("q")
        try:
            await asyncio.wait_for(ended.wait(), WITHIN)
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
        finally:
            loop.remove_reader(handle)
            loop.remove_reader(self._fd)
            os.close(handle)
            os.close(self._fd)
            await asyncio.to_thread(os.waitpid, self.pid, 0)


@asynccontextmanager
async def _dashboard(context: Context, socket: Path) -> AsyncIterator[Terminal]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("CORRAL_", "TEXTUAL"))},
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        "XDG_STATE_HOME": str(context.directory),
        "PYTHONPATH": str(REPOSITORY),
    }
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "agentd.cli", "top", "--api", f"unix:{socket}"]
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(command[0], command, environment)  # noqa: S606 - in the child: nothing else may run here
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    terminal = Terminal(pid, fd)
    try:
        yield terminal
    finally:
        await terminal.close()


async def _live(context: Context, result: Result) -> None:
    socket = context.directory / "tui.sock"
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.tui_server", str(socket), str(CALLS),
        cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await line_of(server)
        for _ in range(3 if context.quick else 10):
            began = time.perf_counter()
            async with _dashboard(context, socket) as terminal:
                try:
                    await terminal.shows("session0")
                except TimeoutError:
                    raise BenchError(f"corral top painted no row within {WITHIN:g} s") from None
                result.rows.append({"kind": "start", "first_paint_s": time.perf_counter() - began})
        async with _dashboard(context, socket) as terminal:
            await terminal.shows("session0")
            await asyncio.sleep(3)
            await _idle(context, terminal, result)
            await _keys(terminal, result)
    finally:
        server.terminate()
        await server.wait()
    starts = [float(row["first_paint_s"] or 0) for row in result.rows if row["kind"] == "start"]
    keys = [float(row["ms"] or 0) for row in result.rows if row["kind"] == "key"]
    idle = next(row for row in result.rows if row["kind"] == "idle")
    result.summary |= {
        "first_paint_s": Figure(value=percentile(starts, 50), unit="s", at_most=1.0, samples=starts),
        "key_p99_ms": Figure(value=percentile(keys, 99), unit="ms", at_most=100, samples=keys),
        "cpu_cores": Figure(value=float(idle["cores"] or 0), unit="cores", at_most=0.25),
        "rss_mb": Figure(value=float(idle["rss_after"] or 0) / MIB, unit="MiB"),
        "rss_growth_mb": Figure(
            value=(float(idle["rss_after"] or 0) - float(idle["rss_before"] or 0)) / MIB, unit="MiB", at_most=5
        ),
    }
    result.notes.append(f"rss_growth_mb is over {float(idle['seconds'] or 0):.0f} s with {CALLS} calls")


async def _idle(context: Context, terminal: Terminal, result: Result) -> None:
    """Nobody presses a key. The first 20 s are left out of the memory's growth: caches fill."""
    await asyncio.sleep(5 if context.quick else 20)
    seconds = 15.0 if context.quick else 600.0
    before, began = procstat.read(terminal.pid), time.monotonic()
    deadline = began + seconds
    while time.monotonic() < deadline:
        terminal.forget()
        await asyncio.sleep(1)
    after, wall = procstat.read(terminal.pid), time.monotonic() - began
    result.rows.append(
        {
            "kind": "idle",
            "seconds": wall,
            "cores": (after.cpu_seconds - before.cpu_seconds) / wall,
            "rss_before": before.rss_bytes,
            "rss_after": after.rss_bytes,
        }
    )


async def _keys(terminal: Terminal, result: Result) -> None:
    """Space marks a row and moves on: the count of marks is on the screen once, and with no other key."""
    made = random.Random(1)  # noqa: S311 - when to press: at any phase of the daemon's second
    for number in range(1, result.runs + 1):
        await asyncio.sleep(made.uniform(0.05, 0.35))
        terminal.forget()
        began = time.perf_counter()
        terminal.press(" ")
        try:
            await terminal.shows(f"{number} marked")
        except TimeoutError:
            raise BenchError(f"key {number} brought nothing to the screen within {WITHIN:g} s") from None
        result.rows.append({"kind": "key", "ms": (time.perf_counter() - began) * 1e3})


# --- history


async def _jumps(context: Context, result: Result) -> None:
    """Through the real daemon's API: question, answer, and the rows made of it, at random moments of the day."""
    now = time.time()
    state = context.directory / "filled"
    state.mkdir()
    ledger = Ledger.open(state / "ledger.db")
    await ledger.close()
    samples = SAMPLES // 10 if context.quick else SAMPLES
    calls = await asyncio.to_thread(fill, state / "ledger.db", now, samples)
    settings = {"daemon": {"state_dir": str(state), "log_format": "text"}}
    async with corral(context, settings=settings) as host:
        result.mode = host.mode
        source = LiveSource(f"unix:{host.daemon.operator_socket}")
        made = random.Random(2)  # noqa: S311
        try:
            for _ in range(result.runs):
                at = now - made.uniform(600, DAY - 600)
                began = time.perf_counter()
                moment = await source.moment(at)
                board = Board()
                board.show(moment)
                rows = build(board, Wanted())
                took = (time.perf_counter() - began) * 1e3
                if not rows:
                    raise BenchError(f"the moment {at} of the made history is empty")
                result.rows.append({"kind": "jump", "ms": took, "rows": len(rows)})
        finally:
            await source.close()
    jumps = [float(row["ms"] or 0) for row in result.rows if row["kind"] == "jump"]
    result.summary["jump_ms"] = Figure(value=percentile(jumps, 99), unit="ms", at_most=300, samples=jumps)
    result.notes.append(f"jump_ms is the 99th percentile over {samples:,} samples of {calls:,} calls in 24 h")


def fill(path: Path, now: float, samples: int) -> int:
    """A day of calls of 50 samples each; the number of calls. Straight into the tables: the writer's way is not what is
    measured here."""
    each = 50
    calls = samples // each
    length = each * SAMPLE_EVERY
    intent = msgspec.json.encode(Intent(tool="pytest", call_class="test")).decode()
    grant = msgspec.json.encode(Grant(limits=Limits(), tripwire=Tripwire(), priority=50, enforced=True)).decode()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for place in range(10):
            connection.execute(
                "INSERT INTO tenants (id, name, priority, limits) VALUES (?, ?, 50, '{}')",
                (f"t-{place:016d}", f"tenant{place}"),
            )
        for place in range(100):
            connection.execute(
                "INSERT INTO sessions (id, tenant_id, name, uid, opened_at, closed_at, labels) "
                "VALUES (?, ?, ?, 0, ?, ?, '{}')",
                (f"s-{place:016d}", f"t-{place % 10:016d}", f"session{place}", now - DAY, now - 60),
            )
        for number in range(calls):
            begun = now - DAY + number * (DAY - length) / calls
            tenant, session = f"t-{number % 10:016d}", f"s-{number % 100:016d}"
            command = f"python -m pytest -q tests/unit/test_{number}.py"
            connection.execute(
                _CALL, (f"c-{number:016d}", tenant, session, command, intent, grant, begun, begun + length, length)
            )
            seq = number + 1
            connection.executemany(
                "INSERT INTO samples (slot, call, at, state, cpu_usec, memory_now) VALUES (?, ?, ?, 2, ?, ?)",
                [
                    (slot_of(at), seq, at, place * 1_000_000, place * MIB)
                    for place in range(each)
                    for at in (begun + place * SAMPLE_EVERY,)
                ],
            )
            if number % 20 == 0:
                connection.execute(
                    "INSERT INTO decisions (at, action, policy, reason, tenant_id, session_id, call_id, evidence) "
                    "VALUES (?, 'brake', 'brake', 'past its threshold', ?, ?, ?, '{}')",
                    (begun + 5, tenant, session, f"c-{number:016d}"),
                )
    return calls
