"""Where each session's KV cache is, since when, why, and what it cost. Pure: time comes with the events.

    ABSENT ──turn──► RESIDENT ──offload──► OFFLOADED ──restore──► RESIDENT
                        │  ▲                   │
               drop, preempt │ turn           drop
                        ▼  │                   ▼
                      DROPPED ◄───────────── DROPPED       any ──close──► CLOSED

``advance`` takes one session one event further and returns what is to be recorded; ``KvLedger`` keeps all sessions.
Times are nanoseconds of one monotonic clock; the events of one session must not go back in time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from gpu.cost import prefill_equivalents
from gpu.errors import LedgerError

# An engine computes the last token always, and the last partial block mostly: this is no recomputation (tokens).
DEFAULT_SLACK: Final = 32


class Residency(StrEnum):
    ABSENT = "absent"  # nothing was computed yet
    RESIDENT = "resident"
    OFFLOADED = "offloaded"
    DROPPED = "dropped"
    CLOSED = "closed"


class SwitchKind(StrEnum):
    """A context switch of a session, at the level of the engine."""

    PREEMPTED = "preempted"  # the engine took the KV of a running request
    OFFLOADED = "offloaded"
    RESTORED = "restored"
    DROPPED = "dropped"
    RECOMPUTED = "recomputed"


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One model turn ended. ``computed`` and ``cached`` are its prompt tokens; ``seconds`` its prefill."""

    at_nsec: int
    computed: int
    cached: int
    generated: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempted:
    at_nsec: int
    why: str = "the engine's KV pool was full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offloaded:
    """``tokens`` and ``bytes`` None: all of it."""

    at_nsec: int
    why: str
    tokens: int | None = None
    bytes: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    at_nsec: int
    why: str
    tokens: int | None = None
    bytes: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    at_nsec: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseBegun:
    """A tool call began, and the model waits for it."""

    at_nsec: int
    call: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseEnded:
    at_nsec: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    at_nsec: int


LedgerEvent = Turn | Preempted | Offloaded | Restored | Dropped | PauseBegun | PauseEnded | Closed


# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSwitch:
    """``seconds``: the time that it took; of a recomputation, its part of the prefill."""

    session: str
    kind: SwitchKind
    at_nsec: int
    why: str
    tokens: int
    bytes: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseRecord:
    """What a session held while its tool ran, in byte-seconds."""

    session: str
    call: str
    begun_nsec: int
    ended_nsec: int
    resident_byte_seconds: float
    offloaded_byte_seconds: float


LedgerRecord = ContextSwitch | PauseRecord


# --- state ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pause:
    call: str
    begun_nsec: int
    resident: float  # the session's byte-seconds at its begin
    offloaded: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionKv:
    """One session. ``context`` is its length in tokens, wherever its KV is; ``tokens`` those that exist."""

    session: str
    bytes_per_token: int
    gamma: float = 0.0  # see gpu.cost
    slack: int = DEFAULT_SLACK
    residency: Residency = Residency.ABSENT
    since_nsec: int = 0
    why: str = ""
    at_nsec: int = 0  # of the last event
    tokens: int = 0
    context: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    recomputed_tokens: int = 0
    prefill_equivalents: float = 0.0
    resident_byte_seconds: float = 0.0
    offloaded_byte_seconds: float = 0.0
    switches: int = 0
    pause: _Pause | None = field(default=None, repr=False)

    @property
    def bytes(self) -> int:
        return self.tokens * self.bytes_per_token

    @property
    def paused(self) -> bool:
        return self.pause is not None


