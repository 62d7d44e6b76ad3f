"""InferCept's rule (arXiv 2402.01869): of preserve, swap and discard, whichever wastes the least memory-time.

With C context tokens of the paused session, M bytes per token, T_int the pause:

    preserve   T_int C M                       its KV lies idle
    discard    T_fwd(C) (C + C_other) M        while it is computed again, its KV and the others' wait
    chunked    T_fwd(C) C M / 2 + n T_fwd(C/n) C_other M
    swap       2 T_swap(C) C_batch M           the batch waits for the copy out and back
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu.policy.eviction import evict
from gpu.policy.types import Defaults, KvAction, KvDecision, Pause, Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """Byte-seconds. ``swap`` is infinite where the engine cannot offload so much."""

    preserve: float
    discard: float
    swap: float

    @property
    def best(self) -> KvAction:
        least = min(self.preserve, self.discard, self.swap)
        # Ties go to the choice that can be undone.
        if self.preserve == least:
            return KvAction.KEEP
        return KvAction.OFFLOAD if self.swap == least else KvAction.DROP


def waste(pause: Pause, tier: Tier, *, remaining: float, chunks: int = 1) -> Waste:
    """:param chunks: pieces of a recomputation that are mixed with other requests' work; 1: all at once"""
    tokens, size = pause.tokens, tier.bytes_per_token
    whole = tier.forward.seconds(tokens)
    if chunks > 1:
        piece = tier.forward.seconds(tokens / chunks)
        discard = whole * tokens * size / 2 + chunks * piece * tier.running_tokens * size
    else:
        discard = whole * (tokens + tier.running_tokens) * size
    if tier.swap is not None and tier.can_offload(tokens):
        swap = 2 * tier.swap.seconds(tokens * size) * tier.running_tokens * size
    else:
        swap = float("inf")
    return Waste(preserve=remaining * tokens * size, discard=discard, swap=swap)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferCept(Defaults):
    """
    :param unknown: seconds that a call of which nothing is known is taken to last
    :param chunks: of a recomputation (the engine's chunked prefill); 1: none
    """

    unknown: float = 1.0
    chunks: int = 1
    name: str = "infercept"

    def at_pause(self, pause: Pause, tier: Tier) -> KvDecision:
        remaining = pause.remaining(self.unknown)
        found = waste(pause, tier, remaining=remaining, chunks=self.chunks)
        action = found.best
        return KvDecision(
            session=pause.session,
            action=action,
            why=f"{action} wastes the least memory-time",
            # Past its expected end the estimate was wrong: decide again with what is known then.
            ttl=max(remaining, 1e-3) if action is KvAction.KEEP else None,
            evidence={
                "remaining_seconds": remaining,
                "waste_keep": found.preserve,
                "waste_offload": found.swap,
                "waste_drop": found.discard,
            },
        )

    def expired(self, pause: Pause, tier: Tier) -> KvDecision:
        return self.at_pause(pause, tier)

    def under_pressure(self, pauses: Sequence[Pause], tier: Tier, need: int) -> tuple[KvDecision, ...]:
        """Whoever wastes the most by staying, compared with the cheapest way to get it back, goes first."""

        def gain(pause: Pause) -> float:
            found = waste(pause, tier, remaining=pause.remaining(self.unknown), chunks=self.chunks)
            return found.preserve - min(found.discard, found.swap)

        order = sorted(pauses, key=lambda pause: (-gain(pause), pause.session))
        return evict(order, tier, need, "wastes the most memory-time by staying")
