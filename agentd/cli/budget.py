"""``budget``: what is left of what can be used up, and what operators set of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from agentd.amounts import parse_amount, parse_resource
from agentd.cli import targets, views
from agentd.cli.context import Context
from agentd.cli.errors import EXIT_OK, NotPermitted, UsageError
from agentd.cli.plain import Plain, to_plain
from agentd.cli.table import Cell, Column, Style
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import UnitError, format_duration, parse_duration
from controller.budget.words import human_amount

USAGE: Final = "corral budget [TARGET], budget set TARGET RESOURCE LIMIT, or budget remove TARGET RESOURCE"
_COLUMNS: Final = (
    Column(title="RESOURCE"),
    Column(title="LEFT", right=True),
    Column(title="OF", right=True),
    Column(title="USED", right=True, rank=2),
    Column(title="BAND"),
    Column(title="KIND"),
    Column(title="FULL AGAIN", least=8, rank=1),
)
_OWNED: Final = (Column(title="WHOSE", least=12), *_COLUMNS)
_BAND: Final[dict[int, Cell]] = {
    pb.BUDGET_BAND_PLENTY: Cell("plenty", Style.GOOD),
    pb.BUDGET_BAND_MEDIUM: Cell("medium"),
    pb.BUDGET_BAND_LOW: Cell("low", Style.WARN),
    pb.BUDGET_BAND_CRITICAL: Cell("critical", Style.BAD),
}


def budget(context: Context) -> int:
    words: list[str] = context.args.words
    match words:
        case []:
            _no_rule(context)
            return _list(context, None)
        case ["set", target, resource, limit]:
            return _set(context, target, resource, limit)
        case ["remove", target, resource]:
            _no_rule(context)
            return _remove(context, target, resource)
        case ["set" | "remove", *_]:
            raise UsageError(f"'budget {' '.join(words)}' is not complete", remedy=USAGE)
        case [target]:
            _no_rule(context)
            return _list(context, target)
        case _:
            raise UsageError(f"'budget {' '.join(words)}' is not understood", remedy=USAGE)


def _no_rule(context: Context) -> None:
    args = context.args
    if args.hard or args.end or args.soft or args.per is not None:
        raise UsageError("--hard, --end, --soft and --per belong to 'budget set'", remedy=USAGE)


def _list(context: Context, text: str | None) -> int:
    try:
        with context.connect() as api:
            snapshot = api.snapshot()
    except NotPermitted:
        token = context.environment.get("CORRAL_TOKEN", "")
        if text is not None or not token:
            raise
        return _list_to_agent(context, token)
    found = targets.find(snapshot, text, kinds=("session", "tenant")) if text is not None else None
    owned = [(label, held) for id_, label, held in owners(snapshot) if found is None or _shown(snapshot, found, id_)]
    if context.json:
        context.emit({"budgets": [to_plain(one) | {"of": label} for label, budgets in owned for one in budgets]})
        return EXIT_OK
    rows = [[label, *row(one, snapshot.at)] for label, budgets in owned for one in budgets]
    if rows:
        context.table(_OWNED, rows)
    else:
        whose = found.label if found is not None else "any tenant or session"
        context.say(f"no budget of {whose}; try: corral budget set TENANT cpu_seconds 10h --per 1d --hard")
    return EXIT_OK


def _list_to_agent(context: Context, token: str) -> int:
    """An agent may not see the host, but its token opens what its session and tenant have left; ceilings, too."""
    with context.connect(token=token) as api:
        budgets = api.budgets()
    if context.json:
        context.emit({"budgets": [to_plain(one) | {"of": one.scope} for one in budgets]})
    elif budgets:
        context.table(_OWNED, [[one.scope, *row(one, time.time())] for one in budgets])
    else:
        context.say("nothing is limited for this session or its tenant")
    return EXIT_OK


def _shown(snapshot: pb.SnapshotResponse, found: targets.Found, owner: str) -> bool:
    """A session's calls use its tenant's budgets, too."""
    tenant = next((s.tenant_id for s in snapshot.sessions if s.id == found.id), None)
    return owner in (found.id, tenant)


def owners(snapshot: pb.SnapshotResponse) -> list[tuple[str, str, Sequence[pb.Budget]]]:
    """Id, label and budgets of every tenant and open session, a tenant before its sessions."""
    names = views.Names.of(snapshot)
    found: list[tuple[str, str, Sequence[pb.Budget]]] = []
    for tenant in sorted(snapshot.tenants, key=lambda t: t.name):
        found.append((tenant.id, tenant.name, tenant.budgets))
        for session in sorted(snapshot.sessions, key=lambda s: s.opened_at):
            if session.tenant_id == tenant.id and not session.HasField("closed_at"):
                label = f"{tenant.name}/{names.session(session.id)} ({session.id})"
                found.append((session.id, label, session.budgets))
    return found


def row(one: pb.Budget, now: float) -> list[Cell | str]:
    refill = "never"
    if one.HasField("refills_at"):
        at = datetime.fromtimestamp(one.refills_at)
        refill = f"in {format_duration(max(0.0, one.refills_at - now))} ({at:%H:%M:%S})"
        if one.HasField("period_seconds"):
            refill += f", each {format_duration(one.period_seconds)}"
    return [
        one.resource,
        Cell(human_amount(one.resource, one.remaining), Style.BAD if one.remaining <= 0 else Style.PLAIN),
        human_amount(one.resource, one.limit),
        human_amount(one.resource, one.used),
        _BAND.get(one.band, Cell("-", Style.DIM)),
        ("hard, ends calls" if one.ends_calls else "hard") if one.hard else "soft",
        refill,
    ]


def table(context: Context, budgets: Iterable[pb.Budget], now: float) -> None:
    context.table(_COLUMNS, [row(one, now) for one in budgets])


def _set(context: Context, text: str, resource: str, limit: str) -> int:
    args = context.args
    if args.soft and (args.hard or args.end):
        raise UsageError("--soft contradicts --hard and --end", remedy="give one; soft is the default")
    try:
        kind = parse_resource(resource)
        amount = parse_amount(kind, limit)
    except UnitError as err:
        raise UsageError(str(err), remedy=USAGE) from None
    period = None
    if args.per is not None:
        try:
            period = parse_duration(args.per)
        except UnitError as err:
            raise UsageError(f"--per: {err}", remedy="for example --per 1d; left out, it is never full again") from None
    with context.connect() as api:
        snapshot = api.snapshot()
        target = targets.find(snapshot, text, kinds=("session", "tenant"))
        request = pb.SetBudgetRequest(
            target=target.id,
            resource=kind.value,
            limit=amount,
            hard=args.hard or args.end,
            ends_calls=args.end,
            period_seconds=period,
        )
        return _answered(context, target, api.set_budget(request), snapshot.at)


def _remove(context: Context, text: str, resource: str) -> int:
    try:
        kind = parse_resource(resource)
    except UnitError as err:
        raise UsageError(str(err), remedy=USAGE) from None
    with context.connect() as api:
        snapshot = api.snapshot()
        target = targets.find(snapshot, text, kinds=("session", "tenant"))
        left = api.set_budget(pb.SetBudgetRequest(target=target.id, resource=kind.value))
    return _answered(context, target, left, snapshot.at)


def _answered(context: Context, target: targets.Found, left: Sequence[pb.Budget], now: float) -> int:
    if context.json:
        shown: dict[str, Plain] = {"target": target.id, "budgets": [to_plain(one) for one in left]}
        context.emit(shown)
    elif left:
        context.say(context.heading(target.label))
        table(context, left, now)
    else:
        context.say(f"{target.label} has no budget now")
    return EXIT_OK
