"""How far past its threshold a call gets before the kernel stops it, and what a poller in user space would do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.harness import (
    MEMORY_NOW,
    MEMORY_PEAK,
    STEP_WITHIN,
    BenchError,
    Context,
    Corral,
    corral,
    ended,
    first_file,
    line_of,
    tell,
)
from tests.bench.result import Figure, Result, Row
from tests.bench.stats import median, percentile

MIB: Final = 1 << 20
THRESHOLD: Final = 64 * MIB
BOUND: Final = THRESHOLD + 256 * MIB  # what a burst touches that nothing stops
POLLER_BOUND: Final = THRESHOLD + 1024 * MIB
POLL_SECONDS: Final = 0.1
HIGH_SECONDS: Final = 2.0
HUGE_PAGE: Final = 2 * MIB
QUIET: Final = asyncio.subprocess.DEVNULL  # each call is ended by us, and its launcher says so


@dataclass(frozen=True, slots=True)
class Cell:
    processes: int
    pages: str  # small or huge

    @property
    def name(self) -> str:
        return f"{self.pages}, {self.processes} process{'es' if self.processes > 1 else ''}"


CELLS: Final = (Cell(1, "small"), Cell(8, "small"), Cell(1, "huge"), Cell(8, "huge"))


async def measure(context: Context) -> Result:
    rounds = context.count(full=60, quick=10)
    result = Result(runs=rounds)
    burst = context.compile("burst")
    phase = random.Random(20261124)  # noqa: S311 - moments of a measurement, the same in every run
    async with corral(context) as host:
        result.mode = host.mode
        for turn in range(rounds):
            for i in range(len(CELLS)):
                cell = CELLS[(turn + i) % len(CELLS)]
                result.rows.append({"round": turn, **await _braked(host, burst, cell)})
            for cell in CELLS[:2]:
                result.rows.append({"round": turn, **await _polled(host, burst, cell, phase.random() * POLL_SECONDS)})
                if host.mode == "unified":
                    result.rows.append({"round": turn, **await _softly(host, burst, cell)})
            if (turn + 1) % 10 == 0:
                context.say(f"{turn + 1} of {rounds} rounds")
    summarise(result)
    return result


async def _braked(host: Corral, burst: Path, cell: Cell) -> Row:
    """A call that asked to fail fast: stopped in the kernel, held by the freezer, then ended, so its peak is final."""
    options = ("--memory", f":{THRESHOLD}", "--on-pressure", "fail-fast")
    process = await host.start(burst, str(cell.processes), str(BOUND), cell.pages, options=options, stderr=QUIET)
    try:
        call = await line_of(process)
        await tell(process)
        await asyncio.wait_for(process.wait(), STEP_WITHIN)
    except TimeoutError:
        raise BenchError(f"call {call} ({cell.name}) neither ended nor was ended within {STEP_WITHIN:g} s") from None
    finally:
        await ended(process)
    outcome = await host.outcome(call)
    peak = outcome.usage.memory_peak_bytes
    row: Row = {"arm": "brake", "cell": cell.name, "processes": cell.processes, "pages": cell.pages}
    row |= {"reason": outcome.reason, "overshoot_bytes": peak - THRESHOLD}
    brakes = [decision.evidence for decision in outcome.decisions if decision.action == "brake"]
    if not brakes:
        # it touched all that it had: nothing stopped it. That is the worst that there is, and counts as such
        return {**row, "stopped": False, "event_ms": None}
    first = {"first_stop_overshoot_bytes": brakes[0]["overshoot_bytes"], "event_ms": brakes[0]["event_ms"]}
    return {**row, "stopped": True, **first}


async def _polled(host: Corral, burst: Path, cell: Cell, delay: float) -> Row:
    """The same burst in a call with no threshold; a thread reads its memory every 100 ms and sends SIGSTOP."""
    process = await host.start(burst, str(cell.processes), str(POLLER_BOUND), cell.pages, stderr=QUIET)
    try:
        call = await line_of(process)
        groups = await host.group(call)
        poller = _Poller(first_file(groups, *MEMORY_NOW), first_file(groups, "cgroup.procs"))
        peak_file = first_file(groups, *MEMORY_PEAK)
        poller.start()
        await asyncio.sleep(delay)  # the burst begins at any moment between two looks
        await tell(process)
        gone = asyncio.ensure_future(process.wait())
        stopped = asyncio.ensure_future(asyncio.to_thread(poller.wait, STEP_WITHIN))
        await asyncio.wait((gone, stopped), return_when=asyncio.FIRST_COMPLETED)
        poller.end()
        caught = await stopped
        # a burst that ended first went as far as it was let: the true overshoot would be larger
        peak = int(peak_file.read_text("ascii")) if caught else POLLER_BOUND
        if caught:
            await host.kill(call)
        await gone
    finally:
        await ended(process)
    return {
        "arm": "poller",
        "cell": cell.name,
        "processes": cell.processes,
        "pages": cell.pages,
        "stopped": caught,
        "overshoot_bytes": peak - THRESHOLD,
    }


async def _softly(host: Corral, burst: Path, cell: Cell) -> Row:
    """The same in a call with no threshold but memory.high there, which slows and does not stop: how far it got within
    HIGH_SECONDS, or until it had touched all."""
    process = await host.start(burst, str(cell.processes), str(POLLER_BOUND), cell.pages, stderr=QUIET)
    try:
        call = await line_of(process)
        groups = await host.group(call)
        first_file(groups, "memory.high").write_text(str(THRESHOLD), "ascii")
        peak_file = first_file(groups, *MEMORY_PEAK)
        await tell(process)
        peak = POLLER_BOUND  # where it ends by itself
        try:
            await asyncio.wait_for(process.wait(), HIGH_SECONDS)
        except TimeoutError:
            peak = int(peak_file.read_text("ascii"))
            await host.kill(call)
            await process.wait()
    finally:
        await ended(process)
    return {
        "arm": "high",
        "cell": cell.name,
        "processes": cell.processes,
        "pages": cell.pages,
        "stopped": False,
        "overshoot_bytes": peak - THRESHOLD,
    }


class _Poller(threading.Thread):
    """What an agent host without a kernel side does. A thread of its own: the event loop must not delay it."""

    def __init__(self, usage: Path, procs: Path) -> None:
        super().__init__(name="poller", daemon=True)
        self._usage, self._procs = usage, procs
        self._stop_asked = threading.Event()
        self._done = threading.Event()
        self.caught = False

    def run(self) -> None:
        try:
            while not self._stop_asked.wait(POLL_SECONDS):
                # the call may end, and its group go, at any moment
                with contextlib.suppress(OSError):
                    if int(self._usage.read_text("ascii")) > THRESHOLD:
                        for pid in self._procs.read_text("ascii").split():
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(int(pid), signal.SIGSTOP)
                        self.caught = True
                        return
        finally:
            self._done.set()

    def end(self) -> None:
        self._stop_asked.set()

    def wait(self, within: float) -> bool:
        """Whether it stopped the call."""
        self._done.wait(within)
        return self.caught


def summarise(result: Result) -> None:
    def values(arm: str, key: str, pages: str) -> list[float]:
        rows = (row for row in result.rows if row["arm"] == arm and row["pages"] == pages)
        return [float(value) for row in rows if (value := row.get(key)) is not None]

    cpus = os.cpu_count() or 1
    small, huge = values("brake", "overshoot_bytes", "small"), values("brake", "overshoot_bytes", "huge")
    events = values("brake", "event_ms", "small") + values("brake", "event_ms", "huge")
    poller = values("poller", "overshoot_bytes", "small")
    result.summary = {
        "overshoot_p99_bytes": Figure(value=percentile(small, 99), unit="bytes", at_most=MIB, samples=small),
        "overshoot_huge_p99_bytes": Figure(
            value=percentile(huge, 99), unit="bytes", at_most=HUGE_PAGE * cpus, samples=huge
        ),
        "event_p99_ms": Figure(value=percentile(events, 99) if events else None, unit="ms", at_most=5, samples=events),
        "poller_overshoot_p50_bytes": Figure(value=median(poller), unit="bytes", samples=poller),
    }
    for cell in CELLS:
        found = [
            float(row["overshoot_bytes"] or 0)
            for row in result.rows
            if row["arm"] == "brake" and row["cell"] == cell.name
        ]
        key = f"overshoot_{cell.pages}_{cell.processes}_p99_bytes"
        result.summary[key] = Figure(value=percentile(found, 99), unit="bytes", samples=found)
    softly = values("high", "overshoot_bytes", "small")
    if softly:
        result.summary["high_overshoot_p50_bytes"] = Figure(value=median(softly), unit="bytes", samples=softly)
    missed = sum(1 for row in result.rows if row["arm"] == "brake" and not row["stopped"])
    if missed:
        result.notes.append(f"{missed} bursts were not stopped at all; they count with their whole peak")
    escaped = sum(1 for row in result.rows if row["arm"] == "poller" and not row["stopped"])
    if escaped:
        result.notes.append(f"{escaped} bursts were over before the poller looked; they count with all they touched")
