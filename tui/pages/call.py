"""One call: its history against its limits, what it declared, got and used, what was decided about it and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from rich.text import Text
from textual.binding import BindingType

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.keys import bindings
from tui.model import details
from tui.model.columns import DEFAULT
from tui.model.lines import name_of
from tui.model.rows import Row, call_row
from tui.model.text import clean
from tui.pages.scroll import ScrollPage
from tui.source.protocol import CallPast, SourceError

MAX_LIVE: Final = 900  # pictures that are added to what the ledger gave: a quarter of an hour


class CallPage(ScrollPage):
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("acting")]

    def __init__(self, call_id: str, last: pb.Call | None = None) -> None:
        super().__init__()
        self.call_id = call_id
        self._last = last  # as it was seen last: it may end, and go from the board
        self._past = CallPast()
        self._live: list[pb.Sample] = []
        self._processes: Sequence[pb.Process] | None = None

    def crumbs(self) -> list[str]:
        call = self._call()
        if call is None:
            return ["host", self.call_id]
        tenant, session = self.board.tenants.get(call.tenant_id), self.board.sessions.get(call.session_id)
        names = self._past.names
        return [
            "host",
            clean(tenant.name if tenant else names.get(call.tenant_id, "")) or call.tenant_id,
            clean(session.name if session else names.get(call.session_id, "")) or call.session_id,
            name_of(self.board, call.id).rpartition("/")[2] if call.id in self.board.calls else self._tool(call),
        ]

    @staticmethod
    def _tool(call: pb.Call) -> str:
        return clean(call.intent.tool or call.intent.call_class) or call.id

    def _call(self) -> pb.Call | None:
        """On the board, else as the ledger has it, else as it was last seen."""
        found = self.board.call(self.call_id)
        if found is not None:
            self._last = found
            return found
        past = self._past.call
        if past is not None and (past.HasField("outcome") or self._last is None):
            return past
        return self._last

    def targets(self) -> list[Row]:
        call = self._call()
        return [call_row(self.board, call, depth=0)] if call is not None else []

    def exported(self) -> tuple[list[Row], list[str]]:
        return self.targets(), list(DEFAULT)

    async def load(self, until: float | None) -> None:
        self._past = await self.corral.source.call(self.call_id, until=until)
        self._processes = None
        if until is None and self.call_id in self.board.calls:
            try:
                self._processes = await self.corral.source.processes(self.call_id)
            except SourceError:
                self._processes = None  # it ended meanwhile, or the source has no processes: the page does without

    def draw_body(self) -> None:
        self._sample()
        super().draw_body()

    def _sample(self) -> None:
        """Each picture is a point of the plots."""
        board, call = self.board, self.board.calls.get(self.call_id)
        if self.corral.player.in_past or call is None or board.at is None:
            return
        if not self._live or board.at > self._live[-1].at:
            self._live.append(pb.Sample(at=board.at, call_id=call.id, state=call.state, usage=call.usage))
            del self._live[:-MAX_LIVE]

    def _samples(self) -> list[pb.Sample]:
        """The ledger's and those of the pictures since the page is open, each moment once."""
        kept = list(self._past.samples)
        if self.corral.player.in_past:
            return kept
        begin = self._live[0].at if self._live else 0.0
        return [sample for sample in kept if not self._live or sample.at < begin] + self._live

    def _decisions(self) -> list[pb.Decision]:
        known = {(d.at, d.action, d.reason): d for d in self._past.decisions}
        known |= {(d.at, d.action, d.reason): d for d in self.board.decisions_about(self.call_id)}
        return [known[key] for key in sorted(known)]

    def lines(self, width: int) -> Sequence[Text]:
        call = self._call()
        if call is None:
            why = f": {self.problem}" if self.problem else ""
            return [Text(f"nothing is known of call {self.call_id} at this moment{why}", "yellow")]
        now = self.board.at or self.corral.clock()
        lines = [*details.call_facts(call, self.board, self._past.names, now), Text()]
        outcome = details.call_outcome(call)
        if outcome:
            lines += [details.title("outcome"), *outcome, Text()]
        height = 6 if self.size.height >= 40 else 4
        lines += [*details.call_plots(call, self._samples(), now, width, height), Text()]
        if self.problem:
            lines += [Text(f"the ledger's part is missing: {self.problem}", "yellow"), Text()]
        lines += [details.title("declared, granted, used"), *details.call_contract(call), Text()]
        lines += [details.title("decisions"), *details.decisions(self._decisions(), self.board), Text()]
        if self._processes is not None:
            lines += [details.title("processes"), *details.process_tree(self._processes)]
        return lines
