"""The demo's checks: pure functions of what the ledger says, what the agents saw and what the kernel says.

Each compares two sources that know nothing of each other, so that none can hold by construction.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentd.demo.runner import REFUSED, Run
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import format_bytes, format_duration
from controller.model import command_text

CPU_TOLERANCE: Final = 0.02  # of a tenant's CPU time
CPU_SLACK_USEC: Final = 30_000  # beside it: cpu.stat is flushed at ticks, which differ between the two readings
# Between a call's own peak and its data: an interpreter, and pages that its brake let through before it acted.
PEAK_SLACK_BYTES: Final = 96 << 20
# Past an armed brake before the process stops: a huge page for each CPU that faults, and then some.
OVERSHOOT_BYTES: Final = 8 << 20
# IP and TCP headers on loopback, whose packets are large; acknowledgements go the other way.
NETWORK_OVERHEAD: Final = 0.05


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    held: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One call from both ends: what its agent saw, and what the ledger has (None: nothing)."""

    run: Run
    call: pb.Call | None
    decisions: tuple[pb.Decision, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.run.session.tenant}/{self.run.session.name} {self.run.call.tool}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """``tenant_cpu_usec``: cpu.stat of each tenant's group, by name; ``left``: what is still there in the end."""

    records: tuple[Record, ...]
    tenant_cpu_usec: Mapping[str, int]
    tenant_memory_max: Mapping[str, int]
    left: tuple[str, ...]
    refused: Run | None = None  # observe-only: the call that asked for a limit


def match(runs: Sequence[Run], calls: Sequence[pb.Call], decisions: Sequence[pb.Decision]) -> tuple[Record, ...]:
    """Pairs the agents' runs with the ledger's calls: a command line is unique within its session."""
    by_key = {(call.session_id, call.command): call for call in calls}
    records = []
    for run in runs:
        call = by_key.get((run.session.id, command_text(run.call.argv)))
        own = tuple(d for d in decisions if call is not None and d.call_id == call.id)
        records.append(Record(run=run, call=call, decisions=own))
    return tuple(records)


def judge(findings: Findings, *, enforced: bool) -> list[Check]:
    checks = ENFORCING if enforced else OBSERVING
    return [check(findings) for check in checks]


def recorded(f: Findings) -> Check:
    missing = [r.name for r in f.records if r.call is None or not r.call.HasField("outcome")]
    return _check("every call is in the ledger, with its outcome", missing, f"{len(f.records)} calls")


def braked(f: Findings) -> Check:
    greedy = [r for r in f.records if r.run.call.overreaches]
    problems = [] if greedy else ["no call overreached"]
    proofs = []
    for record in greedy:
        brakes = sorted((d for d in record.decisions if d.action == "brake"), key=lambda d: d.at)
        declared = (record.run.call.memory or (0, 0))[1] << 20
        if not brakes or record.call is None:
            problems.append(f"{record.name} (needs {format_bytes(record.run.call.needs_memory)}) was not braked")
            continue
        usage = int(brakes[0].evidence.get("usage_bytes", 0))
        if not record.call.brakes:
            problems.append(f"{record.name}: a brake was decided, but its record counts none")
        elif not declared <= usage <= declared + OVERSHOOT_BYTES:
            problems.append(f"{record.name}: declared {format_bytes(declared)}, braked at {format_bytes(usage)}")
        else:
            over = format_bytes(usage - declared)
            proofs.append(f"{over} past {format_bytes(declared)} ({record.call.outcome.reason})")
    return _check("the greedy calls were braked at what they declared", problems, ", ".join(proofs))


def spared(f: Findings) -> Check:
    others = [r for r in f.records if not r.run.call.overreaches]
    died = [f"{r.name} ended with {r.run.status}: {_last(r.run.output)}" for r in others if r.run.status]
    return _check("nobody else's call died or failed", died, f"{len(others)} calls ended with status 0")


def truthful(f: Findings) -> Check:
    """The exit status that the agent saw and the one that the ledger has are the same."""
    wrong = []
    for record in f.records:
        if record.call is None or not record.call.outcome.HasField("wait_status"):
            continue
        status = record.call.outcome.wait_status
        seen = record.run.status
        told = -(status & 0x7F) if status & 0x7F else (status >> 8) & 0xFF
        if told != seen:
            wrong.append(f"{record.name}: agent saw {seen}, ledger says {told}")
    return _check("the ledger's exit statuses are those that the agents saw", wrong, "all equal")


