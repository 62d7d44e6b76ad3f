"""Continuum's rule (arXiv 2511.02230): keep KV for a time to live, chosen from the tool's own history.

    ttl = argmax_tau  P(tau) (T eta + Reload) - tau

P is the empirical distribution of the tool's durations, T the mean queueing delay of recent requests (what a session
that lost its place waits again), Reload the time to compute its context again. P is a step function and the rest falls
with tau: the maximum lies at 0 or at one of the durations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gpu.policy.eviction import evict
from gpu.policy.types import Defaults, KvAction, KvDecision, Pause, Tier

COLD_SECONDS: Final = 2.0  # until there are enough samples
COLD_SAMPLES: Final = 100


def time_to_live(durations: Sequence[float], gain: float) -> float:
    """The tau that maximises ``P(tau) gain - tau``; the smallest of several.

    :param gain: seconds saved if the call returns in time: ``T eta + Reload``
    """
    ordered = sorted(durations)
    best, best_value = 0.0, 0.0
    for rank, tau in enumerate(ordered, 1):
        if rank < len(ordered) and ordered[rank] == tau:
            continue  # P jumps at the last of equal durations
        value = rank / len(ordered) * gain - tau
        if value > best_value:
            best, best_value = tau, value
    return best


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuum(Defaults):
    """
    :param eta: weight of the queueing delay
    :param offload: whether what outlived its time is offloaded where there is room (the paper's engine drops it)
    """

    eta: float = 1.0
    offload: bool = False
    name: str = "continuum"

    def at_pause(self, pause: Pause, tier: Tier) -> KvDecision:
        reload = tier.forward.seconds(pause.tokens)
        gain = tier.queueing * self.eta + reload
        cold = len(pause.durations) < COLD_SAMPLES
        ttl = COLD_SECONDS if cold else time_to_live(pause.durations, gain)
        evidence = {"ttl_seconds": ttl, "reload_seconds": reload, "queueing_seconds": tier.queueing}
        if ttl <= 0:
            return self._out(pause, tier, "the tool is not back in time often enough to be worth the wait", evidence)
        return KvDecision(
            session=pause.session,
            action=KvAction.KEEP,
            why="too few calls of this tool are known" if cold else "the tool is likely to be back within its time",
            ttl=ttl,
            evidence=evidence,
        )

    def expired(self, pause: Pause, tier: Tier) -> KvDecision:
        return self._out(pause, tier, "its time to live has passed", {"elapsed_seconds": pause.elapsed})

    def under_pressure(self, pauses: Sequence[Pause], tier: Tier, need: int) -> tuple[KvDecision, ...]:
        """Whoever has been away the longest goes first."""
        order = sorted(pauses, key=lambda pause: (-pause.elapsed, pause.session))
        return evict(order, tier, need, "the pool is full; away the longest", pays=lambda pause: self.offload)

    def _out(self, pause: Pause, tier: Tier, why: str, evidence: dict[str, float]) -> KvDecision:
        offload = self.offload and tier.can_offload(pause.tokens)
        action = KvAction.OFFLOAD if offload else KvAction.DROP
        return KvDecision(session=pause.session, action=action, why=why, evidence=evidence)
