"""What the controller needs from outside, as small interfaces: the ledger, and whoever counts for metrics.

Each has one real implementation (``agentd.ledger``) and one that records (``tests``). None of their methods may block:
they are called on the path of a tool call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from controller.model import (
    BudgetChange,
    CallId,
    CallState,
    CallView,
    Decision,
    Outcome,
    SessionId,
    SessionView,
    TenantView,
    Usage,
)


class Journal(Protocol):
    """The durable history. Methods return at once; records are written in batches by a thread of the journal's own."""

    def tenant_set(self, tenant: TenantView, /) -> None: ...
    def session_opened(self, session: SessionView, /) -> None: ...
    def session_closed(self, session_id: SessionId, at: float, /) -> None: ...
    def call_begun(self, call: CallView, /) -> None: ...

    def call_ended(self, call: CallView, committed: Callable[[], None], /) -> None:
        """``call.outcome`` is set. ``committed`` is called on the event loop once the record is on disk: only then is
        the call's leaf removed, so that a crash in between loses nothing."""

    def decision(self, decision: Decision, /) -> None: ...
    def budgets_changed(self, change: BudgetChange, /) -> None:
        """All of it is written, or nothing."""

    def sample(self, at: float, call_id: CallId, state: CallState, usage: Usage, /) -> None: ...


class Past(Protocol):
    """What is on record of a call that an earlier daemon left in the tree. Asked at start only, and may read a disk."""

    def has_ended(self, call_id: CallId, /) -> bool: ...
    def decisions(self, call_id: CallId, /) -> Sequence[Decision]:
        """What was done to it, oldest first."""


class NoPast:
    """Nothing is on record."""

    def has_ended(self, call_id: CallId, /) -> bool:
        return False

    def decisions(self, call_id: CallId, /) -> Sequence[Decision]:
        return ()


class Meter(Protocol):
    """Counts what happens, for metrics. Times in seconds."""

    def begun(self, tenant: str, seconds: float, *, queued_seconds: float | None = None) -> None: ...
    def ended(self, tenant: str, outcome: Outcome) -> None: ...
    def refused(self, tenant: str, code: str) -> None: ...
    def decided(self, tenant: str, decision: Decision) -> None: ...
    def event_handled(self, seconds: float) -> None:
        """``seconds`` since the kernel stamped the event."""


class NullMeter:
    """Counts nothing."""

    def begun(self, tenant: str, seconds: float, *, queued_seconds: float | None = None) -> None:
        pass

    def ended(self, tenant: str, outcome: Outcome) -> None:
        pass

    def refused(self, tenant: str, code: str) -> None:
        pass

    def decided(self, tenant: str, decision: Decision) -> None:
        pass

    def event_handled(self, seconds: float) -> None:
        pass


class NullJournal:
    """Keeps nothing: for tools and tests that need no history."""

    def tenant_set(self, tenant: TenantView, /) -> None:
        pass

    def session_opened(self, session: SessionView, /) -> None:
        pass

    def session_closed(self, session_id: SessionId, at: float, /) -> None:
        pass

    def call_begun(self, call: CallView, /) -> None:
        pass

    def call_ended(self, call: CallView, committed: Callable[[], None], /) -> None:
        committed()

    def decision(self, decision: Decision, /) -> None:
        pass

    def budgets_changed(self, change: BudgetChange, /) -> None:
        pass

    def sample(self, at: float, call_id: CallId, state: CallState, usage: Usage, /) -> None:
        pass
