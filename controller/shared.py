"""What the parts of the host's state machine share, and the one way in which a decision is put on record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from controller.backend import Backend, CallRecord
from controller.config import HostConfig
from controller.effects import Journal, Meter
from controller.hub import Hub
from controller.model import Action, ControllerError, Decision
from controller.registry import Call, Registry, now

log = structlog.get_logger("corral.controller")

_KEPT_DECISIONS = 256  # of one call in memory; all are in the ledger
_RECORDED_DECISIONS = 16  # in the leaf's record, some 300 bytes each of its 64 KiB; the ledger gets them in a second


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes, of /proc/meminfo."""

    total: int
    available: int


@dataclass(slots=True, kw_only=True)
class Shared:
    config: HostConfig
    registry: Registry
    backend: Backend
    journal: Journal
    hub: Hub
    memory: Callable[[], HostMemory]
    meter: Meter

    def total(self) -> int:
        """The host's memory, or what Corral may use of it where that is configured. Bytes."""
        total = self.memory().total
        return total if self.config.memory is None else min(total, self.config.memory)

    def decide(
        self,
        call: Call,
        action: Action,
        policy: str,
        reason: str,
        *,
        evidence: dict[str, float] | None = None,
        quiet: bool = False,
    ) -> Decision:
        """Puts a decision about a call on record: the call's own list, the ledger, the subscribers, the launcher.
        ``quiet``: nothing was done to it of which its agent must be told."""
        decision = Decision(
            at=now(),
            action=action,
            policy=policy,
            reason=reason,
            tenant_id=call.ref.tenant_id,
            session_id=call.ref.session_id,
            call_id=call.id,
            evidence=evidence or {},
        )
        if len(call.decisions) < _KEPT_DECISIONS:
            call.decisions.append(decision)
        self.meter.decided(call.tenant.name, decision)
        self.journal.decision(decision)
        self.hub.publish(decision)
        if call.tell_acted is not None and action is not Action.ADVISE and not quiet:
            call.tell_acted()
        return decision

    def publish(self, call: Call) -> None:
        if self.hub.listened_to:
            self.hub.publish(call.view())

    def remember(self, call: Call) -> None:
        """Writes the call's record to its leaf, for the next daemon. A failure costs only that: it is logged."""
        record = CallRecord(
            call=call.view(),
            launcher=call.launcher,
            main_pid=call.main_pid,
            launcher_pid=call.launcher_pid,
            held=tuple(sorted(call.held_by)),
            decisions=tuple(call.decisions[-_RECORDED_DECISIONS:]),
            killed_as=call.killed_as,
            squeezed_seconds=call.squeezed_seconds,
            promised=call.promised,
            unbraked=call.unbraked,
            trimmed=call.trimmed,
        )
        try:
            self.backend.remember(call.ref, record)
        except ControllerError as err:
            log.warning(
                "the call's record could not be kept; a restart would not know it", call=call.id, error=str(err)
            )
