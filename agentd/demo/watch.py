"""Shows what happens while it happens: a live table on a terminal, otherwise one line for each event.

Both read the API's Watch stream alone; the demo has no other source.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable
from typing import Protocol

from agentd.cli.table import Cell, Column, Style, clean, cut, render
from agentd.demo.report import command_words, percent_of, size
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import format_bytes, format_duration

EVENT_ACTIONS = frozenset(("brake", "raise", "freeze", "thaw", "kill", "throttle", "relax", "queue", "refuse", "adopt"))
_STATES = {
    pb.CALL_STATE_QUEUED: Cell("… queued", Style.COLD),
    pb.CALL_STATE_RUNNING: Cell("▶ running", Style.GOOD),
    pb.CALL_STATE_THROTTLED: Cell("▷ throttled", Style.WARN),
    pb.CALL_STATE_BRAKED: Cell("■ braked", Style.WARN),
    pb.CALL_STATE_FROZEN: Cell("❄ frozen", Style.COLD),
    pb.CALL_STATE_ENDED: Cell("✓ ended", Style.DIM),
}


class State:
    """The host as the stream has told it so far."""

    def __init__(self) -> None:
        self.tenants: dict[str, str] = {}
        self.sessions: dict[str, pb.Session] = {}
        self.calls: dict[str, pb.Call] = {}
        self.host = pb.HostStatus()

    def take(self, update: pb.WatchResponse) -> None:
        match update.WhichOneof("update"):
            case "snapshot":
                self.host = update.snapshot.host
                self.tenants.update({tenant.id: tenant.name for tenant in update.snapshot.tenants})
                self.sessions.update({session.id: session for session in update.snapshot.sessions})
                self.calls.update({call.id: call for call in update.snapshot.calls})
            case "session":
                self.sessions[update.session.id] = update.session
            case "call":
                self.calls[update.call.id] = update.call

    def who(self, tenant_id: str, session_id: str) -> str:
        """``tenant/session`` by their names."""
        session = self.sessions.get(session_id)
        return f"{self.tenants.get(tenant_id, tenant_id)}/{session.name if session else session_id}"


class Writer(Protocol):
    """What is needed of a text stream."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...


class Display(Protocol):
    def update(self, state: State, update: pb.WatchResponse) -> None: ...
    def close(self) -> None: ...


async def follow(updates: AsyncIterable[pb.WatchResponse], display: Display) -> None:
    """Feeds the display until the stream ends or the task is cancelled."""
    state = State()
    async for update in updates:
        state.take(update)
        display.update(state, update)
        # a burst of updates must not keep the agents from being served
        await asyncio.sleep(0)


class Lines:
    """One line for each event: begun, what was done, ended."""

    def __init__(self, out: Writer) -> None:
        self._out = out
        self._start = time.monotonic()
        self._seen: dict[str, int] = {}
        self._notice = ""

    def update(self, state: State, update: pb.WatchResponse) -> None:
        match update.WhichOneof("update"):
            case "snapshot":
                for call in update.snapshot.calls:
                    self._call(state, call)
            case "call":
                self._call(state, update.call)
            case "decision" if update.decision.action in EVENT_ACTIONS:
                decision = update.decision
                known = state.calls.get(decision.call_id)
                tool = known.intent.tool if known is not None else "-"
                self._say(state.who(decision.tenant_id, decision.session_id), tool, decision.action, decision.reason)

    def _call(self, state: State, call: pb.Call) -> None:
        before = self._seen.get(call.id, pb.CALL_STATE_UNSPECIFIED)
        if call.state == before:
            return
        self._seen[call.id] = call.state
        who, tool = state.who(call.tenant_id, call.session_id), call.intent.tool or "-"
        if call.state == pb.CALL_STATE_ENDED:
            usage = call.outcome.usage
            words = (
                f"{call.outcome.reason} after {format_duration(call.outcome.wall_seconds)}, "
                f"CPU {format_duration(usage.cpu_usec / 1e6)}, peak {size(usage, 'memory_peak_bytes')}"
            )
            self._say(who, tool, "ended", words)
        elif before in (pb.CALL_STATE_UNSPECIFIED, pb.CALL_STATE_QUEUED) and call.state == pb.CALL_STATE_RUNNING:
            self._say(who, tool, "begin", f"{command_words(call.command)}{declared(call.intent)}")

    def _say(self, who: str, tool: str, event: str, words: str) -> None:
        seconds = time.monotonic() - self._start
        self._out.write(f"{seconds:7.2f} s  {clean(who):<16} {clean(tool):<7} {event:<7} {clean(words)}\n")
        self._out.flush()

    def close(self) -> None:
        self._out.flush()


