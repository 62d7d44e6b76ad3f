"""What the fields of a request may hold, apart from an intent and limits (convert.py). All raise InvalidRequest."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Final

from controller.model import CallId, InvalidRequest, SessionId, check_text, is_id, is_name
from controller.model.intent import MAX_PIDS

MAX_SESSION_NAME: Final = 128  # characters
MAX_LABELS: Final = 16
MAX_LABEL_KEY: Final = 64
MAX_ARGUMENTS: Final = 4096
MAX_ARGUMENT_BYTES: Final = 131_072  # of all together; the kernel's own limit for one argument (MAX_ARG_STRLEN)
MAX_UID: Final = 0xFFFF_FFFE  # (uid_t) -1 is no user
DEFAULT_HISTORY: Final = 100
MAX_HISTORY: Final = 10_000
DEFAULT_INTERVAL: Final = 1.0  # seconds
MIN_INTERVAL: Final = 0.1
MAX_INTERVAL: Final = 3600.0


def session_id(text: str, field: str = "session_id") -> SessionId:
    if not (text.startswith("s-") and is_id(text)):
        raise InvalidRequest(
            "is not the id of a session",
            field=field,
            value=text,
            remedy="give an id as OpenSession returned it (s-...)",
        )
    return SessionId(text)


def call_id(text: str, field: str = "call_id") -> CallId:
    if not (text.startswith("c-") and is_id(text)):
        raise InvalidRequest(
            "is not the id of a call", field=field, value=text, remedy="give an id as BeginCall returned it (c-...)"
        )
    return CallId(text)


def tenant_name(text: str, field: str = "name") -> str:
    if not is_name(text):
        raise InvalidRequest(
            "cannot name a tenant",
            field=field,
            value=text,
            remedy="use 1 to 63 of a-z 0-9 . _ - with a letter or a digit at both ends",
        )
    return text


def target(text: str, field: str = "target") -> str:
    """The id of a call, a session or a tenant, or a tenant's name."""
    if not (is_id(text) or is_name(text)):
        raise InvalidRequest(
            "is neither an id nor a tenant's name",
            field=field,
            value=text,
            remedy="give the id of a call, a session or a tenant, or a tenant's name",
        )
    return text


def priority(value: int, field: str = "priority") -> int:
    if value > 100:
        raise InvalidRequest(
            f"{value} is out of range",
            field=field,
            value=str(value),
            remedy="0 (acted on first) to 100 (acted on last)",
        )
    return value


def uid(value: int, field: str = "uid") -> int:
    if value > MAX_UID:
        raise InvalidRequest(f"{value} is no user", field=field, value=str(value), remedy=f"0 to {MAX_UID}")
    return value


def pid(value: int, field: str = "pid") -> int:
    if not 1 < value <= MAX_PIDS:
        raise InvalidRequest(
            f"{value} is no process that can be moved",
            field=field,
            value=str(value),
            remedy=f"2 to {MAX_PIDS}, as the host's pid namespace numbers it",
        )
    return value


def labels(given: Mapping[str, str], field: str = "labels") -> dict[str, str]:
    if len(given) > MAX_LABELS:
        raise InvalidRequest(f"{len(given)} labels", field=field, value=str(len(given)), remedy=f"at most {MAX_LABELS}")
    for key, text in given.items():
        if not key:
            raise InvalidRequest("a label without a key", field=field, remedy="name each label")
        check_text(f"{field} (a key)", key, MAX_LABEL_KEY)
        check_text(f"{field}.{key}", text)
    return dict(given)


def argv(arguments: Sequence[str], tool: str, field: str = "argv") -> list[str]:
    """The command; may be empty for a tool that runs inside the agent and says its name."""
    if not arguments and not tool:
        raise InvalidRequest(
            "is empty, and intent.tool too", field=field, remedy="give the command, or name the tool in intent.tool"
        )
    size = sum(len(argument) for argument in arguments) if len(arguments) <= MAX_ARGUMENTS else 0
    if len(arguments) > MAX_ARGUMENTS or size > MAX_ARGUMENT_BYTES:
        raise InvalidRequest(
            f"{len(arguments)} arguments of {size} characters",
            field=field,
            value=arguments[0],
            remedy=f"at most {MAX_ARGUMENTS} and {MAX_ARGUMENT_BYTES}: shorten it, it is kept for people, not executed",
        )
    return list(arguments)


def wait_status(value: int, field: str = "wait_status") -> int:
    """As of waitpid(2), of a process that has ended."""
    if not (value <= 0xFFFF and (os.WIFEXITED(value) or os.WIFSIGNALED(value))):
        raise InvalidRequest(
            f"{value} is no status of a process that has ended",
            field=field,
            value=str(value),
            remedy="give the status of waitpid(2) unchanged (exit status 3 is 768), or leave it out",
        )
    return value


def interval(value: float, field: str = "interval_seconds") -> float:
    if value == 0.0:
        return DEFAULT_INTERVAL
    if math.isnan(value) or not MIN_INTERVAL <= value <= MAX_INTERVAL:
        raise InvalidRequest(
            f"{value} is out of range",
            field=field,
            value=str(value),
            remedy=f"{MIN_INTERVAL} to {MAX_INTERVAL:g} seconds, or 0 for {DEFAULT_INTERVAL:g}",
        )
    return value


def moment(value: float, field: str) -> float:
    """Unix seconds; up to the year 9999."""
    if math.isnan(value) or not 0.0 <= value <= 253_402_300_799.0:
        raise InvalidRequest(
            f"{value} is no moment", field=field, value=str(value), remedy="give seconds since 1970, UTC"
        )
    return value


def history_limit(value: int, field: str = "limit") -> int:
    if value > MAX_HISTORY:
        raise InvalidRequest(
            f"{value} is out of range",
            field=field,
            value=str(value),
            remedy=f"at most {MAX_HISTORY}; 0 for the default",
        )
    return value or DEFAULT_HISTORY
