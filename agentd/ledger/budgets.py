"""Budgets in the ledger: several changes into one transaction, and all of it back at the start."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final, NoReturn

from agentd.ledger.errors import LedgerDamagedRecord
from controller.model import (
    Balance,
    BudgetChange,
    BudgetRule,
    CallId,
    CallMark,
    ControllerError,
    Resource,
    SavedBudgets,
    Turns,
)

_INT64_MAX: Final = (1 << 63) - 1
_TURNS: Final = tuple(f.name for f in fields(Turns))

_REMOVE: Final = (
    "DELETE FROM budgets WHERE scope = ? AND resource = ?",
    "DELETE FROM balances WHERE scope = ? AND resource = ?",
)
_RULE: Final = "INSERT OR REPLACE INTO budgets (scope, resource, amount, hard, period) VALUES (?, ?, ?, ?, ?)"
# Within a period use only grows: a batch that comes again takes nothing back.
_BALANCE: Final = (
    "INSERT INTO balances (scope, resource, start, used) VALUES (?, ?, ?, ?) ON CONFLICT (scope, resource) DO UPDATE "
    "SET used = CASE WHEN excluded.start > start THEN excluded.used ELSE max(used, excluded.used) END, "
    "start = excluded.start WHERE excluded.start >= start"
)
_MARK: Final = (
    "INSERT OR REPLACE INTO charged (call_id, cpu_usec, network_bytes, gpu_seconds, joules, at, memory) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_ENDED: Final = "DELETE FROM charged WHERE call_id = ?"
_PUT_TURNS: Final = f"INSERT OR REPLACE INTO turns (session_id, {', '.join(_TURNS)}) VALUES (?{', ?' * len(_TURNS)})"  # noqa: S608
# of sessions that the ledger has forgotten
FORGET: Final = tuple(
    f"DELETE FROM {table} WHERE {column} = ?"  # noqa: S608 - constants
    for table, column in (("budgets", "scope"), ("balances", "scope"), ("turns", "session_id"))
)

_Key = tuple[str, Resource]


def write(connection: sqlite3.Connection, changes: Sequence[BudgetChange], ended: Iterable[CallId]) -> None:
    """Within the transaction of their batch. Of what changed several times the last counts. ``ended``: calls whose end
    is in the same batch; they are charged in full, and their marks go."""
    removed: dict[_Key, None] = {}
    rules: dict[_Key, BudgetRule] = {}
    balances: dict[_Key, Balance] = {}
    marks: dict[CallId, CallMark] = {}
    turns: dict[str, Turns] = {}
    for change in changes:
        for key in change.removed:
            removed[key] = None
            rules.pop(key, None)
            balances.pop(key, None)
        rules |= {(scope, rule.resource): rule for scope, rule in change.rules}
        balances |= {(scope, resource): balance for scope, resource, balance in change.balances}
        marks |= {mark.call_id: mark for mark in change.marks}
        turns |= dict(change.turns)
    for statement in _REMOVE:
        connection.executemany(statement, [(scope, r.value) for scope, r in removed])
    connection.executemany(_RULE, [_rule_row(scope, rule) for (scope, _), rule in rules.items()])
    connection.executemany(_BALANCE, [(scope, r.value, b.start, b.used) for (scope, r), b in balances.items()])
    connection.executemany(_MARK, [_mark_row(mark) for mark in marks.values()])
    connection.executemany(_ENDED, [(call_id,) for call_id in ended])
    connection.executemany(_PUT_TURNS, [(of, *(getattr(t, name) for name in _TURNS)) for of, t in turns.items()])


def _rule_row(scope: str, rule: BudgetRule) -> tuple[str | int | float | None, ...]:
    return (scope, rule.resource.value, rule.limit, rule.hard + rule.ends_calls, rule.period)


def _mark_row(mark: CallMark) -> tuple[str | int | float, ...]:
    return (
        mark.call_id,
        min(mark.cpu_usec, _INT64_MAX),
        min(mark.network_bytes, _INT64_MAX),
        mark.gpu_seconds,
        mark.joules,
        mark.at,
        min(mark.memory, _INT64_MAX),
    )


def read(connection: sqlite3.Connection, path: Path) -> SavedBudgets:
    """Everything. Raises LedgerDamagedRecord, and sqlite3.Error."""
    rules: dict[_Key, BudgetRule] = {}
    balances: dict[_Key, Balance] = {}
    for row in connection.execute("SELECT * FROM budgets"):
        try:
            rule = BudgetRule(
                resource=Resource(row["resource"]),
                limit=row["amount"],
                hard=row["hard"] > 0,
                ends_calls=row["hard"] > 1,
                period=row["period"],
            )
        except (ValueError, ControllerError) as err:
            _damaged(path, "budgets", row, err)
        rules[row["scope"], rule.resource] = rule
    for row in connection.execute("SELECT * FROM balances"):
        try:
            resource = Resource(row["resource"])
        except ValueError as err:
            _damaged(path, "balances", row, err)
        balances[row["scope"], resource] = Balance(start=row["start"], used=row["used"])
    marks = {
        CallId(row["call_id"]): CallMark(**{**dict(row), "call_id": CallId(row["call_id"])})
        for row in connection.execute("SELECT * FROM charged")
    }
    turns = {
        row["session_id"]: Turns(**{name: row[name] for name in _TURNS})
        for row in connection.execute("SELECT * FROM turns")
    }
    return SavedBudgets(rules=rules, balances=balances, marks=marks, turns=turns)


def _damaged(path: Path, table: str, row: sqlite3.Row, err: Exception) -> NoReturn:
    raise LedgerDamagedRecord(
        path,
        f"the record of {row['scope']} and {row['resource']} in {table} does not decode: {err}",
        f"delete that row with the sqlite3 shell while agentd is stopped, or report it if Corral alone wrote {table}",
    ) from err