class LiveTable:
    """Redraws a table of the live calls and the last events, in place. For a terminal that knows ANSI sequences."""

    TICKER = 6

    def __init__(self, out: Writer, *, screen: tuple[int, int], colour: bool) -> None:
        self._out = out
        self._width, self._height = screen
        self._colour = colour
        self._drawn = 0
        self._last = 0.0
        self._ticker: list[str] = []
        self._events = Lines(_Ticker(self._ticker))

    def update(self, state: State, update: pb.WatchResponse) -> None:
        self._events.update(state, update)
        del self._ticker[: -self.TICKER]
        # ten pictures a second are enough for people; a snapshot always shows
        now = time.monotonic()
        if update.WhichOneof("update") == "snapshot" or now - self._last > 0.1:
            self._last = now
            self._draw(self.picture(state))

    def picture(self, state: State) -> list[str]:
        live = [call for call in state.calls.values() if call.state != pb.CALL_STATE_ENDED]
        ended = len(state.calls) - len(live)
        host = state.host
        head = (
            f"Corral · {host.mode or '?'} host · {host.cpus} CPUs · "
            f"{format_bytes(host.memory_available_bytes)} of {format_bytes(host.memory_total_bytes)} free · "
            f"{len(live)} calls live, {ended} ended"
        )
        columns = (
            Column(title="TENANT/SESSION", least=10),
            Column(title="TOOL"),
            Column(title="STATE"),
            Column(title="AGE", right=True),
            Column(title="CPU", right=True),
            Column(title="MEMORY", right=True),
            Column(title="OF BRAKE"),
            Column(title="COMMAND", least=10, rank=1),
        )
        now = time.time()
        rows = [
            (
                state.who(call.tenant_id, call.session_id),
                call.intent.tool,
                _STATES.get(call.state, Cell("?")),
                format_duration(max(0.0, now - call.begun_at)),
                format_duration(call.usage.cpu_usec / 1e6),
                size(call.usage, "memory_now_bytes"),
                _bar(call),
                command_words(call.command),
            )
            for call in sorted(live, key=lambda call: (call.tenant_id, call.begun_at))
        ]
        space = self._height - self.TICKER - 5
        table = render(columns, rows[: max(1, space)], width=self._width, colour=self._colour)
        missing = [cut(f"! {clean(text)}", self._width) for text in host.missing[:2]] if host.mode == "observe" else []
        return [cut(head, self._width), *missing, "", *table, "", *(cut(line, self._width) for line in self._ticker)]

    def _draw(self, lines: list[str]) -> None:
        # up to where the last picture began, then line by line, erasing what was there
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._out.write(up + "".join(f"\r{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._out.flush()
        self._drawn = len(lines)

    def close(self) -> None:
        self._draw([])


class _Ticker:
    """Just enough of a text stream for Lines to write its lines into a list."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def write(self, text: str) -> int:
        self._lines.append(text.rstrip("\n"))
        return len(text)

    def flush(self) -> None:
        pass


def _bar(call: pb.Call, width: int = 10) -> Cell:
    share = percent_of(call)
    if share is None:
        return Cell("-")
    full = min(width, round(share * width / 100))
    style = Style.BAD if share >= 100 else Style.WARN if share >= 80 else Style.GOOD
    return Cell(f"{'█' * full}{'░' * (width - full)} {share:3.0f} %", style)


def declared(intent: pb.Intent) -> str:
    """What was declared about memory, in words, for the end of a line."""
    if not intent.HasField("memory_peak_bytes"):
        return ""
    typical = size(intent, "memory_typical_bytes")
    return f"  [declares {typical} to {format_bytes(intent.memory_peak_bytes)}]"
