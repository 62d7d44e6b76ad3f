"""What the running host has learned of its calls, and when a call that waits will have its turn.

Learns from every call that ends while the daemon runs, and at its start from the last ones in the ledger. It says
nothing until it knows.
"""

from __future__ import annotations

from controller.forecast import Kind, Learner, Need, life_of
from controller.model import CallView, Intent, Reason, SessionId, TenantId
from controller.registry import Call, Registry

_BY_ITSELF = frozenset({Reason.EXITED, Reason.FAILED, Reason.BRAKED, Reason.PIDS_LIMIT, Reason.NETWORK_DENIED})


class Foresight:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._learner = Learner()

    def learn(self, call: CallView) -> None:
        """``call`` has ended, by itself. One that was killed says how it was treated, not how such calls go."""
        outcome = call.outcome
        if outcome is None or outcome.reason not in _BY_ITSELF:
            return
        ran = max(0.0, outcome.wall_seconds - outcome.held_seconds)
        # the kernel's high-water mark, taken to be reached at once: samples are too far apart to say when
        kind = _kind(call.tenant_id, call.session_id, call.intent)
        self._learner.learn(life_of(kind, ran, (), outcome.usage.memory_peak))

    def need(self, call: Call, now: float) -> Need:
        """What the call will still need, ``now`` (unix seconds)."""
        begun = bool(call.cgroup)
        intent = call.intent
        return self._learner.forecast(
            _kind(call.ref.tenant_id, call.ref.session_id, call.intent),
            ident=call.id,
            elapsed=max(0.0, now - call.begun_at - call.held_now(now)) if begun else 0.0,
            usage=(call.usage.memory_now or 0) if begun else 0,
            growing="brake" in call.held_by,
            declared_typical=intent.memory_typical,
            declared_peak=intent.memory_peak,
            declared_seconds=intent.duration,
        )

    def eta(self, call: Call, now: float) -> float | None:
        """Seconds until ``call``, which waits, typically begins: as many of its tenant's running calls must end as wait
        before it, and one for itself. None: nothing is known of one of those, or too few run."""
        ahead = sum(1 for c in self._registry.calls.values() if c.queued and c.tenant is call.tenant and c is not call)
        ends = []
        for other in self._registry.begun_calls():
            if other.tenant is call.tenant and not other.held_by:
                need = self.need(other, now)
                if need.count or other.intent.duration is not None:
                    ends.append(need.ends_typical)
        ends.sort()
        return ends[ahead] if ahead < len(ends) else None


def _kind(tenant_id: TenantId, session_id: SessionId, intent: Intent) -> Kind:
    return Kind(tenant=tenant_id, tool=intent.tool, call_class=intent.call_class, session=session_id)
