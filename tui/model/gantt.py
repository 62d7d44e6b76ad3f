"""A session's calls on a line of time, and the model's turns between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.model.rows import STATES, UNKNOWN
from tui.model.text import clean, clock, span

LABEL: Final = 18
WALL: Final = 8
_HOLDS: Final = ("brake", "freeze")
_GOES_ON: Final = ("raise", "thaw", "kill")


def end_of(call: pb.Call, now: float) -> float:
    return call.outcome.ended_at if call.HasField("outcome") else now


def held_spans(call: pb.Call, decisions: Sequence[pb.Decision], now: float) -> list[tuple[float, float]]:
    """When it was held, as far as its decisions tell."""
    spans = []
    since: float | None = None
    for decision in sorted(decisions, key=lambda d: d.at):
        if decision.call_id != call.id:
            continue
        if decision.action in _HOLDS and since is None:
            since = decision.at
        elif decision.action in _GOES_ON and since is not None:
            spans.append((since, decision.at))
            since = None
    if since is not None:
        spans.append((since, end_of(call, now)))
    return spans


def turns(calls: Sequence[pb.Call], since: float, until: float) -> list[tuple[float, float]]:
    """The gaps in which no call ran: the model's turns (and whatever else the agent did)."""
    gaps = []
    at = since
    for begun, ended in sorted((call.begun_at, end_of(call, until)) for call in calls):
        if begun > at:
            gaps.append((at, min(begun, until)))
        at = max(at, ended)
    if at < until:
        gaps.append((at, until))
    return gaps


def gantt(
    calls: Sequence[pb.Call],
    decisions: Sequence[pb.Decision],
    *,
    since: float,
    until: float,
    width: int,
    most: int,
) -> list[Text]:
    """One line for the model's turns, then one for each of the newest ``most`` calls, the oldest first: running "█",
    queued or held "▒"."""
    room = max(10, width - LABEL - WALL - 2)
    lines = [_axis(since, until, room)]
    gaps = turns(calls, since, until)
    share = sum(end - begin for begin, end in gaps) / (until - since) if until > since else 0.0
    lines.append(_line("model's turns", [(begin, end, "░") for begin, end in gaps], (since, until), room, "cyan"))
    lines[-1].append(f" {share * 100:.0f}%".rjust(WALL), "dim")
    shown = sorted(calls, key=lambda call: (call.begun_at, call.id))[-most:]
    for call in shown:
        end = end_of(call, until)
        pieces = [(call.begun_at, end, "▒" if call.state == pb.CALL_STATE_QUEUED else "█")]
        own = [*decisions, *call.outcome.decisions]
        pieces += [(begin, stop, "▒") for begin, stop in held_spans(call, own, until)]
        style = STATES.get(call.state, UNKNOWN).style
        if call.HasField("outcome") and call.outcome.reason not in ("", "exited"):
            style = "red"
        elif call.HasField("outcome"):
            style = "green"
        label = clean(call.intent.tool or call.command) or call.id
        lines.append(_line(label, pieces, (since, until), room, style))
        lines[-1].append(f" {span(end - call.begun_at)}".rjust(WALL), "dim")
    if len(calls) > most:
        lines.append(Text(f"{'':{LABEL}} {len(calls) - most} earlier calls are not shown", "dim", no_wrap=True))
    return lines


def _axis(since: float, until: float, room: int) -> Text:
    left, right = clock(since), clock(until)
    return Text(f"{'':{LABEL}} {left}{' ' * max(1, room - len(left) - len(right))}{right}", "dim", no_wrap=True)


def _line(
    label: str, pieces: Sequence[tuple[float, float, str]], window: tuple[float, float], room: int, style: str
) -> Text:
    since, until = window
    cells = [" "] * room
    scale = room / (until - since) if until > since else 0.0
    for begin, end, glyph in pieces:
        if end < since or begin > until:
            continue
        first = max(0, min(room - 1, int((begin - since) * scale)))
        last = max(first, min(room - 1, int((end - since) * scale - 1e-9)))
        cells[first : last + 1] = [glyph] * (last - first + 1)
    text = Text(no_wrap=True)
    cut = label if len(label) <= LABEL else f"{label[: LABEL - 1]}…"
    text.append(f"{cut:{LABEL}} ")
    text.append("".join(cells), style)
    return text
