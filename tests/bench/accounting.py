"""What the daemon counted for a call against what the call really used."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.bench.harness import BenchError, Context, Corral, corral, run
from tests.bench.result import Figure, Result, Row
from tests.bench.stats import relative_error

MIB: Final = 1 << 20
BLOCK: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Case:
    """``amount``: seconds for "cpu", bytes otherwise. ``resource`` is the figure in the summary."""

    name: str
    resource: str
    kind: str
    amount: float
    children: int
    counted: Callable[[pb.Usage], int]


def cases() -> list[Case]:
    """Each resource used by the call's first process, by some children, and by a hundred short-lived ones."""
    counters: dict[str, tuple[str, float, Callable[[pb.Usage], int]]] = {
        "cpu": ("cpu", 1.0, lambda u: u.cpu_usec),
        "memory": ("memory", 256 * MIB, lambda u: u.memory_peak_bytes),
        "read": ("read", 64 * MIB, lambda u: u.read_bytes),
        "written": ("write", 64 * MIB, lambda u: u.written_bytes),
        "sent": ("send", 64 * MIB, lambda u: u.net_tx_bytes),
    }
    found = []
    for resource, (kind, amount, counted) in counters.items():
        found.append(Case(f"{resource}, itself", resource, kind, amount, 0, counted))
        found.append(Case(f"{resource}, 8 children", resource, kind, amount, 8, counted))
        if resource == "memory":
            # peaks do not add up: each child by itself uses all of it
            found.append(Case("memory, 25 short", resource, "memory-short", amount / 2, 25, counted))
        else:
            found.append(Case(f"{resource}, 100 short", resource, kind, amount, 100, counted))
    return found


class Sink:
    """The far end of "sent", outside of every call: reads all that comes, and closes when the sender has."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> int:
        """The port on loopback."""
        self._server = await asyncio.start_server(self._drain, "127.0.0.1", 0, limit=BLOCK)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    @staticmethod
    async def _drain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(BLOCK):
            pass
        writer.close()
        # a sender that was killed has nothing more to be told
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def measure(context: Context) -> Result:
    rounds = context.count(full=5, quick=1)
    result = Result(runs=rounds)
    source = context.directory / "source"
    with source.open("wb") as file:
        for _ in range(64):
            file.write(bytes(MIB))
    async with corral(context) as host, Sink() as port:
        result.mode = host.mode
        where = {"read": str(source), "send": str(port)}
        for turn in range(rounds):
            for case in cases():
                await _one(context, host, case, turn, where=where, result=result)
            context.say(f"round {turn + 1} of {rounds}: {len(cases())} calls checked")
    summarise(result)
    return result


async def _one(context: Context, host: Corral, case: Case, turn: int, *, where: dict[str, str], result: Result) -> None:
    target = where.get(case.kind, str(context.directory / "written"))
    words = host.launch(context.compile("work"), case.kind, f"{case.amount:.6f}", str(case.children), target)
    said = (await run(words, environment=host.environment)).split()
    if len(said) != 2:
        raise BenchError(f"{case.name}: the program said {said}, not its call and what it used")
    expected = float(said[1])
    usage = (await host.outcome(said[0])).usage
    counted = case.counted(usage)
    row: Row = {
        "case": case.name,
        "resource": case.resource,
        "children": case.children,
        "round": turn,
        "expected": expected,
        "counted": counted,
        "error": relative_error(counted, expected),
        "unit": "µs" if case.resource == "cpu" else "bytes",
    }
    if case.resource == "sent":
        row["wire_overhead_bytes"] = counted - expected  # IP and TCP headers, handshakes, acknowledgements
    result.rows.append(row)


def summarise(result: Result) -> None:
    errors: dict[str, list[float]] = {}
    for row in result.rows:
        errors.setdefault(str(row["resource"]), []).append(float(row["error"] or 0))
    every = [error for found in errors.values() for error in found]
    result.summary["worst_error"] = Figure(value=max(every), unit="share", at_most=0.02, samples=every)
    for resource, found in errors.items():
        result.summary[f"{resource}_worst_error"] = Figure(value=max(found), unit="share", samples=found)
    worst = max(result.rows, key=lambda row: float(row["error"] or 0))
    result.notes.append(
        f"worst: {worst['case']}: {worst['counted']:,} counted, {worst['expected']:,.0f} expected ({worst['unit']})"
    )
    result.notes.append("sent: payload against IP bytes; the difference is headers, handshakes and acknowledgements")
