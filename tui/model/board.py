"""What the dashboard knows at one moment: updates in, objects by id out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.source.protocol import Away, Moment, Update

MAX_DECISIONS: Final = 500
MAX_ENDED: Final = 200  # calls that ended while we looked, and can still be shown
MAX_RATE_GAP: Final = 120.0  # seconds between two pictures: a rate over more would hide what happened


@dataclass(slots=True)
class Board:
    """``version`` grows with every change: a screen is drawn anew when it differs from what was drawn."""

    at: float | None = None  # of the picture, unix seconds; None: none has come
    host: pb.HostStatus = field(default_factory=pb.HostStatus)
    tenants: dict[str, pb.Tenant] = field(default_factory=dict)
    sessions: dict[str, pb.Session] = field(default_factory=dict)  # open ones
    calls: dict[str, pb.Call] = field(default_factory=dict)  # live ones
    tier: pb.TierStatus | None = None  # None: no GPU and no engine is configured, or the past does not tell
    ended: dict[str, pb.Call] = field(default_factory=dict)  # the oldest first, at most MAX_ENDED
    decisions: deque[pb.Decision] = field(default_factory=lambda: deque(maxlen=MAX_DECISIONS))
    away: Away | None = None
    lost: int = 0  # updates that the daemon dropped because this reader was slow
    version: int = 0
    _now: dict[str, pb.Usage] = field(default_factory=dict)  # as the last picture had them
    _before: dict[str, pb.Usage] = field(default_factory=dict)  # as the picture before had them
    _gap: float = 0.0  # seconds between the two

    def apply(self, update: Update) -> None:
        self.version += 1
        if isinstance(update, Away):
            self.away = update
            return
        self.away = None
        match update.WhichOneof("update"):
            case "snapshot":
                self._picture(update.snapshot)
            case "call":
                self._call(update.call)
            case "session":
                self._session(update.session)
            case "decision":
                self.decisions.append(update.decision)
            case "lost":
                self.lost += update.lost.updates
            case _:
                pass  # an update of a newer daemon: the next picture has what it means

    def show(self, moment: Moment) -> None:
        """Puts a moment of the past on the board, in place of all that was there."""
        self.version += 1
        self.away = None
        self.ended.clear()
        if moment.before is not None:
            self.at, self._now = None, {}
            self._picture(moment.before)
        self._picture(moment.snapshot)
        self.decisions = deque(moment.decisions, maxlen=MAX_DECISIONS)

    def frozen(self) -> Board:
        """As it is now, for ever. Messages are shared with this one: none is ever changed in place."""
        return Board(
            at=self.at,
            host=self.host,
            tenants=dict(self.tenants),
            sessions=dict(self.sessions),
            calls=dict(self.calls),
            tier=self.tier,
            ended=dict(self.ended),
            decisions=deque(self.decisions, maxlen=MAX_DECISIONS),
            version=self.version,
            _now=self._now,
            _before=self._before,
            _gap=self._gap,
        )

    def call(self, call_id: str) -> pb.Call | None:
        return self.calls.get(call_id) or self.ended.get(call_id)

    def rate(self, call: pb.Call, counter: str) -> float | None:
        """Growth a second of a counter of Usage between the last two pictures; None where one of them lacks it."""
        now, before = self._now.get(call.id), self._before.get(call.id)
        if now is None or before is None or not self._gap:
            return None
        if counter != "cpu_usec" and not (now.HasField(counter) and before.HasField(counter)):
            return None
        return max(0.0, float(getattr(now, counter) - getattr(before, counter))) / self._gap

    def decisions_about(self, object_id: str) -> list[pb.Decision]:
        return [d for d in self.decisions if object_id in (d.call_id, d.session_id, d.tenant_id)]

    def _picture(self, new: pb.SnapshotResponse) -> None:
        calls = {call.id: call for call in new.calls if call.state != pb.CALL_STATE_ENDED}
        if self.at is None or new.at - self.at > 0:
            gap = new.at - self.at if self.at is not None else 0.0
            self._before = self._now if gap <= MAX_RATE_GAP else {}
            self._gap = gap
            self._now = {call_id: call.usage for call_id, call in calls.items()}
        self.at = new.at
        self.host = new.host
        self.tenants = {tenant.id: tenant for tenant in new.tenants}
        self.sessions = {session.id: session for session in new.sessions if not session.HasField("closed_at")}
        self.calls = calls
        self.tier = new.tier if new.HasField("tier") else None

    def _call(self, call: pb.Call) -> None:
        if self.at is None:
            return
        if call.state != pb.CALL_STATE_ENDED:
            self.calls[call.id] = call
            return
        self.calls.pop(call.id, None)
        self.ended.pop(call.id, None)
        self.ended[call.id] = call
        while len(self.ended) > MAX_ENDED:
            del self.ended[next(iter(self.ended))]

    def _session(self, session: pb.Session) -> None:
        if self.at is None:
            return
        if session.HasField("closed_at"):
            self.sessions.pop(session.id, None)
        else:
            self.sessions[session.id] = session
