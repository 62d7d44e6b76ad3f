"""What the ledger forgets: by age, and by the size of its file.

Samples go first, they are the bulk; then context switches of KV caches; then calls that have ended, with their
decisions and samples; then decisions of no call and sessions of which nothing is left, with their budgets. Tenants,
their balances and open calls stay. The work is cut in steps, each one short transaction, so that the writer thread is
back at its records within milliseconds.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from agentd.ledger import budgets
from agentd.ledger.codec import slot_of

SAMPLES_A_STEP: Final = 2_000
CALLS_A_STEP: Final = 100
PAGES_A_STEP: Final = 500  # given back to the file system in one step; 2 MB at 4 KiB
_AIM: Final = 0.9  # of max_bytes: below it by a tenth, so that the next record does not call for the next purge
_END_OF_TIME: Final = 1 << 62  # a slot
_DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """``None``: no bound. ``max_bytes`` bounds what the file's used pages take; the log beside it comes on top."""

    max_age_days: float | None = 30.0
    max_bytes: int | None = 1 << 30

    def __post_init__(self) -> None:
        if self.max_age_days is not None and not self.max_age_days > 0:
            raise ValueError(
                f"max_age_days is {self.max_age_days}; give a positive number of days, or none for no bound"
            )
        if self.max_bytes is not None and self.max_bytes < 1 << 20:
            raise ValueError(f"max_bytes is {self.max_bytes}; give at least 1 MiB (1048576), or none for no bound")


class _Phase(Enum):
    AGE_SAMPLES = auto()
    AGE_CALLS = auto()
    AGE_REST = auto()
    SIZE = auto()
    VACUUM = auto()
    DONE = auto()


class Retention:
    """One round over the ledger at the unix time ``now``: call ``step`` until it returns False."""

    def __init__(self, policy: RetentionPolicy, now: float) -> None:
        self._policy = policy
        self._cutoff = now - policy.max_age_days * _DAY if policy.max_age_days is not None else None
        self._phase = _Phase.AGE_SAMPLES if self._cutoff is not None else _Phase.SIZE
        self._shrinking = False
        self.deleted_samples = 0
        self.deleted_calls = 0

    def step(self, connection: sqlite3.Connection) -> bool:
        """One chunk of work, in a transaction of its own. False: the round is over. Raises sqlite3.Error."""
        match self._phase:
            case _Phase.AGE_SAMPLES:
                if not self._delete_samples(connection, self._cutoff):
                    self._phase = _Phase.AGE_CALLS
            case _Phase.AGE_CALLS:
                if not self._delete_calls(connection, self._cutoff):
                    self._phase = _Phase.AGE_REST
            case _Phase.AGE_REST:
                if not (self._delete_switches(connection, self._cutoff) or self._delete_rest(connection)):
                    self._phase = _Phase.SIZE
            case _Phase.SIZE:
                if not self._shrink(connection):
                    self._phase = _Phase.VACUUM
            case _Phase.VACUUM:
                if not _vacuum(connection):
                    self._phase = _Phase.DONE
        return self._phase is not _Phase.DONE

    def _shrink(self, connection: sqlite3.Connection) -> bool:
        if self._policy.max_bytes is None:
            return False
        bound = self._policy.max_bytes * (_AIM if self._shrinking else 1.0)
        if used_bytes(connection) <= bound:
            return False
        self._shrinking = True
        return (
            self._delete_samples(connection, None)
            or self._delete_switches(connection, None)
            or self._delete_calls(connection, None)
        )

    def _delete_samples(self, connection: sqlite3.Connection, before: float | None) -> bool:
        with _Transaction(connection):
            gone = connection.execute(
                "DELETE FROM samples WHERE (slot, call, at) IN "
                "(SELECT slot, call, at FROM samples WHERE slot < ? ORDER BY slot, call, at LIMIT ?)",
                (_END_OF_TIME if before is None else slot_of(before), SAMPLES_A_STEP),
            ).rowcount
        self.deleted_samples += gone
        return gone > 0

    def _delete_switches(self, connection: sqlite3.Connection, before: float | None) -> bool:
        with _Transaction(connection):
            gone = connection.execute(
                "DELETE FROM switches WHERE seq IN "
                "(SELECT seq FROM switches WHERE ?1 IS NULL OR at < ?1 ORDER BY at LIMIT ?2)",
                (before, SAMPLES_A_STEP),
            ).rowcount
        return gone > 0

    def _delete_calls(self, connection: sqlite3.Connection, before: float | None) -> bool:
        # Their samples have gone before them, but for those of the last slot; these are seen no more and go with it.
        with _Transaction(connection):
            old = connection.execute(
                "SELECT seq, id FROM calls WHERE ended_at IS NOT NULL AND (?1 IS NULL OR ended_at < ?1) "
                "ORDER BY ended_at LIMIT ?2",
                (before, CALLS_A_STEP),
            ).fetchall()
            connection.executemany("DELETE FROM decisions WHERE call_id = ?", [(call_id,) for _, call_id in old])
            connection.executemany("DELETE FROM calls WHERE seq = ?", [(seq,) for seq, _ in old])
        self.deleted_calls += len(old)
        return bool(old)

    def _delete_rest(self, connection: sqlite3.Connection) -> bool:
        """Old decisions whose call is not (or no longer) here, then old sessions without calls."""
        with _Transaction(connection):
            gone = connection.execute(
                "DELETE FROM decisions WHERE seq IN (SELECT seq FROM decisions AS d WHERE at < ?1 AND NOT EXISTS "
                "(SELECT 1 FROM calls WHERE calls.id = d.call_id) ORDER BY at LIMIT ?2)",
                (self._cutoff, SAMPLES_A_STEP),
            ).rowcount
            old = connection.execute(
                "SELECT id FROM sessions AS s WHERE closed_at < ?1 AND NOT EXISTS "
                "(SELECT 1 FROM calls WHERE calls.session_id = s.id) LIMIT ?2",
                (self._cutoff, CALLS_A_STEP),
            ).fetchall()
            for statement in ("DELETE FROM sessions WHERE id = ?", *budgets.FORGET):
                connection.executemany(statement, old)
            gone += len(old)
        return gone > 0


def used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the file's pages that hold something (the free ones are reused before the file grows)."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _vacuum(connection: sqlite3.Connection) -> bool:
    free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    if not free:
        return False
    # It gives pages back one a row: the rows must be fetched.
    connection.execute(f"PRAGMA incremental_vacuum({PAGES_A_STEP})").fetchall()
    return bool(connection.execute("PRAGMA freelist_count").fetchone()[0] < free)


class _Transaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._connection.execute("COMMIT")
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
