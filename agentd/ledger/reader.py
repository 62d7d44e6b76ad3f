"""LedgerReader: questions to the history, through a connection that cannot write.

It sees what has been committed, never waits for the writer and never holds it up. Its methods block on the disk: on an
event loop call them through ``asyncio.to_thread``. Each answer is read in one transaction, so it agrees with itself.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

from agentd.ledger import budgets, codec, schema
from agentd.ledger.errors import LedgerMisuse
from agentd.ledger.records import CallRecord, Sample, Switch, Total
from controller.model import CallId, Decision, SavedBudgets, SessionId, SessionView, TenantId, TenantView

_EVER: Final = -(1 << 52)  # seconds, or slots: before and after everything, exact as a float
_NEVER: Final = 1 << 52
# Seconds around a call's life in which its samples are looked for: the clock may have been set while it ran.
_CLOCK_STEP: Final = 300
# Seconds before a moment in which a call's usage is looked for: several intervals of sampling at its default of 10 s.
RECENT: Final = 60.0
_IDS_A_QUERY: Final = 500  # well below SQLite's limit of variables

_CALLS: Final = (
    "SELECT c.*, coalesce(t.name, '') AS tenant_name, coalesce(s.name, '') AS session_name FROM calls AS c "
    "LEFT JOIN tenants AS t ON t.id = c.tenant_id LEFT JOIN sessions AS s ON s.id = c.session_id"
)
_BY: Final = {
    "tenant": ("c.tenant_id", "coalesce((SELECT name FROM tenants WHERE id = c.tenant_id), '')"),
    "session": ("c.session_id", "coalesce((SELECT name FROM sessions WHERE id = c.session_id), '')"),
    "class": ("c.call_class", "c.call_class"),
}
_SUMMED: Final = (
    *("faults", "read_bytes", "written_bytes", "disk_read_bytes", "disk_written_bytes", "net_rx_bytes"),
    *("net_tx_bytes", "forks", "run_wait_usec", "memory_stall_usec", "oom_kills"),
)

Value = str | float | int | None


class LedgerReader:
    """Opened with ``LedgerReader(path)``; a context manager. Threads take turns. Raises LedgerError, with
    LedgerDamagedRecord for a record that does not decode: an answer is never silently short of one.

    Times are unix seconds: ``since`` inclusive, ``until`` exclusive, ``None`` no bound.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = threading.Lock()
        self._connection: sqlite3.Connection | None = schema.open_for_reading(path)
        self._connection.row_factory = sqlite3.Row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def calls(
        self,
        *,
        since: float | None = None,
        until: float | None = None,
        tenant_name: str | None = None,
        tenant_id: TenantId | None = None,
        session_id: SessionId | None = None,
        call_id: CallId | None = None,
        open_only: bool = False,
        limit: int = 1_000,
    ) -> list[CallRecord]:
        """Calls begun within the time given, the newest first, at most ``limit``."""
        where = _Where()
        where.add("c.begun_at >= ?", since)
        where.add("c.begun_at < ?", until)
        where.add("c.tenant_id IN (SELECT id FROM tenants WHERE name = ?)", tenant_name)
        where.add("c.tenant_id = ?", tenant_id)
        where.add("c.session_id = ?", session_id)
        where.add("c.id = ?", call_id)
        if open_only:
            where.also("c.ended_at IS NULL")
        with self._reading() as connection:
            return self._records(
                connection, f"{_CALLS}{where} ORDER BY c.begun_at DESC, c.seq DESC LIMIT ?", (*where.values, limit)
            )

    def call(self, call_id: CallId) -> CallRecord | None:
        """None where the ledger does not know it (or no longer)."""
        found = self.calls(call_id=call_id)
        return found[0] if found else None

    def open_calls(self) -> list[CallRecord]:
        """Begun and never ended, the oldest first: after a crash, those to look for in the tree."""
        with self._reading() as connection:
            return self._records(connection, f"{_CALLS} WHERE c.ended_at IS NULL ORDER BY c.begun_at, c.seq", ())

    def decisions(
        self,
        *,
        since: float | None = None,
        until: float | None = None,
        tenant_id: TenantId | None = None,
        session_id: SessionId | None = None,
        call_id: CallId | None = None,
        limit: int = 10_000,
    ) -> list[Decision]:
        """In order of time; where there are more than ``limit``, the newest."""
        where = _Where()
        where.add("at >= ?", since)
        where.add("at < ?", until)
        where.add("tenant_id = ?", tenant_id)
        where.add("session_id = ?", session_id)
        where.add("call_id = ?", call_id)
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT * FROM decisions{where} ORDER BY at DESC, seq DESC LIMIT ?",  # noqa: S608
                (*where.values, limit),
            ).fetchall()
        return [codec.decision(row, self._path) for row in reversed(rows)]

    def samples(
        self,
        *,
        call_id: CallId | None = None,
        session_id: SessionId | None = None,
        since: float | None = None,
        until: float | None = None,
        downsample: int = 0,
        limit: int = 100_000,
    ) -> list[Sample]:
        """By call, then by time, at most ``limit``. ``downsample``: at most so many points for each call (0: all), each
        the maximum of every field over its share of the time that the samples span, so that no peak is lost.

        With a call or session given, samples are looked for from 5 minutes before a call's begin to 5 minutes after
        its end: none lies elsewhere unless the clock was set by more than that."""
        if downsample < 0:
            raise LedgerMisuse(self._path, f"downsample is {downsample}", "give a number of points, or 0 for all")
        source = _sample_source(call_id, session_id, since, until)
        with self._reading() as connection:
            if downsample:
                first, last = connection.execute(
                    f"{source.prefix} SELECT min(x.at), max(x.at) {source.rows}", source.values
                ).fetchone()
                if first is None:
                    return []
                # The newest sample itself belongs to the last interval: without min() it would begin one more.
                width = (last - first) / downsample or 1.0
                peaks = ", ".join(f"max(x.{name}) AS {name}" for name in ("state", *codec.SAMPLED))
                query = (
                    f"{source.prefix} SELECT c.id AS call_id, max(x.at) AS at, {peaks} {source.rows} "
                    "GROUP BY c.seq, min(CAST((x.at - :first) / :width AS INTEGER), :points - 1) ORDER BY c.seq, 2 "
                    "LIMIT :limit"
                )
                thin: dict[str, Value] = {"first": first, "width": width, "points": downsample}
            else:
                names = ", ".join(f"x.{name}" for name in ("at", "state", *codec.SAMPLED))
                query = (
                    f"{source.prefix} SELECT c.id AS call_id, {names} {source.rows} ORDER BY c.seq, x.at LIMIT :limit"
                )
                thin = {}
            rows = connection.execute(query, {**source.values, **thin, "limit": limit}).fetchall()
        return [codec.sample(row, self._path) for row in rows]

    def switches(
        self,
        *,
        since: float | None = None,
        until: float | None = None,
        session_id: SessionId | None = None,
        limit: int = 200,
    ) -> list[Switch]:
        """Context switches of KV caches, in order of time; where there are more than ``limit``, the newest."""
        where = _Where()
        where.add("at >= ?", since)
        where.add("at < ?", until)
        where.add("session_id = ?", session_id)
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT * FROM switches{where} ORDER BY at DESC, seq DESC LIMIT ?",  # noqa: S608
                (*where.values, limit),
            ).fetchall()
        return [codec.switch(row) for row in reversed(rows)]

    def budgets(self) -> SavedBudgets:
        """All balances, what operators set, the turns of sessions, and how far open calls are charged."""
        with self._reading() as connection:
            return budgets.read(connection, self._path)

    def tenants(self) -> list[TenantView]:
        """All that there ever were, by name."""
        with self._reading() as connection:
            rows = connection.execute("SELECT * FROM tenants ORDER BY name, id").fetchall()
        return [codec.tenant(row, self._path) for row in rows]

    def sessions(
        self,
        *,
        since: float | None = None,
        until: float | None = None,
        tenant_id: TenantId | None = None,
        session_id: SessionId | None = None,
        open_only: bool = False,
        limit: int = 10_000,
    ) -> list[SessionView]:
        """Opened within the time given, the newest first."""
        where = _Where()
        where.add("opened_at >= ?", since)
        where.add("opened_at < ?", until)
        where.add("tenant_id = ?", tenant_id)
        where.add("id = ?", session_id)
        if open_only:
            where.also("closed_at IS NULL")
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT * FROM sessions{where} ORDER BY opened_at DESC, id DESC LIMIT ?",  # noqa: S608
                (*where.values, limit),
            ).fetchall()
        return [codec.session(row, self._path) for row in rows]

    def alive_at(self, at: float, *, limit: int = 10_000) -> list[CallRecord]:
        """Calls that were begun and had not ended at ``at``, the newest first. What their rows say of later (outcome,
        usage) is left as it is."""
        with self._reading() as connection:
            return self._records(
                connection,
                f"{_CALLS} WHERE c.begun_at <= ? AND (c.ended_at IS NULL OR c.ended_at > ?) "
                "ORDER BY c.begun_at DESC, c.seq DESC LIMIT ?",
                (at, at, limit),
            )

    def latest_samples(self, at: float) -> dict[str, Sample]:
        """The last sample of each call within the RECENT seconds up to ``at``, by call."""
        names = ", ".join(f"x.{name}" for name in ("state", *codec.SAMPLED))
        with self._reading() as connection:
            # SQLite gives the columns beside a lone max() from the row that has it (lang_select.html, "bare columns")
            rows = connection.execute(
                f"SELECT c.id AS call_id, max(x.at) AS at, {names} FROM samples AS x JOIN calls AS c ON c.seq = x.call "  # noqa: S608
                "WHERE x.slot BETWEEN ? AND ? AND x.at > ? AND x.at <= ? GROUP BY x.call",
                (codec.slot_of(at - RECENT), codec.slot_of(at), at - RECENT, at),
            ).fetchall()
        return {row["call_id"]: codec.sample(row, self._path) for row in rows}

    def sessions_open_at(self, at: float, *, limit: int = 10_000) -> list[SessionView]:
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT * FROM sessions WHERE opened_at <= ? AND (closed_at IS NULL OR closed_at > ?) "
                "ORDER BY opened_at DESC, id DESC LIMIT ?",
                (at, at, limit),
            ).fetchall()
        return [codec.session(row, self._path) for row in rows]

    def decisions_beside(self, at: float) -> tuple[float | None, float | None]:
        """When the last decision before ``at`` and the first one after it were taken."""
        with self._reading() as connection:
            before = connection.execute("SELECT max(at) FROM decisions WHERE at < ?", (at,)).fetchone()[0]
            after = connection.execute("SELECT min(at) FROM decisions WHERE at > ?", (at,)).fetchone()[0]
        return before, after

    def first_begin(self) -> float | None:
        """When the first call that is kept was begun."""
        with self._reading() as connection:
            found: float | None = connection.execute("SELECT min(begun_at) FROM calls").fetchone()[0]
        return found

    def totals(
        self, by: Literal["tenant", "session", "class"], *, since: float | None = None, until: float | None = None
    ) -> list[Total]:
        """Over the calls begun within the time given; the group that used most CPU first."""
        key, name = _BY[by]
        where = _Where()
        where.add("c.begun_at >= ?", since)
        where.add("c.begun_at < ?", until)
        sums = ", ".join(f"sum(c.{column}) AS {column}" for column in _SUMMED)
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT {key} AS key, {name} AS name, count(*) AS calls, "  # noqa: S608
                "count(*) FILTER (WHERE c.ended_at IS NULL) AS open_calls, total(c.wall_seconds) AS wall_seconds, "
                "total(c.held_seconds) AS held_seconds, sum(c.brakes) AS brakes, sum(c.cpu_usec) AS cpu_usec, "
                f"max(c.memory_peak) AS memory_peak, {sums} "
                f"FROM calls AS c{where} GROUP BY {key} ORDER BY cpu_usec DESC, key",
                where.values,
            ).fetchall()
        return [Total(**dict(row)) for row in rows]

    def _records(self, connection: sqlite3.Connection, query: str, values: Sequence[Value]) -> list[CallRecord]:
        rows = connection.execute(query, values).fetchall()
        decisions: dict[str, list[Decision]] = {}
        ids = iter([row["id"] for row in rows if row["ended_at"] is not None])
        while chunk := list(islice(ids, _IDS_A_QUERY)):
            for row in connection.execute(
                f"SELECT * FROM decisions WHERE call_id IN ({', '.join('?' * len(chunk))}) ORDER BY at, seq",  # noqa: S608
                chunk,
            ):
                decisions.setdefault(row["call_id"], []).append(codec.decision(row, self._path))
        return [
            CallRecord(
                call=codec.call(row, decisions.get(row["id"], ()), self._path),
                tenant_name=row["tenant_name"],
                session_name=row["session_name"],
            )
            for row in rows
        ]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._turn:
            if self._connection is None:
                raise LedgerMisuse(self._path, "the reader is closed", "open another")
            try:
                self._connection.execute("BEGIN")
                try:
                    yield self._connection
                finally:
                    # Ends the view of the past at once: while it lasts, the log cannot be cut back.
                    self._connection.execute("ROLLBACK")
            except sqlite3.Error as err:
                raise schema.explain(err, self._path) from err


