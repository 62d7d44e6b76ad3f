"""What following the inference tier costs the daemon: its CPU time with GPUs and engines to read, and with none.

Eight GPUs with eight processes each come from a stand-in for libnvidia-ml (this counts the bindings and the daemon, not
NVIDIA's driver: ``scripts/check-gpu`` is for that); the two engines are real llama.cpp servers at rest. Daemons of both
kinds run at the same time, so that what the machine does meanwhile hits both.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from agentd.embedded import Table
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.bench import procstat
from tests.bench.harness import BenchError, Context, Corral, corral, ended, start
from tests.bench.result import Figure, Result
from tests.support import tiny_gguf
from tests.support.llamacpp import llamacpp
from tests.unit.nvml_fake.harness import build

GPUS: Final = 8
PROCESSES: Final = 8  # on each
ENGINES: Final = 2
SETTLE: Final = 5.0  # seconds: the first rounds find out what there is
_NO_INSTANCE: Final = 0xFFFFFFFF


async def measure(context: Context) -> Result:
    result = Result(runs=context.count(full=3, quick=1))
    await sampling(context, result, runs=result.runs, seconds=12.0 if context.quick else 60.0)
    return result


async def sampling(context: Context, result: Result, *, runs: int, seconds: float) -> None:
    """Adds rows and the figure ``sampling_share``: cores, with all of it less with none."""
    if shutil.which("gcc") is None:
        raise BenchError("gcc is missing (the stand-in for libnvidia-ml): apt-get install gcc libc6-dev")
    library = build(context.directory / "nvml")
    shares: list[float] = []
    async with _processes() as pids, _engines(context, result) as engines:
        scenario = context.directory / "gpus"
        scenario.write_text(_gpus(pids))
        nvml = {"LD_LIBRARY_PATH": str(library), "CORRAL_FAKE_NVML": str(scenario), "CORRAL_FAKE_NVML_STEADY": "1"}
        for run in range(runs):
            # what the daemon takes for itself is not bounded here: its own estimate is checked against the truth
            full: dict[str, Table] = {"gpu": {"enabled": "on"}, "engines": engines}
            async with (
                corral(context, settings=full, environment=nvml) as watching,
                corral(context, settings={"gpu": {"enabled": "off"}}) as resting,
            ):
                result.mode = watching.mode
                await asyncio.sleep(SETTLE)
                with_tier, without = await asyncio.gather(_cores(watching, seconds), _cores(resting, seconds))
                status = (await watching.client.call(watching.client.operator.Tier, pb.TierRequest())).tier
                if len(status.devices) != GPUS or any(one.state != "up" for one in status.engines):
                    raise BenchError(f"the daemon did not see all GPUs and engines: {status}")
                shares.append(with_tier - without)
                result.rows.append(
                    {
                        "bench": "sampling",
                        "run": run,
                        "cores_with": with_tier,
                        "cores_without": without,
                        "own_estimate": status.sampling_share,
                        "gpus": len(status.devices),
                        "engines": len(status.engines),
                    }
                )
            context.say(f"sampling: {run + 1} of {runs} runs")
    ordered = sorted(shares)
    result.summary["sampling_share"] = Figure(
        value=ordered[len(ordered) // 2], unit="cores", at_most=0.01, samples=tuple(shares)
    )


async def _cores(host: Corral, seconds: float) -> float:
    before = procstat.read(host.daemon.pid).cpu_seconds
    await asyncio.sleep(seconds)
    return (procstat.read(host.daemon.pid).cpu_seconds - before) / seconds


@contextlib.asynccontextmanager
async def _processes() -> AsyncIterator[list[int]]:
    """Processes of nobody's that stand for the GPUs' users: the daemon looks each of them up."""
    sleepers = [await start(("/bin/sleep", "3600"), environment=dict(os.environ)) for _ in range(GPUS * PROCESSES)]
    try:
        yield [one.pid for one in sleepers]
    finally:
        await asyncio.gather(*(ended(one) for one in sleepers))


@contextlib.asynccontextmanager
async def _engines(context: Context, result: Result) -> AsyncIterator[dict[str, Table]]:
    if importlib.util.find_spec("xllamacpp") is None:
        result.notes.append("xllamacpp has no wheel for this machine: only GPUs were read")
        yield {}
        return
    model = await asyncio.to_thread(tiny_gguf.write, context.directory / "tiny.gguf")
    async with contextlib.AsyncExitStack() as stack:
        found: dict[str, Table] = {}
        for number in range(ENGINES):
            url = await stack.enter_async_context(llamacpp(model, Path(context.directory)))
            found[f"local{number}"] = {"url": url, "kind": "llamacpp", "control": True}
        yield found


def _gpus(pids: list[int]) -> str:
    text = f"driver 580.65\ncount {GPUS}\n"
    for gpu in range(GPUS):
        text += f"dev {gpu} uuid GPU-{gpu}\ndev {gpu} name Fake\ndev {gpu} mem 85899345920 1073741824\n"
        text += f"dev {gpu} util 40 25\ndev {gpu} power 350000\ndev {gpu} energy 5000000\ndev {gpu} temp 51\n"
        for number, pid in enumerate(pids[gpu * PROCESSES : (gpu + 1) * PROCESSES]):
            text += f"dev {gpu} proc {pid} 1073741824 {_NO_INSTANCE} {_NO_INSTANCE}\n"
            text += f"dev {gpu} share {1_000_000 + number} {pid} 10 5\n"
    return text
