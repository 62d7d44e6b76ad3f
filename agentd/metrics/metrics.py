"""What the daemon counts, and all of it in Prometheus' text form. docs/metrics.md lists every series.

The registry is the object's own: two daemons in one process (tests, the demo) do not share counts. The methods that
count are for the path of a call: a dictionary look-up and an addition under an uncontended lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentd.metrics.labels import MAX_CODES, MAX_TENANTS, Labels
from agentd.metrics.snapshot import SnapshotCollector
from controller.model import Action, Decision, Outcome, Snapshot

# seconds; a begin takes about a millisecond, an event less, and what is beyond a second is an incident
_LATENCY: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_QUEUE: Final = (0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the daemon's parts say of themselves at a scrape. Empty ``problems``: healthy."""

    ledger_backlog: int = 0  # records accepted and not yet on disk
    ledger_bytes: int | None = None  # size of the database
    ledger_writable: bool = True
    connections: int = 0  # of the broker
    log_lines_lost: int = 0
    problems: tuple[str, ...] = ()


class Metrics:
    """Counts, and renders counts and a fresh snapshot together.

    ``snapshot`` is called on the event loop at each scrape and should be cheap. ``health``: likewise. ``per_call`` may
    be changed while running.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        *,
        health: Callable[[], Health] = Health,
        version: str = "",
        instance: str = "corral",
        per_call: bool = False,
    ) -> None:
        self.per_call = per_call
        self.more: list[
            Callable[[Labels], Collector]
        ] = []  # of other parts, made at each scrape; given the tenants' labels
        self._snapshot = snapshot
        self._health = health
        self._version = version
        self._instance = instance
        self._tenant = Labels(MAX_TENANTS)
        self._code = Labels(MAX_CODES)
        self._source = Labels(MAX_CODES)
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._begun = self._counter("calls_begun", "Calls that got a grant.", "tenant")
        self._ended = self._counter("calls_ended", "Calls that ended, by reason.", "tenant", "reason")
        self._refused = self._counter("calls_refused", "Calls that were refused, by code.", "tenant", "code")
        self._brakes = self._counter("brakes", "Times a call was stopped at its threshold.", "tenant")
        self._held = self._counter("held_seconds", "Time that ended calls had been braked or frozen.", "tenant")
        self._decisions = self._counter("decisions", "Decisions, by what was done.", "tenant", "action")
        self._dropped = self._counter("events_dropped", "Events that were lost, by where.", "source")
        self._begin = self._histogram("begin_seconds", "From a complete BEGIN to its GRANT, time in a queue excluded.")
        self._queued = self._histogram("queue_seconds", "Time that granted calls had waited in a queue.", _QUEUE)
        self._event = self._histogram("event_seconds", "From an event in the kernel to its handling by the daemon.")
        self._lag = self._histogram("loop_lag_seconds", "How late the event loop woke a timer.")

    def begun(self, tenant: str, seconds: float, *, queued_seconds: float | None = None) -> None:
        """A call got its grant, ``seconds`` after its BEGIN was complete (without ``queued_seconds``)."""
        self._begun.labels(self._tenant(tenant)).inc()
        self._begin.observe(seconds)
        if queued_seconds is not None:
            self._queued.observe(queued_seconds)

    def ended(self, tenant: str, outcome: Outcome) -> None:
        name = self._tenant(tenant)
        self._ended.labels(name, outcome.reason.value).inc()
        if outcome.held_seconds > 0:
            self._held.labels(name).inc(outcome.held_seconds)

    def refused(self, tenant: str, code: str) -> None:
        """A call was refused; ``tenant`` "" where it was not even known whose it was."""
        self._refused.labels(self._tenant(tenant), self._code(code)).inc()

    def decided(self, tenant: str, decision: Decision) -> None:
        name = self._tenant(tenant)
        self._decisions.labels(name, decision.action.value).inc()
        if decision.action is Action.BRAKE:
            self._brakes.labels(name).inc()

    def event_handled(self, seconds: float) -> None:
        """``seconds`` since the kernel stamped the event. A clock that stepped back counts as 0."""
        self._event.observe(max(seconds, 0.0))

    def dropped(self, source: str, count: int = 1) -> None:
        """``source``: a word of the daemon's own ("bpf", "watch", "ledger")."""
        if count > 0:
            self._dropped.labels(self._source(source)).inc(count)

    def loop_lagged(self, seconds: float) -> None:
        self._lag.observe(max(seconds, 0.0))

    @property
    def health(self) -> Health:
        return self._health()

    async def watch_loop(self, interval: float = 1.0) -> None:
        """Measure the event loop's lag every ``interval`` seconds, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + interval
            await asyncio.sleep(interval)
            self.loop_lagged(loop.time() - due)

    def collector(self) -> Collector:
        """All series as they are now. Call it on the event loop; the result may be rendered in any thread."""
        snapshot = SnapshotCollector(
            self._snapshot(),
            self._tenant,
            version=self._version,
            instance=self._instance,
            per_call=self.per_call,
        )
        more = (make(self._tenant) for make in self.more)
        return _Together(self._registry, snapshot, _HealthCollector(self._health()), *more)

    def render(self) -> bytes:
        """The text form, at once. A scrape renders in a thread instead (:mod:`agentd.metrics.server`)."""
        return generate_latest(self.collector())

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="corral", registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _LATENCY) -> Histogram:
        return Histogram(name, text, namespace="corral", registry=self._registry, buckets=buckets)


class _Together(Collector):
    def __init__(self, *parts: Collector) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        for part in self._parts:
            for metric in part.collect():
                # the time at which each series began would double their number, and answers no operator's question
                metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
                yield metric


class _HealthCollector(Collector):
    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        health = self._health
        yield GaugeMetricFamily("corral_healthy", "1: no part reports a problem.", value=float(not health.problems))
        yield GaugeMetricFamily(
            "corral_broker_connections", "Open connections of the broker.", value=health.connections
        )
        yield GaugeMetricFamily(
            "corral_ledger_backlog_records", "Records that wait to be written.", value=health.ledger_backlog
        )
        yield GaugeMetricFamily(
            "corral_ledger_writable", "1: the last batch was written.", value=float(health.ledger_writable)
        )
        if health.ledger_bytes is not None:
            yield GaugeMetricFamily("corral_ledger_size_bytes", "Size of the ledger.", value=health.ledger_bytes)
        yield CounterMetricFamily(
            "corral_log_lines_lost", "Log lines that could not be written.", value=health.log_lines_lost
        )
