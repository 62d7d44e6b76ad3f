"""``top``: the dashboard, which is a client of the API like any other and is imported only here."""

from __future__ import annotations

import sys
from pathlib import Path

from agentd.cli.context import Context
from agentd.cli.errors import UsageError


def top(context: Context) -> int:
    if context.args.once or context.json:
        from agentd.cli.listing import top_once

        if context.args.replay:
            raise UsageError("--once shows what is now", remedy="leave out --replay, or --once")
        return top_once(context)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal", remedy="for one picture as text: corral top --once")
    from agentd.cli.remote import parse_target
    from tui.app import DashboardError, replay, run

    args = context.args
    try:
        if args.replay:
            return replay(Path(args.replay), begin=args.at)
        # No connection is tried here: the dashboard itself says since when the daemon is away, and comes back.
        target = parse_target(context.api).uri
        return run(target, interval=args.interval, read_only=args.read_only, begin=args.at)
    except DashboardError as err:
        raise UsageError(str(err)) from None
