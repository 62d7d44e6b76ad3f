"""What the running host has learned of its calls, and so what each of them will still need.

Learns from every call that ends while the daemon runs, and at its start from the last ones in the ledger. A forecast
costs up to a millisecond, so it is kept with its call until the call has changed.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.forecast import Kept, Kind, Learner, Need, life_of
from controller.model import CallView, Intent, Reason, SessionId, TenantId
from controller.policy.advice import Expected
from controller.registry import Call

_BY_ITSELF = frozenset(
    {Reason.EXITED, Reason.FAILED, Reason.BRAKED, Reason.PIDS_LIMIT, Reason.NETWORK_DENIED, Reason.DISK_FULL}
)


class Foresight:
    def __init__(self) -> None:
        self.learner = Learner()

    def learn(self, call: CallView, curve: Sequence[tuple[float, int]] = ()) -> None:
        """``call`` has ended, by itself. One that was killed says how it was treated, not how such calls go.

        ``curve``: (seconds after its begin, bytes) as sampled. Of a call that was too short for a sample, or is known
        from the ledger alone, the kernel's high-water mark is taken to have been reached at once."""
        outcome = call.outcome
        if outcome is None or outcome.reason not in _BY_ITSELF:
            return
        ran = max(0.0, outcome.wall_seconds - outcome.held_seconds)
        kind = _kind(call.tenant_id, call.session_id, call.intent)
        self.learner.learn(life_of(kind, ran, curve, outcome.usage.memory_peak))

    def expected(self, call: Call) -> Expected | None:
        """What earlier calls like this one came to, whatever it declared; None: nothing is known."""
        need = self.learner.forecast(_kind(call.ref.tenant_id, call.ref.session_id, call.intent))
        return (
            Expected(typical=need.typical, high=need.claim, lives=need.count, basis=need.basis) if need.count else None
        )

    def need(self, call: Call, now: float) -> Need:
        """What the call will still need, ``now`` (unix seconds)."""
        elapsed = max(0.0, now - call.begun_at - call.held_now(now)) if call.begun else 0.0
        usage = call.memory if call.begun else 0
        growing = "brake" in call.held_by
        kept = call.forecast
        if kept is not None and kept.stands(elapsed, usage, growing):
            return kept.need
        intent = call.intent
        need = self.learner.forecast(
            _kind(call.ref.tenant_id, call.ref.session_id, intent),
            ident=call.id,
            elapsed=elapsed,
            usage=usage,
            growing=growing,
            declared_typical=intent.memory_typical,
            declared_peak=intent.memory_peak,
            declared_seconds=intent.duration,
        )
        call.forecast = Kept(need, elapsed, usage, growing)
        return need

    def at_most(self, call: Call) -> tuple[int, int]:
        """Bytes that a forecast of the call, before it begins, does not exceed: typically, and at all. Cheap."""
        intent = call.intent
        return self.learner.at_most(
            _kind(call.ref.tenant_id, call.ref.session_id, intent),
            declared_typical=intent.memory_typical,
            declared_peak=intent.memory_peak,
        )

    @property
    def largest(self) -> int:
        """The largest peak of all that is remembered, bytes."""
        return self.learner.largest


def _kind(tenant_id: TenantId, session_id: SessionId, intent: Intent) -> Kind:
    return Kind(tenant=tenant_id, tool=intent.tool, call_class=intent.call_class, session=session_id)
