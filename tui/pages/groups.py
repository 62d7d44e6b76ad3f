"""The pages of a session (its calls on a line of time) and of a tenant (its ceilings and sessions)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

from rich.text import Text
from textual import on
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.keys import bindings
from tui.model import details
from tui.model.columns import DEFAULT
from tui.model.gantt import gantt
from tui.model.rows import Row, Wanted, build, call_rows
from tui.model.text import clean, clock, size, span
from tui.model.tier import kv_facts
from tui.pages.scroll import ScrollPage
from tui.source.protocol import SourceError
from tui.widgets.treetable import TreeTable

WINDOW: Final = 3600.0  # seconds of a session that the line of time shows at most: the newest


class GroupPage(ScrollPage):
    """Text above, a table below; enter opens the row."""

    DEFAULT_CSS = """
    #page { height: auto; max-height: 60%; padding: 0 1; scrollbar-size-vertical: 1; }
    #inside { height: 1fr; border-top: solid $panel; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("moving", "acting")]

    def __init__(self, object_id: str) -> None:
        super().__init__()
        self.object_id = object_id
        self._budgets: Sequence[pb.Budget] = ()

    def body(self) -> Iterable[Widget]:
        with VerticalScroll(id="page", can_focus=False):
            yield Static(id="text", markup=False)
        yield TreeTable(names=DEFAULT, id="inside")

    def on_mount(self) -> None:
        super().on_mount()
        self.table.focus()

    @property
    def table(self) -> TreeTable:
        return self.query_one("#inside", TreeTable)

    def rows(self) -> list[Row]:
        raise NotImplementedError

    def draw_body(self) -> None:
        super().draw_body()
        self.draw_rows()

    def draw_loaded(self) -> None:
        super().draw_loaded()
        self.draw_rows()

    def draw_rows(self) -> None:
        self.table.set_columns(self.corral.layout.columns)
        self.table.show(self.rows())

    def targets(self) -> list[Row]:
        marked = [row for row in self.table.rows if row.id in self.table.marked]
        current = self.table.current
        return marked or ([current] if current is not None else [])

    def exported(self) -> tuple[list[Row], list[str]]:
        return self.table.rows, self.table.columns

    def action_open(self) -> None:
        row = self.table.current
        if row is not None:
            self.corral.open_row(row)

    @on(TreeTable.Opened)
    def opened(self, event: TreeTable.Opened) -> None:
        self.corral.open_row(event.row)

    def action_mark(self) -> None:
        self.table.toggle_mark()
        self.table.action_move(1)


