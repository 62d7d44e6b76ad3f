"""What policies see: each paused conversation, each engine, from the book, the last readings and what was learned."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from agentd.config import EngineSection
from agentd.tier.book import PLACE, Book, Entry
from agentd.tier.costs import EngineCosts
from agentd.tier.engines import EngineWatch
from gpu.engines import Capability, EngineKind
from gpu.ledger import Residency
from gpu.policy import KvPolicy, Pause, ShadowPrice, Tier, policy_named

_RECENT: Final = 10.0  # seconds


def policy_of(section: EngineSection) -> KvPolicy:
    """The policy that an engine's configuration names. Where it begins to be short is the configuration's, too."""
    if section.policy == "corral":
        return ShadowPrice(headroom=section.pressure)
    return policy_named(section.policy)


class Sight:
    """Asks nothing of anyone: all is from memory."""

    def __init__(
        self, book: Book, watches: Mapping[str, EngineWatch], policies: Callable[[EngineSection], KvPolicy] = policy_of
    ) -> None:
        self._book = book
        self._watches = watches
        self._policies = policies
        self._costs: dict[str, EngineCosts] = {}
        self._made: dict[str, KvPolicy] = {}

    def costs(self, engine: str) -> EngineCosts:
        found = self._costs.get(engine)
        if found is None:
            found = self._costs[engine] = EngineCosts(self._watches[engine].section)
        return found

    def forget_engine(self, engine: str) -> None:
        """It left the configuration, or changed there. What it held is no longer followed."""
        self._costs.pop(engine, None)
        self._made.pop(engine, None)

    def pause(self, entry: Entry) -> Pause:
        since = entry.paused_since
        return Pause(
            session=entry.key,
            tokens=entry.kv.tokens,
            elapsed=0.0 if since is None else max(0.0, time.monotonic() - since),
            expected=entry.expected,
            durations=entry.durations,
            last_used=entry.last_used,
            where=PLACE[entry.kv.residency],
            waited=entry.waited,
        )

    def tier(self, watch: EngineWatch) -> Tier:
        """The engine as its policy sees it, from the last reading and the book."""
        costs = self.costs(watch.name)
        entries = self._book.of_engine(watch.name)
        metrics = watch.reading.metrics if watch.reading is not None else None
        capacity = (metrics.kv_total_tokens if metrics is not None else None) or (
            watch.info.kv_tokens if watch.info is not None else None
        )
        offloads = watch.can(Capability.OFFLOAD) and watch.can(Capability.RESTORE)
        size = next((entry.kv.bytes_per_token for entry in entries if entry.bytes_known), None)
        if size is None:
            size = watch.bytes_per_token or 1
        used = self._used(watch, entries, capacity or 0)
        return Tier(
            bytes_per_token=size,
            capacity=capacity or 0,
            used=used,
            waiting_tokens=sum(entry.kv.context for entry in entries if entry.waiting),
            running_tokens=min(used, sum(entry.kv.tokens for entry in entries if _runs(entry))),
            forward=costs.forward,
            swap=costs.swap if offloads else None,
            offload_free=max(0, watch.section.offload_budget - self._book.saved_bytes(watch.name)) if offloads else 0,
            queueing=costs.queueing,
            paused=[self.pause(entry) for entry in entries if entry.paused and entry.proven],
        )

    @staticmethod
    def _used(watch: EngineWatch, entries: Sequence[Entry], capacity: int) -> int:
        """Tokens of the pool that are in use. What agents report of themselves must not make others' KV go: the
        engine's own word counts, and of slots those that a conversation really has."""
        metrics = watch.reading.metrics if watch.reading is not None else None
        resident = [entry for entry in entries if entry.kv.residency is Residency.RESIDENT]
        if watch.info is not None and watch.info.kind is EngineKind.LLAMACPP and watch.info.slots is not None:
            # Slots are what is short there, not tokens: with no more conversations than slots there is room for all.
            rivals = [e for e in entries if e.slot is not None or e.waiting or e.kv.residency is Residency.OFFLOADED]
            if len(rivals) > watch.info.slots:
                return capacity
            return min(sum(entry.kv.tokens for entry in resident if entry.slot is not None), capacity)
        if metrics is not None and metrics.kv_used_tokens is not None:
            return metrics.kv_used_tokens
        return min(sum(entry.kv.tokens for entry in resident), capacity)

    def policy(self, watch: EngineWatch) -> KvPolicy:
        found = self._made.get(watch.name)
        if found is None or found.name != watch.section.policy:
            found = self._made[watch.name] = self._policies(watch.section)
        return found

    def acting(self, entry: Entry) -> EngineWatch | None:
        watch = self._watches.get(entry.engine)
        return watch if watch is not None and watch.acts else None


def _runs(entry: Entry) -> bool:
    """A turn of it runs; or, where nobody tells when a turn begins, it was used a moment ago and waits for no tool."""
    if entry.kv.residency is not Residency.RESIDENT or not entry.proven:
        return False
    return entry.turns > 0 or (not entry.paused and time.monotonic() - entry.last_used < _RECENT)
