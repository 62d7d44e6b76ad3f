"""What it costs to start a tool call through Corral, beside plain fork+exec and what containers ask for the same."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from pathlib import Path
from typing import Final

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.bench import procstat
from tests.bench.containers import Unavailable, container
from tests.bench.harness import BenchError, Context, Corral, corral, run
from tests.bench.result import Figure, Result, Row
from tests.bench.stats import median, percentile

TRUE: Final = "/bin/true"
PAUSE_MS: Final = 100
WARM_UP: Final = 10  # rounds that are recorded apart and count nowhere: caches, the daemon's first allocations


async def measure(context: Context) -> Result:
    rounds = context.count(full=400, quick=200)
    result = Result(runs=rounds)
    spawn = context.compile("spawn")
    async with corral(context) as host, contextlib.AsyncExitStack() as stack:
        result.mode = host.mode
        context.say(f"{rounds} rounds of plain fork+exec and corral-exec")
        await _spawns(spawn, {"plain": [TRUE], "corral": host.launch(TRUE)}, rounds, host, result)
        # A quiet host's next call: what the kernel and the caches kept ready for calls in a row has gone
        lone = {"plain_lone": [TRUE], "corral_lone": host.launch(TRUE)}
        lone_rounds = 25 if context.quick else 100
        context.say(f"{lone_rounds} rounds of both with a rest of {PAUSE_MS} ms before each")
        await _spawns(spawn, lone, lone_rounds, host, result, pause=PAUSE_MS)
        context.say(f"{rounds} times BeginCall and EndCall over gRPC")
        await _grpc(host, rounds, result)
        if context.quick:
            result.notes.append("docker exec and systemd-run are left out of --quick: one start of theirs takes long")
        else:
            # Each beside plain starts of its own: a container engine is still busy when its command has returned, and
            # would be measured in whatever comes next.
            for name, words in (await _others(context, result, stack)).items():
                context.say(f"{rounds} rounds of plain fork+exec and {name}")
                await _spawns(spawn, {f"plain_beside_{name}": [TRUE], name: words}, rounds, host, result)
    summarise(result)
    return result


async def _others(context: Context, result: Result, stack: contextlib.AsyncExitStack) -> dict[str, list[str]]:
    """What else this machine has to start a process in a cgroup of its own; a note for what it has not."""
    arms: dict[str, list[str]] = {}
    try:
        arms["docker_exec"] = await stack.enter_async_context(container(context))
    except Unavailable as err:
        result.notes.append(f"docker exec skipped: {err}")
    systemd_run = shutil.which("systemd-run")
    if systemd_run is None or not Path("/run/systemd/system").is_dir():
        result.notes.append("systemd-run --scope skipped: systemd does not run here")
    else:
        arms["systemd_run"] = [systemd_run, "--scope", "--quiet", "--collect", TRUE]
    return arms


async def _spawns(
    spawn: Path, arms: dict[str, list[str]], rounds: int, host: Corral, result: Result, *, pause: int = 0
) -> None:
    """One process starts all of them, in turn."""
    command = [str(spawn), str(rounds + WARM_UP), str(pause)]
    for number, words in enumerate(arms.values()):
        command += [*([":::"] if number else []), *words]
    names = list(arms)
    used = procstat.read(host.daemon.pid).cpu_seconds
    said = await run(command, environment=host.environment, within=600)
    await asyncio.sleep(0.5)  # what the last ends leave to do: records, and leaves to remove
    used = procstat.read(host.daemon.pid).cpu_seconds - used
    if "corral" in arms:
        result.rows.append({"kind": "daemon", "arm": "daemon", "ms": used * 1e3 / (rounds + WARM_UP), "warm_up": False})
    for line in said.splitlines():
        turn, arm, nanoseconds, status = (int(word) for word in line.split())
        if status:
            raise BenchError(f"{' '.join(arms[names[arm]])} ended with wait status {status} in round {turn}")
        result.rows.append(
            {
                "kind": "spawn",
                "arm": names[arm],
                "round": turn - WARM_UP,
                "ms": nanoseconds / 1e6,
                "warm_up": turn < WARM_UP,
            }
        )


async def _grpc(host: Corral, rounds: int, result: Result) -> None:
    begin, end = host.client.agent.BeginCall, host.client.agent.EndCall
    request = pb.BeginCallRequest(session_id=host.session_id, argv=[TRUE])
    for turn in range(-WARM_UP, rounds):
        began = time.perf_counter()
        call = (await host.client.call(begin, request)).call
        between = time.perf_counter()
        await host.client.call(end, pb.EndCallRequest(call_id=call.id, wait_status=0))
        done = time.perf_counter()
        row: Row = {
            "kind": "grpc",
            "arm": "grpc",
            "round": turn,
            "ms": (done - began) * 1e3,
            "begin_ms": (between - began) * 1e3,
            "end_ms": (done - between) * 1e3,
            "warm_up": turn < 0,
        }
        result.rows.append(row)


def summarise(result: Result) -> None:
    times: dict[str, list[float]] = {}
    for row in result.rows:
        if not row["warm_up"]:
            times.setdefault(str(row["arm"]), []).append(float(row["ms"] or 0))
    plain, ours = times["plain"], times["corral"]
    # against the typical plain start, not against its slowest ones: those come from the machine, and would be taken off
    typical = median(plain)
    lone = [t - median(times["plain_lone"]) for t in times["corral_lone"]]
    result.summary = {
        "added_p50_ms": Figure(
            value=median(ours) - typical, unit="ms", at_most=1.5, samples=[t - typical for t in ours]
        ),
        "added_p99_ms": Figure(value=percentile(ours, 99) - typical, unit="ms", at_most=6),
        "grpc_p50_ms": Figure(value=median(times["grpc"]), unit="ms", at_most=3, samples=times["grpc"]),
        "lone_added_p50_ms": Figure(value=median(lone), unit="ms", samples=lone),
        "daemon_cpu_ms": Figure(value=times["daemon"][0], unit="ms per call"),
        "plain_p50_ms": Figure(value=typical, unit="ms", samples=plain),
        "plain_p99_ms": Figure(value=percentile(plain, 99), unit="ms"),
    }
    for arm in ("docker_exec", "systemd_run"):
        if arm in times:
            beside = median(times[f"plain_beside_{arm}"])
            added = [t - beside for t in times[arm]]
            result.summary[f"{arm}_added_p50_ms"] = Figure(value=median(added), unit="ms", samples=added)
