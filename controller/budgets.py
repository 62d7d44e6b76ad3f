"""What a session may still use: the ceilings of its tenant and of itself against what is in use now."""

from __future__ import annotations

from controller.backend import Backend
from controller.model import UNLIMITED, Budget
from controller.registry import Session


def budgets(session: Session, backend: Backend) -> list[Budget]:
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
