"""``ps``, ``history``, ``session list``, ``tenant list`` and ``top --once``: what there is, as tables."""

from __future__ import annotations

import time

from agentd.cli import views
from agentd.cli.context import Context
from agentd.cli.errors import EXIT_OK, UsageError
from agentd.cli.plain import to_plain
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import UnitError, parse_duration

MAX_HISTORY = 10_000  # what the daemon gives at once


def ps(context: Context) -> int:
    args = context.args
    with context.connect() as api:
        snapshot = api.snapshot(with_ended=args.all)
    calls = views.select(
        snapshot,
        tenant=args.tenant,
        session=args.session,
        state=args.state,
        sort=args.sort,
        reverse=args.reverse,
    )
    names = views.Names.of(snapshot)
    if context.json:
        context.emit(
            {
                "at": snapshot.at,
                "host": to_plain(snapshot.host),
                "calls": [views.call_plain(call, names) for call in calls],
            }
        )
        return EXIT_OK
    if not calls:
        filtered = args.tenant or args.session or args.state
        context.say("no call matches; try: corral ps" if filtered and snapshot.calls else views.NOTHING_RUNNING)
    else:
        context.table(views.CALL_COLUMNS, views.call_rows(calls, names, snapshot.at))
    for line in views.limitations(snapshot.host):
        context.note(line)
    return EXIT_OK


def top_once(context: Context) -> int:
    """The host, and the calls by memory: one picture of what the dashboard shows."""
    with context.connect() as api:
        snapshot = api.snapshot()
    names = views.Names.of(snapshot)
    calls = views.select(snapshot, sort="memory")
    if context.json:
        context.emit(
            {
                "at": snapshot.at,
                "host": to_plain(snapshot.host),
                "tenants": [to_plain(tenant) for tenant in snapshot.tenants],
                "calls": [views.call_plain(call, names) for call in calls],
            }
        )
        return EXIT_OK
    context.say(*views.host_lines(snapshot), "")
    if calls:
        context.table(views.CALL_COLUMNS, views.call_rows(calls, names, snapshot.at))
    else:
        context.say(views.NOTHING_RUNNING)
    return EXIT_OK


def history(context: Context) -> int:
    args = context.args
    now = time.time()
    # The daemon does not filter by reason: then as many as it gives are asked for, and the limit is applied here.
    request = pb.HistoryRequest(
        since=ago("--since", args.since, now),
        until=ago("--until", args.until, now),
        tenant=args.tenant,
        limit=MAX_HISTORY if args.reason else args.limit,
        with_decisions=context.json,
    )
    with context.connect() as api:
        snapshot = api.snapshot(with_ended=True)
        if args.session:
            request.session_id = session_id(snapshot, args.session)
        reply = api.history(request)
    names = views.Names.of(snapshot).also(reply.names)
    calls = [call for call in reply.calls if not args.reason or call.outcome.reason == args.reason][: args.limit]
    if context.json:
        context.emit(
            {
                "calls": [views.call_plain(call, names) for call in calls],
                "decisions": [to_plain(decision) for decision in reply.decisions],
            }
        )
        return EXIT_OK
    if not calls:
        context.say("the ledger holds no such call; try: corral history --since 7d")
        return EXIT_OK
    context.table(views.HISTORY_COLUMNS, views.history_rows(calls, names))
    return EXIT_OK


def session_list(context: Context) -> int:
    args = context.args
    with context.connect() as api:
        snapshot = api.snapshot(with_ended=args.all)
    names = views.Names.of(snapshot)
    sessions = [
        session
        for session in sorted(snapshot.sessions, key=lambda s: (s.opened_at, s.id))
        if (args.all or not session.HasField("closed_at"))
        and (not args.tenant or args.tenant in (session.tenant_id, names.tenant(session.tenant_id)))
    ]
    if context.json:
        context.emit(
            {"sessions": [to_plain(session) | {"tenant": names.tenant(session.tenant_id)} for session in sessions]}
        )
        return EXIT_OK
    if not sessions:
        context.say("no session is open; try: corral session open --tenant NAME")
        return EXIT_OK
    context.table(views.SESSION_COLUMNS, views.session_rows(snapshot, sessions))
    return EXIT_OK


def tenant_list(context: Context) -> int:
    with context.connect() as api:
        snapshot = api.snapshot()
    if context.json:
        context.emit({"tenants": [to_plain(tenant) for tenant in snapshot.tenants]})
        return EXIT_OK
    if not snapshot.tenants:
        context.say("no tenant yet; try: corral tenant set NAME --memory-max 4G, or name them in the configuration")
        return EXIT_OK
    context.table(views.TENANT_COLUMNS, views.tenant_rows(snapshot))
    return EXIT_OK


def ago(option: str, text: str | None, now: float) -> float | None:
    """Unix seconds of "1h" (that long ago), "2026-11-24T13:00" (local time) or a number of unix seconds."""
    from datetime import datetime

    if text is None:
        return None
    if text.replace(".", "", 1).isdecimal() and float(text) > 1e9:
        return float(text)
    try:
        return now - parse_duration(text)
    except UnitError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{option} {text!r} is neither a duration nor a time", remedy="for example 1h, 30m or 2026-11-24T13:00"
        ) from None


def session_id(snapshot: pb.SnapshotResponse, text: str) -> str:
    """The id of the session that ``text`` names. An id that the daemon no longer shows is taken as it is: the ledger
    keeps sessions for longer than a snapshot does."""
    from agentd.cli.errors import NotFoundError
    from agentd.cli.targets import find

    try:
        return find(snapshot, text, kinds=("session",)).id
    except NotFoundError:
        if text.startswith("s-"):
            return text
        raise
