"""Budgets in the ledger: what is written comes back, in whatever pieces the batches came, and outlives retention."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.ledger import Ledger, LedgerDamagedRecord, LedgerReader
from agentd.ledger import schema as ledger_schema
from agentd.ledger.retention import Retention, RetentionPolicy
from controller.model import (
    Balance,
    BudgetChange,
    BudgetRule,
    CallMark,
    Resource,
    SavedBudgets,
    Turns,
    new_call_id,
    new_session_id,
    new_tenant_id,
)
from tests.unit.ledger_objects import call, ended, nothing, session, tenant

TENANT = new_tenant_id()
CPU, TOKENS = Resource.CPU_SECONDS, Resource.TOKENS
ENDS = BudgetRule(resource=CPU, limit=0.0, hard=True, ends_calls=True)
RULE = BudgetRule(resource=TOKENS, limit=1e6, hard=True, period=3600.0)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger.db")
    yield opened
    await opened.close()


async def saved(ledger: Ledger) -> SavedBudgets:
    await ledger.flush()
    with LedgerReader(ledger.path) as reader:
        return reader.budgets()


def mark(**more: object) -> CallMark:
    values: dict[str, object] = {
        "call_id": new_call_id(),
        "cpu_usec": 7,
        "network_bytes": 1 << 70,
        "gpu_seconds": 0.5,
        "joules": 1.5,
        "at": 1.75e9,
        "memory": 1 << 30,
    }
    return CallMark(**{**values, **more})  # type: ignore[arg-type]  # the table mixes types


async def test_everything_comes_back(ledger: Ledger) -> None:
    of_session = new_session_id()
    one = mark()
    turns = Turns(turns=3, prompt_tokens=5, cached_tokens=4, generated_tokens=2, model_seconds=1.5, joules=0.25)
    ledger.budgets_changed(
        BudgetChange(
            rules=((of_session, RULE), (TENANT, ENDS)),
            balances=((TENANT, CPU, Balance(start=0.0, used=1.25)),),
            marks=(one,),
            turns=((of_session, turns),),
        )
    )
    found = await saved(ledger)
    assert found.rules == {(of_session, TOKENS): RULE, (TENANT, CPU): ENDS}
    assert found.balances == {(TENANT, CPU): Balance(used=1.25)}
    assert found.turns == {of_session: turns}
    (kept,) = found.marks.values()
    assert (kept.cpu_usec, kept.gpu_seconds, kept.at) == (7, 0.5, 1.75e9)
    assert kept.network_bytes == (1 << 63) - 1, "what no counter reaches does not cost the batch"


@pytest.mark.parametrize("batched", [True, False])
async def test_the_last_word_counts_and_old_batches_take_nothing_back(ledger: Ledger, batched: bool) -> None:
    for balance in (
        Balance(start=100.0, used=5.0),
        Balance(start=100.0, used=9.0),
        Balance(start=200.0, used=1.0),
    ):
        ledger.budgets_changed(BudgetChange(balances=((TENANT, CPU, balance),)))
        if not batched:
            await ledger.flush()
    assert (await saved(ledger)).balances == {(TENANT, CPU): Balance(start=200.0, used=1.0)}
    for again in (Balance(start=100.0, used=9.0), Balance(start=200.0, used=0.5)):
        await ledger.flush()
        ledger.budgets_changed(BudgetChange(balances=((TENANT, CPU, again),)))
    assert (await saved(ledger)).balances == {(TENANT, CPU): Balance(start=200.0, used=1.0)}


@pytest.mark.parametrize("batched", [True, False])
async def test_what_was_removed_is_gone_and_may_come_again(ledger: Ledger, batched: bool) -> None:
    key = (TENANT, TOKENS)
    changes = (
        BudgetChange(rules=((TENANT, RULE),), balances=((*key, Balance(start=3600.0, used=9.0)),)),
        BudgetChange(removed=(key,), balances=((*key, Balance(start=0.0, used=2.0)),)),
    )
    for change in changes:
        ledger.budgets_changed(change)
        if not batched:
            await ledger.flush()
    found = await saved(ledger)
    assert found.rules == {}
    assert found.balances == {key: Balance(used=2.0)}, "an earlier period, since the rule is new"
    ledger.budgets_changed(BudgetChange(removed=(key,)))
    assert (await saved(ledger)).balances == {}


async def test_a_mark_goes_with_the_end_of_its_call(ledger: Ledger) -> None:
    finished, running = ended(call()), call()
    for one in (finished, running):
        ledger.call_begun(one)
        ledger.budgets_changed(BudgetChange(marks=(mark(call_id=one.id),)))
    ledger.call_ended(finished, nothing)
    assert set((await saved(ledger)).marks) == {running.id}


async def test_retention_forgets_sessions_and_keeps_tenants(ledger: Ledger) -> None:
    acme = tenant()
    old, open_ = session(acme, opened_at=1000.0), session(acme, opened_at=1000.0)
    for one in (old, open_):
        ledger.session_opened(one)
    ledger.session_closed(old.id, 2000.0)
    for scope in (acme.id, old.id, open_.id):
        ledger.budgets_changed(
            BudgetChange(
                rules=((scope, RULE),), balances=((scope, TOKENS, Balance(used=1.0)),), turns=((scope, Turns(turns=1)),)
            )
        )
    await ledger.flush()
    connection = ledger_schema.open_for_writing(ledger.path)
    retention = Retention(RetentionPolicy(max_age_days=1.0), time.time())
    while retention.step(connection):
        pass
    connection.close()
    found = await saved(ledger)
    for kept in (found.rules, found.balances):
        assert {scope for scope, _ in kept} == {acme.id, open_.id}
    assert set(found.turns) == {acme.id, open_.id}


@pytest.mark.parametrize(
    ("table", "statement"),
    [
        ("budgets", "INSERT INTO budgets VALUES ('t-1', 'apples', 1.0, 0, NULL)"),
        ("budgets", "INSERT INTO budgets VALUES ('t-1', 'tokens', -1.0, 0, NULL)"),
        ("balances", "INSERT INTO balances VALUES ('t-1', 'apples', 0.0, 1.0)"),
    ],
)
async def test_a_damaged_record_is_named(ledger: Ledger, table: str, statement: str) -> None:
    connection = ledger_schema.open_for_writing(ledger.path)
    connection.execute(statement)
    connection.close()
    with pytest.raises(LedgerDamagedRecord, match=f"t-1 and .* in {table}"):
        await saved(ledger)
