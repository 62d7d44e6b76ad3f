"""What the dashboard knows, and the rows that it shows: updates in, rows out. Pure, without a screen."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.source import Away, Update
from tui.text import clean

MAX_DECISIONS: Final = 200

Kind = Literal["tenant", "session", "call"]


@dataclass(frozen=True, slots=True)
class State:
    word: str
    glyph: str
    style: str


STATES: Final[dict[int, State]] = {
    pb.CALL_STATE_QUEUED: State("queued", "…", "cyan"),
    pb.CALL_STATE_RUNNING: State("running", "●", "green"),
    pb.CALL_STATE_BRAKED: State("braked", "■", "bold yellow"),
    pb.CALL_STATE_FROZEN: State("frozen", "❄", "bright_blue"),
    pb.CALL_STATE_ENDED: State("ended", "✓", "dim"),
}
UNKNOWN: Final = State("unknown", "?", "dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. Sizes in bytes, times in seconds, CPU in cores; None: not known, or not of this kind."""

    kind: Kind
    id: str  # also what an action on this row names
    label: str
    state: State | None = None
    age: float | None = None
    cores: float | None = None
    memory: int | None = None
    ceiling: int | None = None  # what the bar is against: the brake, else the hard limit
    ceiling_word: str = ""  # "brake" or "limit"
    command: str = ""
    calls: int = 0  # live ones below a tenant or session


@dataclass(slots=True)
class Board:
    snapshot: pb.SnapshotResponse | None = None
    away: Away | None = None
    decisions: deque[pb.Decision] = field(default_factory=lambda: deque(maxlen=MAX_DECISIONS))
    _cores: dict[str, float] = field(default_factory=dict)

    def apply(self, update: Update) -> None:
        if isinstance(update, Away):
            self.away = update
            return
        self.away = None
        match update.WhichOneof("update"):
            case "snapshot":
                self._rates(update.snapshot)
                self.snapshot = update.snapshot
            case "call":
                self._call(update.call)
            case "session":
                self._session(update.session)
            case "decision":
                self.decisions.append(update.decision)
            case _:
                pass  # an update of a newer daemon: the next picture has what it means

    def _rates(self, new: pb.SnapshotResponse) -> None:
        """Cores of each call between the last picture and this one."""
        old = self.snapshot
        if old is None or new.at <= old.at:
            return
        before = {call.id: call.usage.cpu_usec for call in old.calls}
        self._cores = {
            call.id: max(0, call.usage.cpu_usec - before[call.id]) / 1e6 / (new.at - old.at)
            for call in new.calls
            if call.id in before
        }

    def _call(self, call: pb.Call) -> None:
        if self.snapshot is None:
            return
        kept = [known for known in self.snapshot.calls if known.id != call.id]
        del self.snapshot.calls[:]
        self.snapshot.calls.extend(kept)
        if call.state != pb.CALL_STATE_ENDED:
            self.snapshot.calls.append(call)

    def _session(self, session: pb.Session) -> None:
        if self.snapshot is None:
            return
        kept = [known for known in self.snapshot.sessions if known.id != session.id]
        del self.snapshot.sessions[:]
        self.snapshot.sessions.extend(kept)
        if not session.HasField("closed_at"):
            self.snapshot.sessions.append(session)

    def rows(self, wanted: str = "") -> list[Row]:
        """Tenants by name, their open sessions by age, their live calls by age. ``wanted`` keeps the calls that have
        this text in any of their names, command or state, and what they are in."""
        snapshot = self.snapshot
        if snapshot is None:
            return []
        needle = wanted.strip().lower()
        rows: list[Row] = []
        for tenant in sorted(snapshot.tenants, key=lambda t: (t.name, t.id)):
            below: list[Row] = []
            for session in sorted(snapshot.sessions, key=lambda s: (s.opened_at, s.id)):
                if session.tenant_id != tenant.id or session.HasField("closed_at"):
                    continue
                calls = sorted(
                    (c for c in snapshot.calls if c.session_id == session.id and c.state != pb.CALL_STATE_ENDED),
                    key=lambda c: (c.begun_at, c.id),
                )
                shown = [row for c in calls if _matches(row := self._call_row(c), c, tenant, session, needle)]
                if needle and not shown:
                    continue
                below.append(self._session_row(session, calls))
                below += shown
            if needle and not below:
                continue
            rows.append(self._tenant_row(tenant))
            rows += below
        return rows

    def _tenant_row(self, tenant: pb.Tenant) -> Row:
        assert self.snapshot is not None  # noqa: S101  # rows() has looked
        live = [c for c in self.snapshot.calls if c.tenant_id == tenant.id and c.state != pb.CALL_STATE_ENDED]
        ceiling = tenant.limits.memory_max_bytes
        return Row(
            kind="tenant",
            id=tenant.id,
            label=clean(tenant.name),
            cores=self._sum(live),
            memory=tenant.memory_now_bytes if tenant.HasField("memory_now_bytes") else _memory(live),
            ceiling=ceiling if ceiling > 0 else None,
            ceiling_word="limit",
            calls=len(live),
        )

    def _session_row(self, session: pb.Session, live: list[pb.Call]) -> Row:
        assert self.snapshot is not None  # noqa: S101  # rows() has looked
        return Row(
            kind="session",
            id=session.id,
            label=clean(session.name) or session.id,
            age=max(0.0, self.snapshot.at - session.opened_at),
            cores=self._sum(live),
            memory=_memory(live),
            calls=len(live),
        )

    def _call_row(self, call: pb.Call) -> Row:
        assert self.snapshot is not None  # noqa: S101  # rows() has looked
        limit = call.grant.limits.memory_max_bytes
        brake = call.grant.brake_bytes
        return Row(
            kind="call",
            id=call.id,
            label=clean(call.intent.tool or call.intent.call_class) or call.id,
            state=STATES.get(call.state, UNKNOWN),
            age=max(0.0, self.snapshot.at - call.begun_at),
            cores=self._cores.get(call.id),
            memory=call.usage.memory_now_bytes if call.usage.HasField("memory_now_bytes") else None,
            ceiling=brake if brake > 0 else limit if limit > 0 else None,
            ceiling_word="brake" if brake > 0 else "limit",
            command=clean(call.command),
        )

    def _sum(self, calls: list[pb.Call]) -> float | None:
        known = [self._cores[call.id] for call in calls if call.id in self._cores]
        return sum(known) if known else None


def _memory(calls: list[pb.Call]) -> int | None:
    known = [call.usage.memory_now_bytes for call in calls if call.usage.HasField("memory_now_bytes")]
    return sum(known) if known else None


def _matches(row: Row, call: pb.Call, tenant: pb.Tenant, session: pb.Session, needle: str) -> bool:
    if not needle:
        return True
    word = row.state.word if row.state else ""
    texts = (call.id, call.command, call.intent.tool, call.intent.call_class, tenant.name, session.name, word)
    return any(needle in text.lower() for text in texts)