def advance(state: SessionKv, event: LedgerEvent) -> tuple[SessionKv, tuple[LedgerRecord, ...]]:
    """One event further.

    :raises LedgerError: the event lies in the past, or cannot follow the present state; the state is then unchanged
    """
    if event.at_nsec < state.at_nsec:
        raise LedgerError(
            f"session {state.session}: {type(event).__name__} at {event.at_nsec} ns, after one at {state.at_nsec} ns",
            remedy="feed the events of one session in the order of one clock",
        )
    if state.residency is Residency.CLOSED:
        raise _cannot(state, event)
    held = _hold(state, event.at_nsec)
    match event:
        case Turn():
            return _turn(held, event)
        case Preempted():
            if held.residency is not Residency.RESIDENT:
                raise _cannot(state, event)
            return _lose(held, event.at_nsec, event.why, SwitchKind.PREEMPTED)
        case Dropped():
            if held.residency not in (Residency.RESIDENT, Residency.OFFLOADED):
                raise _cannot(state, event)
            return _lose(held, event.at_nsec, event.why, SwitchKind.DROPPED)
        case Offloaded():
            if held.residency is not Residency.RESIDENT:
                raise _cannot(state, event)
            return _move(held, event, Residency.OFFLOADED, SwitchKind.OFFLOADED)
        case Restored():
            if held.residency is not Residency.OFFLOADED:
                raise _cannot(state, event)
            return _move(held, event, Residency.RESIDENT, SwitchKind.RESTORED)
        case PauseBegun():
            if held.pause is not None:
                raise _cannot(state, event)
            pause = _Pause(
                call=event.call,
                begun_nsec=event.at_nsec,
                resident=held.resident_byte_seconds,
                offloaded=held.offloaded_byte_seconds,
            )
            return replace(held, pause=pause), ()
        case PauseEnded():
            if held.pause is None:
                raise _cannot(state, event)
            return replace(held, pause=None), _pause_record(held)
        case Closed():
            ended = replace(
                held,
                residency=Residency.CLOSED,
                since_nsec=event.at_nsec,
                why="the session ended",
                tokens=0,
                pause=None,
            )
            return ended, _pause_record(held)


def _cannot(state: SessionKv, event: LedgerEvent) -> LedgerError:
    paused = ", in a pause" if state.paused else ""
    return LedgerError(
        f"session {state.session}: {type(event).__name__} cannot follow {state.residency}{paused}",
        remedy="look where events were lost or doubled",
    )


def _hold(state: SessionKv, now: int) -> SessionKv:
    """Charges what was held from the last event until now."""
    byte_seconds = state.bytes * (now - state.at_nsec) / 1e9
    match state.residency:
        case Residency.RESIDENT:
            return replace(state, at_nsec=now, resident_byte_seconds=state.resident_byte_seconds + byte_seconds)
        case Residency.OFFLOADED:
            return replace(state, at_nsec=now, offloaded_byte_seconds=state.offloaded_byte_seconds + byte_seconds)
        case _:
            return replace(state, at_nsec=now)


def _turn(state: SessionKv, event: Turn) -> tuple[SessionKv, tuple[LedgerRecord, ...]]:
    if min(event.computed, event.cached, event.generated) < 0 or event.seconds < 0:
        raise LedgerError(
            f"session {state.session}: a turn of {event.computed} + {event.cached} tokens, {event.generated} generated",
            remedy="counts of tokens are not negative",
        )
    prompt = event.computed + event.cached
    context = prompt + event.generated
    records: list[LedgerRecord] = []
    # What had been computed before, is part of this prompt, and was not found in a cache, was computed again.
    again = max(0, min(state.context, prompt) - event.cached)
    again = again if again > state.slack else 0
    if state.residency is Residency.OFFLOADED and event.cached > state.slack:
        # The engine fetched it by itself: no one told us, but the tokens were found.
        tokens = min(event.cached, state.tokens)
        records.append(
            _switch(state, SwitchKind.RESTORED, event.at_nsec, "the engine restored it for the turn", tokens)
        )
    if again:
        match state.residency:
            case Residency.DROPPED:
                why = state.why
            case Residency.OFFLOADED:
                why = "its offloaded copy was not used"
            case _:
                why = "the engine had evicted it"
        part = event.seconds * again / event.computed if event.computed else 0.0
        records.append(_switch(state, SwitchKind.RECOMPUTED, event.at_nsec, why, again, seconds=part))
    resident = state.residency is Residency.RESIDENT
    cost = prefill_equivalents(computed=event.computed, generated=event.generated, context=context, gamma=state.gamma)
    return replace(
        state,
        residency=Residency.RESIDENT,
        since_nsec=state.since_nsec if resident else event.at_nsec,
        why=state.why if resident else "computed by a turn",
        tokens=context,
        context=context,
        computed_tokens=state.computed_tokens + event.computed,
        cached_tokens=state.cached_tokens + event.cached,
        generated_tokens=state.generated_tokens + event.generated,
        recomputed_tokens=state.recomputed_tokens + again,
        prefill_equivalents=state.prefill_equivalents + cost,
        switches=state.switches + len(records),
    ), tuple(records)


