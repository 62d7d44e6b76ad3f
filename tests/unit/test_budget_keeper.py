"""Budgets of a host over a recording backend: who is charged what, who is refused, and what the ledger is given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from controller.backend import Found, SessionRecord
from controller.budget.price import Prices, TokenPrices
from controller.config import HostConfig, TenantConfig
from controller.host import Host
from controller.model import (
    Action,
    Balance,
    Band,
    Budget,
    BudgetRule,
    CallMark,
    Charges,
    Intent,
    InvalidRequest,
    NotFound,
    Reason,
    Refused,
    Resource,
    SavedBudgets,
    SessionId,
    TenantView,
    Turn,
    Usage,
    WrongState,
    new_call_id,
)
from controller.registry import Call
from tests.support.backend import FixedReader, RecordingBackend, RecordingJournal

CPU = BudgetRule(resource=Resource.CPU_SECONDS, limit=10.0, hard=True)
CALLS = BudgetRule(resource=Resource.CALLS_BEGUN, limit=3.0, hard=True)
TOKENS = BudgetRule(resource=Resource.TOKENS, limit=1000.0)
EMPTY = SavedBudgets(rules={}, balances={}, marks={}, turns={})


class Rig:
    def __init__(self, *tenants: TenantConfig, prices: Prices | None = None, saved: SavedBudgets | None = None) -> None:
        self.backend = RecordingBackend()
        self.journal = RecordingJournal()
        self.config = HostConfig(
            tenants=tenants or (TenantConfig(name="acme", uids=frozenset({1000})),),
            leftover_grace=0.01,
            prices=prices or Prices(),
        )
        self.host = Host(self.config, self.backend, self.journal, FixedReader(), saved_budgets=saved)

    def open(self, tenant: str = "acme") -> SessionId:
        return self.host.open_session(tenant=tenant, name="agent", uid=1000, labels={})[0].id

    def launch(self, session: SessionId) -> Call:
        call = self.host.prepare(session, intent=Intent(), argv=["tool"])
        assert self.host.begin_now(call) is None
        self.host.place(call, 100, 99, lambda: None)
        return call

    def uses(self, call: Call, **usage: int) -> None:
        """As the sampler finds it."""
        call.measured(Usage(**usage))
        self.backend.leaves[call.id].usage = call.usage
        self.host.keeper.sampled(call)

    async def ends(self, call: Call, **usage: int) -> tuple[Budget, ...]:
        self.backend.leaves[call.id].usage = Usage(**usage)
        self.backend.leaves[call.id].pids.clear()
        return (await self.host.end(call.id, 0)).budgets

    def used(self, session: SessionId, resource: Resource, scope: str = "tenant") -> float:
        found = [b for b in self.host.stocks(session) if b.resource == resource.value and b.scope == scope]
        assert len(found) == 1, found
        return found[0].used


def ended_as(call: Call) -> Reason | None:
    """A function, since a type checker takes an attribute to stay as it was."""
    return call.killed_as


@asynccontextmanager
async def rig(*tenants: TenantConfig, **more: object) -> AsyncIterator[Rig]:
    made = Rig(*tenants, **more)  # type: ignore[arg-type]  # as Rig has it
    made.host.start()
    try:
        yield made
    finally:
        await made.host.stop()


def acme(*budgets: BudgetRule, session: tuple[BudgetRule, ...] = ()) -> TenantConfig:
    return TenantConfig(name="acme", uids=frozenset({1000}), budgets=budgets, session_budgets=session)


async def test_without_budgets_nothing_is_kept_and_nothing_is_written() -> None:
    async with rig() as r:
        call = r.launch(r.open())
        r.uses(call, cpu_usec=5_000_000)
        assert await r.ends(call, cpu_usec=6_000_000) == ()
    assert r.journal.budget_changes == []


async def test_a_call_is_charged_as_it_runs_and_exactly_at_its_end() -> None:
    network = BudgetRule(resource=Resource.NETWORK_BYTES, limit=1e6)
    async with rig(acme(CPU, network, session=(CPU,))) as r:
        session = r.open()
        call = r.launch(session)
        r.uses(call, cpu_usec=2_000_000, net_rx_bytes=100, net_tx_bytes=50)
        assert r.used(session, Resource.CPU_SECONDS) == pytest.approx(2.0)
        assert r.used(session, Resource.CPU_SECONDS, "session") == pytest.approx(2.0)
        r.uses(call, cpu_usec=2_500_000, net_rx_bytes=100, net_tx_bytes=50)
        budgets = await r.ends(call, cpu_usec=3_000_007, net_rx_bytes=1000, net_tx_bytes=50)
        left = {(b.scope, b.resource): b for b in budgets}
        assert left["tenant", "cpu_seconds"].used == pytest.approx(3.000007)
        assert left["session", "cpu_seconds"].used == pytest.approx(3.000007)
        assert left["tenant", "network_bytes"].used == pytest.approx(1050)
        assert left["tenant", "cpu_seconds"].band is Band.MEDIUM
        other = r.open()
        assert r.used(other, Resource.CPU_SECONDS, "session") == 0.0, "sessions do not share"
        assert r.used(other, Resource.CPU_SECONDS) == pytest.approx(3.000007), "their tenant's is one"


async def test_at_the_end_of_a_hard_budget_nothing_begins_and_what_runs_may_finish() -> None:
    async with rig(acme(CALLS)) as r:
        session = r.open()
        calls = [r.launch(session) for _ in range(3)]
        with pytest.raises(Refused, match="'acme' is used up: 3 of 3") as refused:
            r.launch(session)
        assert refused.value.code == "budget_exhausted"
        assert refused.value.field == "budget.calls_begun"
        assert "never full again" in refused.value.remedy
        assert "corral budget set acme calls_begun" in refused.value.remedy
        refusals = [d for d in r.journal.decisions if d.action is Action.REFUSE]
        assert [d.reason.partition(":")[0] for d in refusals] == ["budget_exhausted"]
        for call in calls:
            assert call.outcome is None
            await r.ends(call)
        r.host.set_budget("acme", replace(CALLS, limit=4.0))
        r.launch(session)


async def test_a_budget_that_ends_calls_ends_those_that_run() -> None:
    async with rig(acme(replace(CPU, ends_calls=True))) as r:
        session = r.open()
        one, other, spared = r.launch(session), r.launch(session), r.launch(r.open())
        r.uses(one, cpu_usec=9_000_000)
        assert ended_as(one) is None
        r.uses(other, cpu_usec=1_000_000)
        r.uses(one, cpu_usec=9_000_000)
        assert ended_as(one) is ended_as(other) is Reason.BUDGET_EXHAUSTED
        outcome = await r.host.end(one.id, 9)
        assert outcome.reason is Reason.BUDGET_EXHAUSTED
        assert "the hard budget of cpu_seconds of this tenant is used up: 0 s of 10 s left" in outcome.summary
        r.host.set_budget("acme", replace(CPU, limit=100.0, ends_calls=True))
        r.uses(spared, cpu_usec=1)
        assert ended_as(spared) is None


async def test_a_hard_budget_is_full_again_with_its_period() -> None:
    async with rig(acme(replace(CALLS, limit=1.0, period=86_400.0))) as r:
        session = r.open()
        r.launch(session)
        with pytest.raises(Refused, match="full again in"):
            r.launch(session)
        held = r.host.registry.by_name["acme"].account.stocks[Resource.CALLS_BEGUN]
        held.balance = replace(held.balance, start=held.balance.start - 86_400.0)  # a day passes
        r.launch(session)
        assert r.used(session, Resource.CALLS_BEGUN) == 1.0


async def test_a_soft_budget_only_says_so_once_for_each_step_down() -> None:
    soft = replace(CALLS, limit=10.0, hard=False)
    async with rig(acme(soft)) as r:
        session, other = r.open(), r.open()
        notes = [r.launch(session).grant.notes for _ in range(13)]
        told = [number for number, note in enumerate(notes) if note]
        assert told == [8, 10], "below 30 % after 8 calls, and at the end after 10 (9 left 10 %)"
        assert "the soft budget of calls_begun of this tenant is low: 2 of 10 left" in notes[8][0]
        assert "is used up: 0 of 10 left" in notes[10][0]
        assert r.launch(other).grant.notes, "another session's agent has not been told yet"
        advised = [d for d in r.journal.decisions if d.action is Action.ADVISE]
        assert [d.evidence["remaining"] for d in advised] == [6.0, 2.0, 0.0]
        assert all(d.policy == "budget" and d.call_id is None and d.session_id is None for d in advised)


async def test_money_is_what_the_prices_say_of_all_that_is_used() -> None:
    prices = Prices(cpu_hour=3600.0, call=0.5, gpu_hour=36.0, tokens=TokenPrices(prompt=1e6, cached=0.0, generated=2e6))
    money = BudgetRule(resource=Resource.MONEY, limit=1000.0)
    async with rig(acme(money), prices=prices) as r:
        session = r.open()
        await r.ends(r.launch(session), cpu_usec=2_000_000)
        assert r.used(session, Resource.MONEY) == pytest.approx(2.5)
        r.host.report_turn(session, Turn(prompt_tokens=5, cached_tokens=2, generated_tokens=1))
        assert r.used(session, Resource.MONEY) == pytest.approx(7.5)
        r.host.report_turn(session, Turn(prompt_tokens=5, money=0.25))
        r.host.charge(session, None, Charges(gpu_seconds=100.0))
        assert r.used(session, Resource.MONEY) == pytest.approx(8.75)


async def test_turns_are_summed_and_their_tokens_charged() -> None:
    async with rig(acme(replace(TOKENS, hard=True))) as r:
        session = r.open()
        assert r.host.session(session).turns is None
        r.host.report_turn(session, Turn(prompt_tokens=600, cached_tokens=500, generated_tokens=50, seconds=1.5))
        r.host.check_budgets(session)
        turns = r.host.report_turn(session, Turn(prompt_tokens=700, generated_tokens=1, seconds=0.5))
        assert (turns.turns, turns.prompt_tokens, turns.cached_tokens, turns.generated_tokens) == (2, 1300, 500, 51)
        assert turns.model_seconds == 2.0
        assert r.used(session, Resource.TOKENS) == 1351
        r.host.charge(session, None, Charges(gpu_seconds=2.0, joules=3.0, prefill_equivalents=4.0))
        seen = r.host.session(session).turns
        assert seen is not None
        assert (seen.gpu_seconds, seen.joules, seen.prefill_equivalents, seen.turns) == (2.0, 3.0, 4.0, 2)
        with pytest.raises(Refused) as refused:
            r.host.check_budgets(session, {Resource.TOKENS})
        assert refused.value.code == "budget_exhausted"
        r.host.check_budgets(session, {Resource.MONEY})
        with pytest.raises(Refused):
            r.launch(session)
        assert r.journal.budget_changes[-1].turns == ((session, turns),), "a turn is written at once"
        with pytest.raises(NotFound):
            r.host.charge(session, new_call_id(), Charges())


async def test_gpu_seconds_of_calls_are_their_usages() -> None:
    gpu = BudgetRule(resource=Resource.GPU_SECONDS, limit=100.0)
    async with rig(acme(gpu)) as r:
        session = r.open()
        call = r.launch(session)
        call.measured(Usage(gpu_seconds=5.0, gpu_joules=7.0))
        r.host.keeper.sampled(call)
        assert r.used(session, Resource.GPU_SECONDS) == 5.0
        await r.ends(call)  # its last reading does not know of GPUs
        assert r.used(session, Resource.GPU_SECONDS) == 5.0


async def test_a_budget_that_is_set_while_calls_run_counts_from_then_on() -> None:
    async with rig() as r:
        session = r.open()
        call = r.launch(session)
        r.uses(call, cpu_usec=50_000_000)
        r.host.set_budget(session, CPU)
        r.uses(call, cpu_usec=51_000_000)
        assert r.used(session, Resource.CPU_SECONDS, "session") == 0.0
        await r.ends(call, cpu_usec=53_000_000)
        assert r.used(session, Resource.CPU_SECONDS, "session") == pytest.approx(2.0)


async def test_a_reload_applies_budgets_and_leaves_those_of_operators() -> None:
    async with rig(acme(CPU, session=(TOKENS,))) as r:
        session = r.open()
        await r.ends(r.launch(session), cpu_usec=4_000_000)
        r.host.set_budget("acme", CALLS)
        r.host.reconfigure(replace(r.config, tenants=(acme(replace(CPU, limit=5.0), replace(CALLS, limit=99.0)),)))
        found = {b.resource: b for b in r.host.stocks(session)}
        assert set(found) == {"cpu_seconds", "calls_begun"}, "the session's went out of the file"
        assert found["cpu_seconds"].limit == 5.0
        assert found["cpu_seconds"].used == pytest.approx(4.0)
        assert found["calls_begun"].limit == 3.0, "an operator's stands"
        with pytest.raises(WrongState, match="the configuration's"):
            r.host.remove_budget("acme", Resource.CPU_SECONDS)
        left = r.host.remove_budget("acme", Resource.CALLS_BEGUN)
        assert {b.resource: b.limit for b in left}["calls_begun"] == 99.0, "the configuration's holds again"
        with pytest.raises(NotFound, match="no budget of money"):
            r.host.remove_budget("acme", Resource.MONEY)


async def test_calls_have_no_budgets() -> None:
    async with rig() as r:
        call = r.launch(r.open())
        with pytest.raises(InvalidRequest, match="this is a call"):
            r.host.set_budget(call.id, CPU)


async def test_what_the_ledger_is_given_is_charged_before_the_end_is_written() -> None:
    async with rig(acme(CPU)) as r:
        call = r.launch(r.open())
        assert r.journal.budget_changes == [], "a begin writes nothing"
        await r.ends(call, cpu_usec=1_000_000)
        assert [c.id for c in r.journal.ended] == [call.id]
        (change,) = r.journal.budget_changes
        ((scope, resource, balance),) = change.balances
        assert (scope, resource) == (call.tenant.id, Resource.CPU_SECONDS)
        assert balance.used == pytest.approx(1.0)
        ((mark),) = change.marks
        assert (mark.call_id, mark.cpu_usec) == (call.id, 1_000_000)


# --- after a restart --------------------------------------------------------------------------------------------------


async def restarted(r: Rig, call: Call, saved: SavedBudgets, *tenants: TenantConfig) -> Rig:
    """Another daemon, over what ``r`` left in the tree."""
    record = r.backend.leaves[call.id].record
    assert record is not None
    next_one = Rig(*tenants, saved=saved)
    tenant = TenantView(id=call.tenant.id, name="acme", limits=call.tenant.limits, priority=50)
    sessions: tuple[SessionRecord, ...] = (call.session.record(),)
    next_one.backend.found = Found(tenants=(tenant,), sessions=sessions, calls=(record,))
    next_one.backend.leaves[call.id] = r.backend.leaves[call.id]
    next_one.host.start()
    return next_one


@pytest.mark.parametrize("marked", [True, False])
async def test_after_a_restart_the_tail_is_charged_once(marked: bool) -> None:
    """The earlier daemon had charged 4 s of this call and 1 of another, and may have died before that was on disk."""
    async with rig(acme(CPU, CALLS)) as r:
        call = r.launch(r.open())
        tenant_id = call.tenant.id
        mark = CallMark(
            call_id=call.id,
            cpu_usec=4_000_000,
            network_bytes=0,
            gpu_seconds=0.0,
            joules=0.0,
            at=time.time(),
            memory=0,
        )
        saved = SavedBudgets(
            rules={},
            balances={
                (tenant_id, Resource.CPU_SECONDS): Balance(used=5.0 if marked else 1.0),
                (tenant_id, Resource.CALLS_BEGUN): Balance(used=2.0 if marked else 1.0),
            },
            marks={call.id: mark} if marked else {},
            turns={},
        )
        second = await restarted(r, call, saved, acme(CPU, CALLS))
        try:
            adopted = second.host.registry.call(call.id)
            second.uses(adopted, cpu_usec=4_500_000)
            assert second.used(adopted.session.id, Resource.CPU_SECONDS) == pytest.approx(5.5)
            assert second.used(adopted.session.id, Resource.CALLS_BEGUN) == 2.0
            await second.ends(adopted, cpu_usec=6_000_000)
            assert second.used(adopted.session.id, Resource.CPU_SECONDS) == pytest.approx(7.0)
        finally:
            await second.host.stop()


async def test_operators_rules_and_turns_survive() -> None:
    async with rig() as r:
        call = r.launch(r.open())
        session_id = call.session.id
        saved = SavedBudgets(
            rules={(session_id, Resource.TOKENS): TOKENS},
            balances={(session_id, Resource.TOKENS): Balance(used=900.0)},
            marks={},
            turns={session_id: replace(r.host.report_turn(session_id, Turn(prompt_tokens=900)), turns=7)},
        )
        second = await restarted(r, call, saved)
        try:
            assert second.used(session_id, Resource.TOKENS, "session") == 900.0
            turns = second.host.session(session_id).turns
            assert turns is not None
            assert turns.turns == 7
            assert second.host.stocks(session_id)[0].band is Band.LOW
        finally:
            await second.host.stop()


async def test_a_period_that_the_file_made_longer_replaces_what_the_ledger_has() -> None:
    """The ledger believes later periods: the hour's balance would hide the day's until midnight."""
    async with rig(acme(replace(CPU, period=3600.0))) as r:
        call = r.launch(r.open())
        hour = time.time() // 3600 * 3600
        saved = replace(EMPTY, balances={(call.tenant.id, Resource.CPU_SECONDS): Balance(start=hour, used=2.0)})
        second = await restarted(r, call, saved, acme(replace(CPU, period=366 * 86_400.0)))
        try:
            assert second.used(call.session.id, Resource.CPU_SECONDS) == 2.0
            (change,) = second.journal.budget_changes
            assert change.removed == ((call.tenant.id, Resource.CPU_SECONDS),)
            assert change.balances[0][2].used == 2.0
        finally:
            await second.host.stop()


async def test_views_say_what_is_left() -> None:
    async with rig(acme(CPU, session=(TOKENS,))) as r:
        session = r.open()
        snapshot = r.host.snapshot()
        assert [b.resource for t in snapshot.tenants if t.name == "acme" for b in t.budgets] == ["cpu_seconds"]
        assert [b.resource for b in snapshot.sessions[0].budgets] == ["tokens"]
        assert r.backend.sessions[session].session.budgets == (), "the tree's records stay small"
        await asyncio.sleep(0)


async def test_a_budget_that_nothing_counts_is_said() -> None:
    network = BudgetRule(resource=Resource.NETWORK_BYTES, limit=1e6, hard=True)
    async with rig(acme(network)) as r:
        session = r.open()
        await r.ends(r.launch(session), cpu_usec=5)
        assert any("budgets of network_bytes stay full" in text for text in r.host.snapshot().host.missing)
        await r.ends(r.launch(session), net_rx_bytes=0, net_tx_bytes=0)
        assert r.host.snapshot().host.missing == ()
