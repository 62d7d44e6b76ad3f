"""``show`` of a session or a tenant."""

from __future__ import annotations

from agentd.cli import budget, views, words
from agentd.cli.context import Context
from agentd.cli.control import limit_pairs
from agentd.cli.errors import EXIT_OK, NotFoundError
from agentd.cli.plain import to_plain
from agentd.cli.table import Cell
from agentd.cli.targets import find
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import format_bytes, format_duration
from controller.budget.words import human_amount

_Pairs = list[tuple[str, Cell | str]]


def show(context: Context) -> int:
    """What TARGET names. Raises NotFoundError where that is nothing."""
    text: str = context.args.call
    with context.connect() as api:
        snapshot = api.snapshot(with_ended=True)
    try:
        found = find(snapshot, text, kinds=("session", "tenant"))
    except NotFoundError as err:
        raise NotFoundError(f"no call, session or tenant {text!r}", remedy=err.remedy) from None
    calls = [c for c in snapshot.calls if found.id in (c.session_id, c.tenant_id) and c.state != pb.CALL_STATE_ENDED]
    session = next((s for s in snapshot.sessions if s.id == found.id), None)
    tenant = next(t for t in snapshot.tenants if t.id == (session.tenant_id if session is not None else found.id))
    names = views.Names.of(snapshot)
    if context.json:
        shown = to_plain(session) if session is not None else to_plain(tenant)
        context.emit({found.kind: shown, "calls": [views.call_plain(call, names) for call in calls]})
        return EXIT_OK
    context.say(context.heading(found.label))
    context.pairs(_session(session, tenant, snapshot.at) if session is not None else _tenant(tenant, snapshot))
    if session is not None and session.budgets:
        context.say("", context.heading("its budgets"))
        budget.table(context, session.budgets, snapshot.at)
    if tenant.budgets:
        context.say("", context.heading("its budgets" if session is None else f"budgets of tenant {tenant.name}"))
        budget.table(context, tenant.budgets, snapshot.at)
    if session is not None and session.HasField("turns"):
        context.say("", context.heading("turns of its model"))
        context.pairs(_turns(session.turns))
    if calls:
        context.say("", context.heading("calls"))
        context.table(views.CALL_COLUMNS, views.call_rows(calls, names, snapshot.at))
    return EXIT_OK


def _session(session: pb.Session, tenant: pb.Tenant, now: float) -> _Pairs:
    closed = session.HasField("closed_at")
    pairs: _Pairs = [
        ("tenant", f"{tenant.name} ({tenant.id})"),
        ("name", session.name or "-"),
        ("user", str(session.uid)),
        ("opened", f"{words.moment(session.opened_at)} ({format_duration(max(0.0, now - session.opened_at))} ago)"),
        ("state", f"closed {words.moment(session.closed_at)}" if closed else "open"),
        ("labels", " ".join(f"{key}={value}" for key, value in sorted(session.labels.items())) or "-"),
    ]
    if session.rules:
        pairs.append(("attached", f"its calls are recognised by the rules {session.rules}"))
    if session.container:
        pairs.append(("container", session.container))
    return pairs


def _tenant(tenant: pb.Tenant, snapshot: pb.SnapshotResponse) -> _Pairs:
    sessions = [s for s in snapshot.sessions if s.tenant_id == tenant.id and not s.HasField("closed_at")]
    return [
        ("id", tenant.id),
        ("priority", str(tenant.priority)),
        ("memory now", format_bytes(tenant.memory_now_bytes) if tenant.HasField("memory_now_bytes") else "-"),
        ("cpu used", words.cpu(tenant.cpu_usec)),
        ("sessions", str(len(sessions))),
        *limit_pairs(tenant.limits),
    ]


def _turns(turns: pb.Turns) -> _Pairs:
    computed = turns.prompt_tokens - turns.cached_tokens
    pairs: _Pairs = [
        ("turns", f"{turns.turns:,} in {format_duration(turns.model_seconds)}"),
        ("tokens", f"{computed:,} computed, {turns.cached_tokens:,} cached, {turns.generated_tokens:,} generated"),
    ]
    for name, value in (("gpu_seconds", turns.gpu_seconds), ("joules", turns.joules)):
        if value:
            pairs.append((name.replace("_", " "), human_amount(name, value)))
    if turns.prefill_equivalents:
        pairs.append(("prefill tokens", f"{turns.prefill_equivalents:,.0f} equivalents"))
    return pairs
