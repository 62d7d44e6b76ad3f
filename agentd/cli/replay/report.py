"""What came out of a replay, counted. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from agentd.cli.plain import Plain
from agentd.cli.replay.player import Played, Result
from agentd.cli.table import Cell, Column, Style
from agentd.units import format_bytes, format_duration
from controller.simulate.plan import percentile

LAUNCHER_FAILED: Final = 125  # corral-exec itself: no daemon, or refused

COLUMNS: Final = (
    Column(title="TRACE", least=16),
    Column(title="TENANT", least=6, rank=2),
    Column(title="CALLS", right=True),
    Column(title="OK", right=True),
    Column(title="FAILED", right=True),
    Column(title="KILLED", right=True),
    Column(title="REFUSED", right=True),
    Column(title="WALL", right=True),
    Column(title="PLANNED", right=True, rank=1),
    Column(title="CHUNKS", right=True, rank=4),
    Column(title="P50", right=True, rank=1),
    Column(title="P95", right=True),
    Column(title="P99", right=True, rank=3),
    Column(title="MAX", right=True),
    Column(title="PEAK CALL", right=True, rank=2),
    Column(title="FRAMEWORK", rank=3),
)


def verdict(result: Result) -> str:
    """ok, failed, killed or refused, by what waitpid said."""
    if result.status == 0:
        return "ok"
    if result.status == LAUNCHER_FAILED:
        return "refused"
    if result.status is not None and (result.status < 0 or result.status > 128):
        return "killed"
    return "failed"


def latencies(played: Iterable[Played]) -> list[float]:
    """Of every chunk that any call or framework touched, in seconds."""
    return [
        nsec / 1e9
        for one in played
        for result in [*one.calls, *([one.framework] if one.framework else [])]
        for nsec in result.latencies
    ]


def row(name: str, tenant: str, played: Sequence[Played]) -> list[Cell | str]:
    counts = Counter(verdict(call) for one in played for call in one.calls)
    chunks = latencies(played)
    frameworks = [verdict(one.framework) for one in played if one.framework is not None]
    hurt = [word for word in frameworks if word != "ok"]
    peak = max((call.peak_bytes for one in played for call in one.calls), default=0)
    return [
        name,
        tenant or "-",
        str(sum(counts.values())),
        str(counts["ok"]),
        _count(counts["failed"], Style.WARN),
        _count(counts["killed"], Style.BAD),
        _count(counts["refused"], Style.BAD),
        format_duration(max(one.wall for one in played)),
        format_duration(max(one.plan.seconds for one in played)),
        f"{len(chunks):,}",
        *(format_duration(percentile(chunks, share)) for share in (0.5, 0.95, 0.99, 1.0)),
        format_bytes(peak),
        Cell(", ".join(hurt), Style.BAD) if hurt else "ok" if frameworks else "none",
    ]


def _count(number: int, style: Style) -> Cell:
    return Cell(str(number), style if number else Style.PLAIN)


def rows(played: Sequence[Played]) -> list[list[Cell | str]]:
    listed = [row(one.plan.name, one.tenant, [one]) for one in played]
    if len(played) > 1:
        listed.append(row("all", "", played))
    return listed


def complaints(played: Sequence[Played], most: int = 5) -> list[str]:
    """What the failed ones said, each sentence once with how often, most frequent first."""
    counts: Counter[str] = Counter()
    for one in played:
        for result in [*one.calls, *([one.framework] if one.framework else [])]:
            if verdict(result) != "ok":
                counts[f"{verdict(result)}: {result.words or 'without a word'}"] += 1
    listed = [f"{number}× {text}" for text, number in counts.most_common(most)]
    if len(counts) > most:
        listed.append(f"… and {len(counts) - most} other messages (see --json)")
    return listed


def plain(played: Sequence[Played], reasons: Mapping[str, Mapping[str, int]] | None) -> dict[str, Plain]:
    """For ``--json``. ``reasons``: per session, how often the ledger has each outcome; None where it was not asked."""
    return {
        "replays": [
            {
                "trace": one.plan.name,
                "tenant": one.tenant,
                "session": one.session or None,
                "wall_seconds": one.wall,
                "planned_seconds": one.plan.seconds,
                "framework": _result(one.framework) if one.framework else None,
                "calls": [_result(call) for call in one.calls],
                "latency_seconds": _percentiles(latencies([one])),
                "reasons": dict(reasons[one.session]) if reasons and one.session in reasons else None,
            }
            for one in played
        ],
        "latency_seconds": _percentiles(latencies(played)),
    }


def _percentiles(values: list[float]) -> dict[str, Plain]:
    named = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
    return {"chunks": len(values)} | {name: percentile(values, share) for name, share in named}


def _result(result: Result) -> dict[str, Plain]:
    return {
        "tool": result.label,
        "class": result.call_class,
        "verdict": verdict(result),
        "status": result.status,
        "complete": result.complete,
        "planned_seconds": result.planned_seconds,
        "wall_seconds": result.wall,
        "late_seconds": result.late,
        "planned_peak_bytes": result.planned_peak,
        "peak_bytes": result.peak_bytes,
        "cpu_usec": result.cpu_usec,
        "latency_seconds": _percentiles([nsec / 1e9 for nsec in result.latencies]),
        "words": result.words,
    }
