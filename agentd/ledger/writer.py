"""Ledger: the durable history, written by a thread of its own.

The methods of controller.effects.Journal only put a record into memory. The thread commits what has come together after
50 ms or 500 records; what a commit means is in ``schema``. When the disk says no, the batch at hand stays in memory and
is tried again, with a fresh connection each time, so that a file that was moved away or repaired is found again.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import structlog

from agentd.ledger import schema
from agentd.ledger.backlog import Backlog, Batch, CallBegun, CallEnded, Marker, SessionClosed
from agentd.ledger.batch import BatchWriter
from agentd.ledger.errors import (
    LedgerBusy,
    LedgerError,
    LedgerFull,
    LedgerIo,
    LedgerMisuse,
    LedgerReadOnly,
    LedgerUnwritten,
)
from agentd.ledger.records import Health, Switch
from agentd.ledger.retention import Retention, RetentionPolicy
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

_log = structlog.get_logger(__name__)

_RECORDS_A_TRANSACTION: Final = 5_000  # when much has gathered: a transaction stays well below a second
_PASSING: Final = (LedgerBusy, LedgerFull, LedgerIo, LedgerReadOnly)  # what may be over without a new configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """Seconds and counts. ``max_records`` is where ``Health.full`` begins, not where records are dropped."""

    flush_seconds: float = 0.05
    batch: int = 500
    max_records: int = 100_000
    max_samples: int = 50_000
    retry_seconds: float = 0.1  # doubled with each failure
    retry_max_seconds: float = 5.0
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    retention_seconds: float = 60.0  # between two rounds


class Ledger:
    """A controller.effects.Journal. Made by ``open``, on the event loop on which callbacks are to run."""

    def __init__(
        self,
        path: Path,
        *,
        connection: sqlite3.Connection | None,
        trouble: LedgerError | None,
        loop: asyncio.AbstractEventLoop,
        settings: LedgerSettings,
        on_trouble: Callable[[Health], None] | None,
    ) -> None:
        self._path = path
        self._connection = connection
        self._loop = loop
        self._settings = settings
        self._on_trouble = on_trouble
        self._backlog = Backlog(
            flush_seconds=settings.flush_seconds,
            batch=settings.batch,
            max_records=settings.max_records,
            max_samples=settings.max_samples,
            wake_in=lambda seconds: loop.call_later(seconds, self._backlog.wake),
        )
        self._writer = BatchWriter()
        self._committed: deque[Callable[[], None]] = deque()  # what is to be called for records that are on disk
        self._in_hand = Batch()  # taken from the backlog and not committed yet
        self._failing_since: float | None = None
        self._error = ""
        self._reported_rejections = 0
        self._give_up_at = float("inf")  # monotonic; set by close
        self._retention: Retention | None = None
        self._next_retention = time.monotonic() + settings.retention_seconds
        self._ended = asyncio.Event()
        if trouble is not None:
            self._failing(trouble)
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        settings: LedgerSettings | None = None,
        on_trouble: Callable[[Health], None] | None = None,
        wait_for_disk: bool = False,
    ) -> Ledger:
        """Open or make the ledger at ``path`` and start its thread. Called on the running event loop, at start: it
        waits for the disk.

        ``on_trouble`` is called on the loop whenever ``health`` turns bad, changes its error, or turns good again.
        ``wait_for_disk``: a full, read-only, locked or failing disk is no error here but the first state of ``health``:
        records gather in memory until it passes. Raises LedgerError.
        """
        connection, trouble = None, None
        try:
            connection = schema.open_for_writing(path)
        except _PASSING as err:
            if not wait_for_disk:
                raise
            trouble = err
        return cls(
            path,
            connection=connection,
            trouble=trouble,
            loop=asyncio.get_running_loop(),
            settings=settings or LedgerSettings(),
            on_trouble=on_trouble,
        )

    @property
    def path(self) -> Path:
        return self._path

    @property
    def health(self) -> Health:
        records, samples = self._backlog.counts
        in_hand = self._in_hand
        return Health(
            ok=self._failing_since is None,
            failing_since=self._failing_since,
            error=self._error,
            backlog=records + len(in_hand.records),
            backlog_samples=samples + len(in_hand.samples),
            full=self._backlog.full,
            dropped_samples=self._backlog.dropped_samples + self._writer.dropped_samples,
            rejected=self._writer.rejected,
        )

    # -- controller.effects.Journal

    def tenant_set(self, tenant: TenantView, /) -> None:
        self._open().put(tenant)

    def session_opened(self, session: SessionView, /) -> None:
        self._open().put(session)

    def session_closed(self, session_id: SessionId, at: float, /) -> None:
        """Closing a session that the ledger has never seen leaves no trace."""
        self._open().put(SessionClosed(session_id, at))

    def call_begun(self, call: CallView, /) -> None:
        """May be repeated, with news of an open call (its state, its grant): the last one counts."""
        self._open().put(CallBegun(call))

    def call_ended(self, call: CallView, committed: Callable[[], None], /) -> None:
        """``committed`` runs on the loop after the commit; never, should the record be impossible to write. The
        outcome's usage and held time are kept in place of the call's, its decisions as if given to ``decision``."""
        if call.outcome is None:
            raise LedgerMisuse(self._path, f"call {call.id} ended without an outcome", "set call.outcome first")
        self._open().put(CallEnded(call, committed))

    def decision(self, decision: Decision, /) -> None:
        self._open().put(decision)

    def context_switch(self, switch: Switch, /) -> None:
        """Of a session's KV cache; not a Journal's: the controller knows of none."""
        self._open().put(switch)

    def budgets_changed(self, change: BudgetChange, /) -> None:
        self._open().put(change)

    def sample(self, at: float, call_id: CallId, state: CallState, usage: Usage, /) -> None:
        self._open().put_sample((at, call_id, state, usage))

    # -- waiting for the disk

    async def flush(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 (the message names the backlog)
        """Returns once everything given so far is on disk. Raises LedgerUnwritten after ``timeout`` seconds (None: it
        waits as long as it takes)."""
        reached = asyncio.Event()
        self._open().put_urgent(Marker(reached.set))
        try:
            await asyncio.wait_for(reached.wait(), timeout)
        except TimeoutError:
            raise self._unwritten("they are still tried; free the disk, then flush again") from None

    async def close(self, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Write what waits, end the thread, close the file. Raises LedgerUnwritten when records could not be written
        within ``timeout`` seconds; the thread is ended then as well. A second close does nothing."""
        if not self._backlog.closed:
            self._give_up_at = time.monotonic() + timeout
            self._backlog.close()
        await self._ended.wait()
        self._thread.join()
        if self._in_hand or any(self._backlog.counts):
            error = self._unwritten("they are lost to the ledger, but for calls that still have their leaf")
            self._in_hand = Batch()
            self._backlog.take(sum(self._backlog.counts))
            raise error

    def _open(self) -> Backlog:
        if self._backlog.closed:
            raise LedgerMisuse(self._path, "is closed", "keep the ledger open until everything else has ended")
        return self._backlog

    def _unwritten(self, remedy: str) -> LedgerUnwritten:
        health = self.health
        return LedgerUnwritten(
            self._path,
            f"{health.backlog} records and {health.backlog_samples} samples are not on disk"
            f" ({health.error or 'the disk was too slow'})",
            remedy,
        )

    # -- the thread

    def _run(self) -> None:
        try:
            self._work()
        finally:
            try:
                self._disconnect()
            finally:
                self._on_loop(self._ended.set)

    def _work(self) -> None:
        delay = self._settings.retry_seconds
        while True:
            if self._failing_since is None and not self._backlog.wait(self._wake_at()):
                self._tend()
                continue
            if not self._in_hand:
                self._in_hand = self._backlog.take(_RECORDS_A_TRANSACTION)
            if not self._in_hand and self._backlog.closed:
                return
            if self._write():
                delay = self._settings.retry_seconds
                continue
            if time.monotonic() >= self._give_up_at:
                return
            self._wait_to_retry(delay)
            delay = min(2 * delay, self._settings.retry_max_seconds)

    def _wait_to_retry(self, delay: float) -> None:
        if self._backlog.closed:  # pause would return at once
            time.sleep(max(0.0, min(delay, self._give_up_at - time.monotonic())))
        else:
            self._backlog.pause(delay)

    def _write(self) -> bool:
        """Commit what is in hand. False: it stays in hand, and ``health`` says why."""
        try:
            callbacks = self._writer.write(self._connected(), self._in_hand)
        except Exception as err:  # whatever it is, the thread must go on: leaves wait for their commits
            self._failing(self._explained(err))
            return False
        self._in_hand = Batch()
        self._well()
        if callbacks:
            self._on_loop(lambda: self._call_back(callbacks))
        return True

    def _call_back(self, callbacks: list[Callable[[], None]]) -> None:
        if not self._committed:
            self._loop.call_soon(self._next_callback)
        self._committed.extend(callbacks)

    def _next_callback(self) -> None:
        """One in a turn of the loop: each may remove a leaf, 0.1 ms, and a call that begins waits for no more than one.
        One that raises is the loop's to report, and does not stop the others."""
        many = len(self._committed) if self._backlog.closed else 1  # in the end the loop may have few turns left
        for _ in range(many):
            self._loop.call_soon(self._committed.popleft())
        if self._committed:
            self._loop.call_soon(self._next_callback)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = schema.open_for_writing(self._path)
            self._writer.forget()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as err:
                _log.warning("ledger_close_failed", path=str(self._path), error=str(err))

    def _wake_at(self) -> float:
        return 0.0 if self._retention is not None else self._next_retention

    def _tend(self) -> None:
        """One step of retention, while nothing is due. Trouble with it is trouble of the ledger."""
        try:
            if self._retention is None:
                self._retention = Retention(self._settings.retention, time.time())
            if self._retention.step(self._connected()):
                return
            if self._retention.deleted_calls or self._retention.deleted_samples:
                self._writer.forget()
                _log.info(
                    "ledger_retention",
                    path=str(self._path),
                    deleted_calls=self._retention.deleted_calls,
                    deleted_samples=self._retention.deleted_samples,
                )
        except Exception as err:  # tidying up that fails must not end the thread that writes
            self._failing(self._explained(err))
        self._retention = None
        self._next_retention = time.monotonic() + self._settings.retention_seconds

    def _explained(self, err: Exception) -> LedgerError:
        if isinstance(err, LedgerError):
            return err
        if isinstance(err, sqlite3.Error):
            return schema.explain(err, self._path)
        _log.error("ledger_writer_error", path=str(self._path), exc_info=err)
        return LedgerError(self._path, f"{type(err).__name__}: {err}", "report this with the agentd log")

    def _failing(self, err: LedgerError) -> None:
        self._disconnect()
        news = str(err) != self._error
        self._error = str(err)
        if self._failing_since is None:
            self._failing_since = time.time()
        if news:
            if self._on_trouble is None:  # else it is the listener's to say
                _log.error("ledger_failing", path=str(self._path), error=str(err))
            self._report()

    def _well(self) -> None:
        if self._failing_since is not None:
            _log.info("ledger_recovered", path=str(self._path), after_seconds=time.time() - self._failing_since)
            self._failing_since, self._error = None, ""
            self._report()
        if self._writer.rejected != self._reported_rejections:
            self._reported_rejections = self._writer.rejected
            self._report(error=self._writer.last_rejection)

    def _report(self, *, error: str = "") -> None:
        if self._on_trouble is not None:
            on_trouble, health = self._on_trouble, self.health
            if error:
                health = replace(health, error=error)
            self._on_loop(lambda: on_trouble(health))

    def _on_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError as err:  # the loop is closed: nobody is left to be told
            _log.warning("ledger_loop_closed", path=str(self._path), error=str(err))
