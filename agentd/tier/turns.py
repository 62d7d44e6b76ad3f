"""Turns of the sessions' models, as the gateway sees them or agents report them; and what engines show by themselves.

``before`` makes a conversation ready for its turn: its slot, its KV brought back. ``after`` books the turn. Where
nobody tells of turns, slots and KV events do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from agentd.tier.book import Book, Entry
from agentd.tier.coordinator import Coordinator
from agentd.tier.engines import EngineWatch, Reading
from controller.model import SessionId, TenantId
from gpu.engines import Capability, EngineKind, Slot
from gpu.errors import GpuError
from gpu.ledger import Preempted, Residency, Turn

_log: Final = structlog.get_logger("corral.kv")

_LOOK_AGAIN: Final = 1.0  # seconds
_ADMIT_WITHIN: Final = 30.0  # seconds: sessions that never end must not keep a new one out for ever
_DEFAULT_PRIORITY: Final = 50
# A session of SGLang's appends each prompt to what it has, and LMCache serves no requests: a turn's whole prompt, as
# OpenAI's API has it, must not be bound there.
_BOUND: Final = frozenset({EngineKind.LLAMACPP, EngineKind.VLLM})
_EMPTY_LOOKS: Final = 2  # readings in a row: one may have been taken while the turn that filled the slot was reported


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFacts:
    """``prompt`` tokens, ``cached`` of them found in the cache. ``prefill``: seconds, as the engine says; else the time
    to the first token stands in. ``first_token``: seconds since the request was complete."""

    engine: str
    conversation: str
    prompt: int
    cached: int
    generated: int
    seconds: float = 0.0
    prefill: float | None = None
    first_token: float | None = None


class Turns:
    def __init__(self, coordinator: Coordinator, watches: Mapping[str, EngineWatch]) -> None:
        self._coordinator = coordinator
        self._watches = watches

    @property
    def _book(self) -> Book:
        return self._coordinator.book

    async def before(
        self, session_id: SessionId, tenant_id: TenantId, engine: str, conversation: str, *, priority: int | None = None
    ) -> Mapping[str, Any]:
        """What the turn's request must carry in its body. Waits for KV that comes back, and for a slot. ``after`` (or
        ``gave_up``) must follow. {} where the engine is only observed, or not there."""
        entry = self._coordinator.bind(session_id, tenant_id, engine, conversation)
        watch = self._watches.get(engine)
        if entry is None or watch is None:
            return {}
        began = time.monotonic()
        async with entry.lock:
            entry.turns += 1
            entry.through_gateway = True
            entry.cancel_timer()
            try:
                await self._ready(watch, entry, _DEFAULT_PRIORITY if priority is None else priority)
                if not watch.acts or watch.engine is None:
                    return {}
                if entry.kv.residency is Residency.OFFLOADED:
                    await self._coordinator.moves.restore(entry, watch.section.policy, "its next turn begins", {})
                    entry.waited += time.monotonic() - began
                if watch.info is None or watch.info.kind not in _BOUND:
                    return {}
                return dict(watch.engine.request_fields(entry.ref, priority=_priority(watch, priority)))
            except GpuError as err:
                _log.info("a turn runs without its KV's place", session=session_id, engine=engine, error=str(err))
                return {}
            except BaseException:
                entry.turns -= 1
                raise

    async def _ready(self, watch: EngineWatch, entry: Entry, priority: int) -> None:
        """Waits for what the turn needs and cannot have yet: its admission, where it is the conversation's first, and
        a slot of its own. Others that are idle make room; where none is, an end of a turn does."""
        moves = self._coordinator.moves
        slots = moves.has_slots(watch.name)
        entry.waiting_since, entry.priority = time.monotonic(), priority
        try:
            while watch.acts:
                freed = moves.freed  # before the look: what is freed meanwhile must not be missed
                if self._admitted(watch, entry) and await self._has_place(watch, entry, slots=slots):
                    return
                entry.waiting = True
                # again after a second: an engine may have gone, and a policy may think otherwise by then
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(freed.wait(), _LOOK_AGAIN)
        finally:
            was_waiting, entry.waiting = entry.waiting, False
            if was_waiting:
                moves.slot_freed()  # the next in order may have waited for this one alone

    async def _has_place(self, watch: EngineWatch, entry: Entry, *, slots: bool) -> bool:
        if not slots or entry.slot is not None:
            return True
        if self._coordinator.first_in_line(watch, entry) is not entry:
            return False
        moves = self._coordinator.moves
        entry.slot = moves.free_slot(watch.name)
        if entry.slot is None and await self._coordinator.make_room(watch, entry):
            entry.slot = moves.free_slot(watch.name)
        return entry.slot is not None

    def _admitted(self, watch: EngineWatch, entry: Entry) -> bool:
        """A conversation that has run is in. A new one waits while it would make the others chase each other out of
        the pool, at most so long."""
        if entry.admitted or entry.kv.residency is not Residency.ABSENT:
            return True
        waited = time.monotonic() - entry.waiting_since
        entry.admitted = waited > _ADMIT_WITHIN or self._coordinator.admits(watch, entry)
        return entry.admitted

    def gave_up(self, session_id: SessionId, engine: str, conversation: str) -> None:
        """The turn never ran, or nothing is known of how it went."""
        entry = self._book.find(session_id, engine, conversation)
        if entry is not None and entry.turns:
            entry.turns -= 1
            self._coordinator.moves.slot_freed()

    def after(self, session_id: SessionId, tenant_id: TenantId, facts: TurnFacts) -> float:
        """Books a turn that ended. Returns its prefill token equivalents; 0 where the engine is not one of ours."""
        entry = self._coordinator.bind(session_id, tenant_id, facts.engine, facts.conversation)
        if entry is None:
            return 0.0
        facts = _possible(facts, self._watches.get(facts.engine))
        computed = max(0, facts.prompt - facts.cached)
        prefill = facts.prefill if facts.prefill is not None else facts.first_token or 0.0
        before = entry.kv.prefill_equivalents
        self._book.apply(
            entry,
            Turn(
                at_nsec=self._book.now,
                computed=computed,
                cached=min(facts.cached, facts.prompt),
                generated=facts.generated,
                seconds=prefill,
            ),
        )
        entry.turns = max(0, entry.turns - 1)
        entry.reported, entry.restored_unseen, entry.empty_looks = True, False, 0
        entry.last_used = time.monotonic()
        costs = self._coordinator.sight.costs(facts.engine)
        if facts.prefill is not None:
            costs.prefilled(computed, facts.prefill)
            if facts.first_token is not None:
                costs.waited(facts.first_token - facts.prefill)
        elif facts.first_token is not None:
            costs.prefilled(computed, facts.first_token)
        self._coordinator.moves.slot_freed()
        return entry.kv.prefill_equivalents - before

    # --- what engines show -------------------------------------------------------------------------------------------

    def looked(self, watch: EngineWatch, reading: Reading) -> None:
        if watch.bytes_per_token is not None:
            self._book.learn_size(watch.name, watch.bytes_per_token)  # of what was bound before it was seen
        slots = {slot.id: slot for slot in reading.slots}
        for entry in self._book.of_engine(watch.name):
            slot = None if entry.slot is None else slots.get(entry.slot)
            if slot is not None and not entry.turns and not entry.lock.locked():
                self._slot_seen(entry, slot)

    def _slot_seen(self, entry: Entry, slot: Slot) -> None:
        resident = entry.kv.residency is Residency.RESIDENT
        if slot.tokens == 0 and not slot.busy and resident and not entry.restored_unseen:
            entry.empty_looks += 1
            if entry.empty_looks >= _EMPTY_LOOKS:
                self._coordinator.moves.lost(entry, "its slot is empty: something else erased it, or the engine did")
            return
        entry.empty_looks = 0
        if entry.reported or slot.busy or slot.tokens in (0, entry.kv.context):
            return
        # Nobody tells of this conversation's turns. What the slot holds says how long it is, not what was generated.
        cached = min(entry.kv.tokens, slot.tokens) if resident or entry.restored_unseen else 0
        event = Turn(at_nsec=self._book.now, computed=slot.tokens - cached, cached=cached, generated=0)
        self._book.apply(entry, event)
        entry.restored_unseen = False
        entry.last_used = time.monotonic()

    def indexed(self, watch: EngineWatch) -> None:
        """vLLM's KV events: a conversation whose blocks are all gone was put out by the engine."""
        index = watch.index
        if index is None or not index.certain:
            return
        for entry in self._book.of_engine(watch.name):
            tokens = index.tokens(entry.key)
            if tokens:
                entry.indexed = True
            elif entry.indexed and entry.kv.residency is Residency.RESIDENT:
                entry.indexed = False
                self._book.apply(entry, Preempted(at_nsec=self._book.now, why="the engine evicted its blocks"))


def _possible(facts: TurnFacts, watch: EngineWatch | None) -> TurnFacts:
    """No conversation is longer than the engine's context, whatever an agent reports."""
    most = watch.info.context_tokens if watch is not None and watch.info is not None else None
    if most is None or facts.prompt + facts.generated <= most:
        return facts
    prompt = min(facts.prompt, most)
    return replace(
        facts, prompt=prompt, cached=min(facts.cached, prompt), generated=min(facts.generated, most - prompt)
    )


def _priority(watch: EngineWatch, priority: int | None) -> int | None:
    return priority if priority is not None and watch.can(Capability.PRIORITY) else None
