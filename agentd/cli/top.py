"""``top``: the dashboard, which is a client of the API like any other and is imported only here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from agentd.cli.context import Context
from agentd.cli.errors import UsageError

LISTEN: Final = "127.0.0.1:8000"


def top(context: Context) -> int:
    if context.args.once or context.json:
        from agentd.cli.listing import top_once

        if context.args.replay:
            raise UsageError("--once shows what is now", remedy="leave out --replay, or --once")
        return top_once(context)
    if context.args.web:
        return _web(context)
    if context.args.listen or context.args.public_url:
        raise UsageError("--listen and --public-url say where --web serves", remedy="add --web")
    # textual-serve runs the dashboard on pipes, and says so with the driver that it wants
    if not ("web_driver" in os.environ.get("TEXTUAL_DRIVER", "") or (sys.stdin.isatty() and sys.stdout.isatty())):
        raise UsageError(
            "top needs a terminal", remedy="for one picture as text: corral top --once; in a browser: corral top --web"
        )
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


def _web(context: Context) -> int:
    args = context.args
    try:
        from tui.web import WebError, is_loopback, serve
    except ModuleNotFoundError as err:
        raise UsageError(
            f"{err.name} is not installed, which serves the dashboard to a browser",
            remedy="install the extra 'web' beside Corral: pip install 'corral[web]'",
        ) from None
    host, port = _listening(args.listen or LISTEN)
    public = args.public_url or ""
    if public and (urlsplit(public).scheme not in ("http", "https") or not urlsplit(public).netloc):
        raise UsageError(f"--public-url {public!r} is no address", remedy="give one like https://top.example.com")
    if not is_loopback(host):
        print(
            f"{host} is reached from other machines, and nothing encrypts what goes there: "
            "let a proxy with TLS stand before it (--public-url)",
            file=context.err,
        )
    what = "--read-only is set: it can only look" if args.read_only else "whoever has this address acts as you"
    print(f"corral top in a browser, until Ctrl-C ({what}):", file=context.err, flush=True)
    try:
        return serve(_page_command(context), host=host, port=port, public=public)
    except WebError as err:
        raise UsageError(str(err)) from None


def _page_command(context: Context) -> list[str]:
    """What runs for each page that is opened."""
    args = context.args
    command = [sys.executable, "-m", "agentd.cli", "--api", context.api, "top", "--interval", str(args.interval)]
    if args.read_only:
        command.append("--read-only")
    for option, value in (("--at", args.at), ("--replay", args.replay and str(Path(args.replay).resolve()))):
        if value:
            command += [option, value]
    return command


def _listening(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise UsageError(f"--listen {text!r} is no address", remedy="give HOST:PORT, e.g. 127.0.0.1:8000 or [::1]:8000")
    return host.removeprefix("[").removesuffix("]"), int(port)
