"""What the gateway needs from whoever knows sessions, budgets and engines, as small interfaces.

``TurnPort`` decides whether a turn may run and learns how it went. In the daemon it is ``agentd.gateway.host``; a
worker process speaks to it through ``agentd.gateway.control``; tests and benchmarks bring their own. ``TurnSink`` is
for others in the daemon who want to see every turn (the KV ledger, budgets).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct, field


class Ask(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A client wants a turn, or (``turn`` False) only to be known.

    ``uid``: of a unix socket's peer, as the kernel says; None: not known (TCP).
    ``conversation``: which of the session's conversations this is; "" is its first. ``prompt_bytes``: of the body.
    """

    token: str
    uid: int | None = None
    conversation: str = ""
    prompt_bytes: int = 0
    model: str = ""
    turn: bool = True


class Admission(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """It may run. ``fields`` are added to the request's body: what binds it to its KV at this engine.

    ``tells_usage``: the engine counts tokens in a stream without being asked (llama.cpp does).
    """

    session: str
    tenant: str = ""
    engine: str = ""
    conversation: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    tells_usage: bool = False


class TurnReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a turn went. Seconds since the request was complete; ``None``: never came to that.

    ``prompt`` counts ``cached``, too. ``estimated``: the engine did not tell (a cancelled or failed turn), so tokens
    are those that were seen, and the prompt's are its bytes over four. ``gaps`` counts the time between tokens in the
    buckets of ``agentd.gateway.figures.GAP_BUCKETS``. ``queued``: seconds that the turn waited for its admission.
    """

    status: int
    seconds: float
    queued: float = 0.0
    first_token: float | None = None
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    prefill_seconds: float | None = None  # as the engine says
    estimated: bool = False
    cancelled: bool = False
    error: str = ""  # a code, where the turn failed
    gaps: tuple[int, ...] = ()
    gap_seconds: float = 0.0  # sum of the times between tokens


class TurnPort(Protocol):
    async def admit(self, ask: Ask) -> Admission:
        """May wait, for a slot say; when cancelled, nothing of it is left. Raises Refusal.

        Where no turn is asked for, nothing is reserved, and ``ended`` is not called.
        """
        ...

    def ended(self, admission: Admission, report: TurnReport) -> None:
        """Once for every admission of a turn. Must not block."""
        ...


class TurnSink(Protocol):
    """Sees every turn that went through the gateway, on the daemon's loop; must not block."""

    async def admit(self, session_id: str, engine: str, conversation: str) -> Mapping[str, Any]:
        """Fields for the request's body, once its KV has a place. May wait. Raises Refusal."""
        ...

    def ended(self, session_id: str, engine: str, conversation: str, report: TurnReport) -> None: ...
