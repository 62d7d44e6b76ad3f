"""One batch into the database, in one transaction.

Every statement can be repeated: a record that comes again after a crash changes nothing that is already known better.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Final

import msgspec
import structlog

from agentd.ledger import budgets, codec
from agentd.ledger.backlog import Batch, CallBegun, CallEnded, Marker, Record, SampleItem, SessionClosed
from agentd.ledger.records import Switch
from controller.model import BudgetChange, CallId, CallState, Decision, SessionView, TenantView, Usage

_log = structlog.get_logger(__name__)

# What a single record can do wrong. All other errors are the database's, and pass when it recovers.
REJECTING: Final = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    msgspec.MsgspecError,
    ArithmeticError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
)
_SEQS_KEPT: Final = 20_000  # numbers of calls kept in memory; many more than calls can be alive


def _insert(table: str, columns: Iterable[str], then: str) -> str:
    names = tuple(columns)
    # Names are constants of this package, never input.
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) {then}"  # noqa: S608


def _update(columns: Iterable[str]) -> str:
    return ", ".join(f"{name} = excluded.{name}" for name in columns if name != "id")


_TENANT: Final = _insert("tenants", codec.TENANT, f"ON CONFLICT (id) DO UPDATE SET {_update(codec.TENANT)}")
_SESSION: Final = _insert(
    "sessions",
    codec.SESSION,
    "ON CONFLICT (id) DO UPDATE SET name = excluded.name, labels = excluded.labels, "
    "closed_at = coalesce(sessions.closed_at, excluded.closed_at)",
)
_SESSION_CLOSED: Final = "UPDATE sessions SET closed_at = coalesce(closed_at, ?) WHERE id = ?"
# A call that has ended stays ended, and the first account of its end stays: what a restarted daemon can find out later
# (no wait status, no decisions of its predecessor) is never better.
_BEGUN: Final = _insert(
    "calls", codec.BEGUN, f"ON CONFLICT (id) DO UPDATE SET {_update(codec.BEGUN)} WHERE calls.ended_at IS NULL"
)
_ENDED: Final = _insert(
    "calls", codec.ENDED, f"ON CONFLICT (id) DO UPDATE SET {_update(codec.ENDED)} WHERE calls.ended_at IS NULL"
)
_DECISION: Final = _insert("decisions", codec.DECISION, "ON CONFLICT DO NOTHING")
_SWITCH: Final = _insert("switches", codec.SWITCH, "ON CONFLICT DO NOTHING")
_SAMPLE: Final = _insert("samples", codec.SAMPLE, "ON CONFLICT DO NOTHING")
_SEQ: Final = "SELECT seq FROM calls WHERE id = ?"


class BatchWriter:
    """Writes batches through one connection. Not for two threads. ``rejected`` and ``dropped_samples`` only grow."""

    def __init__(self) -> None:
        self._seqs: dict[CallId, int] = {}
        self.rejected = 0
        self.dropped_samples = 0
        self.last_rejection = ""

    def write(self, connection: sqlite3.Connection, batch: Batch) -> list[Callable[[], None]]:
        """Commit ``batch``; returns what is to be called now that it is on disk.

        A record that cannot be written is logged and counted, the others go in without it. Raises sqlite3.Error when
        the database takes nothing now: the same batch may be tried again later."""
        try:
            return self._transaction(connection, batch)
        except REJECTING:
            pass  # one of them; which, the next lines find out
        # One by one. Should the database fail half way, the whole batch comes again: harmless, all can be repeated.
        callbacks: list[Callable[[], None]] = []
        for record in batch.records:
            callbacks += self._alone(connection, Batch([record]), record)
        for sample in batch.samples:
            self._alone(connection, Batch([], [sample]), sample)
        return callbacks

    def forget(self) -> None:
        """Rows may have gone, or the file been replaced: numbers of calls are to be looked up again."""
        self._seqs.clear()

    def _alone(
        self, connection: sqlite3.Connection, batch: Batch, what: Record | SampleItem
    ) -> list[Callable[[], None]]:
        try:
            return self._transaction(connection, batch)
        except REJECTING as err:
            self.rejected += 1
            self.last_rejection = f"{type(what).__name__} was not written: {type(err).__name__}: {err}"
            _log.error("ledger_record_rejected", record=repr(what)[:400], error=f"{type(err).__name__}: {err}")
            return []

    def _transaction(self, connection: sqlite3.Connection, batch: Batch) -> list[Callable[[], None]]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            callbacks = self._records(connection, batch.records)
            dropped = self._samples(connection, batch.samples)
            connection.execute("COMMIT")
        except BaseException:
            self._seqs.clear()  # numbers of rows that are gone with the transaction
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self.dropped_samples += dropped
        return callbacks

    def _records(self, connection: sqlite3.Connection, records: Sequence[Record]) -> list[Callable[[], None]]:
        tenants: list[codec.Row] = []
        sessions: list[codec.Row] = []
        closed: list[codec.Row] = []
        begun: list[codec.Row] = []
        ended: list[codec.Row] = []
        decisions: list[codec.Row] = []
        switches: list[codec.Row] = []
        changes: list[BudgetChange] = []
        gone: list[CallId] = []
        callbacks: list[Callable[[], None]] = []
        for record in records:
            match record:
                case CallBegun(call):
                    begun.append(codec.begun_row(call))
                case CallEnded(call, committed):
                    if call.outcome is None:
                        raise ValueError(f"call {call.id} ended without an outcome")
                    ended.append(codec.ended_row(call, call.outcome))
                    decisions += map(codec.decision_row, call.outcome.decisions)
                    callbacks.append(committed)
                    gone.append(call.id)
                case Decision():
                    decisions.append(codec.decision_row(record))
                case Switch():
                    switches.append(codec.switch_row(record))
                case BudgetChange():
                    changes.append(record)
                case SessionView():
                    sessions.append(codec.session_row(record))
                case SessionClosed(session_id, at):
                    closed.append((at, session_id))
                case TenantView():
                    tenants.append(codec.tenant_row(record))
                case Marker(reached):
                    callbacks.append(reached)
        # Kinds in this order: within a batch, a call begins before it ends and a session opens before it closes.
        for statement, rows in (
            (_TENANT, tenants),
            (_SESSION, sessions),
            (_SESSION_CLOSED, closed),
            (_BEGUN, begun),
            (_ENDED, ended),
            (_DECISION, decisions),
            (_SWITCH, switches),
        ):
            if rows:
                connection.executemany(statement, rows)
        if changes or gone:
            budgets.write(connection, changes, gone)
        return callbacks

    def _samples(self, connection: sqlite3.Connection, samples: Sequence[SampleItem]) -> int:
        """Returns how many had no call to belong to."""
        if not samples:
            return 0
        if len(self._seqs) > _SEQS_KEPT:
            self._seqs.clear()
        placed: list[tuple[int, int, float, CallState, Usage]] = []
        for at, call_id, state, usage in samples:
            seq = self._seqs.get(call_id)
            if seq is None:
                found = connection.execute(_SEQ, (call_id,)).fetchone()
                if found is None:
                    continue
                seq = self._seqs[call_id] = found[0]
            placed.append((codec.slot_of(at), seq, at, state, usage))
        # In the order of the tree's leaves: neighbours share a page.
        placed.sort(key=itemgetter(0, 1, 2))
        connection.executemany(_SAMPLE, [codec.sample_row(*item) for item in placed])
        return len(samples) - len(placed)
