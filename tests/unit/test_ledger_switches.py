"""Context switches of KV caches in the ledger: kept once, found again by session and time, forgotten by age."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agentd.ledger import Ledger, LedgerReader, RetentionPolicy, Switch, schema
from agentd.ledger.backlog import Batch, CallEnded
from agentd.ledger.batch import BatchWriter
from agentd.ledger.codec import SWITCH
from agentd.ledger.retention import Retention
from controller.model import SessionId, new_session_id, new_tenant_id
from tests.unit.ledger_objects import T0, call, ended

DAY = 86_400.0


def switch(session_id: SessionId, at: float, kind: str = "offloaded") -> Switch:
    return Switch(
        at=at,
        tenant_id=new_tenant_id(),
        session_id=session_id,
        engine="local",
        conversation="größe",
        kind=kind,
        why="its tool takes 9 s",
        tokens=3001,
        bytes=6_200_000,
        seconds=0.0029,
    )


def test_columns(tmp_path: Path) -> None:
    connection = schema.open_for_writing(tmp_path / "ledger.db")
    found = {row[1] for row in connection.execute("PRAGMA table_info(switches)")}
    assert found == {*SWITCH, "seq"}
    connection.close()


async def test_what_goes_in_comes_out_once(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db")
    mine, other = new_session_id(), new_session_id()
    first, second, third = switch(mine, T0), switch(mine, T0 + 1, "restored"), switch(other, T0 + 2)
    for one in (first, second, third, first, replace(second, why="told again")):
        ledger.context_switch(one)
    await ledger.flush()
    with LedgerReader(ledger.path) as reader:
        assert reader.switches() == [first, second, third]
        assert reader.switches(session_id=mine) == [first, second]
        assert reader.switches(limit=1) == [third]
        assert reader.switches(since=T0 + 1, until=T0 + 2) == [second]
    await ledger.close()


def test_they_are_forgotten_by_age_and_before_calls_by_size(tmp_path: Path) -> None:
    connection = schema.open_for_writing(tmp_path / "ledger.db")
    mine, now = new_session_id(), T0 + 100 * DAY
    old, young = switch(mine, now - 31 * DAY), switch(mine, now - DAY)
    BatchWriter().write(connection, Batch([old, young]))
    policy = RetentionPolicy(max_age_days=30, max_bytes=None)
    retention = Retention(policy, now)
    while retention.step(connection):
        pass
    assert connection.execute("SELECT at FROM switches").fetchall() == [(young.at,)]

    many = [replace(young, at=now + n, why="x" * 200) for n in range(6_000)]
    finished = ended(call())
    BatchWriter().write(connection, Batch([*many]))
    BatchWriter().write(connection, Batch([CallEnded(finished, lambda: None)]))
    retention = Retention(RetentionPolicy(max_age_days=None, max_bytes=1 << 20), now)
    while retention.step(connection):
        pass
    kept = connection.execute("SELECT count(*), max(at) FROM switches").fetchone()
    assert 0 < kept[0] < 6_001
    assert kept[1] == now + 5_999  # the oldest went
    assert connection.execute("SELECT count(*) FROM calls").fetchone() == (1,)
    connection.close()
