"""``top``: the dashboard, which is a client of the API like any other and is imported only here."""

from __future__ import annotations

import sys

from agentd.cli.context import Context
from agentd.cli.errors import EXIT_OK, UsageError


def top(context: Context) -> int:
    if context.args.once or context.json:
        from agentd.cli.listing import top_once

        return top_once(context)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal", remedy="for one picture as text: corral top --once")
    from agentd.cli.remote import parse_target
    from tui.app import run

    # No connection is tried here: the dashboard itself says since when the daemon is away, and comes back with it.
    run(parse_target(context.api).uri, interval=context.args.interval)
    return EXIT_OK
