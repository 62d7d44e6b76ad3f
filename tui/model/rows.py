"""The rows of the table: tenants, their sessions, their calls, folded, filtered and sorted."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.model.board import Board
from tui.model.filters import Filter
from tui.model.text import clean

Kind = Literal["tenant", "session", "call"]
Value = float | str | None


@dataclass(frozen=True, slots=True)
class State:
    """``glyph`` and ``word`` say it without the colour."""

    word: str
    glyph: str
    style: str


STATES: Final[dict[int, State]] = {
    pb.CALL_STATE_QUEUED: State("queued", "…", "cyan"),
    pb.CALL_STATE_RUNNING: State("running", "●", "green"),
    pb.CALL_STATE_THROTTLED: State("throttled", "◐", "yellow"),
    pb.CALL_STATE_BRAKED: State("braked", "■", "bold yellow"),
    pb.CALL_STATE_FROZEN: State("frozen", "❄", "bright_blue"),
    pb.CALL_STATE_ENDED: State("ended", "✓", "dim"),
}
UNKNOWN: Final = State("unknown", "?", "dim")


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """One line. ``id`` is what an action on it names; ``values`` caches what columns found (tui.model.columns)."""

    kind: Kind
    id: str
    label: str
    board: Board
    depth: int
    tenant: pb.Tenant | None = None
    session: pb.Session | None = None
    call: pb.Call | None = None
    below: list[Row] = field(default_factory=list)  # the calls below, shown or folded away
    folded: bool | None = None  # None: nothing to fold
    values: dict[str, Value] = field(default_factory=dict)

    @property
    def state(self) -> State | None:
        return STATES.get(self.call.state, UNKNOWN) if self.call is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be shown, and in which order. ``sort``: a column's name; empty: by name and age."""

    filter: Filter = field(default_factory=Filter)
    sort: str = ""
    descending: bool = True
    folded: Collection[str] = frozenset()
    flat: bool = False  # calls alone, in one order
    ended: bool = False  # those that ended lately, too


def build(board: Board, wanted: Wanted) -> list[Row]:
    """The tree as rows from top to bottom. A filter keeps the calls that it matches and what they are in."""
    from tui.model.columns import COLUMNS

    groups = _calls_by_session(board, ended=wanted.ended)
    column = COLUMNS.get(wanted.sort)

    def order(rows: list[Row]) -> list[Row]:
        return sort_rows(rows, column.of if column else None, descending=wanted.descending)

    tenants: list[Row] = []
    sessions: dict[str, list[Row]] = {}
    for tenant in sorted(board.tenants.values(), key=lambda t: (t.name, t.id)):
        mine = [s for s in board.sessions.values() if s.tenant_id == tenant.id]
        known = {session.id for session in mine}
        # sessions that closed, or that the picture does not have yet, while their calls are shown
        mine += [
            pb.Session(id=session_id, tenant_id=tenant.id, opened_at=calls[0].begun_at)
            for session_id, calls in groups.items()
            if session_id not in known and calls[0].tenant_id == tenant.id
        ]
        inside: list[Row] = []
        everything: list[Row] = []
        for session in sorted(mine, key=lambda s: (s.opened_at, s.id)):
            row, shown = _session_row(board, tenant, session, groups.get(session.id, ()), wanted)
            if wanted.filter.active and not shown:
                continue
            sessions[row.id] = shown
            everything += row.below
            inside.append(row)
        if wanted.filter.active and not inside:
            continue
        label = clean(tenant.name) or tenant.id
        top = Row(kind="tenant", id=tenant.id, label=label, board=board, depth=0, tenant=tenant, below=everything)
        top.folded = tenant.id in wanted.folded if inside else None
        sessions[top.id] = inside
        tenants.append(top)
    if wanted.flat:
        calls = [call for top in tenants for row in sessions[top.id] for call in sessions[row.id]]
        for call in calls:
            call.depth = 0
        return order(calls)
    rows: list[Row] = []
    for top in order(tenants):
        rows.append(top)
        # what a filter finds is shown, folded away or not: nobody looks for it to be told that it is hidden
        if top.folded and not wanted.filter.active:
            continue
        for row in order(sessions[top.id]):
            rows.append(row)
            if not row.folded or wanted.filter.active:
                rows += order(sessions[row.id])
    return rows


def call_rows(board: Board, calls: Iterable[pb.Call]) -> list[Row]:
    """Calls alone, in the order given: for a page that has its own list."""
    return [call_row(board, call, depth=0) for call in calls]


def call_row(board: Board, call: pb.Call, *, depth: int) -> Row:
    label = clean(call.intent.tool or call.intent.call_class) or call.id
    return Row(
        kind="call",
        id=call.id,
        label=label,
        board=board,
        depth=depth,
        tenant=board.tenants.get(call.tenant_id),
        session=board.sessions.get(call.session_id),
        call=call,
    )


def sort_rows(rows: list[Row], value: object, *, descending: bool) -> list[Row]:
    """By what ``value`` (a function of a row) gives, what it does not know last; equal ones stay in their order."""
    if not callable(value):
        return rows
    known = [(value(row), row) for row in rows]
    have = [pair for pair in known if pair[0] is not None]
    have.sort(key=lambda pair: pair[0], reverse=descending)
    return [row for _, row in have] + [row for found, row in known if found is None]


def _calls_by_session(board: Board, *, ended: bool) -> dict[str, list[pb.Call]]:
    groups: dict[str, list[pb.Call]] = {}
    for calls in (board.calls, board.ended) if ended else (board.calls,):
        for call in calls.values():
            groups.setdefault(call.session_id, []).append(call)
    return groups


def _session_row(
    board: Board, tenant: pb.Tenant, session: pb.Session, calls: Iterable[pb.Call], wanted: Wanted
) -> tuple[Row, list[Row]]:
    """The session's row, and those of its calls that the filter lets through."""
    below = [call_row(board, call, depth=2) for call in sorted(calls, key=lambda c: (c.begun_at, c.id))]
    row = Row(
        kind="session",
        id=session.id,
        label=clean(session.name) or session.id,
        board=board,
        depth=1,
        tenant=tenant,
        session=session,
        below=below,
    )
    row.folded = session.id in wanted.folded if below else None
    if not wanted.filter.active:
        return row, below
    return row, [call for call in below if wanted.filter.matches(_words(call, tenant, session))]


def _words(row: Row, tenant: pb.Tenant, session: pb.Session) -> tuple[str, ...]:
    call = row.call
    assert call is not None  # noqa: S101  # rows of calls alone are asked
    word = row.state.word if row.state else ""
    return (call.id, call.command, call.intent.tool, call.intent.call_class, tenant.name, session.name, word)
