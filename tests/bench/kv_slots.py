"""Which session has which slot of a llama.cpp server, and what becomes of its KV when another needs the place.

    slots = Slots(engine, count=4, policy=ShadowPrice(), store_bytes=1 << 30, bytes_per_token=2048)
    place = await slots.acquire("s1")            # waits for a slot; its KV is there, if it was anywhere
    slots.release("s1", tokens=1200)             # the turn has ended
    slots.pause_begun("s1", expected=7.0)        # its tool runs: the policy decides
    slots.pause_ended("s1")

The server knows slots, not sessions, and would give a session's slot to whoever comes next. Here each request names its
slot; the policy (gpu.policy) decides whose KV stays, is saved or is given up. The bench's own: the daemon's coordinator
(agentd.tier) does this for all engines, with hosts, ledgers and budgets around it, and shares the policies.

Moves run beside the turns, and a move that fails leaves a known state: the KV counts as dropped, and is computed again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

from agentd.log import get_logger
from gpu.engines import KvMoved, KvRef
from gpu.engines.llamacpp import file_name
from gpu.errors import GpuError
from gpu.policy import KvAction, KvDecision, KvPolicy, Pause, Place, Tier, Waiting
from tests.bench.kv_costs import Costs
from tests.bench.kv_entries import Entry, SlotEngine, SlotTotals, Waiter

log = get_logger("corral.slots")

# Seconds after a turn within which its session is not put out: its tool call is about to begin, and then there is
# something to know; or its next turn is.
_SETTLE: Final = 0.05
_LEARNED: Final = 64  # durations that are kept for sessions between two calls, of which nothing else is known


class Slots:
    """
    :param count: slots of the server
    :param store_bytes: room for saved slots
    :param directory: where the server saves slots, as this process sees it; copies that are of no more use are removed
        there, as the server never does. None: they stay.
    """

    def __init__(
        self,
        engine: SlotEngine,
        *,
        count: int,
        policy: KvPolicy,
        store_bytes: int,
        bytes_per_token: int,
        costs: Costs | None = None,
        directory: Path | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._store = store_bytes
        self._unit = bytes_per_token
        self._costs = costs or Costs()
        self._directory = directory
        self._clock = clock or asyncio.get_running_loop().time
        self._owner: list[Entry | None] = [None] * count
        self._entries: dict[str, Entry] = {}
        self._moves: set[asyncio.Task[None]] = set()
        self._recent: list[float] = []
        self._closed = False
        self._again: asyncio.TimerHandle | None = None
        self.totals: Final = SlotTotals()

    # --- turns -------------------------------------------------------------------------------------------------------

    async def acquire(self, session: str) -> int:
        """The slot for a turn, once it is this session's and its KV is there. Turns of one session follow each other.

        When cancelled, the turn has no slot, and what the session had stays its own.
        """
        entry = self._entries.get(session)
        if entry is None:
            entry = self._entries[session] = Entry(session, last_used=self._clock())
        if entry.paused_at is not None:
            self.pause_ended(session)  # the turn says so: whoever should have told us did not
        waiter = Waiter(self._clock(), asyncio.get_running_loop().create_future())
        lost = entry.where is not Place.RESIDENT and entry.tokens > 0
        entry.waiters.append(waiter)
        self._dispatch()
        try:
            slot = await waiter.granted
        except asyncio.CancelledError:
            if waiter in entry.waiters:
                entry.waiters.remove(waiter)
            else:  # it had been granted in the same moment
                entry.busy = False
            self._dispatch()
            raise
        if lost:
            entry.waited += self._clock() - waiter.since
        return slot

    def release(self, session: str, *, tokens: int | None) -> None:
        """Its turn has ended, with so many tokens in the slot. None: nobody knows, so it counts as before."""
        entry = self._entries.get(session)
        if entry is None:  # it was forgotten while its turn ran
            for slot, owner in enumerate(self._owner):
                if owner is not None and owner.session == session:
                    self._owner[slot] = None
            self._dispatch()
            return
        entry.busy = False
        entry.last_used = self._clock()
        if tokens is not None:
            entry.tokens = tokens
        entry.where = Place.RESIDENT if entry.tokens else Place.DROPPED
        self._dispatch()

    def prefilled(self, tokens: int, seconds: float) -> None:
        """So many prompt tokens were computed in so many seconds."""
        self._costs.prefilled(tokens, seconds)

    # --- tool calls --------------------------------------------------------------------------------------------------

    def pause_begun(self, session: str, *, expected: float | None = None, durations: Sequence[float] = ()) -> None:
        """Its tool runs. ``durations``: of earlier calls like this one; seconds."""
        entry = self._entries.get(session)
        if entry is None or entry.paused_at is not None:
            return
        entry.paused_at = entry.held_from = self._clock()
        entry.expected = expected
        entry.durations = durations
        self._ask(entry, self._policy.at_pause)

    def pause_ended(self, session: str) -> None:
        entry = self._entries.get(session)
        if entry is None or entry.paused_at is None:
            return
        self._hold(entry)
        now = self._clock()
        self._recent = [*self._recent[1 - _LEARNED :], now - entry.paused_at]
        entry.paused_at = None
        entry.last_used = now
        self._quiet(entry)

    def forget(self, session: str) -> None:
        """The session has ended. Its slot is free once what runs in it has ended."""
        entry = self._entries.pop(session, None)
        if entry is None:
            return
        self._quiet(entry)
        self._discard(entry)
        if entry.slot is not None and not entry.busy and not entry.moving:
            self._owner[entry.slot] = None
            entry.slot = None
        entry.tokens = 0
        self._dispatch()

    def where(self, session: str) -> tuple[Place, int | None, int]:
        """Where its KV is, in which slot, and how many tokens it has."""
        entry = self._entries.get(session) or Entry(session)
        return entry.where, entry.slot, entry.tokens

    @property
    def stored(self) -> int:
        """Bytes of saved slots, those under way included."""
        return sum(entry.stored for entry in self._entries.values())

    async def close(self) -> None:
        """Waits for moves under way: to break them off would leave slots half filled."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        for entry in self._entries.values():
            self._hold(entry)
            self._quiet(entry)
            for waiter in entry.waiters:
                waiter.granted.cancel()
        while self._moves:
            await asyncio.wait(self._moves)

    # --- who gets a slot ---------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self._closed:
            return
        waiting = [entry for entry in self._entries.values() if entry.waiters and not (entry.busy or entry.moving)]
        if not waiting:
            return
        tier = self._tier()
        order = self._policy.order(tuple(self._waiting(entry) for entry in waiting), tier)
        by_name = {entry.session: entry for entry in waiting}
        for session in order:
            entry = by_name[session]
            if entry.slot is not None:
                self._grant(entry)
                continue
            slot = self._free()
            if slot is not None:
                self._begin(entry, slot, None)
                continue
            victim, decision = self._victim()
            if victim is None or victim.slot is None:
                continue
            slot, victim.slot = victim.slot, None
            self._begin(entry, slot, victim, offload=decision is KvAction.OFFLOAD)

    def _grant(self, entry: Entry) -> None:
        while entry.waiters and entry.slot is not None:
            waiter = entry.waiters.pop(0)
            if not waiter.granted.done():
                entry.busy = True
                waiter.granted.set_result(entry.slot)
                return

    def _free(self) -> int | None:
        """A slot that is nobody's, or of somebody who has nothing in it."""
        for slot, owner in enumerate(self._owner):
            if owner is None:
                return slot
        for slot, owner in enumerate(self._owner):
            if owner is not None and owner.idle and owner.tokens == 0:
                owner.slot = None
                return slot
        return None

    def _victim(self) -> tuple[Entry | None, KvAction]:
        """Whose slot is taken, and what becomes of its KV. Gives up saved ones where the policy says so."""
        idle = [entry for entry in self._entries.values() if entry.idle and entry.where is Place.RESIDENT]
        settled = self._clock() - _SETTLE
        candidates = [entry for entry in idle if entry.paused_at is not None or entry.last_used <= settled]
        if not candidates:
            if idle and self._again is None:
                self._again = asyncio.get_running_loop().call_later(_SETTLE, self._once_more)
            return None, KvAction.KEEP
        outside = [one for one in self._entries.values() if one.stored and not (one.moving or one.waiters)]
        decisions = self._policy.under_pressure(
            tuple(self._pause(entry) for entry in (*candidates, *outside)), self._tier(), 1
        )
        victim, action = None, KvAction.DROP
        for decision in decisions:
            entry = self._entries[decision.session]
            if entry.where is Place.OFFLOADED:
                self._discard(entry)
            elif victim is None:
                victim, action = entry, decision.action
        if victim is None:  # a policy that names nobody: something must go
            victim = min(candidates, key=lambda entry: entry.last_used)
        if action is KvAction.OFFLOAD and not self._fits(victim):
            action = KvAction.DROP
        return victim, action

    def _once_more(self) -> None:
        self._again = None
        self._dispatch()

    def _fits(self, entry: Entry) -> bool:
        return self.stored + entry.tokens * self._unit <= self._store

    # --- moves -------------------------------------------------------------------------------------------------------

    def _begin(self, entry: Entry, slot: int, victim: Entry | None, *, offload: bool = False) -> None:
        """Bring ``entry`` into ``slot``, which was ``victim``'s until now."""
        self._owner[slot] = entry
        entry.slot = slot
        if victim is not None:
            self._quiet(victim)
            if not offload:  # what comes next overwrites it: no need to erase
                self._lost(victim)
                self.totals.drops += 1
                victim = None
        if victim is None and entry.where is not Place.OFFLOADED:
            self._grant(entry)
            return
        entry.moving = True
        if victim is not None:
            victim.moving = True
            victim.stored = victim.tokens * self._unit
        self._spawn(self._bring(entry, slot, victim))

    async def _bring(self, entry: Entry, slot: int, victim: Entry | None) -> None:
        try:
            if victim is not None:
                await self._save(victim, slot)
                self._dispatch()  # its own next turn may have come meanwhile
            if entry.where is Place.OFFLOADED:
                await self._load(entry, slot)
        finally:
            entry.moving = False
            self._grant(entry)
            self._dispatch()

    async def _put_out(self, entry: Entry, slot: int, action: KvAction) -> None:
        """At the begin of a pause, or when it has been held for long enough: the slot is free afterwards."""
        try:
            if action is KvAction.OFFLOAD:
                await self._save(entry, slot)
            else:
                await self._erase(entry, slot)
        finally:
            entry.moving = False
            if self._owner[slot] is entry:
                self._owner[slot] = None
                entry.slot = None
            self._dispatch()

    async def _return(self, entry: Entry, slot: int) -> None:
        """Ahead of the call's end."""
        try:
            await self._load(entry, slot)
        finally:
            entry.moving = False
            self._grant(entry)
            self._dispatch()

    async def _save(self, entry: Entry, slot: int) -> None:
        self._hold(entry)
        try:
            moved = await self._engine.offload(KvRef(session=entry.session, slot=slot))
        except GpuError as error:
            self._failed(entry, "saved", error)
            return
        finally:
            entry.moving = False
        self._hold(entry)
        self._moved(moved)
        self.totals.offloads += 1
        entry.where = Place.OFFLOADED
        entry.stored = moved.bytes if moved.bytes is not None else entry.stored
        if entry.session not in self._entries:
            self._discard(entry)  # it ended meanwhile
        elif entry.paused_at is not None:
            self._plan_return(entry)

    async def _load(self, entry: Entry, slot: int) -> None:
        self._hold(entry)
        try:
            moved = await self._engine.restore(KvRef(session=entry.session, slot=slot))
        except GpuError as error:
            self._failed(entry, "restored", error)
            return
        self._moved(moved)
        self.totals.restores += 1
        self._discard(entry, where=Place.RESIDENT)

    async def _erase(self, entry: Entry, slot: int) -> None:
        self._hold(entry)
        try:
            await self._engine.drop(KvRef(session=entry.session, slot=slot))
        except GpuError as error:
            self._failed(entry, "dropped", error)
            return
        self.totals.drops += 1
        self._lost(entry)

    def _failed(self, entry: Entry, what: str, error: GpuError) -> None:
        self.totals.failures += 1
        log.warning("a session's KV was not moved and will be computed again", tried=what, error=str(error))
        self._discard(entry)

    def _moved(self, moved: KvMoved) -> None:
        if moved.bytes:
            self._costs.moved(moved.bytes, moved.seconds)
            self.totals.moved_bytes += moved.bytes
        self.totals.moving_seconds += moved.seconds

    def _lost(self, entry: Entry) -> None:
        self._hold(entry)
        entry.where = Place.DROPPED

    def _discard(self, entry: Entry, *, where: Place = Place.DROPPED) -> None:
        """Its copy outside is of no more use."""
        self._hold(entry)
        had, entry.stored, entry.where = entry.stored, 0, where
        if where is Place.DROPPED and had:
            self.totals.drops += 1
        if had and self._directory is not None:
            with contextlib.suppress(FileNotFoundError):
                (self._directory / file_name(entry.session)).unlink()

    def _spawn(self, move: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(move)
        self._moves.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._moves.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a move of KV failed", remedy="report this", exc_info=error)

    # --- the policy's view -------------------------------------------------------------------------------------------

    def _ask(self, entry: Entry, rule: Callable[[Pause, Tier], KvDecision]) -> None:
        """Asks about a paused session that has a slot, and does what is decided."""
        if not entry.idle or entry.where is not Place.RESIDENT or entry.slot is None:
            return
        decision = rule(self._pause(entry), self._tier())
        action = decision.action
        if action is KvAction.OFFLOAD and not self._fits(entry):
            action = KvAction.KEEP  # until its slot is needed
        if action is KvAction.KEEP:
            if decision.ttl is not None:
                self._later(decision.ttl, self._expired, entry)
            return
        self._quiet(entry)
        entry.moving = True
        if action is KvAction.OFFLOAD:
            entry.stored = entry.tokens * self._unit
        self._spawn(self._put_out(entry, entry.slot, action))

    def _expired(self, entry: Entry) -> None:
        if entry.paused_at is not None:
            self._ask(entry, self._policy.expired)

    def _plan_return(self, entry: Entry) -> None:
        plan = self._policy.before_return(self._pause(entry), self._tier())
        if plan is not None:
            self._later(plan.after, self._fetch, entry)

    def _fetch(self, entry: Entry) -> None:
        """Only into a slot that is free: who runs is not put out for who may come."""
        if entry.paused_at is None or entry.moving or entry.slot is not None or entry.where is not Place.OFFLOADED:
            return
        slot = self._free()
        if slot is None:
            return
        self._owner[slot], entry.slot, entry.moving = entry, slot, True
        self._spawn(self._return(entry, slot))

    def _later(self, seconds: float, what: Callable[[Entry], None], entry: Entry) -> None:
        self._quiet(entry)
        entry.timer = asyncio.get_running_loop().call_later(seconds, what, entry)

    def _quiet(self, entry: Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    def _pause(self, entry: Entry) -> Pause:
        """Between two calls nothing is known but how long calls in general take."""
        begun = entry.paused_at
        return Pause(
            session=entry.session,
            tokens=entry.tokens,
            elapsed=max(0.0, self._clock() - (begun if begun is not None else entry.last_used)),
            expected=entry.expected if begun is not None else None,
            durations=entry.durations if begun is not None else tuple(self._recent),
            last_used=entry.last_used,
            where=entry.where,
            waited=entry.waited,
        )

    def _waiting(self, entry: Entry) -> Waiting:
        return Waiting(
            session=entry.session,
            tokens=entry.tokens,
            waited=self._clock() - entry.waiters[0].since,
            where=entry.where,
        )

    def _tier(self) -> Tier:
        """Slots are what is scarce, not tokens: a slot that somebody has is full, whatever lies in it."""
        entries = self._entries.values()
        resident = [entry for entry in entries if entry.slot is not None]
        used = sum(entry.tokens for entry in resident)
        known = [entry.tokens for entry in entries if entry.tokens]
        free = sum(owner is None for owner in self._owner)
        return Tier(
            bytes_per_token=self._unit,
            capacity=used + free * (sum(known) // len(known) if known else 1),
            used=used,
            running_tokens=sum(entry.tokens for entry in resident if entry.busy),
            forward=self._costs.forward,
            swap=self._costs.swap if self._store else None,
            offload_free=max(0, self._store - self.stored),
            waiting_tokens=sum(entry.tokens for entry in entries if entry.waiters and entry.slot is None),
            paused=tuple(
                self._pause(entry)
                for entry in entries
                if not (entry.busy or entry.waiters or entry.moving) and entry.tokens
            ),
        )

    def _hold(self, entry: Entry) -> None:
        """Charges what a paused session held until now, wherever it was."""
        now = self._clock()
        if entry.paused_at is not None and entry.where is not Place.DROPPED:
            size = entry.stored if entry.where is Place.OFFLOADED else entry.tokens * self._unit
            part = size * (now - entry.held_from)
            entry.held += part
            self.totals.held_byte_seconds += part
        entry.held_from = now
