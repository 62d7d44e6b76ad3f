"""``agentd``: the daemon's command line. Starts it, checks its configuration, or removes everything that it made."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agentd import __version__
from agentd.config import Config, ConfigError, load, parse_override
from agentd.userdaemon import NoUserPlaces, user_defaults, user_places

DEFAULT_CONFIG: Final = Path("/etc/corral/corral.toml")
EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 78  # EX_CONFIG of sysexits.h: systemd shows it by name, and the unit does not restart on it


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    path: Path | None = options.config
    overrides: dict[str, object] = {}
    try:
        if options.user:
            path, overrides = _as_user(path)
        elif path is None and DEFAULT_CONFIG.exists():
            path = DEFAULT_CONFIG
        overrides |= dict(parse_override(text) for text in options.set)
        config = load(path, overrides=overrides)
    except NoUserPlaces as err:
        print(f"agentd: {err}", file=sys.stderr)
        return EXIT_CONFIG
    except ConfigError as err:
        print(f"agentd: {err}", file=sys.stderr)
        return EXIT_CONFIG
    if options.check:
        print(f"{path or 'the embedded defaults'}: correct")
        return 0
    if options.purge:
        return _purge(config)
    return _run(config, path, overrides)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agentd",
        description="Puts every tool call of every agent into a cgroup of its own, watches, limits and explains it.",
    )
    parser.add_argument("--version", action="version", version=f"agentd {__version__}")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_CONFIG}, else embedded defaults"
    )
    parser.add_argument(
        "--user",
        action="store_true",
        help="a daemon of this user, without root and eBPF: sockets below $XDG_RUNTIME_DIR, state below "
        "$XDG_STATE_HOME, calls in the user's corral-calls.service",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key, e.g. daemon.mode=observe"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="check the configuration and leave")
    action.add_argument(
        "--purge", action="store_true", help="end all calls, remove the cgroup tree and the pinned programs, and leave"
    )
    return parser


def _as_user(path: Path | None) -> tuple[Path | None, dict[str, object]]:
    """The configuration file of this user, if there is one, and what stands in for the keys that it leaves open."""
    places = user_places(os.environ, os.geteuid())
    if path is None and places.config.exists():
        path = places.config
    text = ""
    if path is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):  # loading it will say what is wrong with it
            text = path.read_text("utf-8")
    if places.problem:
        print(f"agentd: only observing, no limits: {places.problem}", file=sys.stderr)
    return path, user_defaults(places, text)


def _run(config: Config, path: Path | None, overrides: dict[str, object]) -> int:
    from agentd.log import configure

    handler = configure(level=config.daemon.log_level, form=config.daemon.log_format, instance=config.daemon.instance)
    try:
        # heavy imports only once the configuration is known to be right
        from agentd.daemon import Daemon, start_errors

        async def run() -> None:
            await Daemon(config, path, overrides).run()

        try:
            asyncio.run(run())
        except start_errors() as err:
            return _cannot_run(str(err), handler.as_json)
    except Exception as err:
        # a defect, or a damaged installation: its place is for the report, at debug, not for who starts a daemon
        from agentd.log import get_logger

        get_logger("corral.main").debug("internal error", exc_info=True)
        return _cannot_run(
            f"internal error: {type(err).__name__}: {err}; start it with --set daemon.log_level=debug for the place "
            "where it happened, and report that",
            handler.as_json,
        )
    return 0


def _cannot_run(cause: str, as_json: bool) -> int:
    """Once, in the form of the log: both would stand side by side on standard error."""
    if as_json:
        from agentd.log import get_logger

        get_logger("corral.main").critical("cannot run", error=cause)
    else:
        print(f"agentd: {' '.join(cause.split())}", file=sys.stderr)
    return EXIT_FAILED


def _purge(config: Config) -> int:
    from agentd.purge import PurgeError, purge

    try:
        for line in purge(config):
            print(line)
    except PurgeError as err:
        print(f"agentd: {err}", file=sys.stderr)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
