"""What the servicers need from the rest of the daemon, as small interfaces.

``HostPort`` is ``controller.host.Host``, ``HistoryPort`` is ``agentd.api.history.LedgerHistory``; the tests bring
others, which record. Methods raise the exceptions of ``controller.model.errors`` and nothing else on purpose.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agentd.tier.view import TierView
from controller.backend import Whose
from controller.model import (
    Budget,
    BudgetRule,
    CallId,
    CallState,
    CallView,
    Decision,
    Intent,
    Limits,
    Outcome,
    Resource,
    SessionId,
    SessionView,
    Snapshot,
    TenantView,
    Tripwire,
    Turn,
    Turns,
    Usage,
)

Update = CallView | SessionView | Decision


class FeatureView(Protocol):
    """One thing that a host can or cannot do, as the probe found it."""

    @property
    def name(self) -> str: ...
    @property
    def found(self) -> bool | None: ...  # None: cannot be known; told as not found, with the reason in ``detail``
    @property
    def detail(self) -> str: ...
    @property
    def cost(self) -> str: ...
    @property
    def remedy(self) -> str: ...


class Subscription(Protocol):
    """Updates in the order in which they happened, through a queue of bounded length.

    A reader that is too slow loses updates, never the daemon its memory: ``lost`` counts those dropped so far. Ends
    (StopAsyncIteration) after ``close``, which may be called more than once and from any callback of the loop.
    """

    @property
    def lost(self) -> int: ...
    def __aiter__(self) -> AsyncIterator[Update]: ...
    async def __anext__(self) -> Update: ...
    def close(self) -> None: ...


class HostPort(Protocol):
    """The controller of this host."""

    def open_session(self, *, tenant: str, name: str, uid: int, labels: Mapping[str, str]) -> tuple[SessionView, str]:
        """The session and its token."""

    async def close_session(self, session_id: SessionId, *, kill: bool) -> None: ...

    async def begin(
        self, session_id: SessionId, *, intent: Intent, argv: Sequence[str], parent_id: CallId | None = None
    ) -> CallView:
        """May wait in the queue; when cancelled, nothing of the call is left."""

    def attach(self, call_id: CallId, pid: int) -> None: ...
    def whose(self, pid: int) -> Whose:
        """Session and call of a process, by its cgroup."""

    def update_intent(self, call_id: CallId, intent: Intent) -> CallView: ...
    async def end(self, call_id: CallId, wait_status: int | None) -> Outcome: ...
    def call(self, call_id: CallId) -> CallView:
        """A call that lives or ended lately."""

    def peek(self, call_id: CallId) -> CallView:
        """Likewise, with its use as of the last sample: nothing is read."""

    def session(self, session_id: SessionId) -> SessionView: ...
    def budgets(self, session_id: SessionId) -> list[Budget]: ...
    def stocks(self, session_id: SessionId) -> list[Budget]:
        """What can be used up alone, of the session and its tenant; from memory."""

    def report_turn(self, session_id: SessionId, turn: Turn, /) -> Turns: ...
    def set_budget(self, target: str, rule: BudgetRule, /) -> Sequence[Budget]:
        """All budgets of the target then."""

    def remove_budget(self, target: str, resource: Resource, /) -> Sequence[Budget]: ...
    def authenticate(self, token: str) -> SessionView:
        """Raises NotAllowed for a token that is unknown or has expired."""

    def snapshot(self, *, with_ended: bool = False) -> Snapshot: ...
    def subscribe(self, *, session_id: SessionId | None = None) -> Subscription: ...
    def set_tenant(self, name: str, *, limits: Limits | None, priority: int | None) -> TenantView: ...
    def set_limits(self, target: str, *, limits: Limits, tripwire: Tripwire | None) -> None: ...
    def set_priority(self, target: str, priority: int) -> None: ...
    async def freeze(self, target: str, *, by: str) -> list[CallId]: ...
    async def thaw(self, target: str, *, by: str) -> list[CallId]: ...
    async def kill(self, target: str, *, by: str) -> list[CallId]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryQuery:
    """``since`` and ``until`` in unix seconds; empty texts match everything; ``limit`` calls at most, newest first."""

    since: float | None = None
    until: float | None = None
    tenant: str = ""
    session_id: SessionId | None = None
    call_id: CallId | None = None
    limit: int = 100
    with_samples: bool = False
    with_decisions: bool = False
    sample_points: int = 0  # of each call, thinned with their peaks; 0: all


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    """What a call had used at a moment (unix seconds)."""

    at: float
    call_id: CallId
    state: CallState
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPage:
    calls: Sequence[CallView] = ()
    decisions: Sequence[Decision] = ()
    samples: Sequence[SampleView] = ()
    names: Mapping[str, str] = field(default_factory=dict)  # of the calls' tenants and sessions, by id


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentPage:
    """What the ledger knows of the moment ``at``: calls that lived then, with the usage and state of their last sample
    and without what came later. Neighbours are unix seconds, None where there is none."""

    at: float
    tenants: Sequence[TenantView] = ()
    sessions: Sequence[SessionView] = ()
    calls: Sequence[CallView] = ()
    decisions: Sequence[Decision] = ()
    previous_decision: float | None = None
    next_decision: float | None = None
    first: float | None = None  # when the first call that is kept was begun


Features = Callable[[], Sequence[FeatureView]]
"""What the probe found, for Doctor."""


class HistoryPort(Protocol):
    """The ledger, read away from the event loop."""

    async def history(self, query: HistoryQuery) -> HistoryPage: ...
    async def moment(self, at: float | None) -> MomentPage:
        """None: when the first call that is kept was begun."""


class TierPort(Protocol):
    """The inference tier: ``agentd.tier.tier.Tier``."""

    @property
    def configured(self) -> bool:
        """Whether snapshots show it."""

    def view(self) -> TierView:
        """From the last samples: nothing is asked."""

    def reported(self, session_id: SessionId, turn: Turn) -> None:
        """An agent told of a turn that did not go through the gateway."""


class NoTier:
    """Of a daemon (or a test) that follows none."""

    configured = False

    def view(self) -> TierView:
        return TierView(at=time.time(), nvml="", nvml_detail="this daemon follows no inference tier")

    def reported(self, session_id: SessionId, turn: Turn) -> None:
        pass
