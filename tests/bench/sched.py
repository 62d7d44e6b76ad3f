"""How late a call wakes that wakes every few milliseconds, beside CPU hogs of another tenant: with the scheduler of our
own (sched_ext), and with the kernel's and cgroup weights alone. And what it gets of the CPU time that it asks for.

Cells take turns, each under a daemon of its own. Weights alone are tried twice: all equal, as with sched_ext, and with
ten times the weight for the tenant of the call that must not wait, which is what an operator could do without.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from agentd.embedded import Table
from agentd.proto.corral.v1 import corral_pb2 as pb
from bpf import sched
from tests.bench.harness import BenchError, Context, Corral, corral, line_of, start, tell
from tests.bench.result import Figure, Result
from tests.bench.stats import median, percentile

OTHERS: Final = "hogs"
PERIOD_US: Final = 10_000
WORK_US: Final = 1_000
HOGS_PER_CPU: Final = 2
WITHIN: Final = 120.0  # seconds for the scheduler to be in force: the guest is emulated


@dataclass(frozen=True, slots=True)
class Cell:
    name: str
    mode: str  # sched.mode
    weight: int  # CPU weight of the tenant whose call wakes


CELLS: Final = (Cell("sched_ext", "auto", 100), Cell("weights", "off", 100), Cell("weights_x10", "off", 1000))


async def measure(context: Context) -> Result:
    runs = context.count(full=6, quick=2)
    count = 400 if context.quick else 1000
    why = sched.unavailable()
    cells = [cell for cell in CELLS if cell.mode == "off" or not why]
    result = Result(runs=runs)
    if why:
        result.notes.append(
            f"not measured with sched_ext: {why}; scripts/lab run --kernel newest has a kernel that can"
        )
    waker = str(context.compile("waker"))
    delays: dict[str, list[float]] = {cell.name: [] for cell in cells}
    p99: dict[str, list[float]] = {cell.name: [] for cell in cells}
    shares: dict[str, list[float]] = {cell.name: [] for cell in cells}  # above 1: its sleeping and waking, too
    kept: dict[str, list[float]] = {cell.name: [] for cell in cells}
    for run in range(runs):
        for cell in cells:
            context.say(f"{cell.name}, run {run + 1} of {runs}")
            settings: dict[str, Table] = {"sched": {"mode": cell.mode}}
            tenant: Table = {"cpu_weight": cell.weight}
            async with corral(context, settings=settings, tenant=tenant, others=(OTHERS,)) as daemon:
                result.mode = daemon.mode
                if cell.mode == "auto":
                    await _in_force(daemon)
                wall, cpu, late = await _one(context, daemon, waker, count)
                if cell.mode == "auto" and sched.running() != "corral":
                    result.notes.append(f"run {run}: the scheduler was not in force to the end")
            delays[cell.name] += late
            p99[cell.name].append(percentile(late, 99))
            shares[cell.name].append(cpu / (wall * WORK_US / PERIOD_US))
            kept[cell.name].append(count * PERIOD_US / wall)
            result.rows.append(
                {
                    "cell": cell.name,
                    "run": run,
                    "p50_us": median(late),
                    "p99_us": percentile(late, 99),
                    "most_us": max(late),
                    "share": round(shares[cell.name][-1], 4),
                    "kept": round(kept[cell.name][-1], 4),
                }
            )
    for cell in cells:
        name = cell.name
        result.summary[f"{name}_p50_us"] = Figure(value=median(delays[name]), unit="us")
        result.summary[f"{name}_p99_us"] = Figure(value=percentile(delays[name], 99), unit="us", samples=p99[name])
        result.summary[f"{name}_share"] = Figure(value=median(shares[name]), unit="of asked", samples=shares[name])
        result.summary[f"{name}_kept"] = Figure(value=median(kept[name]), unit="of moments", samples=kept[name])
    if not why:
        for name in ("weights", "weights_x10"):
            for percent in (50, 99):
                base = percentile(delays[name], percent)
                ratio = percentile(delays["sched_ext"], percent) / base if base else None
                result.summary[f"p{percent}_over_{name}"] = Figure(value=ratio, unit="", at_most=1.0)
    return result


async def _in_force(daemon: Corral) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WITHIN
    while sched.running() != "corral":
        if loop.time() > deadline:
            raise BenchError(f"the scheduler is not in force; agentd's log ends with:\n{daemon.daemon.log_tail()}")
        await asyncio.sleep(0.2)


async def _one(context: Context, daemon: Corral, waker: str, count: int) -> tuple[int, int, list[float]]:
    """Wall and CPU microseconds, and every delay."""
    host = (await daemon.snapshot()).host
    request = pb.OpenSessionRequest(tenant=OTHERS, name="hogs", uid=0)
    session = await daemon.client.call(daemon.client.agent.OpenSession, request)
    environment = {**daemon.environment, "CORRAL_TOKEN": session.token}
    loops = " & ".join(["while :; do :; done"] * (HOGS_PER_CPU * host.cpus))
    hogs = await start(daemon.launch("/bin/sh", "-c", f"echo on; {loops}"), environment=environment)
    process = await daemon.start(waker, str(PERIOD_US), str(WORK_US), str(count), options=("--duration", "1s"))
    try:
        for each, word in ((hogs, "on"), (process, "ready")):
            if await line_of(each) != word:
                raise BenchError(f"a call does not start; agentd's log ends with:\n{daemon.daemon.log_tail()}")
        await tell(process)
        wall, cpu, *late = (int(word) for word in (await line_of(process, within=WITHIN + count)).split())
    finally:
        for target in (session.session.id, daemon.session_id):
            await daemon.kill(target)
        await asyncio.gather(hogs.wait(), process.wait())
    return wall, cpu, [float(each) for each in late]
