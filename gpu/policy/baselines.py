"""Baselines that know nothing of tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu.policy.eviction import Rivals, evict
from gpu.policy.types import Defaults, KvAction, KvDecision, Pause, Place, Tier


def _oldest_first(pauses: Sequence[Pause]) -> list[Pause]:
    return sorted(pauses, key=lambda pause: (pause.last_used, pause.session))


def _resident(pauses: Sequence[Pause]) -> list[Pause]:
    return [pause for pause in pauses if pause.where is Place.RESIDENT]


@dataclass(frozen=True, slots=True)
class AlwaysKeep(Defaults):
    """Holds KV until the pool is full; then the least recently used goes, since something must."""

    name: str = "always-keep"

    def at_pause(self, pause: Pause, tier: Tier) -> KvDecision:
        return KvDecision(session=pause.session, action=KvAction.KEEP, why="this policy keeps all")

    def expired(self, pause: Pause, tier: Tier) -> KvDecision:
        return self.at_pause(pause, tier)

    def under_pressure(self, pauses: Sequence[Pause], tier: Tier, need: int) -> tuple[KvDecision, ...]:
        why = "the pool is full; least recently used"
        return evict(_oldest_first(pauses), tier, need, why, pays=lambda pause: False)


@dataclass(frozen=True, slots=True)
class AlwaysDrop(Defaults):
    """What an engine does that frees a request's KV at its end."""

    name: str = "always-drop"

    def at_pause(self, pause: Pause, tier: Tier) -> KvDecision:
        return KvDecision(session=pause.session, action=KvAction.DROP, why="this policy drops at every tool call")

    def expired(self, pause: Pause, tier: Tier) -> KvDecision:
        return self.at_pause(pause, tier)

    def under_pressure(self, pauses: Sequence[Pause], tier: Tier, need: int) -> tuple[KvDecision, ...]:
        return tuple(self.at_pause(pause, tier) for pause in _oldest_first(_resident(pauses)) if pause.tokens)


@dataclass(frozen=True, slots=True)
class AlwaysOffload(Defaults):
    """Moves KV out at every tool call, as long as there is room for it; drops it otherwise."""

    name: str = "always-offload"

    def at_pause(self, pause: Pause, tier: Tier) -> KvDecision:
        if tier.can_offload(pause.tokens):
            return KvDecision(session=pause.session, action=KvAction.OFFLOAD, why="this policy offloads all")
        return KvDecision(session=pause.session, action=KvAction.DROP, why="there is no room to offload to")

    def expired(self, pause: Pause, tier: Tier) -> KvDecision:
        return self.at_pause(pause, tier)

    def under_pressure(self, pauses: Sequence[Pause], tier: Tier, need: int) -> tuple[KvDecision, ...]:
        return evict(_oldest_first(pauses), tier, need, "the pool is full; least recently used")


@dataclass(frozen=True, slots=True)
class LeastRecentlyUsed(Defaults):
    """Keeps until the pool is full; then puts out whoever ran longest ago, offloaded where there is room.

    Among those outside, too, whoever ran longest ago makes room: an engine with a cache in RAM does the same.
    """

    name: str = "lru"

    def at_pause(self, pause: Pause, tier: Tier) -> KvDecision:
        return KvDecision(session=pause.session, action=KvAction.KEEP, why="kept until the pool is full")

    def expired(self, pause: Pause, tier: Tier) -> KvDecision:
        return self.at_pause(pause, tier)

    def under_pressure(self, pauses: Sequence[Pause], tier: Tier, need: int) -> tuple[KvDecision, ...]:
        oldest = _oldest_first(pauses)
        outside = [(pause.last_used, pause) for pause in oldest if pause.away]
        rivals = Rivals(outside, lambda pause: pause.last_used, weigh=False)
        return evict(oldest, tier, need, "the pool is full; least recently used", rivals=rivals)