class _SampleSource(NamedTuple):
    prefix: str
    rows: str  # FROM ...: samples as x, their calls as c (seq, id)
    values: dict[str, Value]


def _sample_source(
    call_id: CallId | None, session_id: SessionId | None, since: float | None, until: float | None
) -> _SampleSource:
    """Samples are clustered by slot of time, then by call: those of some calls are found slot by slot of its life."""
    values: dict[str, Value] = {
        "since": _EVER if since is None else since,
        "until": _NEVER if until is None else until,
        "first_slot": _EVER if since is None else codec.slot_of(since),
        "last_slot": _NEVER if until is None else codec.slot_of(until),
    }
    within = "x.at >= :since AND x.at < :until"
    if call_id is None and session_id is None:
        rows = (
            "FROM samples AS x JOIN calls AS c ON c.seq = x.call "
            f"WHERE x.slot BETWEEN :first_slot AND :last_slot AND {within}"
        )
        return _SampleSource("", rows, values)
    mine = []
    if call_id is not None:
        mine.append("id = :call_id")
        values["call_id"] = call_id
    if session_id is not None:
        mine.append("session_id = :session_id")
        values["session_id"] = session_id
    prefix = f"""
        WITH RECURSIVE life (seq, id, slot, last) AS (
            SELECT seq, id,
                   max(CAST((begun_at - {_CLOCK_STEP}) / {codec.SLOT_SECONDS} AS INTEGER), :first_slot,
                       (SELECT min(slot) FROM samples)),
                   min(CAST((coalesce(ended_at, {_NEVER}) + {_CLOCK_STEP}) / {codec.SLOT_SECONDS} AS INTEGER),
                       :last_slot, (SELECT max(slot) FROM samples))
            FROM calls WHERE {" AND ".join(mine)}
            UNION ALL
            SELECT seq, id, slot + 1, last FROM life WHERE slot < last
        )"""  # noqa: S608
    # CROSS JOIN: in this order, one seek a slot.
    rows = f"FROM life AS c CROSS JOIN samples AS x ON x.slot = c.slot AND x.call = c.seq WHERE {within}"
    return _SampleSource(prefix, rows, values)


class _Where:
    """Conditions that are asked for, and their values. The texts are constants; what comes from outside is bound."""

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self.values: tuple[Value, ...] = ()

    def add(self, condition: str, value: Value) -> None:
        if value is not None:
            self._conditions.append(condition)
            self.values = (*self.values, value)

    def also(self, condition: str) -> None:
        self._conditions.append(condition)

    def __str__(self) -> str:
        return f" WHERE {' AND '.join(self._conditions)}" if self._conditions else ""