class SessionPage(GroupPage):
    def __init__(self, object_id: str, last: pb.Session | None = None) -> None:
        super().__init__(object_id)
        self._last = last
        self._kept: Sequence[pb.Call] = ()  # of the ledger

    def _session(self) -> pb.Session | None:
        self._last = self.board.sessions.get(self.object_id, self._last)
        return self._last

    def crumbs(self) -> list[str]:
        session = self._session()
        if session is None:
            return ["host", self.object_id]
        tenant = self.board.tenants.get(session.tenant_id)
        return ["host", clean(tenant.name) if tenant else session.tenant_id, clean(session.name) or session.id]

    async def load(self, until: float | None) -> None:
        self._kept = await self.corral.source.session_calls(self.object_id, until=until)
        try:
            self._budgets = await self.corral.source.budgets(self.object_id) if until is None else ()
        except SourceError:
            self._budgets = ()  # it closed, or the source has none: said below as "no budget"

    def calls(self) -> list[pb.Call]:
        """The newest first; what the board has is newer than what the ledger has."""
        board = self.board
        known = {call.id: call for call in self._kept}
        for calls in (board.ended, board.calls):
            known |= {call.id: call for call in calls.values() if call.session_id == self.object_id}
        return sorted(known.values(), key=lambda call: (-call.begun_at, call.id))

    def rows(self) -> list[Row]:
        return call_rows(self.board, self.calls())

    def lines(self, width: int) -> Sequence[Text]:
        session = self._session()
        now = self.board.at or self.corral.clock()
        if session is None:
            return [Text(f"nothing is known of session {self.object_id} at this moment", "yellow")]
        calls = self.calls()
        opened = session.opened_at or (calls[-1].begun_at if calls else now)
        live = self.object_id in self.board.sessions
        labels = ", ".join(f"{clean(key)}={clean(value)}" for key, value in sorted(session.labels.items()))
        word = "open" if live else "closed"
        lines = [
            details.fact("session", f"{clean(session.name) or '-'}   {session.id}", "bold"),
            details.fact(
                "state", f"{word}, opened {clock(opened)}, {span(now - opened)}, uid {session.uid}, {len(calls)} calls"
            ),
        ]
        if labels:
            lines.append(details.fact("labels", labels))
        if session.container or session.rules:
            what = f"container {clean(session.container)[:12]}" if session.container else "a process"
            lines.append(
                details.fact("attached", f"{what}, calls recognised by the rules {clean(session.rules) or '-'}")
            )
        lines += [*details.turns_fact(session), *kv_facts(self.board, session.id, now)]
        if self.problem:
            lines.append(Text(f"the ledger's part is missing: {self.problem}", "yellow"))
        since = max(opened, now - WINDOW)
        if calls and not live:
            now = max(call.outcome.ended_at if call.HasField("outcome") else now for call in calls)
            since = min(since, calls[-1].begun_at)
        most = max(4, self.size.height * 6 // 10 - 12)
        shown = [call for call in calls if not call.HasField("outcome") or call.outcome.ended_at >= since]
        lines += [
            Text(),
            details.title("time line"),
            *gantt(shown, list(self.board.decisions), since=since, until=max(now, since + 1), width=width, most=most),
        ]
        if not self.corral.player.in_past:
            stocks = {(budget.scope, budget.resource) for budget in self._budgets}
            more = [budget for budget in session.budgets if (budget.scope, budget.resource) not in stocks]
            lines += [Text(), details.title("budgets"), *details.budgets([*self._budgets, *more], width)]
        return lines


class TenantPage(GroupPage):
    def __init__(self, object_id: str, last: pb.Tenant | None = None) -> None:
        super().__init__(object_id)
        self._last = last

    def _tenant(self) -> pb.Tenant | None:
        self._last = self.board.tenants.get(self.object_id, self._last)
        return self._last

    def crumbs(self) -> list[str]:
        tenant = self._tenant()
        return ["host", clean(tenant.name) if tenant else self.object_id]

    async def load(self, until: float | None) -> None:
        """A tenant's budgets come with those of any of its sessions."""
        self._budgets = ()
        session = next((s.id for s in self.board.sessions.values() if s.tenant_id == self.object_id), None)
        if session is not None and until is None:
            found = await self.corral.source.budgets(session)
            self._budgets = [budget for budget in found if budget.scope == "tenant"]

    def rows(self) -> list[Row]:
        rows = build(self.board, Wanted())
        mine = [row for row in rows if row.kind != "tenant" and row.tenant and row.tenant.id == self.object_id]
        for row in mine:
            row.depth -= 1
        return mine

    def lines(self, width: int) -> Sequence[Text]:
        tenant = self._tenant()
        if tenant is None:
            return [Text(f"nothing is known of tenant {self.object_id} at this moment", "yellow")]
        limits = tenant.limits
        sessions = [s for s in self.board.sessions.values() if s.tenant_id == tenant.id]
        calls = [c for c in self.board.calls.values() if c.tenant_id == tenant.id]
        memory = size(tenant.memory_now_bytes) if tenant.HasField("memory_now_bytes") else "-"
        most = size(limits.memory_max_bytes) if limits.memory_max_bytes > 0 else "no limit"
        cpu = f"{limits.cpu_cores:g} cores" if limits.cpu_cores > 0 else "no limit"
        pids = str(limits.pids) if limits.pids > 0 else "no limit"
        lines = [
            details.fact("tenant", f"{clean(tenant.name)}   {tenant.id}", "bold"),
            details.fact("priority", f"{tenant.priority} (0 is acted on first, 100 last)"),
            details.fact("ceilings", f"memory {most}, CPU {cpu}, processes {pids}"),
            details.fact("uses", f"memory {memory}, CPU time {span(tenant.cpu_usec / 1e6)}"),
            details.fact("has", f"{len(sessions)} sessions open, {len(calls)} calls live"),
            Text(),
            details.title("budgets"),
        ]
        if self.corral.player.in_past:
            lines.append(Text("budgets are those of now: press n", "dim"))
        else:  # the ceilings' come with those of a session; what is used up is in every picture
            stocks = {budget.resource for budget in self._budgets}
            more = [budget for budget in tenant.budgets if budget.resource not in stocks]
            lines += details.budgets([*self._budgets, *more], width)
        told = self.board.decisions_about(self.object_id)[-6:]
        lines += [Text(), details.title("last decisions"), *details.decisions(told, self.board)]
        return lines
