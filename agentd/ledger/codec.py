"""Model objects to rows and back.

Nothing that an agent chose may keep its batch from being written: text that is no valid Unicode (lone surrogates) is
replaced, counters beyond 64 bits are capped, and numbers that JSON cannot carry (infinities, NaN) travel as text.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import msgspec

from agentd.ledger.errors import LedgerDamagedRecord
from agentd.ledger.records import Sample, Switch
from controller.model import (
    Action,
    CallId,
    CallState,
    CallView,
    ControllerError,
    Decision,
    Grant,
    Intent,
    Limits,
    Outcome,
    Reason,
    Recognition,
    SessionId,
    SessionView,
    TenantId,
    TenantView,
    Usage,
)

Value = str | int | float | None
Row = tuple[Value, ...]

USAGE: Final = tuple(f.name for f in fields(Usage))
SAMPLED: Final = tuple(f.name for f in fields(Sample) if f.name not in ("call_id", "at", "state"))

TENANT: Final = ("id", "name", "priority", "limits")
SESSION: Final = ("id", "tenant_id", "name", "uid", "opened_at", "closed_at", "labels", "container", "rules")
BEGUN: Final = (
    *("id", "tenant_id", "session_id", "parent_id", "command", "tool", "call_class", "intent", "grant", "priority"),
    *("enforced", "state", "begun_at", "held_since", "held_seconds", "brakes", "cgroup", "recognition", *USAGE),
)
OUTCOME: Final = ("ended_at", "reason", "wait_status", "wall_seconds", "leftovers", "summary", "suggestions")
ENDED: Final = (*BEGUN, *OUTCOME)
DECISION: Final = ("at", "action", "policy", "reason", "tenant_id", "session_id", "call_id", "evidence")
SWITCH: Final = tuple(f.name for f in fields(Switch))
SAMPLE: Final = ("slot", "call", "at", "state", *SAMPLED)

SLOT_SECONDS: Final = 10  # as in 0001_initial.sql

# As in 0001_initial.sql. Thinning takes the maximum, so the more remarkable state has the larger number.
STATE_NUMBER: Final = {
    CallState.QUEUED: 0,
    CallState.ENDED: 1,
    CallState.RUNNING: 2,
    CallState.FROZEN: 3,
    CallState.BRAKED: 4,
    CallState.THROTTLED: 5,
}
_STATE: Final = {number: state for state, number in STATE_NUMBER.items()}

_INT64_MAX: Final = (1 << 63) - 1
_usage_values = attrgetter(*USAGE)
_sampled_values = attrgetter(*SAMPLED)

_Odd = Literal["inf", "-inf", "nan"]
_intent = msgspec.json.Decoder(Intent)
_grant = msgspec.json.Decoder(Grant)
_limits = msgspec.json.Decoder(Limits)
_recognition = msgspec.json.Decoder(Recognition)
_labels = msgspec.json.Decoder(dict[str, str])
_suggestions = msgspec.json.Decoder(tuple[str, ...])
_evidence = msgspec.json.Decoder(dict[str, float | _Odd])


def tenant_row(tenant: TenantView) -> Row:
    return (tenant.id, _text(tenant.name), tenant.priority, _json(tenant.limits))


def session_row(session: SessionView) -> Row:
    return (
        session.id,
        session.tenant_id,
        _text(session.name),
        session.uid,
        session.opened_at,
        session.closed_at,
        _json(session.labels),
        _text(session.container),
        _text(session.rules),
    )


def begun_row(call: CallView) -> Row:
    return _call_row(call, call.state, call.held_since, call.held_seconds, call.usage)


def ended_row(call: CallView, outcome: Outcome) -> Row:
    return (
        *_call_row(call, CallState.ENDED, None, outcome.held_seconds, outcome.usage),
        outcome.ended_at,
        outcome.reason.value,
        outcome.wait_status,
        outcome.wall_seconds,
        outcome.leftovers,
        _text(outcome.summary),
        _json(outcome.suggestions),
    )


def decision_row(decision: Decision) -> Row:
    return (
        decision.at,
        decision.action.value,
        _text(decision.policy),
        _text(decision.reason),
        decision.tenant_id,
        decision.session_id,
        decision.call_id,
        _json({name: number if math.isfinite(number) else str(number) for name, number in decision.evidence.items()}),
    )


def switch_row(switch: Switch) -> Row:
    return (
        switch.at,
        switch.tenant_id,
        switch.session_id,
        _text(switch.engine),
        _text(switch.conversation),
        switch.kind,
        _text(switch.why),
        min(switch.tokens, _INT64_MAX),
        min(switch.bytes, _INT64_MAX),
        switch.seconds,
    )


def slot_of(at: float) -> int:
    return int(at // SLOT_SECONDS)


def sample_row(slot: int, call_seq: int, at: float, state: CallState, usage: Usage) -> Row:
    return (slot, call_seq, at, STATE_NUMBER[state], *_sampled_values(usage))


def tenant(row: sqlite3.Row, path: Path) -> TenantView:
    """``memory_now`` and ``cpu_usec`` are live figures, which the ledger does not keep."""
    try:
        return TenantView(
            id=TenantId(row["id"]),
            name=row["name"],
            limits=_limits.decode(row["limits"]),
            priority=row["priority"],
        )
    except (msgspec.DecodeError, ControllerError) as err:
        _damaged(path, "tenants", row["id"], err)


def session(row: sqlite3.Row, path: Path) -> SessionView:
    try:
        return SessionView(
            id=SessionId(row["id"]),
            tenant_id=TenantId(row["tenant_id"]),
            name=row["name"],
            uid=row["uid"],
            opened_at=row["opened_at"],
            closed_at=row["closed_at"],
            labels=_labels.decode(row["labels"]),
            container=row["container"],
            rules=row["rules"],
        )
    except (msgspec.DecodeError, ControllerError) as err:
        _damaged(path, "sessions", row["id"], err)


def call(row: sqlite3.Row, decisions: Sequence[Decision], path: Path) -> CallView:
    """``decisions``: all that the ledger has of this call, in order of time."""
    try:
        usage = Usage(**{name: row[name] for name in USAGE})
        outcome = None
        if row["ended_at"] is not None:
            outcome = Outcome(
                call_id=CallId(row["id"]),
                reason=Reason(row["reason"]),
                ended_at=row["ended_at"],
                wait_status=row["wait_status"],
                usage=usage,
                wall_seconds=row["wall_seconds"],
                held_seconds=row["held_seconds"],
                decisions=tuple(decisions),
                summary=row["summary"],
                suggestions=_suggestions.decode(row["suggestions"]),
                leftovers=row["leftovers"],
            )
        parent_id = row["parent_id"]
        return CallView(
            id=CallId(row["id"]),
            session_id=SessionId(row["session_id"]),
            tenant_id=TenantId(row["tenant_id"]),
            parent_id=None if parent_id is None else CallId(parent_id),
            command=row["command"],
            intent=_intent.decode(row["intent"]),
            grant=_grant.decode(row["grant"]),
            state=CallState(row["state"]),
            begun_at=row["begun_at"],
            held_since=row["held_since"],
            held_seconds=row["held_seconds"],
            brakes=row["brakes"],
            usage=usage,
            cgroup=row["cgroup"],
            recognition=None if row["recognition"] is None else _recognition.decode(row["recognition"]),
            outcome=outcome,
        )
    except (msgspec.DecodeError, ControllerError, ValueError, TypeError) as err:
        _damaged(path, "calls", row["id"], err)


def decision(row: sqlite3.Row, path: Path) -> Decision:
    try:
        session_id, call_id = row["session_id"], row["call_id"]
        return Decision(
            at=row["at"],
            action=Action(row["action"]),
            policy=row["policy"],
            reason=row["reason"],
            tenant_id=TenantId(row["tenant_id"]),
            session_id=None if session_id is None else SessionId(session_id),
            call_id=None if call_id is None else CallId(call_id),
            evidence={name: float(number) for name, number in _evidence.decode(row["evidence"]).items()},
        )
    except (msgspec.DecodeError, ControllerError, ValueError) as err:
        _damaged(path, "decisions", str(row["seq"]), err)


def switch(row: sqlite3.Row) -> Switch:
    return Switch(**{name: row[name] for name in SWITCH})


def sample(row: sqlite3.Row, path: Path) -> Sample:
    state = _STATE.get(row["state"])
    if state is None:
        _damaged(path, "samples", row["call_id"], ValueError(f"state {row['state']} is none of {sorted(_STATE)}"))
    return Sample(call_id=CallId(row["call_id"]), at=row["at"], state=state, **{name: row[name] for name in SAMPLED})


def _call_row(call: CallView, state: CallState, held_since: float | None, held_seconds: float, usage: Usage) -> Row:
    return (
        call.id,
        call.tenant_id,
        call.session_id,
        call.parent_id,
        _text(call.command),
        _text(call.intent.tool),
        _text(call.intent.call_class),
        _json(call.intent),
        _json(call.grant),
        call.grant.priority,
        int(call.grant.enforced),
        state.value,
        call.begun_at,
        held_since,
        held_seconds,
        call.brakes,
        _text(call.cgroup),
        None if call.recognition is None else _json(call.recognition),
        *(None if number is None else min(number, _INT64_MAX) for number in _usage_values(usage)),
    )


def _text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _json(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode("utf-8")
    except UnicodeEncodeError:
        return msgspec.json.encode(_clean(msgspec.to_builtins(value))).decode("utf-8")


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return {_clean(name): _clean(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value


def _damaged(path: Path, table: str, key: str, err: Exception) -> NoReturn:
    raise LedgerDamagedRecord(
        path,
        f"record {key} of {table} does not decode: {err}",
        f"delete that row with the sqlite3 shell while agentd is stopped, or report it if Corral alone wrote {table}",
    ) from err
