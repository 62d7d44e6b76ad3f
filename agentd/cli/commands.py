"""Which function serves which command. Each module is imported when its command is given."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Final

from agentd.cli.context import Context

Handler = Callable[[Context], int]

# command, or "command subcommand": module of this package and function
TABLE: Final[dict[str, tuple[str, str]]] = {
    "session open": ("sessions", "open_"),
    "session exec": ("sessions", "exec_"),
    "session close": ("sessions", "close"),
    "session attach": ("attach", "attach"),
    "session detach": ("attach", "detach"),
    "session list": ("listing", "session_list"),
    "ps": ("listing", "ps"),
    "top": ("top", "top"),
    "record": ("record", "record"),
    "show": ("detail", "show"),
    "explain": ("detail", "explain"),
    "history": ("listing", "history"),
    "freeze": ("control", "act"),
    "thaw": ("control", "act"),
    "kill": ("control", "act"),
    "limits": ("control", "limits"),
    "budget": ("budget", "budget"),
    "priority": ("control", "priority"),
    "tenant set": ("control", "tenant_set"),
    "tenant list": ("listing", "tenant_list"),
    "trace": ("trace", "trace"),
    "tier": ("tier", "tier"),
    "doctor": ("doctor", "doctor"),
    "config check": ("configuration", "check"),
    "config show": ("configuration", "show"),
    "config schema": ("configuration", "show_schema"),
    "replay": ("replay.command", "replay"),
    "simulate": ("simulate", "simulate"),
}


def handler(args: argparse.Namespace) -> Handler:
    name = " ".join(part for part in (args.command, getattr(args, "subcommand", None)) if part)
    module, function = TABLE[name]
    found: Handler = getattr(importlib.import_module(f"agentd.cli.{module}"), function)
    return found
