"""What is forgotten, in which order, and what never is."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentd.ledger import Ledger, LedgerReader, LedgerSettings, RetentionPolicy, schema
from agentd.ledger.backlog import Batch, CallBegun, CallEnded, Record, SampleItem
from agentd.ledger.batch import BatchWriter
from agentd.ledger.retention import CALLS_A_STEP, SAMPLES_A_STEP, Retention, used_bytes
from controller.model import CallState, CallView
from tests.unit.ledger_objects import T0, call, decision, ended, nothing, session, tenant, usage

_DAY = 86_400.0
NOW = T0 + 100 * _DAY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    opened = schema.open_for_writing(path)
    yield opened
    opened.close()


def write(connection: sqlite3.Connection, records: list[Record], samples: list[SampleItem] | None = None) -> None:
    BatchWriter().write(connection, Batch(records, samples or []))


def run(connection: sqlite3.Connection, **policy: float | None) -> Retention:
    days, size = policy.get("max_age_days"), policy.get("max_bytes")
    bounds = RetentionPolicy(max_age_days=days, max_bytes=None if size is None else int(size))
    retention = Retention(bounds, NOW)
    while retention.step(connection):
        assert not connection.in_transaction
    assert not connection.in_transaction
    return retention


def over(days_ago: float) -> CallView:
    running = call(begun_at=NOW - days_ago * _DAY - 5)
    return ended(running, decisions=(decision(running, at=running.begun_at + 1),))


def samples_of(*calls: CallView, each: int = 3) -> list[SampleItem]:
    return [(one.begun_at + n, one.id, CallState.RUNNING, usage()) for one in calls for n in range(each)]


def test_by_age(path: Path, connection: sqlite3.Connection) -> None:
    owner = tenant()
    old, young, still = over(31), over(29), call(begun_at=NOW - 50 * _DAY)
    empty = replace(session(owner, opened_at=NOW - 60 * _DAY), closed_at=NOW - 40 * _DAY)
    used = replace(empty, id=young.session_id)
    alive = replace(session(owner, opened_at=NOW - 60 * _DAY), closed_at=None)
    of_the_host = replace(decision(old, at=NOW - 45 * _DAY), call_id=None, session_id=None)
    recent = replace(of_the_host, at=NOW - 5 * _DAY)
    of_an_open_call = decision(still, at=NOW - 49 * _DAY)
    write(
        connection,
        [
            owner,
            empty,
            used,
            alive,
            CallEnded(old, nothing),
            CallEnded(young, nothing),
            CallBegun(still),
            of_the_host,
            recent,
            of_an_open_call,
        ],
        samples_of(old, young, still),
    )
    retention = run(connection, max_age_days=30)
    assert retention.deleted_calls == 1
    assert retention.deleted_samples == 6
    with LedgerReader(path) as reader:
        assert {record.call.id for record in reader.calls()} == {young.id, still.id}
        assert {sample.call_id for sample in reader.samples()} == {young.id}
        assert young.outcome is not None
        assert reader.decisions() == [of_an_open_call, *young.outcome.decisions, recent]
        assert {one.id for one in reader.sessions()} == {used.id, alive.id}
        assert reader.tenants() == [owner]
    assert run(connection, max_age_days=30).deleted_calls == 0


def test_more_than_one_step(path: Path, connection: sqlite3.Connection) -> None:
    old = [over(40 + number / 1_000) for number in range(2 * CALLS_A_STEP + 1)]
    write(
        connection, [CallEnded(one, nothing) for one in old], samples_of(*old, each=2 * SAMPLES_A_STEP // len(old) + 1)
    )
    retention = Retention(RetentionPolicy(max_age_days=30, max_bytes=None), NOW)
    steps = 0
    while retention.step(connection):
        steps += 1
    assert steps >= 3 + 3
    assert retention.deleted_calls == len(old)
    assert retention.deleted_samples > 2 * SAMPLES_A_STEP
    with LedgerReader(path) as reader:
        assert reader.calls() == []
        assert reader.samples() == []
        assert reader.decisions() == []


def test_by_size_samples_go_before_calls(path: Path, connection: sqlite3.Connection) -> None:
    calls = [over(10 - number / 100) for number in range(100)]
    write(connection, [CallEnded(one, nothing) for one in calls], samples_of(*calls, each=300))
    before = used_bytes(connection)
    bound = before * 2 // 3
    assert bound > 1 << 20
    retention = run(connection, max_bytes=bound)
    assert retention.deleted_calls == 0
    assert 0 < retention.deleted_samples < 30_000
    assert bound * 0.5 < used_bytes(connection) <= bound
    with LedgerReader(path) as reader:
        times = [sample.at for sample in reader.samples()]
    gone = retention.deleted_samples
    assert sorted(times) == sorted(at for at, *_ in samples_of(*calls, each=300))[gone:]  # the oldest went


def test_by_size_the_oldest_calls_go_when_samples_are_not_enough(path: Path, connection: sqlite3.Connection) -> None:
    calls = [over(10 - number / 1_000) for number in range(1_500)]
    still = [call(begun_at=T0) for _ in range(5)]
    write(
        connection,
        [*(CallBegun(one) for one in still), *(CallEnded(one, nothing) for one in calls)],
        samples_of(*calls[:10]),
    )
    assert used_bytes(connection) > 3 << 19
    retention = run(connection, max_bytes=1 << 20)
    assert retention.deleted_samples == 30
    assert used_bytes(connection) <= 1 << 20
    with LedgerReader(path) as reader:
        left = {record.call.id for record in reader.calls(limit=10_000)}
        assert left == {one.id for one in (*still, *calls[retention.deleted_calls :])}
        assert 0 < retention.deleted_calls < len(calls)
        assert {taken.call_id for taken in reader.decisions()} == left - {one.id for one in still}


def test_open_calls_stay_whatever_the_size(path: Path, connection: sqlite3.Connection) -> None:
    still = [call(command="x" * 4_000) for _ in range(400)]
    write(connection, [CallBegun(one) for one in still])
    assert used_bytes(connection) > 1 << 20
    run(connection, max_bytes=1 << 20, max_age_days=1)
    with LedgerReader(path) as reader:
        assert len(reader.open_calls()) == 400


def test_the_file_itself_shrinks(path: Path, connection: sqlite3.Connection) -> None:
    old = [over(40) for _ in range(50)]
    write(connection, [CallEnded(one, nothing) for one in old], samples_of(*old, each=400))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = path.stat().st_size
    run(connection, max_age_days=30)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.stat().st_size < before / 4
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("bad", [{"max_age_days": 0.0}, {"max_age_days": float("nan")}, {"max_bytes": 1_000}])
def test_a_bound_that_would_forget_everything_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        RetentionPolicy(**bad)  # type: ignore[arg-type] # one of both fields


async def test_the_writer_does_it_by_itself(path: Path) -> None:
    bounds = LedgerSettings(retention=RetentionPolicy(max_age_days=1.0), retention_seconds=0.01, flush_seconds=0.0)
    ledger = Ledger.open(path, settings=bounds)
    running = call(begun_at=time.time())
    old, young = ended(call(begun_at=T0 - 400 * _DAY)), ended(running)
    committed = asyncio.Event()
    ledger.call_ended(old, nothing)
    ledger.call_ended(young, committed.set)
    await committed.wait()
    with LedgerReader(path) as reader:
        while old.id in {record.call.id for record in await asyncio.to_thread(reader.calls)}:
            await ledger.flush()  # the thread has been at its work
        assert [record.call for record in reader.calls()] == [young]
    assert ledger.health.ok
    await ledger.close()
