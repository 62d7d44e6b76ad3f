"""A full host: a thousand live calls, and fifty begins (and ends) a second."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.bench import procstat
from tests.bench.churn import live_calls
from tests.bench.harness import BenchError, Context, Corral, corral
from tests.bench.result import Figure, Result, Row
from tests.bench.stats import median, percentile

RATE: Final = 50  # begins a second
MIB: Final = 1 << 20
SETTLE_WITHIN: Final = 30.0  # seconds until what ended is written and removed
STEADY: Final = 3.0  # seconds without a change


async def measure(context: Context) -> Result:
    live = 300 if context.quick else 1000
    seconds = context.count(full=60, quick=10)
    result = Result(runs=seconds * RATE)
    if context.quick:
        result.notes.append(f"quick: {live} live calls and {seconds} s instead of 1,000 and 60 s")
    async with corral(context) as host:
        result.mode = host.mode
        context.say(f"beginning {live} calls")
        began = time.monotonic()
        async with live_calls(context, host, live, rate=RATE, seconds=seconds) as churn:
            context.say(f"{live} calls live after {time.monotonic() - began:.1f} s")
            before = await _steady(host, live)
            await _snapshots(host, live, 10 if context.quick else 40, result)
            context.say(f"{RATE} begins and ends a second for {seconds} s")
            busy = procstat.read(host.daemon.pid)
            began = time.monotonic()
            begins = await churn.churn()
            wall = time.monotonic() - began
            cores = (procstat.read(host.daemon.pid).cpu_seconds - busy.cpu_seconds) / wall
            for begin in begins:
                row: Row = {"kind": "begin", "index": begin.index, "late_ms": begin.late_ms}
                result.rows.append({**row, "begin_ms": begin.begin_ms})
            after = await _steady(host, live)
            await churn.end()
    for name, stat in (("before", before), ("after", after)):
        result.rows.append(
            {
                "kind": "steady",
                "when": name,
                "fds": stat.fds,
                "rss_bytes": stat.rss_bytes,
                "cpu_seconds": stat.cpu_seconds,
            }
        )
    summarise(result, before, after, cores)
    return result


async def _steady(host: Corral, live: int) -> procstat.ProcStat:
    """The daemon once exactly ``live`` calls are left and its descriptors have not changed for a while."""
    deadline = time.monotonic() + SETTLE_WITHIN
    stat, since = procstat.read(host.daemon.pid), time.monotonic()
    while time.monotonic() - since < STEADY:
        await asyncio.sleep(0.5)
        seen = procstat.read(host.daemon.pid)
        if seen.fds != stat.fds or len((await host.snapshot()).calls) != live:
            since = time.monotonic()
        stat = seen
        if time.monotonic() > deadline:
            calls = len((await host.snapshot()).calls)
            raise BenchError(
                f"no steady state within {SETTLE_WITHIN:g} s: {calls} calls instead of {live}, {stat.fds} descriptors; "
                f"agentd's log ends with:\n{host.daemon.log_tail()}"
            )
    return stat


async def _snapshots(host: Corral, live: int, count: int, result: Result) -> None:
    for turn in range(-2, count):
        began = time.perf_counter()
        answer = await host.client.call(host.client.operator.Snapshot, pb.SnapshotRequest())
        took = (time.perf_counter() - began) * 1e3
        if len(answer.calls) != live:
            raise BenchError(f"a snapshot holds {len(answer.calls)} calls instead of {live}")
        result.rows.append(
            {"kind": "snapshot", "round": turn, "ms": took, "bytes": answer.ByteSize(), "warm_up": turn < 0}
        )
        await asyncio.sleep(0.1)


def summarise(result: Result, before: procstat.ProcStat, after: procstat.ProcStat, cores: float) -> None:
    begins = [float(row["begin_ms"] or 0) for row in result.rows if row["kind"] == "begin"]
    snapshots = [float(row["ms"] or 0) for row in result.rows if row["kind"] == "snapshot" and not row["warm_up"]]
    result.summary = {
        "begin_p99_ms": Figure(value=percentile(begins, 99), unit="ms", at_most=25, samples=begins),
        "snapshot_ms": Figure(value=median(snapshots), unit="ms", at_most=100, samples=snapshots),
        "fd_growth": Figure(value=after.fds - before.fds, unit="count", at_most=0),
        "rss_growth_mb": Figure(value=(after.rss_bytes - before.rss_bytes) / MIB, unit="MiB", at_most=10),
        "rss_mb": Figure(value=after.rss_bytes / MIB, unit="MiB"),
        "churn_daemon_cores": Figure(value=cores, unit="cores"),
    }
