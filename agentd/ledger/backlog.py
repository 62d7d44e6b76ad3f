"""Records on their way to the writer thread.

Putting one in takes a lock for a few hundred nanoseconds and wakes the thread at most once per batch: when that is due,
not before. A thread that wakes to look at the clock would want the interpreter in the middle of a call's begin.
Samples are bounded: the oldest give way, and are counted. Records are never dropped; ``full`` asks whoever makes them
to stop.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from agentd.ledger.records import Switch
from controller.model import (
    BudgetChange,
    CallId,
    CallState,
    CallView,
    Decision,
    SessionId,
    SessionView,
    TenantView,
    Usage,
)

SAMPLE_LINGER: Final = (
    1.0  # seconds that samples alone may wait: nobody needs them at once, and commits cost more than rows
)
SAMPLE_BATCH: Final = 2_000  # so many samples are written sooner


@dataclass(frozen=True, slots=True)
class SessionClosed:
    session_id: SessionId
    at: float


@dataclass(frozen=True, slots=True)
class CallEnded:
    call: CallView
    committed: Callable[[], None]


@dataclass(frozen=True, slots=True)
class CallBegun:
    call: CallView


@dataclass(frozen=True, slots=True)
class Marker:
    """Everything put in before it is on disk once ``reached`` has been called."""

    reached: Callable[[], None]


Record = TenantView | SessionView | SessionClosed | CallBegun | CallEnded | Decision | Switch | BudgetChange | Marker
SampleItem = tuple[float, CallId, CallState, Usage]


@dataclass(slots=True)
class Batch:
    """What goes into one transaction, in the order in which it came."""

    records: list[Record] = field(default_factory=list)
    samples: list[SampleItem] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.records or self.samples)


class Backlog:
    """``flush_seconds``: the longest that a record waits for company. ``batch``: so many do not wait any longer.

    ``wake_in``: has ``wake`` called so many seconds later, by whoever puts records in; None: the thread looks at the
    clock itself."""

    def __init__(
        self,
        *,
        flush_seconds: float,
        batch: int,
        max_records: int,
        max_samples: int,
        wake_in: Callable[[float], object] | None = None,
    ) -> None:
        self._wake_in = wake_in
        self._flush_seconds = flush_seconds
        self._batch = batch
        self._max_records = max_records
        self._max_samples = max_samples
        self._records: deque[Record] = deque()
        self._samples: deque[SampleItem] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._record_due: float | None = None  # monotonic; of the oldest record or sample that waits
        self._sample_due: float | None = None
        self._urgent = False
        self._closed = False
        self.dropped_samples = 0

    def put(self, record: Record) -> None:
        with self._changed:
            self._records.append(record)
            if self._record_due is None:
                self._record_due = time.monotonic() + self._flush_seconds
                self._due_in(self._flush_seconds)
            elif len(self._records) == self._batch:
                self._changed.notify()

    def put_urgent(self, marker: Marker) -> None:
        with self._changed:
            self._records.append(marker)
            self._urgent = True
            self._changed.notify()

    def put_sample(self, sample: SampleItem) -> None:
        with self._changed:
            # While records cannot be written either, memory is theirs.
            if len(self._samples) >= self._max_samples or len(self._records) >= self._max_records:
                self.dropped_samples += 1
                if not self._samples:
                    return
                self._samples.popleft()
            self._samples.append(sample)
            if self._sample_due is None:
                self._sample_due = time.monotonic() + SAMPLE_LINGER
                self._due_in(SAMPLE_LINGER)
            elif len(self._samples) == SAMPLE_BATCH:
                self._changed.notify()

    def _due_in(self, seconds: float) -> None:
        if self._wake_in is None:
            self._changed.notify()
        else:
            self._wake_in(seconds)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def full(self) -> bool:
        return len(self._records) >= self._max_records

    @property
    def counts(self) -> tuple[int, int]:
        """Records and samples that wait."""
        return len(self._records), len(self._samples)

    def wait(self, until: float) -> bool:
        """Sleep until a batch is due (True) or the monotonic time ``until`` (False). Closed: due at once."""
        with self._changed:
            while True:
                due, now = self._due(), time.monotonic()
                if due is not None and due <= now:
                    return True
                if now >= until:
                    return False
                self._changed.wait(min(until, due if due is not None else until) - now)

    def pause(self, seconds: float) -> None:
        """Sleep before another try. Only ``close`` cuts it short."""
        until = time.monotonic() + seconds
        with self._changed:
            while not self._closed and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def take(self, most_records: int) -> Batch:
        """The oldest ``most_records`` records, and all samples: these are few enough by their own bound."""
        with self._changed:
            records = [self._records.popleft() for _ in range(min(most_records, len(self._records)))]
            samples = list(self._samples)
            self._samples.clear()
            self._sample_due = None
            if not self._records:
                self._record_due = None
                self._urgent = False
            return Batch(records, samples)

    def _due(self) -> float | None:
        if self._urgent or self._closed or len(self._records) >= self._batch or len(self._samples) >= SAMPLE_BATCH:
            return 0.0
        if self._record_due is None or self._sample_due is None:
            return self._record_due if self._record_due is not None else self._sample_due
        return min(self._record_due, self._sample_due)
