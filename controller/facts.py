"""The host as policies see it (controller.state.State), built from the registry, the kernel's files and the forecasts.

What Corral may give away is what the host really has: MemAvailable less the reserve, and what calls and agents use
already; never more than ``host.memory`` where that is configured. Page cache that calls could give back counts as
available, as it does for the kernel. Calls are read one by one while there are few, and as of their last sample beyond.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Final

from controller.forecast import Need
from controller.foresight import Foresight
from controller.model import UNLIMITED, ControllerError, TenantId
from controller.registry import Call, Tenant
from controller.shared import Shared
from controller.snapshot import HostReader
from controller.state import CallFacts, Stage, State, TenantFacts

_MOST_FRESH: Final = 48  # calls that are read for one round: some 25 µs each
_NEAR: Final = 0.25  # of a bound that is used by one tenant: from there on its page cache matters
_IN_USE: Final = 16  # one part in so many of its memory is page cache that it could not do without
_EVERYTHING: Final = 1 << 62  # bytes: a host that only observes gives no memory away, and keeps nobody waiting for it


class Facts:
    def __init__(self, shared: Shared, foresight: Foresight, reader: HostReader) -> None:
        self._shared = shared
        self._foresight = foresight
        self._reader = reader
        self._cache: dict[
            TenantId, int
        ] = {}  # of each tenant that a bound is near for: what the kernel would give back

    def state(self, at: float, *, asking: Call | None = None) -> State:
        """``asking``: a prepared call that the registry does not know yet."""
        registry = self._shared.registry
        begun = registry.begun_calls()
        waiting = [c for c in registry.calls.values() if c.queued]
        if asking is not None and not asking.queued and not asking.begun:
            waiting.append(asking)
        used = self._read(begun)
        tenants = {
            t.id: self._tenant(t, used.get(t.id, 0), fresh=len(begun) <= _MOST_FRESH)
            for t in registry.tenants.values()
            if t.sessions or t.id in used
        }
        agents = sum(t.agents for t in tenants.values())
        capacity, reserve = self.capacity(sum(used.values()) + agents)
        calls = [self._call(c, at) for c in (*begun, *waiting)]
        calls.sort(key=lambda c: c.id)
        return State(
            at=at,
            capacity=capacity,
            reserve=reserve,
            agents=agents,
            cpus=float(self._reader.cpus),
            tenants=tenants,
            calls=tuple(calls),
        )

    def capacity(self, in_use: int) -> tuple[int, int]:
        """What calls and agents may use in all, of which they use ``in_use``, and the host's reserve. Bytes."""
        if not self._shared.backend.enforces:
            return _EVERYTHING, 0
        memory, config = self._shared.memory(), self._shared.config
        capacity = memory.available - int(memory.total * config.memory_reserve) + in_use
        if config.memory is not None:
            bound = config.memory - int(config.memory * config.memory_reserve)
            capacity = min(capacity, bound + sum(self._cache.values()))
        total = memory.total if config.memory is None else min(memory.total, config.memory)
        return capacity, int(total * config.memory_reserve)

    def _read(self, begun: Iterable[Call]) -> dict[TenantId, int]:
        """Brings the calls' memory up to date; the sum of it by tenant."""
        calls = list(begun)
        fresh = len(calls) <= _MOST_FRESH and self._shared.backend.enforces
        used: dict[TenantId, int] = {}
        for call in calls:
            if fresh or call.held_by:
                self.read(call)
            used[call.ref.tenant_id] = used.get(call.ref.tenant_id, 0) + call.memory
        return used

    def read(self, call: Call) -> int:
        """What it uses now, bytes; as of the last time where it is gone."""
        with contextlib.suppress(ControllerError):  # its leaf is gone: it has just ended, and will be told
            call.memory = self._shared.backend.memory(call.ref)
        return call.memory

    def _tenant(self, tenant: Tenant, calls: int, *, fresh: bool) -> TenantFacts:
        memory = tenant.memory_now
        if fresh:
            with contextlib.suppress(ControllerError):  # the last sample has to do; the sampler says what is wrong
                memory = tenant.memory_now = self._shared.backend.tenant_memory(tenant.id)
        limits = tenant.limits
        ceiling = _limit(limits.memory_max)
        if fresh:
            self._look_at_cache(tenant, memory or 0, ceiling)
        if ceiling is not None:
            ceiling += self._cache.get(tenant.id, 0)
        return TenantFacts(
            id=tenant.id,
            weight=tenant.weight,
            memory_max=ceiling,
            cpu_max=None if limits.cpu_max in (None, UNLIMITED) else limits.cpu_max,
            pids_max=_limit(limits.pids_max),
            max_calls=tenant.max_calls,
            agents=max(0, (memory or 0) - calls),
        )

    def _look_at_cache(self, tenant: Tenant, memory: int, ceiling: int | None) -> None:
        """Bounds count page cache, and the kernel gives it back before it would end anybody: what a build has read is
        no reason to hold it. MemAvailable knows that; where a bound of ours is near, the cache is read and added to
        it, less a part that is in use all the time. Some 60 µs."""
        bounds = [b for b in (ceiling, self._shared.config.memory) if b is not None]
        self._cache.pop(tenant.id, None)
        if bounds and memory > min(bounds) * _NEAR:
            with contextlib.suppress(ControllerError):
                cache = self._shared.backend.tenant_cache(tenant.id)
                self._cache[tenant.id] = max(0, cache - memory // _IN_USE)

    def _call(self, call: Call, at: float) -> CallFacts:
        intent, grant = call.intent, call.grant
        ending = call.ending or call.killed_as is not None
        typical_peak = intent.memory_peak if intent.memory_peak is not None else intent.memory_typical
        return CallFacts(
            id=call.id,
            tenant_id=call.ref.tenant_id,
            session_id=call.ref.session_id,
            stage=_stage(call),
            asked_at=call.asked_at,
            begun_at=call.begun_at if call.begun else 0.0,
            held_since=call.held_since,
            priority=grant.priority,
            usage=call.memory if call.begun else 0,
            granted=(grant.tripwire.brake or 0) if call.begun else 0,
            promised=call.promised,
            unbraked=call.unbraked or ending or not self._shared.backend.can_brake,
            hard_limit=_limit(grant.limits.memory_max),
            deadline=call.asked_at + intent.deadline if intent.deadline is not None else None,
            on_pressure=intent.on_pressure,
            cpu=_declared(intent.cpu, grant.limits.cpu_max),
            pids=int(_declared(intent.pids, grant.limits.pids_max)),
            squeezed=call.trimmed or call.squeeze is not None,
            advised=call.advised or ending,
            urgency=call.session.urgency,
            declared_peak=typical_peak,
            need=_leaving(call) if ending else self._foresight.need(call, at),
        )


def _stage(call: Call) -> Stage:
    if not call.begun:
        return Stage.WAITING
    if "operator" in call.held_by:
        return Stage.PARKED
    return Stage.HELD if call.held_by else Stage.RUNNING


def _leaving(call: Call) -> Need:
    """Of one that is being ended: it grows no more, and frees what it has in a moment."""
    return Need(call.memory, call.memory, call.memory, 0.0, 0.0, (), "its end", 0)


def _declared(asked: float | None, granted: float | None) -> float:
    """What counts as promised to a call: what it declared, as far as it was granted."""
    if asked is None:
        return 0.0
    return asked if granted is None or granted == UNLIMITED else min(asked, granted)


def _limit(value: int | None) -> int | None:
    return None if value is None or value == UNLIMITED else value
