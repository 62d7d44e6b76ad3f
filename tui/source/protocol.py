"""What the dashboard asks of whoever knows: a daemon, its ledger, a recorded file, a test.

SourceError       could not be done or answered; the text is for the operator: object, cause, remedy
 └─ NotOffered    this source cannot do that at all (a recording cannot kill)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from agentd.proto.corral.v1 import corral_pb2 as pb

Verb = Literal["freeze", "thaw", "kill", "limits", "priority"]
PLOT_POINTS: Final = 400  # of a call's history: twice what the widest plot shows


class SourceError(Exception):
    pass


class NotOffered(SourceError):
    pass


@dataclass(frozen=True, slots=True)
class Away:
    """Nothing comes. ``since`` unix seconds; ``cause`` in words; ``denied``: a daemon answers, but not us. The source
    goes on trying."""

    since: float
    cause: str
    denied: bool = False


Update = pb.WatchResponse | Away


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The host as it was at ``at``. ``before``: a little earlier, for rates. ``previous`` and ``next``: when decisions
    were taken before and after; ``first`` and ``last``: from when to when there is something to see."""

    at: float
    snapshot: pb.SnapshotResponse
    before: pb.SnapshotResponse | None = None
    decisions: Sequence[pb.Decision] = ()  # up to ``at``, the newest last
    previous: float | None = None
    next: float | None = None
    first: float | None = None
    last: float | None = None
    earlier: float | None = None  # the pictures beside this one, where the source has pictures
    later: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPast:
    """What is kept of one call. ``call`` None: nothing."""

    call: pb.Call | None = None
    decisions: Sequence[pb.Decision] = ()
    samples: Sequence[pb.Sample] = ()  # by time, thinned to about PLOT_POINTS
    names: dict[str, str] = field(default_factory=dict)  # of its tenant and session, by id


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What an operator wants done to ``target`` (id of a call, session or tenant). ``limits`` and ``priority`` carry
    their values; a threshold of 0 is disarmed, a limit of -1 lifted."""

    verb: Verb
    target: str
    brake_bytes: int | None = None
    memory_max_bytes: int | None = None
    cpu_cores: float | None = None
    pids: int | None = None
    priority: int | None = None


class Source(Protocol):
    """Methods raise SourceError; ``updates`` never does for a daemon that is away: it says Away."""

    @property
    def name(self) -> str:
        """Which daemon or file, for the screen."""
        ...

    @property
    def live(self) -> bool:
        """Whether there is a present: a daemon that goes on. Otherwise the screen begins in the past."""
        ...

    def updates(self) -> AsyncIterator[Update]:
        """Pictures, calls and decisions as they come."""
        ...

    async def moment(self, at: float | None) -> Moment:
        """The host at ``at`` (None: at the beginning of what there is)."""
        ...

    async def call(self, call_id: str, *, until: float | None = None) -> CallPast:
        """One call, up to ``until`` (None: all that is known)."""
        ...

    async def session_calls(self, session_id: str, *, until: float | None = None) -> Sequence[pb.Call]:
        """The session's calls, the newest first, ended ones with their outcome."""
        ...

    async def budgets(self, session_id: str) -> Sequence[pb.Budget]:
        """What the session and its tenant may still use, now."""
        ...

    async def processes(self, call_id: str) -> Sequence[pb.Process]:
        """In the call's leaf, now."""
        ...

    async def features(self) -> Sequence[pb.Feature]:
        """What the host can do and what it cannot."""
        ...

    async def act(self, action: Action) -> Sequence[str]:
        """The ids of the calls that were reached (of limits and priority: the target)."""
        ...

    async def close(self) -> None: ...
