"""Moves of one conversation's KV, one at a time, each ending in a known state, whatever the engine answers.

| what was tried | the engine refused | it did not answer | the place is empty or gone |
|---|---|---|---|
| offload | still resident | as before; its next answer tells | dropped |
| restore | dropped: its copy is lost, or does not fit | still offloaded | still offloaded, without a slot |
| drop | still resident | as before; its next answer tells | dropped |

An agent that sends to a slot of its own may be quicker than a restore: then the copy is given up.

Every move that succeeded is a Decision and a context switch on record; one that failed is logged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from agentd.tier.book import Book, Entry
from agentd.tier.costs import EngineCosts
from agentd.tier.effects import KvEffects, Record
from agentd.tier.engines import EngineWatch
from controller.model import Action, Decision
from gpu.engines import Capability, EngineKind
from gpu.errors import EngineRefused, EngineUnreachable, GpuError, InvalidValue
from gpu.ledger import Dropped, Offloaded, Residency, Restored

_log: Final = structlog.get_logger("corral.kv")


class Moves:
    """All methods that move are called with the entry's lock held."""

    def __init__(
        self,
        book: Book,
        effects: KvEffects,
        record: Record,
        watch_of: Callable[[str], EngineWatch | None],
        costs_of: Callable[[str], EngineCosts],
    ) -> None:
        self._book = book
        self._effects = effects
        self._record = record
        self._watch_of = watch_of
        self._costs_of = costs_of
        self.freed = asyncio.Event()  # set and replaced whenever a slot may have become free
        self.failures = 0

    # --- slots -------------------------------------------------------------------------------------------------------

    def has_slots(self, engine: str) -> bool:
        watch = self._watch_of(engine)
        return watch is not None and watch.info is not None and watch.info.kind is EngineKind.LLAMACPP

    def free_slot(self, engine: str) -> int | None:
        """The lowest slot that no conversation of ours has, and no request of others runs in."""
        watch = self._watch_of(engine)
        if watch is None or watch.info is None or not watch.info.slots:
            return None
        taken = self._book.slots(engine)
        busy = {slot.id for slot in watch.reading.slots if slot.busy} if watch.reading is not None else set()
        free = [number for number in range(watch.info.slots) if number not in taken]
        idle = [number for number in free if number not in busy]
        return min(idle or free, default=None)

    def slot_freed(self) -> None:
        self.freed.set()
        self.freed = asyncio.Event()

    def can_move(self, entry: Entry, capability: Capability) -> bool:
        watch = self._watch_of(entry.engine)
        if watch is None or not watch.acts or not watch.can(capability):
            return False
        return entry.slot is not None or not self.has_slots(entry.engine) or capability is Capability.RESTORE

    # --- moves -------------------------------------------------------------------------------------------------------

    async def offload(self, entry: Entry, policy: str, why: str, evidence: Mapping[str, float]) -> bool:
        if entry.kv.residency is not Residency.RESIDENT or not self.can_move(entry, Capability.OFFLOAD):
            return False
        if not self._has_room(entry):
            return await self.drop(entry, policy, f"{why}; there is no room to offload to", evidence)
        try:
            moved = await self._effects.offload(entry.engine, entry.ref)
        except GpuError as err:
            self._failed(entry, "offload", err)
            if isinstance(err, InvalidValue):
                self._gone(entry, "its place in the engine was empty when it was to be offloaded")
            return False
        if moved.bytes and moved.tokens:
            self._book.learn_size(entry.engine, max(1, moved.bytes // moved.tokens))
        self._costs_of(entry.engine).moved(moved)
        event = Offloaded(
            at_nsec=self._book.now, why=why, tokens=moved.tokens, bytes=moved.bytes, seconds=moved.seconds
        )
        self._book.apply(entry, event)
        entry.saved_bytes = moved.bytes or entry.bytes
        entry.restored_unseen = False
        if not entry.pinned:
            entry.slot = None
        self._decided(entry, Action.OFFLOAD, policy, why, {**evidence, "move_seconds": moved.seconds})
        self.slot_freed()
        return True

    def _has_room(self, entry: Entry) -> bool:
        """The operator's budget holds whatever a policy decided a moment ago."""
        watch = self._watch_of(entry.engine)
        others = self._book.saved_bytes(entry.engine) - entry.saved_bytes
        return watch is not None and others + entry.bytes <= watch.section.offload_budget

    async def restore(self, entry: Entry, policy: str, why: str, evidence: Mapping[str, float]) -> bool:
        if entry.kv.residency is not Residency.OFFLOADED or not self.can_move(entry, Capability.RESTORE):
            return False
        if entry.slot is None and self.has_slots(entry.engine):
            entry.slot = self.free_slot(entry.engine)
            if entry.slot is None:
                return False  # before its turn somebody makes room
        try:
            if entry.pinned and await self._overtaken(entry):
                return False
            moved = await self._effects.restore(entry.engine, entry.ref)
        except GpuError as err:
            self._failed(entry, "restore", err)
            if not entry.pinned:
                entry.slot = None
                self.slot_freed()
            if isinstance(err, EngineRefused):
                self._gone(entry, f"its offloaded copy could not be restored (status {err.status})")
            return False
        self._costs_of(entry.engine).moved(moved)
        event = Restored(at_nsec=self._book.now, why=why, tokens=moved.tokens, bytes=moved.bytes, seconds=moved.seconds)
        self._book.apply(entry, event)
        entry.restored_unseen, entry.restored_at = True, time.monotonic()
        entry.empty_looks = 0
        self.forget_copy(entry)
        self._decided(entry, Action.RESTORE, policy, why, {**evidence, "move_seconds": moved.seconds})
        return True

    async def _overtaken(self, entry: Entry) -> bool:
        """Whether an agent that sends to its slot by itself was quicker: what it computed there must stay."""
        slot = await self._effects.slot(entry.engine, entry.ref)
        if slot is None or not (slot.busy or slot.tokens):
            return False
        self._gone(entry, "its next turn came before it could be restored")
        self.forget_copy(entry)
        return True

    async def drop(self, entry: Entry, policy: str, why: str, evidence: Mapping[str, float]) -> bool:
        """Also of an offloaded copy: then only the copy goes."""
        if entry.kv.residency is Residency.OFFLOADED:
            self._gone(entry, why)
            self.forget_copy(entry)
            self._decided(entry, Action.DROP, policy, why, evidence)
            return True
        if entry.kv.residency is not Residency.RESIDENT or not self.can_move(entry, Capability.DROP):
            return False
        tokens = entry.kv.tokens
        try:
            await self._effects.drop(entry.engine, entry.ref)
        except GpuError as err:
            self._failed(entry, "drop", err)
            if isinstance(err, InvalidValue):
                self._gone(entry, "its place in the engine was gone when it was to be dropped")
            return False
        self._gone(entry, why)
        self._decided(entry, Action.DROP, policy, why, {**evidence, "tokens": float(tokens)})
        return True

    async def clear(self, entry: Entry) -> None:
        """The session has ended: frees what it held in an engine that Corral may act on."""
        if (
            entry.slot is not None
            and entry.kv.residency is Residency.RESIDENT
            and self.can_move(entry, Capability.DROP)
        ):
            try:
                await self._effects.drop(entry.engine, entry.ref)
            except GpuError as err:
                self._failed(entry, "drop", err)
        self.forget_copy(entry)
        entry.slot = None
        self.slot_freed()

    def forget_copy(self, entry: Entry) -> None:
        """An offloaded copy that nobody needs. Where its directory is not known, the file stays, and counts."""
        watch = self._watch_of(entry.engine)
        if entry.saved_bytes and watch is not None and watch.section.offload_dir is not None:
            self._effects.forget_copy(watch.section.offload_dir, entry.ref)
            entry.saved_bytes = 0

    def lost(self, entry: Entry, why: str) -> None:
        """It is no longer in the pool, by nobody's decision here."""
        if entry.kv.residency is Residency.RESIDENT:
            self._gone(entry, why)

    def _gone(self, entry: Entry, why: str) -> None:
        self._book.apply(entry, Dropped(at_nsec=self._book.now, why=why))
        entry.restored_unseen = False
        if not entry.pinned:
            entry.slot = None
        self.slot_freed()

    # --- the record --------------------------------------------------------------------------------------------------

    def _failed(self, entry: Entry, what: str, err: GpuError) -> None:
        self.failures += 1
        log = _log.info if isinstance(err, EngineUnreachable) else _log.warning
        log(f"a KV cache was not {what}ed", session=entry.session_id, engine=entry.engine, error=str(err))

    def _decided(self, entry: Entry, action: Action, policy: str, why: str, evidence: Mapping[str, float]) -> None:
        self._record.decided(
            Decision(
                at=time.time(),
                action=action,
                policy=f"kv:{policy}",
                reason=f"KV cache at {entry.engine}: {why}",
                tenant_id=entry.tenant_id,
                session_id=entry.session_id,
                evidence={"tokens": float(entry.kv.tokens), "bytes": float(entry.bytes), **evidence},
            )
        )
