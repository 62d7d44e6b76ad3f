"""The gateway's Prometheus series, counted on the daemon's side from what the worker reports.

Labels are bounded: tenants as elsewhere, engines of the configuration, outcomes of a fixed list.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentd.gateway.control import Counted
from agentd.gateway.figures import FIRST_BUCKETS, GAP_BUCKETS
from agentd.gateway.ports import TurnReport


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def merge(self, counts: Sequence[int], total: float) -> None:
        if len(counts) == len(self.counts) and total >= 0:
            self.counts = [a + max(0, b) for a, b in zip(self.counts, counts, strict=True)]
            self.total += total

    def buckets(self) -> list[tuple[str, float]]:
        sums, running = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self.counts, strict=True):
            running += count
            sums.append((bound, float(running)))
        return sums


class TurnTotals:
    """Since the daemon began. ``worker``: what its worker counted, added up over its restarts."""

    def __init__(self) -> None:
        self._turns: Counter[tuple[str, str, str]] = Counter()
        self._tokens: Counter[tuple[str, str, str]] = Counter()
        self._first: dict[str, _Histogram] = {}
        self._gaps: dict[str, _Histogram] = {}
        self._queued: dict[str, _Histogram] = {}
        self._before = Counted(0, 0, 0, 0, 0)
        self._now = Counted(0, 0, 0, 0, 0)
        self.restarts = 0

    def turn(self, tenant: str, engine: str, report: TurnReport) -> None:
        outcome = "cancelled" if report.cancelled else "failed" if report.error else "done"
        self._turns[tenant, engine, outcome] += 1
        for kind, tokens in (
            ("computed", max(0, report.prompt - report.cached)),
            ("cached", report.cached),
            ("generated", report.generated),
        ):
            self._tokens[tenant, engine, kind] += tokens
        self._of(self._queued, engine, FIRST_BUCKETS).observe(max(0.0, report.queued))
        if report.first_token is not None:
            self._of(self._first, engine, FIRST_BUCKETS).observe(max(0.0, report.first_token))
        if report.gaps:
            self._of(self._gaps, engine, GAP_BUCKETS).merge(report.gaps, report.gap_seconds)

    def refused(self, tenant: str, engine: str) -> None:
        """A budget was used up."""
        self._turns[tenant, engine, "refused"] += 1

    def counted(self, counted: Counted) -> None:
        self._now = counted

    def worker_ended(self) -> None:
        one, two = self._before, self._now
        self._before = Counted(
            one.requests + two.requests,
            one.refused + two.refused,
            one.reserved_fields + two.reserved_fields,
            one.unreadable + two.unreadable,
            0,
        )
        self._now = Counted(0, 0, 0, 0, 0)

    def collector(self, names: Callable[[str], str]) -> Collector:
        """As they are now. ``names``: tenant's name to its label."""
        return _Collected(list(self._series(names)))

    def _series(self, names: Callable[[str], str]) -> Iterator[Metric]:
        turns = CounterMetricFamily(
            "corral_gateway_turns",
            "Turns through the gateway: done, failed, cancelled, or refused for a budget.",
            labels=("tenant", "engine", "outcome"),
        )
        for (tenant, engine, outcome), count in _summed(self._turns, names).items():
            turns.add_metric((tenant, engine, outcome), count)
        yield turns
        tokens = CounterMetricFamily(
            "corral_gateway_tokens",
            "Tokens of those turns: prompts computed, prompts found in a cache, generated.",
            labels=("tenant", "engine", "kind"),
        )
        for (tenant, engine, kind), count in _summed(self._tokens, names).items():
            tokens.add_metric((tenant, engine, kind), count)
        yield tokens
        for name, text, found in (
            ("first_token_seconds", "From a complete request to the first token, waiting included.", self._first),
            ("token_gap_seconds", "Between two tokens of a stream.", self._gaps),
            ("queue_seconds", "That a turn waited for its KV's place, before the engine had it.", self._queued),
        ):
            family = HistogramMetricFamily(f"corral_gateway_{name}", text, labels=("engine",))
            for engine, one in found.items():
                family.add_metric((engine,), one.buckets(), one.total)
            yield family
        before, now = self._before, self._now
        for name, text, value in (
            ("requests", "Requests that the gateway read.", before.requests + now.requests),
            ("requests_refused", "Requests that it refused itself.", before.refused + now.refused),
            (
                "reserved_fields",
                "Requests that said what only the gateway may (a slot, a session, a priority), which was taken out.",
                before.reserved_fields + now.reserved_fields,
            ),
            ("unreadable", "Answers whose token counts could not be read.", before.unreadable + now.unreadable),
            ("restarts", "Times that its process had to be started again.", self.restarts),
        ):
            yield CounterMetricFamily(f"corral_gateway_{name}", text, value=float(value))
        yield GaugeMetricFamily("corral_gateway_connections", "Open connections of clients.", value=float(now.open))

    def _of(self, where: dict[str, _Histogram], engine: str, bounds: Sequence[float]) -> _Histogram:
        found = where.get(engine)
        if found is None:
            found = where[engine] = _Histogram(bounds)
        return found


def _summed(counts: Counter[tuple[str, str, str]], names: Callable[[str], str]) -> Counter[tuple[str, str, str]]:
    """By label: several tenants may share one."""
    found: Counter[tuple[str, str, str]] = Counter()
    for (tenant, engine, what), count in counts.items():
        found[names(tenant), engine, what] += count
    return found


class _Collected(Collector):
    def __init__(self, series: list[Metric]) -> None:
        self._all: Final = series

    def collect(self) -> Iterator[Metric]:
        yield from self._all
