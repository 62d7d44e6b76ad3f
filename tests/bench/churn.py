"""Many live calls, through the real launcher: drives churn.c."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.harness import LAUNCHER, BenchError, Context, Corral, ended, line_of, start, tell


@dataclass(frozen=True, slots=True)
class Begin:
    """Of one call, in ms: from when it was due until its launcher was started, and until its tool ran."""

    index: int
    late_ms: float
    begin_ms: float


def parse_begin(line: str) -> Begin:
    """ "begin INDEX SCHEDULED STARTED RAN", see churn.c. BenchError for anything else."""
    words = line.split()
    if len(words) != 5 or words[0] != "begin":
        raise BenchError(f"churn said {line[:200]!r}, not the times of a begin")
    index, due, started, ran = (int(word) for word in words[1:])
    return Begin(index=index, late_ms=(started - due) / 1e6, begin_ms=(ran - due) / 1e6)


class Churn:
    def __init__(self, process: asyncio.subprocess.Process, seconds: int) -> None:
        self._process = process
        self._seconds = seconds

    async def churn(self) -> list[Begin]:
        """Begins and ends calls at the rate that was asked for; every begin, in order."""
        await tell(self._process)
        begins: list[Begin] = []
        while (line := await line_of(self._process, within=self._seconds + 60)) != "churned":
            begins.append(parse_begin(line))
        return begins

    async def end(self) -> None:
        """Ends all calls and waits for their launchers."""
        await tell(self._process)
        status = await asyncio.wait_for(self._process.wait(), 60)
        if status:
            raise BenchError(f"churn ended with status {status}; see its words above")


@contextlib.asynccontextmanager
async def live_calls(
    context: Context, host: Corral, count: int, *, rate: int = 1, seconds: int = 0
) -> AsyncIterator[Churn]:
    """``count`` calls that sleep, all running by now; ended at the end of the block. ``rate`` per second."""
    hold: Path = context.compile("hold")
    words = [str(context.compile("churn")), str(count), str(rate), str(seconds), str(LAUNCHER), str(hold)]
    process = await start(words, environment=host.environment)
    try:
        if (said := await line_of(process)) != "live":
            raise BenchError(f"churn said {said!r} instead of that all calls are live")
        yield Churn(process, seconds)
    finally:
        if process.returncode is None:
            # an error on the way: the daemon's purge ends the calls
            await ended(process)
