"""What a session may still use: the ceilings of its tenant against what is in use now, and the stocks of both.

What others do with budgets goes through the methods that ``Host`` has from here: report a turn of a model, charge what
no counter of a call sees, ask before something is begun.
"""

from __future__ import annotations

from collections.abc import Collection

from controller.backend import Backend
from controller.budget.keeper import Budgets, refused
from controller.control import Control
from controller.model import (
    UNLIMITED,
    Budget,
    BudgetRule,
    CallId,
    Charges,
    InvalidRequest,
    NotFound,
    Resource,
    SessionId,
    Turn,
    Turns,
)
from controller.registry import Call, Registry, Session, now
from controller.shared import Shared


class BudgetMethods:
    """Of the host."""

    registry: Registry
    shared: Shared
    control: Control
    keeper: Budgets

    def budgets(self, session_id: SessionId) -> list[Budget]:
        """Ceilings and stocks of the session and its tenant. Reads files of the tenant's groups."""
        session = self.registry.session(session_id)
        return [*ceilings(session, self.shared.backend), *self.keeper.left(session)]

    def stocks(self, session_id: SessionId) -> list[Budget]:
        """What can be used up alone; from memory."""
        return list(self.keeper.left(self.registry.session(session_id)))

    def check_budgets(self, session_id: SessionId, resources: Collection[Resource] | None = None) -> None:
        """Raises Refused (``budget_exhausted``) where a hard budget of the session or its tenant is used up: any, or
        one of ``resources``. Costs a microsecond."""
        refusal = self.keeper.refusal(self.registry.session(session_id), resources)
        if refusal is not None:
            raise refused(refusal)

    def charge(self, session_id: SessionId, call_id: CallId | None, charges: Charges) -> None:
        """Charges what no counter of a call sees. With ``call_id`` (live, or ended lately) the tool used it, without
        the session's model, whose Turns count it then, too. What a call's own Usage counts (CPU, memory, network, its
        processes' GPU seconds and joules) is charged by itself: never charge that here. Raises NotFound."""
        session = self.registry.session(session_id)
        if call_id is not None and call_id not in session.calls:
            ended = self.registry.ended(call_id)
            if ended is None or ended.session_id != session_id:
                raise NotFound(
                    f"no call {call_id[:40]!r} in session {session_id}",
                    field="call_id",
                    value=call_id,
                    remedy="charge the session: leave the call out",
                )
        self.keeper.charge(session, charges, model=call_id is None)

    def report_turn(self, session_id: SessionId, turn: Turn) -> Turns:
        """One turn of the session's model: counted, and its tokens and money charged. On disk with the ledger's next
        batch (50 ms). Never refuses: it has happened. Ask ``check_budgets`` before a turn."""
        return self.keeper.report_turn(self.registry.session(session_id), turn)

    def parting_notes(self, call_id: CallId) -> tuple[str, ...]:
        """What the agent of a call that has just ended should know of budgets; each step down is told once."""
        ended = self.registry.ended(call_id)
        session = self.registry.sessions.get(ended.session_id) if ended is not None else None
        return self.keeper.parting_notes(session) if session is not None else ()

    def set_budget(self, target: str, rule: BudgetRule) -> tuple[Budget, ...]:
        """By an operator; all stocks of the target then. ``target``: id of a session or tenant, or a tenant's name."""
        found = self.control.find(target)
        if isinstance(found, Call):
            raise _of_calls(target)
        self.keeper.set_rule(found, rule)
        return found.account.views(now())

    def remove_budget(self, target: str, resource: Resource) -> tuple[Budget, ...]:
        """What an operator set. Raises NotFound, or WrongState for one of the configuration."""
        found = self.control.find(target)
        if isinstance(found, Call):
            raise _of_calls(target)
        self.keeper.remove_rule(found, resource)
        return found.account.views(now())


def _of_calls(target: str) -> InvalidRequest:
    return InvalidRequest(
        "budgets belong to sessions and tenants, this is a call",
        field="target",
        value=target,
        remedy="name its session or its tenant; a call has limits (corral limits)",
    )


def ceilings(session: Session, backend: Backend) -> list[Budget]:
    """One entry per resource that has a ceiling; a resource without one is not listed."""
    tenant = session.tenant
    found = []
    limits = tenant.limits
    memory = backend.tenant_memory(tenant.id)
    if _is_set(limits.memory_max) and memory is not None:
        found.append(_budget("memory_bytes", "tenant", float(limits.memory_max or 0), float(memory)))
    if _is_set(limits.pids_max):
        live = [c for s in tenant.sessions.values() for c in s.calls.values() if not c.queued]
        used = sum(len(backend.pids(c.ref)) for c in live)
        found.append(_budget("pids", "tenant", float(limits.pids_max or 0), float(used)))
    if _is_set(limits.cpu_max):
        # a rate has no stock: what is promised to running calls counts as used
        promised = sum(c.grant.limits.cpu_max or 0.0 for s in tenant.sessions.values() for c in s.calls.values())
        found.append(_budget("cpu_cores", "tenant", float(limits.cpu_max or 0), promised))
    if tenant.max_calls is not None:
        found.append(_budget("calls", "tenant", float(tenant.max_calls), float(tenant.running)))
    return found


def _is_set(limit: float | None) -> bool:
    return limit is not None and limit != UNLIMITED


def _budget(resource: str, scope: str, limit: float, used: float) -> Budget:
    return Budget(resource=resource, scope=scope, limit=limit, used=used, remaining=max(0.0, limit - used))