def cpu_adds_up(f: Findings) -> Check:
    wrong, words = [], []
    for tenant, kernel in sorted(f.tenant_cpu_usec.items()):
        calls = sum(r.call.outcome.usage.cpu_usec for r in f.records if r.call and r.run.session.tenant == tenant)
        words.append(f"{tenant} {format_duration(calls / 1e6)} of {format_duration(kernel / 1e6)}")
        if abs(calls - kernel) > CPU_TOLERANCE * kernel + CPU_SLACK_USEC:
            wrong.append(f"{tenant}: its calls sum to {calls} µs, its cpu.stat says {kernel} µs")
    if not f.tenant_cpu_usec:
        wrong.append("no tenant's cpu.stat could be read")
    return _check("CPU time: the calls of each tenant sum to its cpu.stat", wrong, ", ".join(words))


def peaks_plausible(f: Findings) -> Check:
    wrong, counted = [], 0
    for record in f.records:
        if record.call is None:
            continue
        usage, needs = record.call.outcome.usage, record.run.call.needs_memory
        if not usage.HasField("memory_peak_bytes") or not usage.memory_peak_bytes:
            wrong.append(f"{record.name}: no peak")
            continue
        peak, ceiling = usage.memory_peak_bytes, f.tenant_memory_max.get(record.run.session.tenant)
        counted += 1
        if needs and not record.run.status and not needs <= peak <= needs + PEAK_SLACK_BYTES:
            wrong.append(f"{record.name}: touched {format_bytes(needs)}, its peak is {format_bytes(peak)}")
        if ceiling is not None and peak > ceiling:
            wrong.append(f"{record.name}: its peak {format_bytes(peak)} is above its tenant's {format_bytes(ceiling)}")
    return _check("memory: peaks fit what the calls touch, and no tenant passed its ceiling", wrong, f"{counted} peaks")


def reads_counted(f: Findings) -> Check:
    return _at_least(f, "bytes read", lambda r: r.run.call.known_read, lambda u: u.read_bytes, most=None)


def network_counted(f: Findings) -> Check:
    return _at_least(
        f, "bytes received", lambda r: r.run.call.known_received, lambda u: u.net_rx_bytes, most=1 + NETWORK_OVERHEAD
    )


def usage_seen(f: Findings) -> Check:
    """Observe-only: calls that surely compute show CPU time."""
    busy = [r for r in f.records if r.run.call.tool in ("make", "pytest", "mypy", "pip", "python")]
    idle = [r.name for r in busy if r.call is not None and not r.call.outcome.usage.cpu_usec]
    return _check("usage was seen without limits", idle, f"{len(busy)} calls show CPU time")


def limit_refused(f: Findings) -> Check:
    run = f.refused
    if run is None:
        return Check("an intent with a limit is refused, not ignored", False, "it was not tried")
    return Check(
        "an intent with a limit is refused, not ignored",
        run.status == REFUSED,
        f"status {run.status}: {_last(run.output)}",
    )


def nothing_left(f: Findings) -> Check:
    return _check("no leaf and no process is left", list(f.left), "nothing")


ENFORCING: Final[tuple[Callable[[Findings], Check], ...]] = (
    recorded,
    braked,
    spared,
    truthful,
    cpu_adds_up,
    peaks_plausible,
    reads_counted,
    network_counted,
    nothing_left,
)
OBSERVING: Final[tuple[Callable[[Findings], Check], ...]] = (
    recorded,
    spared,
    truthful,
    usage_seen,
    limit_refused,
    nothing_left,
)


def _at_least(
    f: Findings,
    what: str,
    known: Callable[[Record], int],
    counted: Callable[[pb.Usage], int],
    *,
    most: float | None,
) -> Check:
    wrong, shares = [], []
    for record in f.records:
        if not known(record) or record.call is None:
            continue
        share = counted(record.call.outcome.usage) / known(record)
        shares.append(share)
        if share < 1 or (most is not None and share > most):
            wrong.append(f"{record.name}: {share:.1%} of the {format_bytes(known(record))} that it moved")
    if not shares:
        wrong.append("no call moved a known amount")
    words = f"{min(shares, default=0):.1%} to {max(shares, default=0):.1%} of what {len(shares)} calls surely moved"
    return _check(f"{what} are counted", wrong, words)


def _check(name: str, problems: Sequence[str], fine: str) -> Check:
    return Check(name, not problems, "; ".join(problems) if problems else fine)


def _last(output: str) -> str:
    lines = output.splitlines()
    return lines[-1] if lines else "it wrote nothing"


def command_of(run: Run) -> str:
    """The command as one may type it."""
    return shlex.join(run.call.argv)
