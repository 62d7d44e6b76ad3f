"""Reads what the live calls use, now and then: for the dashboard, the ledger and the tenants' totals.

Nothing waits for a sample: brakes, ends and OOM kills come as events. So the sampler may be slow, and it keeps to a
share of one core: the more calls there are, the further apart its rounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from controller.model import ControllerError, Usage
from controller.registry import Call, now
from controller.shared import Shared

log = structlog.get_logger("corral.sampler")

# Calls read in one go: about 2 ms. A begin takes several turns of the event loop, and each waits for one of these, so
# they are short and lie apart: with 64 in a row and no rest a thousand calls held up every begin by 80 ms.
_CHUNK = 8
_REST = 0.004  # seconds


class Sampler:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.last_cost = 0.0  # seconds of the last round
        self.on_round: Callable[[], None] = _nothing  # the owner's
        self.on_sampled: Callable[[Call], None] = _nothing_of  # the owner's: the call's usage is new

    async def run(self) -> None:
        """Until cancelled."""
        pause = self._shared.config.sample_interval
        record_at = 0.0
        while True:
            await asyncio.sleep(pause)
            config = self._shared.config
            started_at = time.monotonic()
            record = started_at >= record_at
            if record:
                record_at = started_at + config.record_interval
            await self.round(record=record)
            pause = max(config.sample_interval, self.last_cost / config.sample_budget)
            self.on_round()

    async def round(self, *, record: bool = True) -> None:
        """One reading of every live call and tenant; ``record``: into the ledger, too."""
        calls = self._shared.registry.begun_calls()
        cost, started = 0.0, time.thread_time()
        self._shared.backend.begin_round()
        for start in range(0, len(calls), _CHUNK):
            self._read(calls[start : start + _CHUNK], record=record)
            cost += time.thread_time() - started
            await asyncio.sleep(_REST)
            started = time.thread_time()  # what others did meanwhile is not ours
        for tenant in self._shared.registry.tenants.values():
            if tenant.running == 0 and not tenant.sessions and tenant.memory_now is not None:
                continue
            try:
                tenant.memory_now = self._shared.backend.tenant_memory(tenant.id)
                tenant.cpu_usec = self._shared.backend.tenant_cpu_usec(tenant.id)
                # what an agent has grown by is not sheltered before this
                own = tenant.limits.memory_low is None
                self._shared.backend.shelter_agents(tenant.id, tenant.sessions, own)
            except ControllerError as err:
                log.warning(
                    "a tenant could not be read, or its agents not sheltered", tenant=tenant.name, error=str(err)
                )
        self.last_cost = cost + time.thread_time() - started

    def _read(self, calls: list[Call], *, record: bool) -> None:
        at = now()
        try:
            sampled = self._shared.backend.sample([c.ref for c in calls if c.outcome is None], full=record)
        except ControllerError as err:
            log.warning("calls could not be sampled", error=str(err))
            return
        for call in calls:
            usage = sampled.usage.get(call.id)
            if usage is not None and call.outcome is None:
                call.measured(usage if record else _over(call.usage, usage))
                self.on_sampled(call)
                if record:
                    self._shared.journal.sample(at, call.id, call.state, usage)


def _over(old: Usage, new: Usage) -> Usage:
    """``new``, with what a quick sample leaves out as it was."""
    return replace(
        new,
        pids_now=new.pids_now if new.pids_now is not None else old.pids_now,
        memory_stall_usec=new.memory_stall_usec if new.memory_stall_usec is not None else old.memory_stall_usec,
        cpu_stall_usec=new.cpu_stall_usec if new.cpu_stall_usec is not None else old.cpu_stall_usec,
        io_stall_usec=new.io_stall_usec if new.io_stall_usec is not None else old.io_stall_usec,
        oom_kills=new.oom_kills if new.oom_kills is not None else old.oom_kills,
    )


def _nothing() -> None:
    pass


def _nothing_of(_: Call) -> None:
    pass
