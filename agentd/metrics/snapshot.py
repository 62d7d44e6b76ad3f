"""Series that are read from a snapshot of the controller: nothing is kept between scrapes, so nothing can go stale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentd.metrics.labels import Labels
from controller.model import CallState, CallView, Snapshot, TenantId

_LIVE = tuple(state for state in CallState if state is not CallState.ENDED)


@dataclass(slots=True)
class _Tenant:
    """Sums of one label value; None where nothing on this host can say."""

    memory: int | None = None
    memory_max: int | None = None
    cpu_usec: int = 0
    processes: int | None = None
    sessions: int = 0


class SnapshotCollector(Collector):
    """The series of one snapshot. ``per_call`` adds three for every live call."""

    def __init__(self, snapshot: Snapshot, labels: Labels, *, version: str, instance: str, per_call: bool) -> None:
        self._snapshot = snapshot
        self._labels = labels
        self._version = version
        self._instance = instance
        self._per_call = per_call
        self._names: dict[TenantId, str] = {t.id: labels(t.name) for t in snapshot.tenants}
        self._calls = [call for call in snapshot.calls if call.state is not CallState.ENDED]

    def collect(self) -> Iterator[Metric]:
        yield from self._host()
        yield from self._tenants()
        yield from self._budgets()
        if self._per_call:
            yield from self._each_call()

    def _name(self, tenant_id: TenantId) -> str:
        # a call whose tenant is not in the snapshot: removed from the configuration while its calls run on
        return self._names.get(tenant_id, "removed")

    def _host(self) -> Iterator[Metric]:
        host = self._snapshot.host
        info = GaugeMetricFamily("corral_info", "1; what runs here.", labels=["version", "instance", "kernel", "mode"])
        info.add_metric([self._version, self._instance, host.kernel, host.mode], 1)
        yield info
        yield GaugeMetricFamily(
            "corral_enforcing", "1: limits are enforced; 0: observe-only.", value=float(host.mode != "observe")
        )
        yield GaugeMetricFamily(
            "corral_missing_features", "What this host cannot do (corral doctor names it).", value=len(host.missing)
        )
        yield GaugeMetricFamily("corral_host_cpus", "CPUs of the host.", value=host.cpus)
        yield GaugeMetricFamily("corral_host_memory_bytes", "Memory of the host.", value=host.memory_total)
        yield GaugeMetricFamily(
            "corral_host_memory_available_bytes", "MemAvailable of the host.", value=host.memory_available
        )
        pressure = GaugeMetricFamily(
            "corral_host_pressure_ratio",
            "Share of time in which some task waited for the resource (PSI, average over 10 s).",
            labels=["resource"],
        )
        for resource, percent in (
            ("cpu", host.cpu_pressure),
            ("memory", host.memory_pressure),
            ("io", host.io_pressure),
        ):
            if percent is not None:
                pressure.add_metric([resource], percent / 100)
        yield pressure

    def _tenants(self) -> Iterator[Metric]:
        tenants = self._sums()
        calls = GaugeMetricFamily("corral_calls", "Live calls by state.", labels=["tenant", "state"])
        counts = Counter((self._name(call.tenant_id), call.state) for call in self._calls)
        for name in tenants:
            for state in _LIVE:
                calls.add_metric([name, state.value], counts[name, state])
        yield calls
        sessions = GaugeMetricFamily("corral_sessions", "Open sessions.", labels=["tenant"])
        memory = GaugeMetricFamily(
            "corral_tenant_memory_bytes", "Memory of the tenant's calls and agents.", labels=["tenant"]
        )
        ceiling = GaugeMetricFamily(
            "corral_tenant_memory_max_bytes", "The tenant's memory ceiling; absent without one.", labels=["tenant"]
        )
        cpu = CounterMetricFamily("corral_tenant_cpu_seconds", "CPU time of the tenant.", labels=["tenant"])
        processes = GaugeMetricFamily(
            "corral_tenant_processes", "Processes and threads of the tenant's live calls.", labels=["tenant"]
        )
        for name, sums in tenants.items():
            sessions.add_metric([name], sums.sessions)
            cpu.add_metric([name], sums.cpu_usec / 1e6)
            for family, value in ((memory, sums.memory), (ceiling, sums.memory_max), (processes, sums.processes)):
                if value is not None:
                    family.add_metric([name], value)
        yield from (sessions, memory, ceiling, cpu, processes)

    def _budgets(self) -> Iterator[Metric]:
        """Of tenants alone: sessions come and go, and their number is not bounded."""
        labels = ["tenant", "resource"]
        limit = GaugeMetricFamily("corral_budget_limit", "The tenant's budget, in the resource's unit.", labels=labels)
        used = GaugeMetricFamily("corral_budget_used", "Used of it in the present period.", labels=labels)
        left = GaugeMetricFamily("corral_budget_remaining", "Left of it in the present period.", labels=labels)
        sums: dict[tuple[str, str], tuple[float, float, float]] = {}
        for tenant in self._snapshot.tenants:
            for budget in tenant.budgets:
                key = (self._names[tenant.id], budget.resource)  # tenants beyond the bound share a name
                a, b, c = sums.get(key, (0.0, 0.0, 0.0))
                sums[key] = (a + budget.limit, b + budget.used, c + budget.remaining)
        for (name, resource), values in sums.items():
            for family, value in zip((limit, used, left), values, strict=True):
                family.add_metric([name, resource], value)
        yield from (limit, used, left)

    def _sums(self) -> dict[str, _Tenant]:
        found: dict[str, _Tenant] = {}
        for tenant in self._snapshot.tenants:
            sums = found.setdefault(self._names[tenant.id], _Tenant())
            sums.memory = _plus(sums.memory, tenant.memory_now)
            limit = tenant.limits.memory_max
            sums.memory_max = _plus(sums.memory_max, limit if limit is not None and limit >= 0 else None)
            sums.cpu_usec += tenant.cpu_usec
        for session in self._snapshot.sessions:
            if session.closed_at is None:
                found.setdefault(self._name(session.tenant_id), _Tenant()).sessions += 1
        for call in self._calls:
            sums = found.setdefault(self._name(call.tenant_id), _Tenant())
            sums.processes = _plus(sums.processes, call.usage.pids_now)
        return found

    def _each_call(self) -> Iterator[Metric]:
        labels = ["tenant", "session", "call"]
        memory = GaugeMetricFamily("corral_call_memory_bytes", "Memory of a live call.", labels=labels)
        cpu = CounterMetricFamily("corral_call_cpu_seconds", "CPU time of a live call.", labels=labels)
        processes = GaugeMetricFamily("corral_call_processes", "Processes and threads of a live call.", labels=labels)
        for call in self._calls:
            values = self._call_labels(call)
            cpu.add_metric(values, call.usage.cpu_usec / 1e6)
            if call.usage.memory_now is not None:
                memory.add_metric(values, call.usage.memory_now)
            if call.usage.pids_now is not None:
                processes.add_metric(values, call.usage.pids_now)
        yield from (memory, cpu, processes)

    def _call_labels(self, call: CallView) -> list[str]:
        # ids alone: commands and names are the agents' text
        return [self._name(call.tenant_id), call.session_id, call.id]


def _plus(total: int | None, value: int | None) -> int | None:
    return total if value is None else value + (total or 0)
