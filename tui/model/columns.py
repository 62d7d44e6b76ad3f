"""The columns of the table: what each means, how it is sorted, how it looks. One table for all who need it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.model.rows import Row, Value
from tui.model.text import bar, clean, rate, size, span

Part = tuple[str, str]  # text and style
Cell = tuple[Part, ...]

BAR: Final = 10  # cells
NEAR: Final = 0.8  # of a ceiling: from here on the bar warns
LEAST_COMMAND: Final = 12
COMMAND: Final = "command"
BUDGET_WORDS: Final = {
    "cpu_seconds": "CPU",
    "memory_byte_seconds": "memory",
    "calls_begun": "calls",
    "network_bytes": "network",
    "gpu_seconds": "GPU",
    "joules": "energy",
}
BAND_STYLES: Final[dict[int, str]] = {
    pb.BUDGET_BAND_PLENTY: "green",
    pb.BUDGET_BAND_MEDIUM: "",
    pb.BUDGET_BAND_LOW: "yellow",
    pb.BUDGET_BAND_CRITICAL: "bold red",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """``call`` and ``group`` give what is sorted by; ``combine``: a group without ``group`` has the sum of its calls.
    ``rank``: the larger, the earlier it gives way on a narrow screen (0: never)."""

    name: str
    title: str
    words: str  # for the chooser and the help
    width: int
    rank: int
    call: Callable[[Row], Value]
    group: Callable[[Row], Value] | None = None
    combine: bool = False
    show: Callable[[Value], str] = lambda value: "" if value is None else str(value)
    paint: Callable[[Row, Value], Cell] | None = None
    right: bool = True
    chosen: bool = True  # shown unless the layout says otherwise

    def of(self, row: Row) -> Value:
        if self.name in row.values:
            return row.values[self.name]
        value: Value = None
        if row.kind == "call":
            value = self.call(row)
        elif self.group is not None:
            value = self.group(row)
        elif self.combine:
            known = [found for below in row.below if isinstance(found := self.of(below), (int, float))]
            value = sum(known) if known else None
        row.values[self.name] = value
        return value

    def cell(self, row: Row) -> Cell:
        value = self.of(row)
        return self.paint(row, value) if self.paint is not None else ((self.show(value), ""),)


def _field(name: str) -> Callable[[Row], Value]:
    """A counter of Usage that may be unknown."""

    def get(row: Row) -> Value:
        usage = row.call.usage if row.call is not None else None
        return float(getattr(usage, name)) if usage is not None and usage.HasField(name) else None

    return get


def _rate(*counters: str) -> Callable[[Row], Value]:
    def get(row: Row) -> Value:
        if row.call is None:
            return None
        found = [value for name in counters if (value := row.board.rate(row.call, name)) is not None]
        return sum(found) if found else None

    return get


def _cores(row: Row) -> Value:
    used = row.board.rate(row.call, "cpu_usec") if row.call is not None else None
    return used / 1e6 if used is not None else None


def age(row: Row) -> Value:
    """Seconds since the begin of a call, the opening of a session; of an ended call how long it lasted."""
    now = row.board.at or 0.0
    if row.call is not None:
        if row.call.HasField("outcome"):
            return row.call.outcome.wall_seconds
        return max(0.0, now - row.call.begun_at)
    if row.kind == "session" and row.session is not None:
        return max(0.0, now - row.session.opened_at)
    return None


def ceiling(row: Row) -> tuple[str, float] | None:
    """What memory is held against: the brake of a call, else its hard limit; the limit of a tenant. In bytes."""
    if row.call is not None:
        if row.call.grant.brake_bytes > 0:
            return "brake", row.call.grant.brake_bytes
        limit = row.call.grant.limits.memory_max_bytes
        return ("limit", limit) if limit > 0 else None
    if row.kind == "tenant" and row.tenant is not None and row.tenant.limits.memory_max_bytes > 0:
        return "limit", row.tenant.limits.memory_max_bytes
    return None


def _tenant_memory(row: Row) -> Value:
    if row.kind == "tenant" and row.tenant is not None and row.tenant.HasField("memory_now_bytes"):
        return float(row.tenant.memory_now_bytes)
    known = [found for below in row.below if isinstance(found := COLUMNS["memory"].of(below), (int, float))]
    return sum(known) if known else None


def _part_of_ceiling(row: Row) -> Value:
    against, used = ceiling(row), COLUMNS["memory"].of(row)
    return used / against[1] if against is not None and isinstance(used, (int, float)) else None


def _of_intent(row: Row) -> Value:
    if row.call is None or not row.call.intent.memory_peak_bytes:
        return None
    used = _field("memory_peak_bytes")(row)
    return used / row.call.intent.memory_peak_bytes if isinstance(used, float) else None


def _held(row: Row) -> Value:
    if row.call is None:
        return None
    held = row.call.held_seconds
    if row.call.HasField("held_since") and row.board.at is not None:
        held += max(0.0, row.board.at - row.call.held_since)
    return held or None


def _left(row: Row) -> Value:
    """Bytes that a tenant may still take before its ceiling."""
    against, used = ceiling(row), COLUMNS["memory"].of(row)
    if row.kind != "tenant" or against is None or not isinstance(used, (int, float)):
        return None
    return max(0.0, against[1] - used)


def _forecast(row: Row) -> Value:
    if row.call is None or not row.call.forecast.HasField("memory_high_bytes"):
        return None
    return float(row.call.forecast.memory_high_bytes)


def scarcest(budgets: Iterable[pb.Budget]) -> pb.Budget | None:
    """Of the budgets that are used up (not the ceilings), the one of which the least part is left."""
    stocks = [budget for budget in budgets if budget.band and budget.limit > 0]
    return min(stocks, key=lambda budget: budget.remaining / budget.limit, default=None)


def _budget_of(row: Row) -> pb.Budget | None:
    owner = row.session if row.kind == "session" else row.tenant if row.kind == "tenant" else None
    return scarcest(owner.budgets) if owner is not None else None


def _budget(row: Row) -> Value:
    found = _budget_of(row)
    return found.remaining / found.limit if found is not None else None


def _paint_budget(row: Row, value: Value) -> Cell:
    found = _budget_of(row)
    if found is None:
        return (("", ""),)
    part = max(0.0, found.remaining) / found.limit
    text = f"{part * 100:.0f}% {BUDGET_WORDS.get(found.resource, clean(found.resource))}"
    return ((text + ("!" if found.remaining <= 0 else ""), BAND_STYLES.get(found.band, "")),)


def eta(row: Row) -> float | None:
    """Seconds until a queued call is expected to begin, as the picture has it, else as the last decision about it."""
    if row.call is None:
        return None
    if row.call.HasField("eta_seconds"):
        return row.call.eta_seconds
    for decision in reversed(row.board.decisions):
        if decision.call_id == row.call.id and "eta_seconds" in decision.evidence:
            left = decision.at + decision.evidence["eta_seconds"] - (row.board.at or decision.at)
            return max(0.0, left)
    return None


def _paint_who(row: Row, value: Value) -> Cell:
    fold = " " if row.folded is None else "▸" if row.folded else "▾"
    style = "bold" if row.kind == "tenant" else ""
    return ((f"{'  ' * row.depth}{fold if row.kind != 'call' else ''} ", ""), (row.label, style))


def _paint_state(row: Row, value: Value) -> Cell:
    state = row.state
    if state is None:
        count = len(row.below)
        return ((f"{count} call" + ("" if count == 1 else "s"), "dim"),)
    if row.call is not None and row.call.HasField("outcome"):
        reason = clean(row.call.outcome.reason)
        good = reason in ("", "exited")
        return ((f"{'✓' if good else '✗'} {reason or 'ended'}", "dim" if good else "red"),)
    wait = eta(row) if state.word == "queued" else None
    return ((f"{state.glyph} {state.word}" + (f" {span(wait)}" if wait is not None else ""), state.style),)


def _paint_bar(row: Row, value: Value) -> Cell:
    """Past its ceiling the bar ends in "!": red alone would be lost on a screen without colours."""
    if not isinstance(value, (int, float)):
        return (("", ""),)
    style = "red" if value >= 1 else "yellow" if value >= NEAR else "green"
    text = bar(value, BAR)
    return ((text[:-1] + "!" if value >= 1 else text, f"{style} on grey23"),)


def _paint_ceiling(row: Row, value: Value) -> Cell:
    found = ceiling(row)
    return ((f"{found[0]} {size(found[1])}" if found else "", "dim"),)


def _size(value: Value) -> str:
    return size(value) if isinstance(value, (int, float)) else "-"


def _optional_size(value: Value) -> str:
    return size(value) if isinstance(value, (int, float)) else ""


def _span(value: Value) -> str:
    return span(value) if isinstance(value, (int, float)) else ""


def _per_second(value: Value) -> str:
    return rate(value) if isinstance(value, (int, float)) else ""


def _bytes_per_second(value: Value) -> str:
    return f"{size(value)}/s" if isinstance(value, (int, float)) and value >= 0.5 else "" if value is None else "0"


def _whole(value: Value) -> str:
    return f"{value:.0f}" if isinstance(value, (int, float)) else ""


def _sum_cpu(row: Row) -> Value:
    return row.call.usage.cpu_usec / 1e6 if row.call is not None else None


_ALL: Final = (
    Column(
        name="who", title="WHO", words="tenant, session, tool", width=22, rank=0, right=False,
        call=lambda row: row.label, group=lambda row: row.label, paint=_paint_who,
    ),
    Column(
        name="state", title="STATE", words="queued (with its ETA), running, throttled, braked, frozen, ended",
        width=14, rank=0, right=False, call=lambda row: float(row.call.state) if row.call else None,
        group=lambda row: float(len(row.below)), paint=_paint_state,
    ),
    Column(name="wall", title="WALL", words="time since the begin", width=6, rank=5, call=age, group=age, show=_span),
    Column(
        name="cpu", title="CPU", words="cores in use", width=5, rank=0, call=_cores, combine=True,
        show=lambda value: f"{value:.2f}" if isinstance(value, (int, float)) else "-",
    ),
    Column(
        name="memory", title="MEMORY", words="memory now", width=8, rank=0,
        call=_field("memory_now_bytes"), group=_tenant_memory, show=_size,
    ),
    Column(
        name="bar", title="OF LIMIT", words="memory as a part of its brake or limit", width=BAR, rank=2, right=False,
        call=_part_of_ceiling, group=_part_of_ceiling, paint=_paint_bar,
    ),
    Column(
        name="ceiling", title="BRAKE OR LIMIT", words="the brake of a call, else its limit; the limit of a tenant",
        width=14, rank=8, right=False, call=lambda row: (ceiling(row) or ("", None))[1],
        group=lambda row: (ceiling(row) or ("", None))[1], paint=_paint_ceiling,
    ),
    Column(
        name="peak", title="PEAK", words="most memory so far", width=8, rank=9,
        call=_field("memory_peak_bytes"), show=_optional_size,
    ),
    Column(
        name="intent", title="DECLARED", words="memory peak that the intent declares", width=8, rank=14,
        call=lambda row: float(row.call.intent.memory_peak_bytes) or None if row.call else None, show=_optional_size,
    ),
    Column(
        name="use", title="USED", words="peak as a part of what was declared", width=5, rank=15, call=_of_intent,
        show=lambda value: f"{value * 100:.0f}%" if isinstance(value, (int, float)) else "",
    ),
    Column(
        name="forecast", title="FORECAST", words="memory peak of all but the worst calls like it (0.98)", width=8,
        rank=23, chosen=False, call=_forecast, show=_optional_size,
    ),
    Column(
        name="budget", title="BUDGET", words="least that is left of a budget that is used up", width=12, rank=9,
        right=False, call=lambda row: None, group=_budget, paint=_paint_budget,
    ),
    Column(
        name="left", title="LEFT", words="what a tenant may still take of its memory", width=8, rank=16,
        call=_left, group=_left, show=_optional_size,
    ),
    Column(
        name="faults", title="FAULTS/s", words="page faults a second", width=8, rank=10,
        call=_rate("faults"), combine=True, show=_per_second,
    ),
    Column(
        name="read", title="READ", words="bytes read a second, page cache included", width=10, rank=11,
        call=_rate("read_bytes"), combine=True, show=_bytes_per_second,
    ),
    Column(
        name="written", title="WRITTEN", words="bytes written a second", width=10, rank=12,
        call=_rate("written_bytes"), combine=True, show=_bytes_per_second,
    ),
    Column(
        name="network", title="NETWORK", words="bytes on the network a second, both ways", width=10, rank=13,
        call=_rate("net_rx_bytes", "net_tx_bytes"), combine=True, show=_bytes_per_second,
    ),
    Column(
        name="pids", title="PIDS", words="processes and threads", width=4, rank=17, chosen=False,
        call=_field("pids_now"), combine=True, show=_whole,
    ),
    Column(
        name="priority", title="PRIO", words="0: acted on first, 100: acted on last", width=4, rank=7,
        call=lambda row: float(row.call.grant.priority) if row.call else None,
        group=lambda row: float(row.tenant.priority) if row.kind == "tenant" and row.tenant else None, show=_whole,
    ),
    Column(
        name="class", title="CLASS", words="class of the call", width=7, rank=6, right=False,
        call=lambda row: clean(row.call.intent.call_class) or None if row.call else None,
    ),
    Column(
        name="brakes", title="BRAKES", words="how often it was braked", width=6, rank=18, chosen=False,
        call=lambda row: float(row.call.brakes) if row.call else None, combine=True, show=_whole,
    ),
    Column(
        name="held", title="HELD", words="time that it was held (braked or frozen)", width=6, rank=19, chosen=False,
        call=_held, show=_span,
    ),
    Column(
        name="time", title="CPU TIME", words="CPU time so far", width=8, rank=20, chosen=False,
        call=_sum_cpu, combine=True, show=_span,
    ),
    Column(
        name="stall", title="STALLED", words="share of time that it waited for memory (PSI some)", width=7, rank=21,
        chosen=False, call=_rate("memory_stall_usec"),
        show=lambda value: f"{value / 1e4:.0f}%" if isinstance(value, (int, float)) else "",
    ),
    Column(
        name="id", title="ID", words="its id", width=28, rank=22, right=False, chosen=False,
        call=lambda row: row.id, group=lambda row: row.id,
    ),
    Column(
        name=COMMAND, title="COMMAND", words="the command (takes what width is left)", width=LEAST_COMMAND, rank=1,
        right=False, call=lambda row: clean(row.call.command) if row.call else None,
    ),
)  # fmt: skip
COLUMNS: Final[dict[str, Column]] = {column.name: column for column in _ALL}
DEFAULT: Final = tuple(column.name for column in _ALL if column.chosen)


@dataclass(frozen=True, slots=True)
class Placed:
    column: Column
    width: int


def fit(names: Sequence[str], width: int) -> list[Placed]:
    """The chosen columns that have room in ``width`` cells, one cell apart, in the table's order. Those of the highest
    rank give way first; the command, or else the first column, takes what is left."""
    chosen = [column for column in _ALL if column.name in names or column.rank == 0]

    def needed(columns: Sequence[Column]) -> int:
        return sum(column.width + 1 for column in columns) - 1

    while needed(chosen) > width and any(column.rank for column in chosen):
        chosen.remove(max(chosen, key=lambda column: column.rank))
    spare = max(0, width - needed(chosen))
    # names and reasons are what people read first: they get a part of the spare room before the command takes the rest
    growing = {COMMAND: 0, "state": min(3, spare), "who": min(14, max(0, spare - 3) // 4)}
    growing[COMMAND if any(column.name == COMMAND for column in chosen) else "who"] += spare - sum(growing.values())
    return [Placed(column, column.width + growing.get(column.name, 0)) for column in chosen]
