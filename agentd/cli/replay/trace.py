"""Traces for commands: controller.simulate.trace reads and checks them, here its errors get their exit status."""

from __future__ import annotations

from pathlib import Path

from agentd.cli.errors import CliError, NotFoundError
from controller.simulate import trace as recorded
from controller.simulate.trace import Trace


class TraceError(CliError):
    """The file is no trace. Names the file, the field and what is wrong with it."""


def read_trace(path: Path) -> Trace:
    """Raises NotFoundError (no such file) or TraceError."""
    try:
        return recorded.read_trace(path)
    except recorded.NoTrace as err:
        raise NotFoundError(err.message, remedy=err.remedy) from None
    except recorded.TraceError as err:
        raise TraceError(err.message, remedy=err.remedy) from None
