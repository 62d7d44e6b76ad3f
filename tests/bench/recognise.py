"""Tool calls recognised without a wrapper: how long one runs before it is in its leaf, and which end before."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.bench.harness import TENANT, BenchError, Context, Corral, corral, line_of
from tests.bench.result import Figure, Result, Row
from tests.bench.stats import median, percentile

AGENT: Final = Path(__file__).resolve().parent.parent / "host" / "attach_agent.py"
WITHIN: Final = 60.0  # seconds for the last call to be on record
# Name to the words that the agent starts: a program that does nothing, a shell that does nothing, one that starts four
# programs, one that works for a moment.
ARMS: Final[dict[str, Sequence[str]]] = {
    "program": ("cat", "/dev/null"),
    "shell": ("sh", "-c", ":"),
    "nested": ("bash", "-c", "for i in 1 2 3 4; do /bin/true; done"),
    "work": ("sh", "-c", "sleep 0.1"),
}


async def measure(context: Context) -> Result:
    rounds = context.count(full=300, quick=40)
    result = Result(runs=rounds)
    async with corral(context) as host:
        result.mode = host.mode
        for name, words in ARMS.items():
            context.say(f"{rounds} times {' '.join(words)}, by an attached agent")
            async with _agent() as agent:
                await _arm(host, agent, name, rounds, result)
    _summarise(result)
    return result


@contextlib.asynccontextmanager
async def _agent() -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, str(AGENT), stdin=pipe, stdout=pipe)
    try:
        await line_of(process)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _arm(host: Corral, agent: asyncio.subprocess.Process, name: str, rounds: int, result: Result) -> None:
    words = ARMS[name]
    client = host.client
    request = pb.AttachRequest(tenant=TENANT, pid=agent.pid, name=name)
    [session] = (await client.call(client.operator.Attach, request)).sessions
    assert agent.stdin is not None
    for _ in range(rounds):
        agent.stdin.write(json.dumps(list(words)).encode() + b"\n")
        await line_of(agent)
    history = pb.HistoryRequest(session_id=session.id, limit=10_000)
    deadline = asyncio.get_running_loop().time() + WITHIN
    calls: Sequence[pb.Call] = ()
    while sum(call.HasField("outcome") for call in calls) < rounds:
        if asyncio.get_running_loop().time() > deadline:
            result.notes.append(f"{name}: {len(calls)} of {rounds} calls are on record after {WITHIN:.0f} s")
            break
        await asyncio.sleep(0.2)
        calls = (await client.call(client.operator.History, history)).calls
    if not calls:
        raise BenchError(f"{name}: no call was recognised")
    for call in calls:
        known = call.recognition
        row: Row = {
            "arm": name,
            "ms_before": known.seconds_before * 1e3,
            "cpu_ms_before": known.cpu_usec_before / 1e3,
            "kib_before": known.memory_bytes_before / 1024 if known.HasField("memory_bytes_before") else None,
            "placed": not call.grant.notes,
            "wall_ms": call.outcome.wall_seconds * 1e3,
        }
        result.rows.append(row)


def _summarise(result: Result) -> None:
    for arm in ARMS:
        rows = [row for row in result.rows if row["arm"] == arm]
        placed = [row for row in rows if row["placed"]]
        missed = len(rows) - len(placed)
        result.summary[f"{arm}: recorded"] = Figure(value=float(len(rows)), unit=f"of {result.runs}")
        result.summary[f"{arm}: ended before placed"] = Figure(value=float(missed), unit=f"of {len(rows)}")
        for field, unit in (("ms_before", "ms"), ("cpu_ms_before", "ms"), ("kib_before", "KiB")):
            values = [value for row in placed if isinstance(value := row[field], float)]
            if values:
                result.summary[f"{arm}: {field} p50"] = Figure(value=median(values), unit=unit, samples=values)
                result.summary[f"{arm}: {field} p99"] = Figure(value=percentile(values, 99), unit=unit)
