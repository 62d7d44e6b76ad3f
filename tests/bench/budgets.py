"""What budgets cost the event loop: their part of a begin, of a sample and of an end, of one call, in this process.

The host runs over a backend that does nothing, and each part is called in a loop; the best of several loops counts, as
others' use of the machine only ever adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from controller.config import HostConfig, TenantConfig
from controller.host import Host
from controller.model import BudgetRule, Intent, Resource, Usage
from tests.bench.harness import Context
from tests.bench.result import Figure, Result
from tests.support.backend import FixedReader, RecordingBackend, RecordingJournal

_LOOP: Final = 2_000
_CASES: Final = ((0, 0), (2, 0), (2, 2), (len(Resource), len(Resource)))  # stocks of the tenant, and of the session


async def measure(context: Context) -> Result:
    runs = context.count(full=40, quick=10)
    result = Result(runs=runs, mode="none")
    for tenant, session in _CASES:
        for part, times in (await _case(tenant, session, runs)).items():
            result.rows += [
                {"part": part, "tenant_stocks": tenant, "session_stocks": session, "microseconds": one} for one in times
            ]
            key = f"{part}_us_{tenant + session}"
            # what the path of a call may pay for budgets as people set them: a few microseconds
            target = 6.0 if key == "begin_us_4" else None
            result.summary[key] = Figure(value=min(times), unit="µs", at_most=target, samples=times)
    result.notes.append("without a kernel: nothing is placed, and the ledger is a list")
    return result


async def _case(tenant: int, session: int, runs: int) -> dict[str, list[float]]:
    """Microseconds of each part, of each run."""
    rules = [BudgetRule(resource=r, limit=1e18, hard=True, period=86_400.0) for r in Resource]
    acme = TenantConfig(
        name="acme", uids=frozenset({0}), budgets=tuple(rules[:tenant]), session_budgets=tuple(rules[:session])
    )
    journal = RecordingJournal()
    host = Host(HostConfig(tenants=(acme,)), RecordingBackend(), journal, FixedReader())
    host.start()
    try:
        view, _ = host.open_session(tenant="acme", name="bench", uid=0, labels={})
        call = host.prepare(view.id, intent=Intent(), argv=["tool"])
        host.begin_now(call)
        keeper, cpu = host.keeper, 0

        def begin() -> None:
            keeper.refusal(call.session)
            keeper.noted(call.session, call.grant)
            keeper.begun(call)

        def sample() -> None:
            nonlocal cpu
            cpu += 10
            call.usage = Usage(cpu_usec=cpu, memory_now=1 << 20, net_rx_bytes=cpu, net_tx_bytes=0)
            keeper.sampled(call)

        def end() -> None:
            sample()
            keeper.ended(call)

        return {
            name: [_time(part, journal) for _ in range(runs)]
            for name, part in (("begin", begin), ("sample", sample), ("end", end))
        }
    finally:
        await host.stop()


def _time(part: Callable[[], None], journal: RecordingJournal) -> float:
    """Microseconds a call."""
    journal.budget_changes.clear()
    began = time.perf_counter()
    for _ in range(_LOOP):
        part()
    return (time.perf_counter() - began) / _LOOP * 1e6
