"""What every command gets: its arguments, where to print, and how to reach the daemon."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from agentd.cli.errors import CliError
from agentd.cli.plain import Plain, dump
from agentd.cli.table import Cell, Column, Style, paint, render, render_pairs
from agentd.sockets import OPERATOR, default_socket

if TYPE_CHECKING:
    from agentd.cli.api import Api


@dataclass(slots=True)
class Context:
    """``width`` None: the output is not a terminal, and nothing is cut."""

    args: argparse.Namespace
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    width: int | None = None
    colour: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> Context:
        terminal = sys.stdout.isatty()
        colour = (
            terminal
            and not getattr(args, "no_color", False)
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb"
        )
        width = max(40, shutil.get_terminal_size((100, 24)).columns) if terminal else None
        return cls(args, width=width, colour=colour)

    @property
    def json(self) -> bool:
        return bool(getattr(self.args, "json", False))

    @property
    def api(self) -> str:
        """``--api``, else CORRAL_API, else the operator socket of the user's own daemon or the host's."""
        named = getattr(self.args, "api", None) or self.environment.get("CORRAL_API")
        return named or f"unix:{default_socket(OPERATOR, self.environment)}"

    def connect(self, *, token: str = "") -> Api:
        """Raises DaemonAway, NotPermitted or UsageError."""
        from agentd.cli.api import Api
        from agentd.cli.remote import Remote

        return Api(Remote(self.api, token=token))

    def say(self, *lines: str) -> None:
        for line in lines:
            print(line, file=self.out)

    def note(self, text: str) -> None:
        """To stderr: what a person should know and a script reading stdout should not see."""
        print(text, file=self.err)

    def emit(self, value: Plain) -> None:
        print(dump(value), file=self.out)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell | str]]) -> None:
        self.say(*render(columns, rows, width=self.width, colour=self.colour))

    def pairs(self, pairs: Iterable[tuple[str, Cell | str]]) -> None:
        self.say(*render_pairs(pairs, width=self.width, colour=self.colour))

    def heading(self, text: str) -> str:
        return paint(text, Style.HEADING, self.colour)

    def confirm(self, question: str) -> None:
        """Ask on a terminal, unless ``-y``; elsewhere the command line is the decision. Raises CliError on no."""
        if getattr(self.args, "yes", False) or not sys.stdin.isatty():
            return
        print(f"{question} [y/N] ", end="", file=self.err, flush=True)
        answer = sys.stdin.readline().strip().lower()
        if answer not in ("y", "yes"):
            raise CliError("nothing was done", remedy="answer y, or give -y")
