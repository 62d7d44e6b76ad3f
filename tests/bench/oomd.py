"""systemd-oomd on the burst of tests/bench/reaction.py, in a guest that has it: scripts/lab run --with oomd.

It acts on memory pressure (or on swap that is full), never on a size. So the burst runs in a scope whose memory.high is
the threshold: past it the kernel lets the program wait for memory, and that is what oomd sees. It asks for signs of
reclaim besides (pgscan), and without swap only page cache is scanned: so beside the burst, in its scope, a file of some
MiB is read again and again.

oomd's constants: src/oom/oomd-manager.h of systemd 252 (a look a second, 30 s above 60 % of the "full" line of PSI over
10 s, 15 s of rest after a kill), oomd.conf(5) (a duration below 1 s is refused).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from tests.bench.harness import BenchError, Context, ended, line_of, run, start, tell
from tests.bench.react import Empty, Record
from tests.bench.result import Result, Row

MIB: Final = 1 << 20
PROGRAM: Final = Path("/lib/systemd/systemd-oomd")
DROP_IN: Final = Path("/run/systemd/oomd.conf.d/corral-bench.conf")
CACHE: Final = 8 * MIB
SETTINGS: Final = {"oomd": (60, 30), "oomd_quickest": (1, 1)}  # percent of pressure, seconds that it lasts
WITHIN: Final = 150.0  # seconds: five times as long as oomd waits by default
DOCUMENTED: Final = (
    "as documented it looks once a second and by default acts after 30 s above 60 % of pressure over 10 s "
    "(oomd.conf(5)), so not before some 39 s of standing still"
)


def missing() -> str:
    """Why it cannot be measured; empty where it can. Only ever in a guest: a host's own oomd is not ours to set up."""
    if os.environ.get("CORRAL_LAB") != "1":
        return (
            "only a guest's is set up for this: scripts/lab run --kernel 6.12 --with oomd -- "
            ".venv/bin/python -m tests.bench reaction --quick"
        )
    if not PROGRAM.exists():
        return "this guest has none; start it with --with oomd"
    return "" if shutil.which("systemd-run") else "systemd-run is missing"


async def measure(context: Context, result: Result, react: Path, threshold: int, bound: int) -> None:
    """Rows of arms named as in SETTINGS. That oomd did nothing is a row, and a note."""
    await _do("systemd-sysusers")
    await _do("systemctl", "daemon-reload")
    await _do("systemctl", "reload", "dbus")
    rounds = 2 if context.quick else 5
    for arm, (percent, seconds) in SETTINGS.items():
        for turn in range(rounds):
            # a new one each time: it rests for 15 s after a kill, and remembers pressure
            async with _running(seconds):
                row = await _burst(context, react, threshold, bound, percent=percent, number=f"{arm[-2:]}{turn}")
            result.rows.append({"round": turn, "arm": arm, **row})
            if row["gone_ms"] is None:
                result.notes.append(f"{arm} did nothing within {WITHIN:g} s, run {turn + 1}: {row['pressure']}")
            context.say(f"{arm}: {turn + 1} of {rounds}")


async def _burst(context: Context, react: Path, threshold: int, bound: int, *, percent: int, number: str) -> Row:
    name = f"corralreact{number}"
    group = Path("/sys/fs/cgroup") / f"{name}.slice" / f"{name}.scope"
    cache = context.directory / f"{name}.cache"
    record, empty = Record(1, bound), None
    reader = f"head -c {CACHE} /dev/zero >{cache} && sync {cache}; (while cat {cache}; do :; done >/dev/null 2>&1) &"
    words = ["sh", "-c", f'{reader} exec "$@"', "sh", *record.words(react)]
    scope = ["systemd-run", "--scope", "--quiet", f"--slice={name}.slice", f"--unit={name}.scope"]
    process = await start([*scope, "-p", f"MemoryHigh={threshold}", "--", *words], environment=os.environ)
    try:
        await line_of(process)
        limit = f"ManagedOOMMemoryPressureLimit={percent}%"
        await _do("systemctl", "set-property", "--runtime", f"{name}.slice", "ManagedOOMMemoryPressure=kill", limit)
        missing = threshold - int((group / "memory.current").read_text("ascii"))
        empty = Empty(group)
        empty.start()
        await tell(process)
        gone = await empty.wait(WITHIN)
        touched = record.read()
        crossing = touched.crossing(missing)
        if crossing is None:
            raise BenchError(
                f"{name}: the burst touched {touched.nbytes} bytes, and {missing} were missing to the threshold"
            )
        pressure = (group / "memory.pressure").read_text("ascii").replace("\n", "; ") if gone is None else ""
        return {
            "processes": 1,
            "decision": "kill" if gone is not None else "nothing",
            "gone_ms": (gone - crossing) * 1e3 if gone is not None else None,
            "pressure": pressure,
            "overshoot_bytes": touched.nbytes - missing,
        }
    finally:
        with contextlib.suppress(FileNotFoundError):
            (group / "cgroup.kill").write_text("1")
        await ended(process)
        if empty is not None:
            empty.close()
        record.close()
        cache.unlink(missing_ok=True)
        await _do("systemctl", "stop", f"{name}.slice")


@contextlib.asynccontextmanager
async def _running(seconds: int) -> AsyncIterator[None]:
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(f"[OOM]\nDefaultMemoryPressureDurationSec={seconds}s\n", encoding="ascii")
    try:
        await _do("systemctl", "restart", "systemd-oomd")
        yield
    finally:
        DROP_IN.unlink()
        await asyncio.shield(_do("systemctl", "stop", "systemd-oomd.socket", "systemd-oomd.service"))


async def _do(*words: str) -> None:
    await run(list(words), environment=os.environ)
