"""Between tool calls and KV caches: a call's begin is a pause of its session's model, its end the end of that pause.

At a pause the engine's policy says keep, offload or drop; what it says is carried out away from the path of the call,
one act at a time for each conversation. A KEEP may have a time to live; what is offloaded comes back ahead of the
call's expected end where the policy says so, and at its end otherwise; when the pool runs short, paused conversations
make room. Engines that are only observed are followed and never acted on.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from agentd.config import EngineSection
from agentd.ledger import Switch
from agentd.tier.book import PLACE, Book, Entry
from agentd.tier.costs import Durations
from agentd.tier.effects import KvEffects, Record
from agentd.tier.engines import EngineWatch
from agentd.tier.moves import Moves
from agentd.tier.sight import Sight, policy_of
from controller.model import CallId, CallState, CallView, SessionId, TenantId
from gpu.engines import Capability
from gpu.ledger import Closed, PauseBegun, PauseEnded, PauseRecord, Residency
from gpu.policy import (
    Defaults,
    HostHint,
    KvAction,
    KvDecision,
    KvPolicy,
    Restore,
    Tier,
    Waiting,
    evict,
)

_log: Final = structlog.get_logger("corral.kv")

_SLOT: Final = "slot:"
_MARGIN: Final = 0.1  # seconds before an expected end at which KV is back
_STAYS: Final = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class PauseTotals:
    """What ended pauses held, in byte-seconds."""

    pauses: int = 0
    seconds: float = 0.0
    resident: float = 0.0
    offloaded: float = 0.0


class Coordinator:
    """``watches`` by engine name, kept up to date by the owner. ``on_hints``: what policies tell the host, after each
    look at an engine. Nothing here waits for an engine but tasks of its own; ``settled`` waits for those."""

    def __init__(
        self,
        watches: Mapping[str, EngineWatch],
        effects: KvEffects,
        record: Record,
        *,
        on_hints: Callable[[str, tuple[HostHint, ...]], None] = lambda engine, hints: None,
        policies: Callable[[EngineSection], KvPolicy] = policy_of,
    ) -> None:
        self._watches = watches
        self._record = record
        self._on_hints = on_hints
        self.book = Book(on_switch=lambda entry, switch: record.switched(switch), on_pause=self._paused)
        self.durations = Durations()
        self.pauses: dict[str, PauseTotals] = {}  # by engine
        self.sight = Sight(self.book, watches, policies)
        self.moves = Moves(self.book, effects, record, watches.get, self.sight.costs)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pressing: set[str] = set()  # engines for which room is being made

    # --- what the owner tells ----------------------------------------------------------------------------------------

    def call_begun(self, call: CallView) -> None:
        """Its session's model waits for it from now on. A call that is known already changes nothing."""
        entry = self._of_call(call)
        if entry is None or call.id in entry.calls:
            return
        first = not entry.calls
        entry.calls[call.id] = time.monotonic()
        if not first:
            # the model waits for the last of them
            one, other = entry.expected, call.intent.duration
            entry.expected = None if one is None or other is None else max(one, other)
            return
        entry.expected = call.intent.duration
        entry.durations = self.durations.of(call.tenant_id, call.intent)
        self.book.apply(entry, PauseBegun(at_nsec=self.book.now, call=call.id))
        self._spawn(self._at_pause(entry))

    def call_ended(self, call: CallView) -> None:
        self.durations.learn(call)
        for entry in self.book.of_session(call.session_id):
            self._call_gone(entry, call.id)

    def _call_gone(self, entry: Entry, call_id: CallId) -> None:
        if entry.calls.pop(call_id, None) is None or entry.calls:
            return
        entry.cancel_timer()
        self.book.apply(entry, PauseEnded(at_nsec=self.book.now))
        entry.expected, entry.durations = None, ()
        self._spawn(self._at_return(entry))

    def reconcile(self, live: Mapping[CallId, CallView]) -> None:
        """Updates were lost: these calls are live, no others."""
        for entry in self.book:
            for call_id in list(entry.calls):
                if call_id not in live:
                    self._call_gone(entry, call_id)
        for call in live.values():
            if call.state is not CallState.QUEUED:
                self.call_begun(call)

    def session_closed(self, session_id: SessionId) -> None:
        for entry in self.book.forget(session_id):
            self._spawn(self._clear(entry))

    def looked(self, watch: EngineWatch) -> None:
        """An engine answered: what its reading says of pauses that wait for room, and of those who must make some."""
        if watch.section.policy == "off":
            return
        entries = self.book.of_engine(watch.name)
        tier = self.sight.tier(watch)
        # the host may know of these also where the engine is only observed: they touch nothing of it
        self._on_hints(watch.name, self.sight.policy(watch).hints(tier.paused, tier))
        if not watch.acts:
            return
        for entry in entries:
            if entry.paused and entry.timer is None and entry.kv.residency is Residency.OFFLOADED:
                self._plan_return(entry)
        need = tier.used + tier.waiting_tokens - int(watch.section.pressure * tier.capacity)
        # of slots each is its owner's alone: room is made when a turn needs one (make_room)
        slots = self.moves.has_slots(watch.name)
        if need > 0 and tier.capacity and not slots and watch.name not in self._pressing:
            self._pressing.add(watch.name)
            self._spawn(self._relieve(watch, need))

    def restarted(self, watch: EngineWatch) -> None:
        for entry in self.book.of_engine(watch.name):
            self.moves.lost(entry, "the engine was restarted")

    def engine_gone(self, engine: str) -> None:
        """It left the configuration: nothing of it is followed any more."""
        self.sight.forget_engine(engine)
        self.book.forget_engine(engine)

    async def stop(self) -> None:
        """Acts under way are given up; the engines keep what they have."""
        for entry in self.book:
            entry.cancel_timer()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settled(self) -> None:
        """Until no act is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- binding -----------------------------------------------------------------------------------------------------

    def bind(self, session_id: SessionId, tenant_id: TenantId, engine: str, conversation: str) -> Entry | None:
        """The conversation's entry; None where the engine is not one of ours, or the slot it claims is another's."""
        watch = self._watches.get(engine)
        if watch is None:
            return None
        found = self.book.find(session_id, engine, conversation)
        if found is not None and (found.slot is not None or not watch.section.declared_slots):
            return found
        slot = self._declared_slot(watch, conversation)
        if slot is not None and slot in self.book.slots(engine):
            _log.warning("a session claims a slot that is another's", session=session_id, engine=engine, slot=slot)
            return None
        entry = found or self.book.bind(
            session_id,
            tenant_id,
            engine,
            conversation,
            bytes_per_token=watch.bytes_per_token,
            gamma=watch.section.gamma,
        )
        if entry is not None and slot is not None:
            entry.slot, entry.pinned = slot, True
        return entry

    def adopt(self, switch: Switch) -> None:
        """What an earlier daemon did last to a conversation of an open session: its offloaded copy is still there."""
        entry = self.bind(switch.session_id, switch.tenant_id, switch.engine, switch.conversation)
        if entry is not None and entry.kv.residency is Residency.ABSENT:
            self.book.adopt_copy(entry, switch)

    def _declared_slot(self, watch: EngineWatch, conversation: str) -> int | None:
        if not watch.section.declared_slots or not self.moves.has_slots(watch.name):
            return None
        number = conversation.removeprefix(_SLOT)
        if number == conversation or not (number.isascii() and number.isdecimal() and len(number) <= 4):
            return None
        count = watch.info.slots if watch.info is not None else None
        return int(number) if count is not None and int(number) < count else None

    def _of_call(self, call: CallView) -> Entry | None:
        """Whose turn waits for this call: the conversation that it names, else the one that ran last."""
        intent = call.intent
        engine = intent.engine or (next(iter(self._watches)) if intent.conversation and len(self._watches) == 1 else "")
        if engine:
            return self.bind(call.session_id, call.tenant_id, engine, intent.conversation)
        known = self.book.of_session(call.session_id)
        return max(known, key=lambda entry: entry.last_used, default=None)

    # --- deciding ----------------------------------------------------------------------------------------------------

    async def _at_pause(self, entry: Entry) -> None:
        async with entry.lock:
            watch = self.sight.acting(entry)
            if watch is None or not self._may_move(entry):
                return
            policy = self.sight.policy(watch)
            await self._carry_out(entry, policy, policy.at_pause(self.sight.pause(entry), self.sight.tier(watch)))

    async def _expired(self, entry: Entry) -> None:
        async with entry.lock:
            watch = self.sight.acting(entry)
            if watch is None or not self._may_move(entry):
                return
            policy = self.sight.policy(watch)
            await self._carry_out(entry, policy, policy.expired(self.sight.pause(entry), self.sight.tier(watch)))

    @staticmethod
    def _may_move(entry: Entry) -> bool:
        """A call that runs beside a turn of its own conversation is no pause."""
        return entry.paused and not entry.turns and entry.kv.residency is Residency.RESIDENT and entry.kv.tokens > 0

    async def _carry_out(self, entry: Entry, policy: KvPolicy, decision: KvDecision) -> None:
        match decision.action:
            case KvAction.KEEP:
                _log.debug("KV is kept", session=entry.session_id, engine=entry.engine, why=decision.why)
                if decision.ttl is not None and entry.paused:
                    self._later(entry, decision.ttl, self._expired, keep=True)
            case KvAction.OFFLOAD:
                waited = entry.paused
                if await self.moves.offload(entry, policy.name, decision.why, decision.evidence):
                    if entry.paused:
                        self._plan_return(entry)
                    elif waited:  # its call ended while its KV moved
                        await self.moves.restore(entry, policy.name, "its tool call has ended", {})
            case KvAction.DROP:
                await self.moves.drop(entry, policy.name, decision.why, decision.evidence)

    # --- coming back -------------------------------------------------------------------------------------------------

    def _return(self, entry: Entry, policy: KvPolicy, tier: Tier) -> Restore | None:
        """When to fetch offloaded KV. A policy without a rule of its own fetches it just before the declared end, where
        there is room for it; None: when the call has ended."""
        pause = self.sight.pause(entry)
        restore = policy.before_return(pause, tier)
        if restore is not None or not isinstance(policy, Defaults) or entry.expected is None or tier.swap is None:
            return restore
        room = tier.used + tier.waiting_tokens + entry.kv.tokens <= tier.capacity
        left = entry.expected - pause.elapsed
        if left <= 0 or not room:
            return None
        move = tier.swap.seconds(entry.bytes or entry.kv.tokens)
        return Restore(
            session=entry.key,
            after=max(0.0, left - 2 * move - _MARGIN),
            why="its declared end is near",
            evidence={"declared_seconds": entry.expected, "elapsed_seconds": pause.elapsed},
        )

    def _plan_return(self, entry: Entry) -> None:
        watch = self.sight.acting(entry)
        if watch is None:
            return
        restore = self._return(entry, self.sight.policy(watch), self.sight.tier(watch))
        if restore is not None:
            self._later(entry, restore.after, self._ahead)

    async def _ahead(self, entry: Entry) -> None:
        async with entry.lock:
            watch = self.sight.acting(entry)
            if watch is None or not entry.paused or entry.kv.residency is not Residency.OFFLOADED:
                return
            policy = self.sight.policy(watch)
            restore = self._return(entry, policy, self.sight.tier(watch))
            if restore is not None and restore.after > _MARGIN:  # the pool's price has risen since: not yet
                self._later(entry, restore.after, self._ahead)
            elif restore is not None:
                why = f"ahead of the end of its tool call: {restore.why}"
                await self.moves.restore(entry, policy.name, why, restore.evidence)

    async def _at_return(self, entry: Entry) -> None:
        async with entry.lock:
            watch = self.sight.acting(entry)
            if watch is not None and not entry.paused and entry.kv.residency is Residency.OFFLOADED:
                await self.moves.restore(entry, self.sight.policy(watch).name, "its tool call has ended", {})

    # --- room --------------------------------------------------------------------------------------------------------

    async def _relieve(self, watch: EngineWatch, need: int) -> None:
        try:
            policy = self.sight.policy(watch)
            # what has just come back stays for a moment: moves must not chase each other
            since = time.monotonic() - _STAYS
            may_go = (e for e in self.book.of_engine(watch.name) if e.paused and e.proven and not e.turns)
            pauses = {e.key: e for e in may_go if e.restored_at < since}
            wanted = policy.under_pressure([self.sight.pause(e) for e in pauses.values()], self.sight.tier(watch), need)
            for decision in wanted:
                entry = pauses.get(decision.session)
                if entry is not None:
                    async with entry.lock:
                        if entry.paused and not entry.turns:
                            await self._carry_out(entry, policy, decision)
        finally:
            self._pressing.discard(watch.name)

    def first_in_line(self, watch: EngineWatch, guest: Entry) -> Entry:
        """Of the conversations that wait for a slot, and ``guest``, the one whose turn the policy runs first."""
        now = time.monotonic()
        waiting = {e.key: e for e in self.book.of_engine(watch.name) if e.slot is None and (e.waiting or e is guest)}
        if len(waiting) < 2:
            return guest
        turns = [
            Waiting(
                session=one.key,
                tokens=one.kv.context,
                waited=max(0.0, now - one.waiting_since),
                priority=one.priority,
                where=PLACE[one.kv.residency],
            )
            for one in waiting.values()
        ]
        order = self.sight.policy(watch).order(turns, self.sight.tier(watch))
        return waiting.get(order[0], guest) if order else guest

    def admits(self, watch: EngineWatch, guest: Entry) -> bool:
        """Whether a new conversation may begin. It is taken to become as long as the others are."""
        others = [entry.kv.context for entry in self.book.of_engine(watch.name) if entry.kv.context]
        need = int(statistics.median(others)) if others else 0
        tier = self.sight.tier(watch)
        if not tier.capacity or (self.moves.has_slots(watch.name) and self.moves.free_slot(watch.name) is not None):
            return True
        answer = self.sight.policy(watch).admit(need, tier)
        if not answer.admitted and not guest.waiting:
            _log.info("a new conversation waits", session=guest.session_id, engine=watch.name, why=answer.why)
        return answer.admitted

    async def make_room(self, watch: EngineWatch, guest: Entry) -> bool:
        """One slot of a llama.cpp server for ``guest``: a paused conversation's by the policy's order, else that of one
        that idles, the longest unused first. False: every slot is in use, or its owner cannot be moved."""
        policy = self.sight.policy(watch)
        for entry in self.book.slots(watch.name).values():
            if entry is not guest and entry.kv.residency is not Residency.RESIDENT and self._idle(entry):
                entry.slot = None  # it holds nothing there
                return True
        idle = {e.key: e for e in self.book.slots(watch.name).values() if e is not guest and self._idle(e)}
        # a copy outside that is worth less may have to give its room to what is put out now
        copies = {
            e.key: e
            for e in self.book.of_engine(watch.name)
            if e.paused and e is not guest and e.kv.residency is Residency.OFFLOADED and self._idle(e)
        }
        paused = [self.sight.pause(entry) for entry in (*idle.values(), *copies.values()) if entry.paused]
        need = max(1, guest.kv.tokens)
        order = list(policy.under_pressure(paused, self.sight.tier(watch), need))
        rest = sorted((e for e in idle.values() if not e.paused), key=lambda e: e.last_used)
        named = {decision.session for decision in order}
        rest += sorted((e for e in idle.values() if e.paused and e.key not in named), key=lambda e: e.last_used)
        why = "another conversation's turn needs the slot"
        order += evict([self.sight.pause(e) for e in rest], self.sight.tier(watch), 1 << 62, why)
        for decision in order:
            entry = idle.get(decision.session) or copies[decision.session]
            if not self._idle(entry):
                continue
            has_slot = entry.key in idle
            async with entry.lock:
                await self._carry_out(entry, policy, decision)
                if has_slot and not watch.can(Capability.DROP):
                    # it saves and erases no slots: the next request there takes what it needs
                    self.moves.lost(entry, decision.why)
            if has_slot and entry.slot is None:
                return True
        return False

    @staticmethod
    def _idle(entry: Entry) -> bool:
        return not entry.turns and not entry.pinned and not entry.lock.locked()

    async def _clear(self, entry: Entry) -> None:
        async with entry.lock:
            entry.calls.clear()
            await self.moves.clear(entry)
            self.book.apply(entry, Closed(at_nsec=self.book.now))

    # --- small things ------------------------------------------------------------------------------------------------

    def _paused(self, entry: Entry, record: PauseRecord) -> None:
        had = self.pauses.get(entry.engine, PauseTotals())
        unit = 1 if entry.bytes_known else 0
        self.pauses[entry.engine] = PauseTotals(
            had.pauses + 1,
            had.seconds + (record.ended_nsec - record.begun_nsec) / 1e9,
            had.resident + unit * record.resident_byte_seconds,
            had.offloaded + unit * record.offloaded_byte_seconds,
        )

    def _later(
        self,
        entry: Entry,
        seconds: float,
        then: Callable[[Entry], Coroutine[Any, Any, None]],
        *,
        keep: bool = False,
    ) -> None:
        entry.cancel_timer()

        def due() -> None:
            entry.timer, entry.keep_until = None, None
            self._spawn(then(entry))

        entry.timer = asyncio.get_running_loop().call_later(seconds, due)
        entry.keep_until = time.monotonic() + seconds if keep else None

    def _spawn(self, act: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(act)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("an act on a KV cache failed", error=f"{type(error).__name__}: {error}", exc_info=error)
