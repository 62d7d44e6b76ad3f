"""What can go wrong on the command line, and the exit status of each.

CliError                  1   the command was understood and failed
 ├─ UsageError            2   an option or an argument makes no sense (argparse uses 2 as well)
 ├─ DaemonAway            3   no daemon answers where it was looked for
 ├─ NotPermitted          4   the daemon, or the kernel, does not let this user do it
 └─ NotFoundError         5   no such tenant, session, call, file or program

Each is printed as one line: what it is about, the cause, the remedy.
"""

from __future__ import annotations

from typing import ClassVar, Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_AWAY: Final = 3
EXIT_NOT_PERMITTED: Final = 4
EXIT_NOT_FOUND: Final = 5


class CliError(Exception):
    """Base of all. ``message`` names the object and the cause, ``remedy`` what to do about it."""

    exit_code: ClassVar[int] = EXIT_FAILED

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}; {remedy}" if remedy else message)


class UsageError(CliError):
    exit_code = EXIT_USAGE


class DaemonAway(CliError):
    exit_code = EXIT_AWAY


class NotPermitted(CliError):
    exit_code = EXIT_NOT_PERMITTED


class NotFoundError(CliError):
    exit_code = EXIT_NOT_FOUND
