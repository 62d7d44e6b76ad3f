"""The closing table: every call as the ledger has it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from agentd.cli.table import Cell, Column, Style, fold, paint, render
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import format_bytes, format_duration

_COLUMNS = (
    Column(title="TENANT"),
    Column(title="SESSION"),
    Column(title="TOOL"),
    Column(title="CLASS", rank=1),
    Column(title="WALL", right=True),
    Column(title="CPU", right=True),
    Column(title="PEAK", right=True),
    Column(title="FAULTS", right=True, rank=2),
    Column(title="READ", right=True, rank=2),
    Column(title="WRITTEN", right=True, rank=2),
    Column(title="NETWORK", right=True, rank=2),
    Column(title="ENDED", least=8),
    Column(title="WHAT WAS DONE TO IT, AND WHY", least=28),
)
_ARROW = "    ↳ "
_INDENT = " " * len(_ARROW)
_PATH = re.compile(r"(?<![\w=])/(?:[^\s/]+/)+")
_FINE = frozenset(("exited", "braked"))


def table(
    calls: Iterable[pb.Call],
    decisions: Iterable[pb.Decision],
    *,
    tenants: Mapping[str, str],
    sessions: Mapping[str, str],
    width: int | None,
    colour: bool,
) -> list[str]:
    """The table's lines. ``tenants`` and ``sessions``: names by id. Calls in the order of their begin.

    ``width`` None: as wide as need be; otherwise what was done to a call has lines of its own below it.
    """
    done: dict[str, list[pb.Decision]] = {}
    for decision in decisions:
        done.setdefault(decision.call_id, []).append(decision)
    rows = []
    for call in sorted(calls, key=lambda call: call.begun_at):
        usage = call.outcome.usage
        reason = call.outcome.reason
        rows.append(
            (
                tenants.get(call.tenant_id, call.tenant_id),
                sessions.get(call.session_id, call.session_id),
                call.intent.tool,
                call.intent.call_class,
                format_duration(call.outcome.wall_seconds),
                format_duration(usage.cpu_usec / 1e6),
                size(usage, "memory_peak_bytes"),
                str(usage.faults) if usage.HasField("faults") else "-",
                size(usage, "read_bytes"),
                size(usage, "written_bytes"),
                format_bytes(network(usage)),
                Cell(reason, Style.GOOD if reason == "exited" else Style.WARN if reason in _FINE else Style.BAD),
                Cell(what_was_done(done.get(call.id, ())), Style.WARN),
            )
        )
    if width is None:
        return render(_COLUMNS, rows, colour=colour)
    head, *lines = render(_COLUMNS[:-1], [row[:-1] for row in rows], width=width, colour=colour)
    folded = [head]
    for row, line in zip(rows, lines, strict=True):
        folded.append(line)
        for number, part in enumerate(fold(row[-1].text, max(20, width - len(_INDENT)))):
            folded.append(paint(f"{_INDENT if number else _ARROW}{part}", Style.WARN, colour))
    return folded


def what_was_done(decisions: Sequence[pb.Decision]) -> str:
    """The actions in their order, with the reason of the last that was more than advice:
    ``brake, raise ×2, kill: no room came within 3 s``."""
    if not decisions:
        return ""
    ordered = sorted(decisions, key=lambda decision: decision.at)
    actions: list[tuple[str, int]] = []
    for decision in ordered:
        if actions and actions[-1][0] == decision.action:
            actions[-1] = (decision.action, actions[-1][1] + 1)
        else:
            actions.append((decision.action, 1))
    steps = ", ".join(action if count == 1 else f"{action} ×{count}" for action, count in actions)
    telling = [decision for decision in ordered if decision.action != "advise"] or ordered
    return f"{steps}: {telling[-1].reason}"


def network(usage: pb.Usage) -> int | None:
    """Bytes received and sent; None where nothing on this host can count them."""
    if not usage.HasField("net_rx_bytes") or not usage.HasField("net_tx_bytes"):
        return None
    return usage.net_rx_bytes + usage.net_tx_bytes


def percent_of(call: pb.Call) -> float | None:
    """Memory in use as a share of the armed brake, in percent; None where either is not known."""
    if not call.grant.brake_bytes or not call.usage.HasField("memory_now_bytes"):
        return None
    return 100.0 * call.usage.memory_now_bytes / call.grant.brake_bytes


def command_words(command: str, limit: int = 72) -> str:
    """A command line for a narrow column: directories left out, cut in the middle of nowhere rather than wrapped."""
    short = _PATH.sub("", command)
    return short if len(short) <= limit else f"{short[: limit - 1]}…"


def explanations(calls: Iterable[pb.Call]) -> list[str]:
    """What the agents were told about calls that something was done to: each Outcome's paragraph."""
    return [
        f"{call.intent.tool} ({Path(call.command.split(' ', 1)[0]).name}): {call.outcome.summary}"
        for call in sorted(calls, key=lambda call: call.begun_at)
        if call.outcome.summary
    ]


def size(message: pb.Usage | pb.Intent, field: str) -> str:
    """A size that may not be known."""
    return format_bytes(getattr(message, field)) if message.HasField(field) else "-"
