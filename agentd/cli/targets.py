"""What a person means by TARGET: a call, a session or a tenant, by id, a piece of one, or name. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from agentd.cli.errors import NotFoundError, UsageError
from agentd.cli.table import clean, cut
from agentd.proto.corral.v1 import corral_pb2 as pb

Kind = Literal["call", "session", "tenant"]
_SHORTEST: Final = 4  # characters of a piece of an id: fewer are more likely a slip
_MAX_TARGET: Final = 256


@dataclass(frozen=True, slots=True)
class Found:
    kind: Kind
    id: str
    label: str  # for messages: "call c-… (make test)"


def find(snapshot: pb.SnapshotResponse, text: str, *, kinds: Sequence[Kind] = ("call", "session", "tenant")) -> Found:
    """Raises NotFoundError (nothing matches) or UsageError (several do)."""
    if not text or len(text) > _MAX_TARGET or not text.isprintable():
        raise UsageError(f"{text[:40]!r} names nothing", remedy="give the id or the name of a call, session or tenant")
    everything = [found for found in _all(snapshot) if found[0].kind in kinds]
    exact = [found for found, name in everything if text in (found.id, name)]
    pieces = [found for found, _ in everything if len(text) >= _SHORTEST and _is_piece(text, found.id)]
    matches = exact or pieces
    wanted = " or ".join(kinds)
    if not matches:
        raise NotFoundError(
            f"no {wanted} {text!r}",
            remedy="'corral ps --all', 'corral session list' and 'corral tenant list' show them",
        )
    if len(matches) > 1:
        some = ", ".join(found.id for found in matches[:5]) + (", …" if len(matches) > 5 else "")
        raise UsageError(f"{text!r} can mean {len(matches)} things: {some}", remedy="give more of the id")
    return matches[0]


def _all(snapshot: pb.SnapshotResponse) -> list[tuple[Found, str]]:
    listed = [(Found("tenant", t.id, f"tenant {t.name}"), t.name) for t in snapshot.tenants]
    listed += [
        (Found("session", s.id, f"session {s.id}" + (f" ({s.name})" if s.name else "")), s.name)
        for s in snapshot.sessions
    ]
    listed += [(Found("call", c.id, f"call {c.id} ({cut(clean(c.command), 60)})"), "") for c in snapshot.calls]
    return listed


def _is_piece(text: str, whole: str) -> bool:
    bare = whole.partition("-")[2]
    return whole.startswith(text) or bare.startswith(text) or whole.endswith(text)


def calls_of(snapshot: pb.SnapshotResponse, found: Found) -> list[pb.Call]:
    """The live calls that an action on ``found`` reaches."""
    return [
        call
        for call in snapshot.calls
        if call.state != pb.CALL_STATE_ENDED and found.id in (call.id, call.session_id, call.tenant_id)
    ]
