"""A daemon that is killed at any instant, with any part of its last records on disk: all is charged exactly once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.ledger import budgets as ledger_budgets
from agentd.ledger.schema import migrations
from controller.backend import CallRecord, Found, SessionRecord
from controller.config import HostConfig, TenantConfig
from controller.host import Host
from controller.model import (
    BudgetChange,
    BudgetRule,
    CallId,
    CallView,
    Decision,
    Intent,
    Resource,
    SavedBudgets,
    SessionId,
    TenantView,
    Turn,
    Usage,
)
from tests.support.backend import FakeLeaf, FixedReader, RecordingBackend, RecordingJournal

CPU = BudgetRule(resource=Resource.CPU_SECONDS, limit=1e9)
CALLS = BudgetRule(resource=Resource.CALLS_BEGUN, limit=1e9)
TOKENS = BudgetRule(resource=Resource.TOKENS, limit=1e9)
CONFIG = HostConfig(
    tenants=(TenantConfig(name="acme", uids=frozenset({1000}), budgets=(CPU, CALLS), session_budgets=(CPU, TOKENS)),),
    leftover_grace=0.0,
)


class OrderedJournal(RecordingJournal):
    """What the ledger would get, in order; nothing is committed before ``persist``."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[BudgetChange | CallView] = []
        self._committed: list[Callable[[], None]] = []

    def budgets_changed(self, change: BudgetChange, /) -> None:
        self.records.append(change)

    def call_ended(self, call: CallView, committed: object, /) -> None:
        self.records.append(call)
        assert callable(committed)
        self._committed.append(committed)

    def persist(self, connection: sqlite3.Connection, count: int, batch: int) -> set[CallId]:
        """The first ``count`` records, ``batch`` in a transaction; the calls whose end is on disk then."""
        kept = self.records[:count]
        for start in range(0, len(kept), batch):
            part = kept[start : start + batch]
            changes = [record for record in part if isinstance(record, BudgetChange)]
            ledger_budgets.write(connection, changes, [r.id for r in part if isinstance(r, CallView)])
        return {record.id for record in kept if isinstance(record, CallView)}


class Life:
    """Daemons one after the other, over one tree and one ledger. ``truth``: CPU time of calls, as the kernel counts."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        for migration in migrations():
            for statement in migration.statements():
                self.connection.execute(statement)
        self.truth: dict[CallId, int] = {}
        self.tokens = 0
        self.leaves: dict[CallId, FakeLeaf] = {}
        self.records: dict[CallId, CallRecord] = {}
        self.sessions: dict[SessionId, SessionRecord] = {}
        self.tenant: TenantView | None = None
        self.on_disk: set[CallId] = set()
        self.start()

    def start(self) -> None:
        self.backend = RecordingBackend()
        self.backend.leaves = self.leaves
        self.backend.sessions = self.sessions
        if self.tenant is not None:
            standing = [leaf.record for id_, leaf in self.leaves.items() if leaf.record is not None]
            self.backend.found = Found(
                tenants=(self.tenant,), sessions=tuple(self.sessions.values()), calls=tuple(standing)
            )
        self.journal = OrderedJournal()
        self.host = Host(CONFIG, self.backend, self.journal, FixedReader(), past=self, saved_budgets=self.saved())
        self.host.start()
        self.tenant = self.host.registry.by_name["acme"].view()

    # what is on record (controller.effects.Past)

    def has_ended(self, call_id: CallId, /) -> bool:
        return call_id in self.on_disk

    def decisions(self, call_id: CallId, /) -> Sequence[Decision]:
        return ()

    def saved(self) -> SavedBudgets:
        return ledger_budgets.read(self.connection, Path(":memory:"))

    # what happens

    def begin(self) -> None:
        if not self.host.registry.sessions:
            self.host.open_session(tenant="acme", name="a", uid=1000, labels={})
        session = next(iter(self.host.registry.sessions))
        call = self.host.prepare(session, intent=Intent(), argv=["x"])
        assert self.host.begin_now(call) is None
        self.host.place(call, 100, 99, lambda: None)
        self.truth[call.id] = 0

    def work(self, which: int, usec: int) -> None:
        alive = sorted(self.host.registry.calls)
        if alive:
            call_id = alive[which % len(alive)]
            self.truth[call_id] += usec
            self.leaves[call_id].usage = Usage(cpu_usec=self.truth[call_id])

    def sample(self) -> None:
        for call in self.host.registry.begun_calls():
            call.measured(self.leaves[call.id].usage)
            self.host.keeper.sampled(call)
        self.host.keeper.flush()

    async def end(self, which: int) -> None:
        alive = sorted(self.host.registry.calls)
        if alive:
            self.leaves[alive[which % len(alive)]].pids.clear()
            await self.host.end(alive[which % len(alive)], 0)

    def turn(self, tokens: int) -> None:
        """Only what is on disk counts for a turn: no counter of the kernel has it."""
        for session in list(self.host.registry.sessions)[:1]:
            self.host.report_turn(session, Turn(prompt_tokens=tokens))

    async def die(self, share: float, batch: int) -> None:
        """``share`` of what the ledger was given since its start is on disk."""
        count = round(share * len(self.journal.records))
        changed = [r for r in self.journal.records[:count] if isinstance(r, BudgetChange)]
        ended = self.journal.persist(self.connection, count, batch)
        self.on_disk |= ended
        for change in changed:
            for _, turns in change.turns:
                self.tokens = turns.prompt_tokens
        for task in self.host._tasks:
            task.cancel()
        await asyncio.gather(*self.host._tasks, return_exceptions=True)
        for call in self.host.registry.live_calls():
            call.cancel_timers()
        self.start()


steps = st.one_of(
    st.tuples(st.just("begin")),
    st.tuples(st.just("work"), st.integers(0, 5), st.integers(1, 10_000_000)),
    st.tuples(st.just("sample")),
    st.tuples(st.just("end"), st.integers(0, 5)),
    st.tuples(st.just("turn"), st.integers(1, 1000)),
    st.tuples(st.just("die"), st.floats(0, 1), st.integers(1, 5)),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(steps, min_size=1, max_size=30))
def test_whatever_is_lost_of_the_last_records_everything_is_charged_once(
    history: list[tuple[str, *tuple[int | float, ...]]],
) -> None:
    async def live() -> None:
        life = Life()
        life.begin()
        for name, *values in history:
            done = getattr(life, name)(*values)
            if done is not None:
                await done
        await life.die(1.0, 3)
        life.sample()
        session = next(iter(life.host.registry.sessions))
        used = {(b.scope, b.resource): b.used for b in life.host.stocks(session)}
        total = sum(life.truth.values()) / 1e6
        assert used["tenant", "cpu_seconds"] == pytest.approx(total, abs=1e-6)
        assert used["session", "cpu_seconds"] == pytest.approx(total, abs=1e-6)
        assert used["tenant", "calls_begun"] == len(life.truth)
        assert used["session", "tokens"] == life.tokens
        await life.host.stop()

    asyncio.run(live())
