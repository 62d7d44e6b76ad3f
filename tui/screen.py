"""How rows and lines look: texts with styles, no widgets. Pure."""

from __future__ import annotations

from typing import Final

from rich.text import Text

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.board import Board, Row
from tui.text import bar, clean, clock, evidence, size, span

BAR: Final = 10  # cells
NEAR: Final = 0.8  # of a ceiling: from here on the bar warns
_ACTION_STYLES: Final = {
    "brake": "bold yellow",
    "kill": "bold red",
    "refuse": "bold red",
    "freeze": "bright_blue",
    "queue": "cyan",
    "raise": "green",
    "thaw": "green",
}
TITLES: Final = ("WHO", "STATE", "AGE", "CPU", "MEMORY", "OF BRAKE OR LIMIT", "COMMAND")


def cells(row: Row) -> tuple[Text, ...]:
    """One row of the table, in the order of TITLES."""
    return (
        _who(row),
        Text(f"{row.state.glyph} {row.state.word}", row.state.style) if row.state else Text(_calls(row), "dim"),
        Text(span(row.age) if row.age is not None else "", justify="right"),
        Text(f"{row.cores:.2f}" if row.cores is not None else "-", justify="right"),
        Text(size(row.memory), justify="right"),
        memory_bar(row),
        Text(row.command, no_wrap=True, overflow="ellipsis"),
    )


def _who(row: Row) -> Text:
    if row.kind == "tenant":
        return Text(row.label, "bold")
    if row.kind == "session":
        return Text(f"  {row.label}")
    return Text(f"    {row.label}")


def _calls(row: Row) -> str:
    return f"{row.calls} call" + ("" if row.calls == 1 else "s")


def memory_bar(row: Row) -> Text:
    if row.memory is None or row.ceiling is None:
        return Text("")
    part = row.memory / row.ceiling
    style = "red" if part >= 1 else "yellow" if part >= NEAR else "green"
    text = Text(no_wrap=True)
    text.append(bar(part, BAR), f"{style} on grey23")
    text.append(f" {row.ceiling_word} {size(row.ceiling)}", "dim")
    return text


def host_line(board: Board, source: str, width: int) -> Text:
    if board.snapshot is None:
        return Text(f"corral · {source} · waiting for the first picture", no_wrap=True, overflow="ellipsis")
    host = board.snapshot.host
    used = host.memory_total_bytes - host.memory_available_bytes
    part = used / host.memory_total_bytes if host.memory_total_bytes else 0.0
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("corral ", "bold")
    wide = width >= 110
    text.append(f"{clock(board.snapshot.at)}  {host.cpus} CPUs  {'memory' if wide else 'mem'} ")
    text.append(bar(part, BAR), f"{'red' if part >= 0.95 else 'yellow' if part >= NEAR else 'green'} on grey23")
    text.append(f" {size(used)} of {size(host.memory_total_bytes)}  {'pressure' if wide else 'psi'}")
    for word in ("cpu", "memory", "io"):
        field = f"{word}_pressure"
        value = f"{getattr(host, field):.0f}%" if host.HasField(field) else "-"
        text.append(f" {word if wide else word[:3]} {value}")
    if width >= 120:
        text.append(f"  {host.mode}  Linux {clean(host.kernel)}  agentd {clean(host.version)}", "dim")
    return text


def state_line(board: Board, *, paused: bool, wanted: str, now: float) -> Text:
    """What an operator must not miss: away, observe-only, what the host lacks, paused, filtered."""
    text = Text(no_wrap=True, overflow="ellipsis")
    if board.away is not None:
        since = f"{clock(board.away.since)} ({span(now - board.away.since)})"
        text.append(f"daemon away since {since}: {clean(board.away.cause)}; reconnecting", "bold white on red")
        return text
    parts: list[tuple[str, str]] = []
    if paused:
        parts.append(("paused: p goes on", "bold black on yellow"))
    if wanted:
        parts.append((f"filter: {clean(wanted)}", "bold cyan"))
    if board.snapshot is not None:
        if board.snapshot.host.mode == "observe":
            parts.append(("observe-only: no limit is enforced on this host", "bold yellow"))
        missing = "; ".join(clean(word) for word in board.snapshot.host.missing)
        if missing:
            parts.append((f"this host cannot: {missing}", "yellow"))
    for number, (words, style) in enumerate(parts):
        text.append("  " if number else "")
        text.append(words, style)
    return text


def decision_line(decision: pb.Decision) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{clock(decision.at)} ", "dim")
    text.append(f"{clean(decision.action):8} ", _ACTION_STYLES.get(decision.action, "bold"))
    text.append(f"{clean(decision.call_id or decision.session_id or decision.tenant_id)}  {clean(decision.reason)}")
    numbers = evidence(dict(decision.evidence))
    if numbers:
        text.append(f"  ({numbers})", "dim")
    return text
