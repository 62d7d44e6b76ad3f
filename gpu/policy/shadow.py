"""Corral's own rule: KV memory has a price, and a session's KV stays where it is worth its price.

A paused session of w tokens costs R seconds to get back if it is put out (computed again, or copied out and in,
whichever is less). Its *density* is ``R I / w`` with I how likely and how soon it is back (``Durations.rate``): seconds
saved for each token-second of the pool. The *price* of the pool is the density of the cheapest KV that must be put out
for all turns to fit, 0 while all fit. From this follow, in the same unit:

- whom to put out: lowest density first. With equal sizes and costs this is Belady's rule under uncertainty (whoever is
  expected back last), with sizes and costs it is the greedy solution of the fractional knapsack at this moment;
- when: not before the pool is short, as until then the call may end; with ``eager``, what will have to go is copied out
  at its call's begin, which costs more copies and saves the wait for them;
- offload or drop: by the same density over the room for offloaded KV, in which a better one takes a worse one's place;
- when to fetch: as soon as the expected delay saved is worth the pool's price for holding it until the call ends.

Who waited for KV that had been put out gains density with that wait, and no turn in the queue is overtaken once it has
waited for ``patience``: nobody starves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gpu.policy.durations import Durations, known
from gpu.policy.eviction import Rivals, evict
from gpu.policy.types import (
    Admission,
    HostHint,
    KvAction,
    KvDecision,
    Pause,
    Place,
    Restore,
    Tier,
    Waiting,
)

_NEARNESS: Final = {Place.RESIDENT: 0, Place.OFFLOADED: 1, Place.DROPPED: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowPrice:
    """
    :param trust: probability that a declared duration holds, where the class has a history besides
    :param turnover: horizon of a return, in medians of what remains of the calls
    :param eager: copy out at a call's begin what will have to go
    :param headroom: share of the pool up to which there is no pressure
    :param limit: share of the pool up to which new sessions are admitted
    :param horizon: seconds; sessions likely to be back within it count fully when a new one is to be admitted
    :param patience: seconds; a turn that waited for so long is overtaken by none
    :param fairness: seconds; a session that has waited so long in all for KV that was put out counts double
    :param idle: seconds; fetched KV that lies idle for so long has cost as much as fetching it ahead can save
    :param urgent: least share of the pool that a paused session must hold for the host to be told
    """

    trust: float = 0.5
    turnover: float = 2.0
    eager: bool = False
    headroom: float = 0.9
    limit: float = 0.95
    horizon: float = 10.0
    patience: float = 30.0
    fairness: float = 30.0
    idle: float = 30.0
    urgent: float = 0.02
    name: str = "corral"

    # --- what a session's KV is worth ---------------------------------------------------------------------------------

    def durations(self, pause: Pause) -> Durations:
        return known(pause.durations, pause.expected, trust=self.trust)

    def return_cost(self, pause: Pause, tier: Tier) -> float:
        """Seconds to get it back once it is put out: the cheaper of computing it again and copying it out and in."""
        computed = tier.forward.seconds(pause.tokens)
        room = tier.offload_free > 0 if tier.partial else tier.can_offload(pause.tokens)
        if tier.swap is None or not room:
            return computed
        return min(computed, 2 * tier.swap.seconds(pause.tokens * tier.bytes_per_token))

    def density(self, pause: Pause, tier: Tier, horizon: float) -> float:
        """Seconds saved per token-second of the pool, with what the session waited before."""
        if not pause.resident:
            return 0.0
        worth = self.return_cost(pause, tier) * self.durations(pause).rate(pause.elapsed, horizon)
        return worth * self._fair(pause) / pause.tokens

    def wanted_for(self, pauses: Sequence[Pause]) -> float:
        """Seconds for which room is wanted: a multiple of the median of what remains of the calls. Has no scale."""
        remaining = sorted(self.durations(one).mean(one.elapsed) for one in pauses if one.tokens)
        return self.turnover * remaining[len(remaining) // 2] if remaining else 1.0

    def price(self, tier: Tier, *, extra: int = 0) -> float:
        """Of a token-second of the pool: the density of the last one to be put out for ``extra`` more tokens to fit.

        Without a view of the paused sessions: 0, since what must go is then known only when it must.
        """
        short = tier.used + tier.waiting_tokens + extra - self.headroom * tier.capacity
        if short <= 0:
            return 0.0
        last = 0.0
        for density, pause in self._by_density(tier.paused, tier):
            last = density
            short -= pause.tokens
            if short <= 0:
                break
        return last

    def _fair(self, pause: Pause) -> float:
        return 1.0 + pause.waited / self.fairness

    def _by_density(self, pauses: Sequence[Pause], tier: Tier) -> list[tuple[float, Pause]]:
        horizon = self.wanted_for(pauses)
        here = [(self.density(one, tier, horizon), one) for one in pauses if one.resident]
        here.sort(key=lambda pair: (pair[0], pair[1].session))
        return here

    # --- a tool call begins -------------------------------------------------------------------------------------------

    def at_pause(self, pause: Pause, tier: Tier) -> KvDecision:
        price = self.price(tier)
        gain = self.return_cost(pause, tier) * self._fair(pause)
        hold, worth = self.durations(pause).hold(pause.elapsed, gain, price * pause.tokens)
        evidence = {
            "price_seconds_per_token_second": price,
            "return_cost_seconds": gain,
            "expected_remaining_seconds": self.durations(pause).mean(pause.elapsed),
            "worth_seconds": worth,
        }
        if price <= 0:
            return KvDecision(
                session=pause.session, action=KvAction.KEEP, why="the pool has room: holding is free", evidence=evidence
            )
        if hold > 0:
            return KvDecision(
                session=pause.session,
                action=KvAction.KEEP,
                why="likely to be back before holding costs more than its return",
                ttl=max(hold, 1e-3),
                evidence=evidence,
            )
        if self.eager and self._offload_pays(pause, tier) and tier.can_offload(pause.tokens):
            return KvDecision(
                session=pause.session,
                action=KvAction.OFFLOAD,
                why="the pool is short and others are worth more of it",
                evidence=evidence,
            )
        # To drop later costs the same as to drop now, and until then the call may end.
        return KvDecision(
            session=pause.session,
            action=KvAction.KEEP,
            why="first to be put out when a turn needs the room",
            evidence=evidence,
        )

    def expired(self, pause: Pause, tier: Tier) -> KvDecision:
        return self.at_pause(pause, tier)

    # --- the pool is full ---------------------------------------------------------------------------------------------

    def under_pressure(self, pauses: Sequence[Pause], tier: Tier, need: int) -> tuple[KvDecision, ...]:
        horizon = self.wanted_for(pauses)
        outside = [(self._room_density(one, tier, horizon, moves=1), one) for one in pauses if one.away]
        outside.sort(key=lambda pair: (pair[0], pair[1].session))
        return evict(
            self._victims(pauses, tier, need),
            tier,
            need,
            "saves the least of all by staying: back late, or cheap to get back",
            rivals=Rivals(outside, lambda pause: self._room_density(pause, tier, horizon, moves=2)),
            pays=lambda pause: self._offload_pays(pause, tier),
        )

    def _victims(self, pauses: Sequence[Pause], tier: Tier, need: int) -> list[Pause]:
        """Lowest density first until it is enough; who is then not needed after all is spared, the densest first."""
        chosen: list[Pause] = []
        freed = 0
        for _, pause in self._by_density(pauses, tier):
            if freed >= need:
                break
            chosen.append(pause)
            freed += pause.tokens
        if tier.partial:
            return chosen  # of the last one as much as is needed goes
        for one in reversed(chosen[:-1]):
            if freed - one.tokens >= need:
                chosen.remove(one)
                freed -= one.tokens
        return chosen

    def _offload_pays(self, pause: Pause, tier: Tier) -> bool:
        if tier.swap is None or not pause.tokens:
            return False
        return 2 * tier.swap.seconds(pause.tokens * tier.bytes_per_token) < tier.forward.seconds(pause.tokens)

    def _room_density(self, pause: Pause, tier: Tier, horizon: float, *, moves: int) -> float:
        """Seconds saved per token-second outside: ``moves`` copies are still to be made instead of a computation."""
        if tier.swap is None or not pause.tokens:
            return 0.0
        copied = moves * tier.swap.seconds(pause.tokens * tier.bytes_per_token)
        saved = max(0.0, tier.forward.seconds(pause.tokens) - copied)
        return saved * self.durations(pause).rate(pause.elapsed, horizon) * self._fair(pause) / pause.tokens

    # --- ahead of a call's end ----------------------------------------------------------------------------------------

    def before_return(self, pause: Pause, tier: Tier) -> Restore | None:
        """Maximises over the beginning: seconds of waiting saved, less the pool's price of lying idle until the end.

        A copy that begins t from now and takes s saves a call that ends at d: nothing if d <= t, d - t if d <= t + s,
        else s, and then lies idle for d - t - s.
        """
        if tier.swap is None or not pause.away:
            return None
        copying = tier.swap.seconds(pause.away * tier.bytes_per_token)
        pool = self.price(tier, extra=pause.away) * pause.away
        price = max(pool, copying / self.idle)
        if not pool and tier.used + tier.waiting_tokens + pause.away > self.headroom * tier.capacity:
            return None  # the pool is full of turns that run: there is nothing to take its room from
        ahead = self.durations(pause).ahead(pause.elapsed)
        best, best_value = -1.0, 0.0
        for begin in (0.0, *(at - copying for at, _ in ahead if at > copying)):
            value = 0.0
            for at, weight in ahead:
                if at > begin:
                    idle = at - begin - copying
                    value += weight * (copying - price * idle if idle > 0 else at - begin)
            if value > best_value + 1e-12:
                best, best_value = begin, value
        if best < 0:
            return None
        return Restore(
            session=pause.session,
            after=best,
            why="back in the pool by when the call is likely to end",
            evidence={
                "price_seconds_per_token_second": price / pause.away,
                "copy_seconds": copying,
                "saves_seconds": best_value,
            },
        )

    # --- turns, sessions, the host ------------------------------------------------------------------------------------

    def order(self, waiting: Sequence[Waiting], tier: Tier) -> tuple[str, ...]:
        """Who waited for ``patience`` first, the longest first; then by priority, by nearness of the KV, by the wait.

        In the pool, outside, gone: the shortest work first empties the queue soonest.
        """

        def rank(one: Waiting) -> tuple[int, float, int, float, str]:
            if one.waited >= self.patience:
                return (0, -one.waited, 0, 0.0, one.session)
            return (1, -float(one.priority), _NEARNESS[one.where], -one.waited, one.session)

        return tuple(one.session for one in sorted(waiting, key=rank))

    def admit(self, need: int, tier: Tier) -> Admission:
        """While the turns that run, those that wait, and those of calls about to end fit with it.

        A paused session counts with the probability that its call ends within ``horizon``: what lies idle for longer
        can be put out, but sessions that keep coming back while others run would chase each other out of the pool.
        """
        back = sum(one.tokens * self.durations(one).chance(one.elapsed, self.horizon) for one in tier.paused)
        demand = tier.running_tokens + tier.waiting_tokens + back + need
        evidence = {
            "demand_tokens": demand,
            "back_soon_tokens": back,
            "limit_tokens": self.limit * tier.capacity,
        }
        if demand <= self.limit * tier.capacity:
            return Admission(admitted=True, why="it fits with those that run or will soon be back", evidence=evidence)
        if not tier.running_tokens and not tier.waiting_tokens and not tier.paused:
            return Admission(admitted=True, why="nothing else is there: it may try", evidence=evidence)
        return Admission(
            admitted=False, why="with it the sessions would put each other's KV out of the pool", evidence=evidence
        )

    def hints(self, pauses: Sequence[Pause], tier: Tier) -> tuple[HostHint, ...]:
        """Under pressure, KV that is held makes its call urgent; what is outside can wait as long as turns queue."""
        if tier.capacity <= 0:
            return ()
        full = min(1.0, (tier.used + tier.waiting_tokens) / tier.capacity)
        pressure = max(0.0, (full - self.headroom / 2) / (1 - self.headroom / 2))
        found: list[HostHint] = []
        for pause in sorted(pauses, key=lambda one: one.session):
            share = pause.tokens / tier.capacity
            evidence = {"pool_share": share, "pressure": pressure, "queueing_seconds": tier.queueing}
            if pause.where is Place.RESIDENT:
                if pressure > 0 and share >= self.urgent:
                    found.append(
                        HostHint(
                            session=pause.session,
                            urgency=pressure * min(1.0, share * 4),
                            slack=0.0,
                            why=f"holds {share:.0%} of the KV pool while turns need room",
                            evidence=evidence,
                        )
                    )
            elif tier.queueing > 0 and pressure >= 1:
                remaining = self.durations(pause).mean(pause.elapsed)
                found.append(
                    HostHint(
                        session=pause.session,
                        urgency=-tier.queueing / (tier.queueing + remaining),
                        slack=tier.queueing,
                        why=f"its next turn would wait for about {tier.queueing:.1f} s in any case",
                        evidence=evidence,
                    )
                )
        return tuple(found)
