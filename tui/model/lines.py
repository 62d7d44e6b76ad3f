"""The lines above and below the table: the host, what must not be missed, the ticker of decisions."""

from __future__ import annotations

from typing import Final

from rich.text import Text

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.model.board import Board
from tui.model.columns import BAR, NEAR
from tui.model.rows import STATES
from tui.model.text import bar, clean, clock, evidence, size, span

_ACTION_STYLES: Final = {
    "brake": "bold yellow",
    "kill": "bold red",
    "refuse": "bold red",
    "freeze": "bright_blue",
    "queue": "cyan",
    "raise": "green",
    "thaw": "green",
}
_ACTION_GLYPHS: Final = {
    "advise": "i",
    "throttle": "▼",
    "relax": "▲",
    "brake": "■",
    "raise": "▲",
    "freeze": "❄",
    "thaw": "▶",
    "kill": "✗",
    "queue": "…",
    "refuse": "!",
}


def line(text: str = "", style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis", end="")


def host_line(board: Board, source: str, width: int) -> Text:
    if board.at is None:
        return line(f"corral · {clean(source)} · waiting for the first picture")
    host = board.host
    text = line()
    text.append("corral ", "bold")
    wide = width >= 110
    text.append(f"{clock(board.at)}  {host.cpus} CPUs  ")
    if host.memory_total_bytes:
        used = host.memory_total_bytes - host.memory_available_bytes
        part = used / host.memory_total_bytes
        text.append("memory " if wide else "mem ")
        text.append(bar(part, BAR), f"{'red' if part >= 0.95 else 'yellow' if part >= NEAR else 'green'} on grey23")
        text.append(f" {size(used)} of {size(host.memory_total_bytes)}  {'pressure' if wide else 'psi'}")
        for word in ("cpu", "memory", "io"):
            name = f"{word}_pressure"
            value = f"{getattr(host, name):.0f}%" if host.HasField(name) else "-"
            text.append(f" {word if wide else word[:3]} {value}")
    else:
        text.append("memory and pressure are not kept in the ledger", "dim")
    if width >= 120:
        text.append(f"  {counts(board)}", "")
    if width >= 160:
        text.append(f"  {host.mode}  Linux {clean(host.kernel)}  agentd {clean(host.version)}", "dim")
    return text


def counts(board: Board) -> str:
    """ "12 running, 3 queued, 1 braked" """
    found: dict[int, int] = {}
    for call in board.calls.values():
        found[call.state] = found.get(call.state, 0) + 1
    return ", ".join(f"{found[state]} {known.word}" for state, known in STATES.items() if state in found) or "no calls"


def state_line(board: Board, *, now: float, time_words: str = "", notes: tuple[tuple[str, str], ...] = ()) -> Text:
    """What an operator must not miss: away, in the past, observe-only, what the host lacks. ``notes``: (text, style)
    of the page: its filter, its sort."""
    text = line()
    if board.away is not None and not time_words:
        since = f"{clock(board.away.since)} ({span(now - board.away.since)})"
        word = "no permission" if board.away.denied else "daemon away"
        text.append(f"{word} since {since}: {clean(board.away.cause)}; trying again", "bold white on red")
        return text
    parts: list[tuple[str, str]] = []
    if time_words:
        parts.append((time_words, "bold black on yellow"))
    parts += notes
    if board.lost:
        parts.append((f"{board.lost} updates were lost: this screen was too slow", "yellow"))
    if board.at is not None:
        if board.host.mode == "observe":
            parts.append(("observe-only: no limit is enforced on this host", "bold yellow"))
        missing = "; ".join(clean(word) for word in board.host.missing)
        if missing:
            parts.append((f"this host cannot: {missing}", "yellow"))
    for number, (words, style) in enumerate(parts):
        text.append("  " if number else "")
        text.append(words, style)
    return text


def name_of(board: Board, object_id: str) -> str:
    """What people call a call, session or tenant: "greedy/crunch/python", else the id."""
    call = board.call(object_id)
    if call is not None:
        tenant, session = board.tenants.get(call.tenant_id), board.sessions.get(call.session_id)
        names = (tenant.name if tenant else "", session.name if session else "", call.intent.tool)
        return clean("/".join(name for name in names if name)) or object_id
    if object_id in board.sessions:
        return clean(board.sessions[object_id].name) or object_id
    if object_id in board.tenants:
        return clean(board.tenants[object_id].name) or object_id
    return clean(object_id)


def decision_line(decision: pb.Decision, board: Board | None = None) -> Text:
    text = line()
    text.append(f"{clock(decision.at)} ", "dim")
    glyph = _ACTION_GLYPHS.get(decision.action, "·")
    text.append(f"{glyph} {clean(decision.action):8} ", _ACTION_STYLES.get(decision.action, "bold"))
    target = decision.call_id or decision.session_id or decision.tenant_id
    text.append(f"{name_of(board, target) if board is not None else clean(target)}  {clean(decision.reason)}")
    numbers = evidence(dict(decision.evidence))
    if numbers:
        text.append(f"  ({numbers})", "dim")
    return text
