"""How a call went, as corral-exec tells it (one JSON object; docs/integrations.md has its keys)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from corral_client.errors import DaemonAway, LauncherFailed, Refused

LAUNCHER_FAILED: Final = 125  # corral-exec's own exit status when the tool did not run


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``state``: "ended" (it ran as a call), "uncontrolled" (it ran without a daemon, as was asked), or "unknown" (it
    was ended together with its launcher, so that nobody could tell).

    ``reason`` is a stable code (exited, failed, oom_call, brake_killed, timeout, ...); "" where the daemon did not say
    in time. ``message`` is a paragraph that a language model can act on, "" when nothing was done to the call;
    ``suggestions`` are its proposals, one by one. ``notes`` say which budgets are low, once for each step down.
    ``wait_status`` is the kernel's, as of waitpid(2).
    """

    state: Literal["ended", "uncontrolled", "unknown"] = "unknown"
    call_id: str = ""
    reason: str = ""
    message: str = ""
    suggestions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    wait_status: int | None = None

    @property
    def controlled(self) -> bool:
        """Whether it ran as a call of its own."""
        return self.state == "ended"

    @property
    def acted(self) -> bool:
        """Whether something was done to it that its agent should know."""
        return bool(self.message)


def parse_outcome(told: bytes, returncode: int) -> Outcome:
    """What corral-exec wrote. Raises Refused, DaemonAway or LauncherFailed where the tool did not run."""
    try:
        fields = json.loads(told.decode("utf-8", "replace"))
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        if returncode == LAUNCHER_FAILED and not told:
            raise LauncherFailed(
                "corral-exec ended with status 125 and told nothing; its stderr says why. Is it older than this client?"
            )
        return Outcome()
    message = _text(fields, "message")
    match fields.get("state"):
        case "ended":
            return Outcome(
                state="ended",
                call_id=_text(fields, "call_id"),
                reason=_text(fields, "reason"),
                message=message,
                suggestions=_texts(fields, "suggestions"),
                notes=_texts(fields, "notes"),
                wait_status=_status(fields),
            )
        case "uncontrolled":
            return Outcome(state="uncontrolled", wait_status=_status(fields))
        case "refused":
            raise Refused(message, code=_text(fields, "code"))
        case "no_daemon":
            raise DaemonAway(f'{message}; fail="open" would run the tool uncontrolled')
        case "failed":
            raise LauncherFailed(message)
        case _:
            return Outcome()


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    return value if isinstance(value, str) else ""


def _texts(fields: dict[str, Any], key: str) -> tuple[str, ...]:
    value = fields.get(key)
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


def _status(fields: dict[str, Any]) -> int | None:
    value = fields.get("status")
    return value if isinstance(value, int) else None
