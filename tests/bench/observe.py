"""What being watched costs: loops and real jobs with and without Corral, and the daemon beside fifty live calls."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentd.demo.workloads import C_UNITS, SUITES, prepare
from tests.bench import procstat
from tests.bench.churn import live_calls
from tests.bench.harness import BenchError, Context, Corral, corral, run
from tests.bench.result import Figure, Result, Row
from tests.bench.stats import median, ratio_of_medians

MIB: Final = 1 << 20
LIVE: Final = 50
QUICK_SECONDS: Final = 40.0  # for all blocks of --quick
UNITS: Final = tuple(f"unit{number:02d}.o" for number in range(C_UNITS))
MEMORY: Final = ("--memory", "512M:4G")  # declared, so that the tripwire is armed as it would be


@dataclass(frozen=True, slots=True)
class Work:
    """``times_itself``: the program prints its own wall and CPU nanoseconds, so its start is not in them."""

    name: str
    command: tuple[str, ...]
    cwd: Path | None
    samples: int  # in each block
    times_itself: bool


async def measure(context: Context) -> Result:
    """Blocks with a daemon and blocks with none at all (nothing loaded in the kernel) take turns."""
    blocks = context.count(full=12, quick=2)
    result = Result(runs=blocks)
    works = await asyncio.to_thread(_works, context)
    began = time.monotonic()
    for block in range(blocks):
        if context.quick and block and time.monotonic() - began > QUICK_SECONDS / 2:
            result.runs = block
            result.notes.append(f"only {block} of {blocks} blocks: on this busy machine more would not be quick")
            break
        for work in works:
            for sample in range(work.samples):
                await _sample(work, None, "none", at=(block, sample), result=result)
        async with corral(context) as host:
            result.mode = host.mode
            for work in works:
                for sample in range(work.samples):
                    for arm in ("call", "call_unarmed", "beside") if work.times_itself else ("call",):
                        await _sample(work, host, arm, at=(block, sample), result=result)
            if block == 0:
                await _daemon(context, host, 6 if context.quick else 30, result)
        context.say(f"{block + 1} of {blocks} blocks")
    summarise(result)
    return result


def _works(context: Context) -> list[Work]:
    """Two loops, and two jobs on real input: a pytest run of an installed package and a parallel gcc build."""
    loops = str(context.compile("loops"))
    inputs = context.directory / "inputs"
    inputs.mkdir()
    workloads = prepare(inputs, {"bench": None})
    package = "referencing" if context.quick else "jsonschema"
    modules = [f"{package}.tests.test_{name}" for name in SUITES[package]]
    pytest = (sys.executable, "-m", "pytest", "-qq", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir=/")
    make = ("make", "--silent", "--always-make", "-j2", *(UNITS[:8] if context.quick else UNITS))
    if shutil.which("make") is None or shutil.which("gcc") is None:
        raise BenchError("make or gcc is missing: apt-get install make gcc libc6-dev")
    few = 4 if context.quick else 5
    return [
        Work("faults", (loops, "faults", "8", "32"), None, few, times_itself=True),
        Work("spawns", (loops, "spawns", "150"), None, few, times_itself=True),
        Work("pytest", (*pytest, "--pyargs", *modules), workloads.home("bench"), 1, times_itself=False),
        Work("gcc", make, workloads.home("bench") / "c", 1, times_itself=False),
    ]


async def _sample(work: Work, host: Corral | None, arm: str, *, at: tuple[int, int], result: Result) -> None:
    """``arm``: none (no daemon), call (declared memory), call_unarmed (nothing declared), beside (outside of calls)."""
    if host is None or arm == "beside":
        words: Sequence[str] = work.command
        environment = _plain_environment()
    else:
        words = host.launch(*work.command, options=MEMORY if arm == "call" else ())
        environment = host.environment
    used, began = _children_cpu(), time.perf_counter_ns()
    said = await run(words, environment={**environment, "PYTHONDONTWRITEBYTECODE": "1"}, cwd=work.cwd)
    wall, cpu = time.perf_counter_ns() - began, _children_cpu() - used
    row: Row = {"kind": "work", "work": work.name, "arm": arm, "block": at[0], "sample": at[1]}
    if work.times_itself:
        inside, cpu_inside = (int(word) for word in said.split())
        wall, cpu = inside, cpu_inside / 1e9
    result.rows.append({**row, "ms": wall / 1e6, "cpu_ms": cpu * 1e3})


def _children_cpu() -> float:
    """Seconds that children used which have been waited for: the daemon is none of these while it runs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("CORRAL_")}


async def _daemon(context: Context, host: Corral, seconds: float, result: Result) -> None:
    """What the daemon itself uses while fifty calls are alive and nothing happens."""
    async with live_calls(context, host, LIVE) as calls:
        await asyncio.sleep(2)  # the begins are over and written
        before, began = procstat.read(host.daemon.pid), time.monotonic()
        await asyncio.sleep(seconds)
        after, wall = procstat.read(host.daemon.pid), time.monotonic() - began
        await calls.end()
    result.rows.append(
        {
            "kind": "daemon",
            "calls": LIVE,
            "seconds": wall,
            "cpu_seconds": after.cpu_seconds - before.cpu_seconds,
            "rss_bytes": after.rss_bytes,
            "fds": after.fds,
        }
    )


def summarise(result: Result) -> None:
    def times(work: str, arm: str, key: str = "ms") -> list[float]:
        rows = (row for row in result.rows if row.get("work") == work and row.get("arm") == arm)
        return [float(row[key] or 0) for row in rows]

    def slowdown(work: str, arm: str, key: str = "ms") -> float:
        return ratio_of_medians(times(work, arm, key), times(work, "none", key))

    loops, jobs = ("faults", "spawns"), ("pytest", "gcc")
    daemon = next(row for row in result.rows if row["kind"] == "daemon")
    result.summary = {
        "loop_slowdown": Figure(value=max(slowdown(w, "call") for w in loops), unit="ratio", at_most=1.05),
        "job_slowdown": Figure(value=max(slowdown(w, "call") for w in jobs), unit="ratio", at_most=1.02),
        "daemon_cores": Figure(
            value=float(daemon["cpu_seconds"] or 0) / float(daemon["seconds"] or 1), unit="cores", at_most=0.02
        ),
        "rss_mb": Figure(value=float(daemon["rss_bytes"] or 0) / MIB, unit="MiB", at_most=120),
    }
    for work in (*loops, *jobs):
        for arm in ("none", "call"):
            found = times(work, arm)
            result.summary[f"{work}_{arm}_ms"] = Figure(value=median(found), unit="ms", samples=found)
        result.summary[f"{work}_slowdown"] = Figure(value=slowdown(work, "call"), unit="ratio")
        # less disturbed by what else runs on the machine
        result.summary[f"{work}_cpu_slowdown"] = Figure(value=slowdown(work, "call", "cpu_ms"), unit="ratio")
    for work in loops:
        for arm in ("call_unarmed", "beside"):
            result.summary[f"{work}_{arm}_cpu_slowdown"] = Figure(value=slowdown(work, arm, "cpu_ms"), unit="ratio")
    result.notes.append("none: no daemon and nothing loaded in the kernel; call: in a call that declared its memory")
