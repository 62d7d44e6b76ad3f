"""The command line ``corral``. docs/cli.md has every command, its JSON and the exit statuses.

``main`` imports what the chosen command needs and nothing else: a listing pays for grpc, ``corral run`` does not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agentd.cli.errors import EXIT_FAILED, EXIT_OK, CliError

__all__ = ["main"]

_GLOBAL_FLAGS = frozenset({"--json", "--no-color"})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; ``corral run`` does not return."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(given)
    except CliError as err:
        print(f"corral: {_one_line(str(err))}", file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        return 130  # as a shell reports a death of SIGINT
    except BrokenPipeError:
        # The reader (head, a pager) has left. Python would complain once more while it flushes at exit.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _dispatch(given: list[str]) -> int:
    run_arguments = _run_arguments(given)
    if run_arguments is not None:
        from agentd.cli.launcher import run

        run(run_arguments)
    from agentd.cli.context import Context
    from agentd.cli.parser import build

    parser = build()
    args = parser.parse_args(given)
    if args.version:
        from agentd import __version__

        print(f"corral {__version__}")
        return EXIT_OK
    if args.command is None:
        parser.print_help()
        return EXIT_OK
    for name, default in (("api", None), ("json", False), ("no_color", False)):
        if not hasattr(args, name):
            setattr(args, name, default)
    from agentd.cli.commands import handler

    status = handler(args)(Context.of(args))
    sys.stdout.flush()  # a broken pipe is noticed here and not while the interpreter ends
    return status


def _run_arguments(given: list[str]) -> list[str] | None:
    """What follows ``run``, untouched, where that is the command: its options are corral-exec's to understand."""
    for position, word in enumerate(given):
        if word in _GLOBAL_FLAGS:
            continue
        return given[position + 1 :] if word == "run" else None
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
