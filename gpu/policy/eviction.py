"""Putting KV out of the pool, in an order that a policy has chosen: how much of whom, and where to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from gpu.policy.types import KvAction, KvDecision, Pause, Tier

BLOCK: Final = 256  # tokens: the grain of partial decisions; smaller ones are not worth a copy of their own


@dataclass(frozen=True, slots=True)
class Rivals:
    """Who may lose the room for offloaded KV to whom.

    ``outside``: (value of a token's room, pause), lowest first. ``worth``: the same of the one who comes.
    ``weigh``: whether whole sessions are compared by value times size, not by value alone.
    """

    outside: Sequence[tuple[float, Pause]] = ()
    worth: Callable[[Pause], float] = lambda pause: 0.0
    weigh: bool = True


@dataclass(slots=True)
class _Held:
    """Tokens outside that are still there, and what a token's room is worth to their session."""

    value: float
    pause: Pause
    left: int


class _Room:
    """For offloaded KV, in tokens, with who has it."""

    def __init__(self, tier: Tier, rivals: Rivals) -> None:
        self.free = tier.offload_free // tier.bytes_per_token if tier.swap is not None else 0
        self._partial: Final = tier.partial
        self._rivals: Final = rivals
        self._left: Final = [_Held(value, pause, pause.away) for value, pause in rivals.outside]

    def make(self, tokens: int, pause: Pause, why: str) -> list[KvDecision]:
        """Drops what is worth less than ``pause``, until ``tokens`` fit; in part where that is possible, else not."""
        worth = self._rivals.worth(pause)
        lacking, budget = tokens - self.free, worth * tokens
        gone: list[tuple[_Held, int]] = []
        for held in self._left:
            if lacking <= 0 or held.value >= worth:
                break
            if not held.left or held.pause.session == pause.session:
                continue
            take = min(held.left, lacking) if self._partial else held.left
            budget -= held.value * take
            if not self._partial and self._rivals.weigh and budget <= 0:
                break
            gone.append((held, take))
            lacking -= take
        if lacking > 0 and not self._partial:
            return []
        decisions = []
        for held, take in gone:
            held.left -= take
            self.free += take
            decisions.append(
                KvDecision(
                    session=held.pause.session,
                    action=KvAction.DROP,
                    why=f"session {pause.session} makes better use of the room for offloaded KV",
                    tokens=take if self._partial else None,
                    evidence={"tokens": float(take)},
                )
            )
        return decisions

    def drop_own(self, pause: Pause, tokens: int) -> int:
        """Those of ``tokens`` that lie outside already."""
        for held in self._left:
            if held.pause.session == pause.session:
                freed = min(tokens, held.left)
                held.left -= freed
                self.free += freed
                return freed
        freed = min(tokens, pause.away)
        self.free += freed
        return freed


def evict(
    order: Sequence[Pause],
    tier: Tier,
    need: int,
    why: str,
    *,
    rivals: Rivals | None = None,
    pays: Callable[[Pause], bool] = lambda pause: True,
) -> tuple[KvDecision, ...]:
    """Put out in the given order until ``need`` tokens are free: offloaded while there is room for it, else dropped.

    What is outside of the pool already is left alone, unless it is worth less room than what comes (``rivals``).

    :param pays: whether to copy it out and back costs less than to compute it again
    """
    decisions: list[KvDecision] = []
    room = _Room(tier, rivals or Rivals())
    for pause in order:
        if need <= 0:
            break
        if not pause.resident:
            continue
        tokens = min(pause.resident, -(-need // BLOCK) * BLOCK) if tier.partial else pause.resident
        need -= tokens
        whole = tokens == pause.resident
        moved = tokens if pays(pause) else 0
        if moved > room.free:
            decisions += room.make(moved, pause, why)
        evidence = {"tokens": float(tokens), "offload_room_bytes": float(room.free * tier.bytes_per_token)}
        if moved > room.free and not tier.partial:
            moved = 0
        lost = tokens - min(moved, room.free)
        if lost and tier.partial:
            # The end goes first, and that may lie outside already: then its room is free for what follows.
            outside = room.drop_own(pause, lost if moved else pause.away)
            moved = min(moved, room.free)
            lost = tokens - moved + outside
        if lost:
            part = lost if moved or not whole else None
            decisions.append(
                KvDecision(session=pause.session, action=KvAction.DROP, why=why, tokens=part, evidence=evidence)
            )
        if moved:
            room.free -= moved
            part = None if whole and not lost else moved
            decisions.append(
                KvDecision(session=pause.session, action=KvAction.OFFLOAD, why=why, tokens=part, evidence=evidence)
            )
    return tuple(decisions)