def _lose(state: SessionKv, at: int, why: str, kind: SwitchKind) -> tuple[SessionKv, tuple[LedgerRecord, ...]]:
    record = _switch(state, kind, at, why, state.tokens)
    return replace(state, residency=Residency.DROPPED, since_nsec=at, why=why, tokens=0, switches=state.switches + 1), (
        record,
    )


def _move(
    state: SessionKv, event: Offloaded | Restored, to: Residency, kind: SwitchKind
) -> tuple[SessionKv, tuple[LedgerRecord, ...]]:
    tokens = state.tokens if event.tokens is None else event.tokens
    if tokens < 0 or event.seconds < 0:
        raise LedgerError(f"session {state.session}: {kind} {tokens} tokens", remedy="counts are not negative")
    record = _switch(state, kind, event.at_nsec, event.why, tokens, size=event.bytes, seconds=event.seconds)
    return replace(
        state, residency=to, since_nsec=event.at_nsec, why=event.why, tokens=tokens, switches=state.switches + 1
    ), (record,)


def _switch(
    state: SessionKv,
    kind: SwitchKind,
    at: int,
    why: str,
    tokens: int,
    *,
    size: int | None = None,
    seconds: float = 0.0,
) -> ContextSwitch:
    return ContextSwitch(
        session=state.session,
        kind=kind,
        at_nsec=at,
        why=why,
        tokens=tokens,
        bytes=tokens * state.bytes_per_token if size is None else size,
        seconds=seconds,
    )


def _pause_record(state: SessionKv) -> tuple[LedgerRecord, ...]:
    pause = state.pause
    if pause is None:
        return ()
    return (
        PauseRecord(
            session=state.session,
            call=pause.call,
            begun_nsec=pause.begun_nsec,
            ended_nsec=state.at_nsec,
            resident_byte_seconds=state.resident_byte_seconds - pause.resident,
            offloaded_byte_seconds=state.offloaded_byte_seconds - pause.offloaded,
        ),
    )


class KvLedger:
    """All sessions of one engine. Keeps a closed session until it is taken away with ``forget``."""

    def __init__(self, *, bytes_per_token: int, gamma: float = 0.0, slack: int = DEFAULT_SLACK) -> None:
        if bytes_per_token <= 0:
            raise LedgerError(f"{bytes_per_token} bytes per token", remedy="see gpu.engines.kv_bytes_per_token")
        self._bytes_per_token = bytes_per_token
        self._gamma = gamma
        self._slack = slack
        self._sessions: dict[str, SessionKv] = {}

    def apply(self, session: str, event: LedgerEvent) -> tuple[LedgerRecord, ...]:
        """
        :raises LedgerError: see ``advance``; the session is then as it was
        """
        state = self._sessions.get(session)
        if state is None:
            state = SessionKv(
                session=session,
                bytes_per_token=self._bytes_per_token,
                gamma=self._gamma,
                slack=self._slack,
                since_nsec=event.at_nsec,
                at_nsec=event.at_nsec,
            )
        self._sessions[session], records = advance(state, event)
        return records

    def session(self, session: str) -> SessionKv | None:
        return self._sessions.get(session)

    def sessions(self) -> tuple[SessionKv, ...]:
        return tuple(self._sessions.values())

    def forget(self, session: str) -> None:
        self._sessions.pop(session, None)

    def bytes_in(self, residency: Residency) -> int:
        return sum(one.bytes for one in self._sessions.values() if one.residency is residency)
