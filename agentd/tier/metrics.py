"""The tier's Prometheus series, from its picture at a scrape.

Labels are bounded: devices, engines of the configuration, tenants. Nothing that an agent wrote becomes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentd.tier.coordinator import PauseTotals
from agentd.tier.view import DeviceView, EngineView, TierView

_DEVICE: Final = ("gpu", "uuid")
_ENGINE: Final = ("engine",)
_RESIDENCIES: Final = ("resident", "offloaded", "dropped")

_GAUGES: Final[tuple[tuple[str, str, Callable[[DeviceView], float | None]], ...]] = (
    ("corral_gpu_memory_bytes", "Memory of the GPU.", lambda d: d.memory_total),
    ("corral_gpu_memory_used_bytes", "Memory in use on the GPU.", lambda d: d.memory_used),
    ("corral_gpu_sm_ratio", "Share of time in which a kernel ran.", lambda d: d.sm_utilisation),
    ("corral_gpu_power_watts", "Power that the GPU draws.", lambda d: d.power_watts),
    ("corral_gpu_temperature_celsius", "Temperature of the GPU.", lambda d: d.temperature),
    (
        "corral_gpu_context_switches_per_second",
        "Time slices between processes, of the device.",
        lambda d: d.switches_per_second,
    ),
)
_OF_ENGINES: Final[tuple[tuple[str, str, Callable[[EngineView], float | None]], ...]] = (
    ("corral_engine_up", "1: the engine answered when it was last asked.", lambda e: float(e.state == "up")),
    ("corral_engine_running", "Requests that run.", lambda e: e.running),
    ("corral_engine_waiting", "Requests that wait.", lambda e: e.waiting),
    ("corral_engine_kv_ratio", "Share of its KV pool in use.", lambda e: e.kv_used_share),
    ("corral_engine_kv_tokens", "Size of its KV pool.", lambda e: e.kv_capacity_tokens),
    ("corral_engine_prefix_hit_ratio", "Share of prompt tokens found in its cache.", lambda e: e.prefix_hit_share),
)


class TierCollector(Collector):
    """``names``: tenant id to the label that the other series have for it."""

    def __init__(
        self,
        view: TierView,
        names: Callable[[str], str],
        *,
        switches: Mapping[tuple[str, str], int],
        moved: Mapping[tuple[str, str], int],
        pauses: Mapping[str, PauseTotals],
        failures: int,
    ) -> None:
        self._view = view
        self._names = names
        self._switches = dict(switches)
        self._moved = dict(moved)
        self._pauses = dict(pauses)
        self._failures = failures

    def collect(self) -> Iterator[Metric]:
        view = self._view
        yield GaugeMetricFamily(
            "corral_gpu_sampling_ratio",
            "Share of one core that reading GPUs and engines takes.",
            value=view.sampling_share,
        )
        yield from self._gpus(view)
        yield from self._tenants(view)
        yield from self._engines(view)

    def _gpus(self, view: TierView) -> Iterator[Metric]:
        devices = [device for device in view.devices if not device.parent_uuid]
        up = GaugeMetricFamily("corral_gpu_up", "1: the GPU can be read.", labels=_DEVICE)
        energy = CounterMetricFamily("corral_gpu_energy_joules", "Energy since the daemon's start.", labels=_DEVICE)
        for device in devices:
            up.add_metric((str(device.index), device.uuid), float(device.state == "ok"))
            if device.energy_joules is not None:
                energy.add_metric((str(device.index), device.uuid), device.energy_joules)
        yield from (up, energy)
        for name, text, value_of in _GAUGES:
            family = GaugeMetricFamily(name, text, labels=_DEVICE)
            for device in devices:
                value = value_of(device)
                if value is not None:
                    family.add_metric((str(device.index), device.uuid), value)
            yield family

    def _tenants(self, view: TierView) -> Iterator[Metric]:
        memory = GaugeMetricFamily("corral_tenant_gpu_memory_bytes", "GPU memory of the tenant.", labels=("tenant",))
        seconds = CounterMetricFamily("corral_tenant_gpu_seconds", "SM share x time of the tenant.", labels=("tenant",))
        joules = CounterMetricFamily("corral_tenant_gpu_joules", "GPU energy of the tenant.", labels=("tenant",))
        totals: dict[str, list[float]] = {}
        for tenant_id, used in view.tenants:
            sums = totals.setdefault(self._names(tenant_id), [0.0, 0.0, 0.0])
            for i, value in enumerate((used.memory_bytes, used.seconds, used.joules)):
                sums[i] += value
        for name, sums in totals.items():
            memory.add_metric((name,), sums[0])
            seconds.add_metric((name,), sums[1])
            joules.add_metric((name,), sums[2])
        yield from (memory, seconds, joules)

    def _engines(self, view: TierView) -> Iterable[Metric]:
        for name, text, value_of in _OF_ENGINES:
            family = GaugeMetricFamily(name, text, labels=_ENGINE)
            for engine in view.engines:
                value = value_of(engine)
                if value is not None:
                    family.add_metric((engine.name,), value)
            yield family
        tokens = GaugeMetricFamily(
            "corral_kv_tokens", "KV of sessions, by where it is.", labels=("engine", "residency")
        )
        held: dict[tuple[str, str], int] = {(e.name, r): 0 for e in view.engines for r in _RESIDENCIES}
        for session in view.sessions:
            key = (session.engine, session.residency)
            if key in held:
                held[key] += session.tokens
        for key, count in held.items():
            tokens.add_metric(key, count)
        yield tokens
        switches = CounterMetricFamily(
            "corral_kv_switches", "Context switches of sessions' KV caches.", labels=("engine", "kind")
        )
        for key, count in self._switches.items():
            switches.add_metric(key, count)
        yield switches
        moved = CounterMetricFamily("corral_kv_switched_bytes", "Bytes of them.", labels=("engine", "kind"))
        for key, count in self._moved.items():
            moved.add_metric(key, count)
        yield moved
        yield CounterMetricFamily("corral_kv_move_failures", "Moves that an engine refused.", value=self._failures)
        yield from self._pause_series()

    def _pause_series(self) -> Iterable[Metric]:
        seconds = CounterMetricFamily("corral_kv_pause_seconds", "Tool pauses of sessions.", labels=_ENGINE)
        held = CounterMetricFamily(
            "corral_kv_pause_byte_seconds", "KV held in tool pauses.", labels=("engine", "residency")
        )
        for engine, totals in self._pauses.items():
            seconds.add_metric((engine,), totals.seconds)
            held.add_metric((engine, "resident"), totals.resident)
            held.add_metric((engine, "offloaded"), totals.offloaded)
        yield from (seconds, held)
