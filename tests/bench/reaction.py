"""From a burst to what is done about it: the brake in the kernel, the daemon's decision, its effect; beside a poller
that looks once a second and, in a guest that has it, systemd-oomd, on the same burst.

The burst leaves on record when it touched each page. It crosses the threshold at the page fault in which the kernel
stopped it (which is some 3 µs earlier than computed here: the daemon's way from its event to its decision's time);
where nothing stops it, once it has touched what was missing to the threshold. A call is gone when the kernel says that
its group is empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.bench import oomd
from tests.bench.harness import MEMORY_NOW, BenchError, Context, Corral, corral, ended, first_file, line_of, tell
from tests.bench.react import Clocks, Empty, Record, Touched
from tests.bench.result import Figure, Result, Row
from tests.bench.stats import median, percentile

MIB: Final = 1 << 20
THRESHOLD: Final = 64 * MIB
BOUND: Final = (
    THRESHOLD + 128 * MIB
)  # what a burst touches that nothing stops; its hard limit is at twice the threshold
POLL_SECONDS: Final = 1.0
GONE_WITHIN: Final = 30.0  # seconds
QUIET: Final = asyncio.subprocess.DEVNULL  # each call is ended by us, and its launcher says so
CELLS: Final = (("wait", 1), ("wait", 8), ("fail-fast", 1), ("fail-fast", 8))


async def measure(context: Context) -> Result:
    rounds = context.count(full=60, quick=10)
    result = Result(runs=rounds)
    react = context.compile("react")
    phase = random.Random(20261124)  # noqa: S311 - moments of a measurement, the same in every run
    async with corral(context) as host:
        result.mode = host.mode
        for turn in range(rounds):
            for i in range(len(CELLS)):
                manner, processes = CELLS[(turn + i) % len(CELLS)]
                result.rows += [{"round": turn, **row} for row in await _ours(host, react, manner, processes)]
            result.rows.append({"round": turn, **await _polled(host, react, phase.random() * POLL_SECONDS)})
            if (turn + 1) % 10 == 0:
                context.say(f"{turn + 1} of {rounds} rounds")
    missing = oomd.missing()
    if missing:
        result.notes.append(f"systemd-oomd was not measured: {missing}; {oomd.DOCUMENTED}")
    else:
        await oomd.measure(context, result, react, THRESHOLD, BOUND)
    summarise(result)
    return result


async def _ours(host: Corral, react: Path, manner: str, processes: int) -> list[Row]:
    """A call that is stopped at its threshold. ``wait``: it gets more, goes on, and is ended close to its hard limit;
    ``fail-fast``: it is ended at once."""
    record, empty = Record(processes, BOUND), None
    options = ("--memory", f":{THRESHOLD}", "--on-pressure", manner)
    process = await host.start(*record.words(react), options=options, stderr=QUIET)
    try:
        call = await line_of(process)
        empty = Empty(_unified(await host.group(call)))
        empty.start()
        clocks = Clocks.now()
        await tell(process)
        gone = await empty.wait(GONE_WITHIN)
        if gone is None:
            raise BenchError(f"call {call} ({manner}) was not ended within {GONE_WITHIN:g} s of its burst")
        await asyncio.wait_for(process.wait(), GONE_WITHIN)
        outcome = await host.outcome(call)
        return _reactions(outcome, record.read(), clocks, gone, {"arm": manner, "processes": processes})
    finally:
        await ended(process)
        if empty is not None:
            empty.close()
        record.close()


def _reactions(outcome: pb.Outcome, touched: Touched, clocks: Clocks, gone: float, about: Row) -> list[Row]:
    """One row for each time it was stopped. Milliseconds since the crossing, but ``effect_ms``: since the decision."""
    rows: list[Row] = []
    stopped: pb.Decision | None = None
    first: float | None = None
    for decision in outcome.decisions:
        if decision.action == "brake":
            stopped = decision
        if stopped is None or decision.action not in ("raise", "kill"):
            continue
        braked = clocks.monotonic(stopped.at) - stopped.evidence["frozen_ms"] / 1e3
        decided = clocks.monotonic(decision.at)
        pid = int(stopped.evidence["pid"])
        crossing = touched.last_before(braked, pid)
        still = touched.last_before(decided)
        if crossing is None or still is None:
            raise BenchError(f"call {outcome.call_id}: process {pid} was stopped, and touched nothing before")
        first = crossing if first is None else first
        ran_on = touched.last_before(decided, pid)
        before = [b - a for a, b in pairwise(touched.moments[pid]) if crossing - 0.001 < a < crossing]
        resumed = touched.first_after(decided) if decision.action == "raise" else gone
        rows.append(
            {
                **about,
                "decision": decision.action,
                "page_ms": median(before) * 1e3 if before else None,  # what a page took before that
                "brake_ms": (braked - crossing) * 1e3,
                "still_ms": (still - crossing) * 1e3,
                "ran_on": ran_on != crossing,
                "frozen_ms": stopped.evidence["frozen_ms"],
                "decision_ms": (decided - crossing) * 1e3,
                "effect_ms": (resumed - decided) * 1e3 if resumed is not None else None,
                "gone_ms": (gone - first) * 1e3 if decision.action == "kill" and len(rows) == 0 else None,
                "overshoot_bytes": stopped.evidence["overshoot_bytes"],
            }
        )
        stopped = None
    if not rows:
        # the worst that there is: no figure stands for it, so it must not pass in silence
        return [{**about, "decision": None, "reason": outcome.reason, "overshoot_bytes": touched.nbytes - THRESHOLD}]
    return rows


async def _polled(host: Corral, react: Path, delay: float) -> Row:
    """The same burst in a call with no threshold. A thread looks at its memory once a second, and kills."""
    record = Record(1, BOUND)
    process = await host.start(*record.words(react), stderr=QUIET)
    poller, empty = None, None
    try:
        groups = await host.group(await line_of(process))
        usage, procs = first_file(groups, *MEMORY_NOW), first_file(groups, "cgroup.procs")
        missing = THRESHOLD - int(usage.read_text("ascii"))
        empty = Empty(_unified(groups))
        empty.start()
        poller = Poller(usage, lambda: _kill_all(procs))
        poller.start()
        await asyncio.sleep(delay)  # the burst begins at any moment between two looks
        await tell(process)
        gone = await empty.wait(GONE_WITHIN)
        crossing = record.read().crossing(missing)
        if gone is None or crossing is None or poller.decided is None:
            raise BenchError(f"a poller did not end a burst within {GONE_WITHIN:g} s")
        return {
            "arm": "poller",
            "processes": 1,
            "decision": "kill",
            "decision_ms": (poller.decided - crossing) * 1e3,
            "effect_ms": (gone - poller.decided) * 1e3,
            "gone_ms": (gone - crossing) * 1e3,
            "overshoot_bytes": record.read().nbytes - missing,
        }
    finally:
        await ended(process)
        if poller is not None:
            poller.end()
        if empty is not None:
            empty.close()
        record.close()


def _unified(groups: list[Path]) -> Path:
    return first_file(groups, "cgroup.events").parent


def _kill_all(procs: Path) -> None:
    for pid in procs.read_text("ascii").split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


class Poller(threading.Thread):
    """What an agent host without a kernel side does. A thread of its own: the event loop must not delay it.
    ``decided``: when it saw that there was too much."""

    def __init__(self, usage: Path, act: Callable[[], None]) -> None:
        super().__init__(name="poller", daemon=True)
        self._usage, self._act = usage, act
        self._stop_asked = threading.Event()
        self.decided: float | None = None

    def run(self) -> None:
        while not self._stop_asked.wait(POLL_SECONDS):
            # the call may end, and its group go, at any moment
            with contextlib.suppress(OSError):
                if int(self._usage.read_text("ascii")) > THRESHOLD:
                    self.decided = time.monotonic()
                    self._act()
                    return

    def end(self) -> None:
        self._stop_asked.set()
        self.join()


def summarise(result: Result) -> None:
    def values(key: str, **wanted: object) -> list[float]:
        rows = (row for row in result.rows if all(row.get(name) == value for name, value in wanted.items()))
        return [float(value) for row in rows if (value := row.get(key)) is not None]

    def add(key: str, found: list[float], unit: str = "ms", percent: float = 50) -> None:
        result.summary[key] = Figure(value=percentile(found, percent) if found else None, unit=unit, samples=found)

    for processes in (1, 8):
        ours = {"processes": processes}
        for percent in (50, 99):
            end = f"_{processes}_p{percent}"
            braked = values("brake_ms", **ours)
            add(f"burst_to_brake{end}_us", [ms * 1e3 for ms in braked], "us", percent)
            add(f"burst_to_still{end}_ms", values("still_ms", **ours), percent=percent)
            stopped = values("decision_ms", arm="wait", **ours) + values("decision_ms", arm="fail-fast", **ours)
            add(f"burst_to_decision{end}_ms", stopped, percent=percent)
            for decision, effect in (("raise", "running"), ("kill", "empty")):
                found = values("effect_ms", arm="wait", decision=decision, **ours)
                found += values("effect_ms", arm="fail-fast", decision=decision, **ours)
                add(f"{decision}_to_{effect}{end}_ms", found, percent=percent)
            add(f"burst_to_gone{end}_ms", values("gone_ms", arm="fail-fast", **ours), percent=percent)
    ours_gone = values("gone_ms", arm="fail-fast", processes=1)
    for arm in ("poller", *oomd.SETTINGS):
        decided, gone = values("decision_ms", arm=arm), values("gone_ms", arm=arm)
        if gone:
            if decided:
                add(f"{arm}_burst_to_decision_p50_ms", decided)
            add(f"{arm}_burst_to_gone_p50_ms", gone)
            result.summary[f"{arm}_over_ours"] = Figure(value=median(gone) / median(ours_gone), unit="ratio")
    add("page_p50_us", [ms * 1e3 for ms in values("page_ms")], "us")
    ran_on = sum(1 for row in result.rows if row.get("ran_on"))
    result.summary["ran_on"] = Figure(value=ran_on, unit="count", at_most=0)
    missed = [row for row in result.rows if row["decision"] is None]
    result.summary["not_stopped"] = Figure(value=len(missed), unit="count", at_most=0)
