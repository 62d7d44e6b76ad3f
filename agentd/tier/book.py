"""Where each conversation's KV cache is: the live ledger, made of what is seen and what is done.

An *entry* is one conversation of one session at one engine. Its state is ``gpu.ledger.SessionKv``, advanced event by
event; what comes out of it (context switches, pauses) goes to the sink. Times are CLOCK_MONOTONIC nanoseconds inside,
unix seconds outside.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from agentd.ledger import Switch
from agentd.tier.view import KvView
from controller.model import CallId, SessionId, TenantId
from gpu.engines import KvRef
from gpu.errors import LedgerError
from gpu.ledger import ContextSwitch, LedgerEvent, PauseRecord, Residency, SessionKv, advance
from gpu.policy import Place

_log: Final = structlog.get_logger("corral.kv")

MAX_ENTRIES: Final = 20_000
MAX_CONVERSATIONS: Final = 64  # of one session at one engine: agents choose their names

PLACE: Final = {
    Residency.RESIDENT: Place.RESIDENT,
    Residency.OFFLOADED: Place.OFFLOADED,
    Residency.DROPPED: Place.DROPPED,
    Residency.ABSENT: Place.DROPPED,
    Residency.CLOSED: Place.DROPPED,
}


@dataclass(slots=True, kw_only=True)
class Entry:
    """``key``: daemon-made, names it at the engine and in file names. ``bytes_known``: else ``kv`` counts one byte a
    token. ``turns``: that run now. ``slot``: llama.cpp's, None: none yet; ``pinned``: the agent sends there itself."""

    key: str
    session_id: SessionId
    tenant_id: TenantId
    engine: str
    conversation: str
    kv: SessionKv
    bytes_known: bool
    slot: int | None = None
    pinned: bool = False
    turns: int = 0
    calls: dict[CallId, float] = field(default_factory=dict)  # live ones: monotonic seconds of their begin
    expected: float | None = None  # seconds that its pause will take from its begin
    durations: tuple[float, ...] = ()  # of earlier calls like the one that it waits for
    keep_until: float | None = None  # monotonic
    last_used: float = 0.0  # monotonic
    waited: float = 0.0  # seconds that its turns waited for KV that had been put out
    waiting: bool = False  # a turn of it waits for a slot, or to be admitted
    waiting_since: float = 0.0  # monotonic
    priority: int = 50  # of that turn
    admitted: bool = False  # its first turn may run
    restored_at: float = 0.0  # monotonic
    restored_unseen: bool = False  # restored, and no turn has run since: the engine shows no tokens yet
    empty_looks: int = 0  # readings in a row that showed nothing in its slot
    reported: bool = False  # its turns are told; else they are guessed from what its slot holds
    indexed: bool = False  # the engine's KV events name it
    through_gateway: bool = False  # its turns are measured, not claimed
    saved_bytes: int = 0  # of its offloaded copy, as long as that exists
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # one act at a time
    timer: asyncio.TimerHandle | None = None

    @property
    def paused(self) -> bool:
        return bool(self.calls)

    @property
    def proven(self) -> bool:
        """Whether its KV is known by more than its agent's word. Else it is followed, and weighs nothing: an agent that
        claims much must neither make others go nor have its calls run first."""
        return self.slot is not None or self.through_gateway or self.indexed or self.saved_bytes > 0

    @property
    def paused_since(self) -> float | None:
        """Monotonic seconds."""
        return min(self.calls.values()) if self.calls else None

    @property
    def bytes(self) -> int:
        return self.kv.bytes if self.bytes_known else 0

    @property
    def ref(self) -> KvRef:
        return KvRef(session=self.key, slot=self.slot)

    def cancel_timer(self) -> None:
        self.keep_until = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Book:
    """``on_switch`` is given every context switch, ``on_pause`` the byte-seconds of every pause."""

    def __init__(
        self,
        *,
        on_switch: Callable[[Entry, Switch], None],
        on_pause: Callable[[Entry, PauseRecord], None],
        now_nsec: Callable[[], int] = time.monotonic_ns,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._on_switch = on_switch
        self._on_pause = on_pause
        self._now = now_nsec
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._of_session: dict[SessionId, dict[tuple[str, str], Entry]] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def now(self) -> int:
        return self._now()

    def bind(
        self,
        session_id: SessionId,
        tenant_id: TenantId,
        engine: str,
        conversation: str,
        *,
        bytes_per_token: int | None,
        gamma: float,
    ) -> Entry | None:
        """The entry of a conversation, made if need be. None: the session names more of them than are followed."""
        of_session = self._of_session.setdefault(session_id, {})
        found = of_session.get((engine, conversation))
        if found is not None:
            return found
        if len(of_session) >= MAX_CONVERSATIONS or len(self._entries) >= MAX_ENTRIES:
            _log.warning(
                "a session names more conversations than are followed", session=session_id, most=len(of_session)
            )
            return None
        key = _key(session_id, engine, conversation)
        at = self._now()
        entry = Entry(
            key=key,
            session_id=session_id,
            tenant_id=tenant_id,
            engine=engine,
            conversation=conversation,
            kv=SessionKv(session=key, bytes_per_token=bytes_per_token or 1, gamma=gamma, since_nsec=at, at_nsec=at),
            bytes_known=bytes_per_token is not None,
            last_used=at / 1e9,
        )
        self._entries[key] = of_session[engine, conversation] = entry
        return entry

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def find(self, session_id: SessionId, engine: str, conversation: str) -> Entry | None:
        return self._of_session.get(session_id, {}).get((engine, conversation))

    def of_session(self, session_id: SessionId) -> list[Entry]:
        return list(self._of_session.get(session_id, {}).values())

    def of_engine(self, engine: str) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.engine == engine]

    def apply(self, entry: Entry, event: LedgerEvent) -> bool:
        """One event further. False: it cannot follow (something was missed); the state stays, and it is logged."""
        try:
            entry.kv, records = advance(entry.kv, event)
        except LedgerError as err:
            _log.warning("an event of a KV cache does not fit", engine=entry.engine, error=str(err))
            return False
        for record in records:
            if isinstance(record, ContextSwitch):
                self._on_switch(entry, self._switch(entry, record))
            else:
                self._on_pause(entry, record)
        return True

    def adopt_copy(self, entry: Entry, switch: Switch) -> None:
        """``switch`` offloaded it, and no event since is known. No event of now: nothing is put on record."""
        if switch.bytes and switch.tokens and not entry.bytes_known:
            entry.bytes_known = True
            entry.kv = replace(entry.kv, bytes_per_token=max(1, switch.bytes // switch.tokens))
        entry.kv = replace(
            entry.kv,
            residency=Residency.OFFLOADED,
            why=switch.why,
            tokens=switch.tokens,
            context=switch.tokens,
        )
        entry.saved_bytes = switch.bytes or entry.bytes

    def learn_size(self, engine: str, bytes_per_token: int) -> None:
        """The engine told how large a token's KV is: what was counted in tokens until now becomes bytes."""
        for entry in self.of_engine(engine):
            if entry.bytes_known:
                continue
            kv, pause = entry.kv, entry.kv.pause
            if pause is not None:
                pause = replace(
                    pause,
                    resident=pause.resident * bytes_per_token,
                    offloaded=pause.offloaded * bytes_per_token,
                )
            entry.bytes_known = True
            entry.kv = replace(
                kv,
                bytes_per_token=bytes_per_token,
                resident_byte_seconds=kv.resident_byte_seconds * bytes_per_token,
                offloaded_byte_seconds=kv.offloaded_byte_seconds * bytes_per_token,
                pause=pause,
            )

    def forget(self, session_id: SessionId) -> list[Entry]:
        """The session has ended. Its entries, for whoever frees what they hold."""
        gone = self._of_session.pop(session_id, {})
        for entry in gone.values():
            entry.cancel_timer()
            self._entries.pop(entry.key, None)
        return list(gone.values())

    def forget_engine(self, engine: str) -> None:
        for entry in self.of_engine(engine):
            entry.cancel_timer()
            self._entries.pop(entry.key, None)
            self._of_session.get(entry.session_id, {}).pop((engine, entry.conversation), None)

    def slots(self, engine: str) -> dict[int, Entry]:
        """Who has which slot of a llama.cpp server."""
        return {entry.slot: entry for entry in self.of_engine(engine) if entry.slot is not None}

    def saved_bytes(self, engine: str) -> int:
        return sum(entry.saved_bytes for entry in self.of_engine(engine))

    def unix(self, nsec: int) -> float:
        return self._clock() - (self._now() - nsec) / 1e9

    def views(self, entries: Iterable[Entry] | None = None) -> tuple[KvView, ...]:
        return tuple(self._view(entry) for entry in (self._entries.values() if entries is None else entries))

    def _switch(self, entry: Entry, record: ContextSwitch) -> Switch:
        sized = entry.bytes_known or record.bytes != record.tokens
        return Switch(
            at=self.unix(record.at_nsec),
            tenant_id=entry.tenant_id,
            session_id=entry.session_id,
            engine=entry.engine,
            conversation=entry.conversation,
            kind=record.kind.value,
            why=record.why,
            tokens=record.tokens,
            bytes=record.bytes if sized else 0,
            seconds=record.seconds,
        )

    def _view(self, entry: Entry) -> KvView:
        kv = entry.kv
        # what it held since its last event counts as well
        held = kv.tokens * kv.bytes_per_token * max(0, self._now() - kv.at_nsec) / 1e9
        unit = 1 if entry.bytes_known else 0
        return KvView(
            session_id=entry.session_id,
            tenant_id=entry.tenant_id,
            engine=entry.engine,
            conversation=entry.conversation,
            residency=kv.residency.value,
            since=self.unix(kv.since_nsec),
            why=kv.why,
            tokens=kv.tokens,
            bytes=entry.bytes,
            recomputed_tokens=kv.recomputed_tokens,
            switches=kv.switches,
            prefill_equivalents=kv.prefill_equivalents,
            resident_byte_seconds=unit
            * (kv.resident_byte_seconds + (held if kv.residency is Residency.RESIDENT else 0.0)),
            offloaded_byte_seconds=unit
            * (kv.offloaded_byte_seconds + (held if kv.residency is Residency.OFFLOADED else 0.0)),
            call_id=next(iter(entry.calls), ""),
            keep_until=None if entry.keep_until is None else self.unix(int(entry.keep_until * 1e9)),
        )


def _key(session_id: SessionId, engine: str, conversation: str) -> str:
    """Printable and short, whatever the agent calls its conversation; the same after a restart of the daemon."""
    return f"{session_id}.{hashlib.sha256(f'{engine}/{conversation}'.encode('utf-8', 'replace')).hexdigest()[:16]}"
