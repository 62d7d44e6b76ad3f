"""Counting and rendering: every series, its labels and values; bounds on their number; the documentation."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from agentd import metrics as package
from agentd.gateway.figures import GAP_BUCKETS
from agentd.gateway.metrics import TurnTotals
from agentd.gateway.ports import TurnReport
from agentd.metrics import Health, Metrics
from agentd.metrics.labels import MAX_TENANTS, OTHER, Labels
from controller.model import (
    Action,
    Band,
    Budget,
    CallId,
    CallState,
    CallView,
    Decision,
    Grant,
    HostView,
    Intent,
    Limits,
    Outcome,
    Reason,
    SessionView,
    Snapshot,
    TenantId,
    TenantView,
    Tripwire,
    Usage,
    new_call_id,
    new_session_id,
    new_tenant_id,
)
from tests.unit.tier_objects import full_collector

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
HOST = HostView(
    kernel="6.18.0",
    mode="hybrid",
    cpus=2,
    memory_total=8_000,
    memory_available=5_000,
    cpu_pressure=12.5,
    memory_pressure=0.0,
    io_pressure=None,
    missing=("no kprobes",),
)


def tenant(name: str, *, memory: int | None = 100, limits: Limits | None = None) -> TenantView:
    return TenantView(
        id=new_tenant_id(),
        name=name,
        limits=limits or Limits(),
        priority=50,
        memory_now=memory,
        cpu_usec=1_500_000,
        budgets=(Budget(resource="tokens", scope="tenant", limit=10.0, used=4.0, remaining=6.0, band=Band.MEDIUM),),
    )


def session(tenant_id: TenantId, *, closed_at: float | None = None) -> SessionView:
    return SessionView(
        id=new_session_id(), tenant_id=tenant_id, name="s", uid=1, opened_at=1.0, closed_at=closed_at, labels={}
    )


def call(of: SessionView, state: CallState, *, pids: int | None = 3, call_id: CallId | None = None) -> CallView:
    return CallView(
        id=call_id or new_call_id(),
        session_id=of.id,
        tenant_id=of.tenant_id,
        parent_id=None,
        command='rm -rf "x"\n',
        intent=Intent(tool="bash"),
        grant=Grant(limits=Limits(), tripwire=Tripwire(), priority=50, enforced=True),
        state=state,
        begun_at=1.0,
        held_since=None,
        held_seconds=0.0,
        brakes=0,
        usage=Usage(cpu_usec=250_000, memory_now=77, pids_now=pids),
        cgroup="",
    )


def snapshot() -> Snapshot:
    ci, idle = tenant("ci", limits=Limits(memory_max=4096)), tenant("idle", memory=None, limits=Limits(memory_max=-1))
    opened, closed = session(ci.id), session(ci.id, closed_at=2.0)
    return Snapshot(
        at=1.0,
        host=HOST,
        tenants=(ci, idle),
        sessions=(opened, closed),
        calls=(
            call(opened, CallState.RUNNING),
            call(opened, CallState.RUNNING, pids=None),
            call(opened, CallState.BRAKED),
            call(opened, CallState.ENDED),
        ),
    )


def outcome(reason: Reason, held: float = 0.0) -> Outcome:
    return Outcome(
        call_id=new_call_id(),
        reason=reason,
        ended_at=1.0,
        wait_status=0,
        usage=Usage(),
        wall_seconds=1.0,
        held_seconds=held,
        decisions=(),
        summary="",
    )


def decision(action: Action) -> Decision:
    return Decision(at=1.0, action=action, policy="p", reason="r", tenant_id=TenantId("t"), evidence={})


def values(metrics: Metrics) -> dict[str, float]:
    """Every sample of the rendered text, as ``name{label="value",...}``."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_what_the_snapshot_says() -> None:
    found = values(Metrics(snapshot, version="1.2", instance="here"))
    expected = {
        'corral_info{instance="here",kernel="6.18.0",mode="hybrid",version="1.2"}': 1,
        "corral_enforcing": 1,
        "corral_missing_features": 1,
        "corral_host_cpus": 2,
        "corral_host_memory_bytes": 8000,
        "corral_host_memory_available_bytes": 5000,
        'corral_host_pressure_ratio{resource="cpu"}': 0.125,
        'corral_host_pressure_ratio{resource="memory"}': 0,
        'corral_calls{state="running",tenant="ci"}': 2,
        'corral_calls{state="braked",tenant="ci"}': 1,
        'corral_calls{state="frozen",tenant="ci"}': 0,
        'corral_calls{state="queued",tenant="idle"}': 0,
        'corral_sessions{tenant="ci"}': 1,
        'corral_sessions{tenant="idle"}': 0,
        'corral_tenant_memory_bytes{tenant="ci"}': 100,
        'corral_tenant_memory_max_bytes{tenant="ci"}': 4096,
        'corral_tenant_cpu_seconds_total{tenant="ci"}': 1.5,
        'corral_tenant_processes{tenant="ci"}': 6,
        'corral_budget_limit{resource="tokens",tenant="ci"}': 10,
        'corral_budget_used{resource="tokens",tenant="ci"}': 4,
        'corral_budget_remaining{resource="tokens",tenant="ci"}': 6,
    }
    ordered = {_ordered(key): value for key, value in found.items()}
    assert {key: ordered.get(key) for key in expected} == expected
    for absent in (
        'corral_host_pressure_ratio{resource="io"}',
        'corral_tenant_memory_bytes{tenant="idle"}',
        'corral_tenant_memory_max_bytes{tenant="idle"}',
        'corral_tenant_processes{tenant="idle"}',
        'corral_calls{state="ended",tenant="ci"}',
    ):
        assert absent not in ordered
    assert not any(name.startswith("corral_call_") for name in ordered)
    assert not any("_created" in name for name in ordered)


def test_counts() -> None:
    metrics = Metrics(
        snapshot, health=lambda: Health(ledger_backlog=4, ledger_bytes=9, connections=2, log_lines_lost=1)
    )
    metrics.begun("ci", 0.002)
    metrics.begun("ci", 0.2, queued_seconds=7.0)
    metrics.ended("ci", outcome(Reason.EXITED))
    metrics.ended("ci", outcome(Reason.BRAKED, held=2.5))
    metrics.refused("", "unknown_tenant")
    metrics.decided("ci", decision(Action.BRAKE))
    metrics.decided("ci", decision(Action.RAISE))
    metrics.event_handled(0.0002)
    metrics.event_handled(-1.0)
    metrics.dropped("bpf", 5)
    metrics.dropped("bpf", 0)
    metrics.loop_lagged(0.03)
    found = {_ordered(key): value for key, value in values(metrics).items()}
    expected = {
        'corral_calls_begun_total{tenant="ci"}': 2,
        "corral_begin_seconds_count": 2,
        "corral_begin_seconds_sum": 0.202,
        'corral_begin_seconds_bucket{le="0.0025"}': 1,
        "corral_queue_seconds_count": 1,
        'corral_calls_ended_total{reason="exited",tenant="ci"}': 1,
        'corral_calls_ended_total{reason="braked",tenant="ci"}': 1,
        'corral_held_seconds_total{tenant="ci"}': 2.5,
        'corral_calls_refused_total{code="unknown_tenant",tenant=""}': 1,
        'corral_decisions_total{action="brake",tenant="ci"}': 1,
        'corral_decisions_total{action="raise",tenant="ci"}': 1,
        'corral_brakes_total{tenant="ci"}': 1,
        "corral_event_seconds_count": 2,
        "corral_event_seconds_sum": 0.0002,
        'corral_events_dropped_total{source="bpf"}': 5,
        "corral_loop_lag_seconds_count": 1,
        "corral_healthy": 1,
        "corral_broker_connections": 2,
        "corral_ledger_backlog_records": 4,
        "corral_ledger_writable": 1,
        "corral_ledger_size_bytes": 9,
        "corral_log_lines_lost_total": 1,
    }
    assert {key: found.get(key) for key in expected} == pytest.approx(expected)


def test_problems_are_not_healthy() -> None:
    assert values(Metrics(snapshot, health=lambda: Health(problems=("the ledger is full",))))["corral_healthy"] == 0


def test_single_calls_are_shown_only_when_asked_for() -> None:
    state = snapshot()
    metrics = Metrics(lambda: state)
    assert "corral_call_memory_bytes" not in metrics.render().decode()
    metrics.per_call = True
    text = metrics.render().decode()
    live = [c for c in state.calls if c.state is not CallState.ENDED]
    assert len(re.findall("^corral_call_memory_bytes{", text, re.M)) == len(live)
    assert len(re.findall("^corral_call_cpu_seconds_total{", text, re.M)) == len(live)
    assert len(re.findall("^corral_call_processes{", text, re.M)) == len(live) - 1
    assert live[0].id in text
    assert "rm -rf" not in text


def test_the_number_of_series_is_bounded() -> None:
    metrics = Metrics(snapshot)
    for i in range(MAX_TENANTS * 3):
        metrics.begun(f"tenant-{i}", 0.001)
        metrics.refused("", f"code-{i}")
        metrics.dropped(f"source-{i}")
    found = values(metrics)
    begun = [name for name in found if name.startswith("corral_calls_begun_total")]
    assert len(begun) <= MAX_TENANTS + 1
    assert sum(found[name] for name in begun) == MAX_TENANTS * 3
    assert len(found) < 1_000


def test_tenants_beyond_the_bound_are_summed() -> None:
    tenants = tuple(tenant(f"t{i}") for i in range(MAX_TENANTS + 2))
    found = values(Metrics(lambda: Snapshot(at=1.0, host=HOST, tenants=tenants, sessions=(), calls=())))
    assert found['corral_tenant_memory_bytes{tenant="other"}'] == 200
    assert found['corral_tenant_cpu_seconds_total{tenant="other"}'] == 3.0


def test_labels_are_kept_or_put_together() -> None:
    labels = Labels(2)
    assert [labels(value) for value in ("a", "b", "c", "a", "x" * 65)] == ["a", "b", OTHER, "a", OTHER]


def test_calls_of_a_tenant_that_was_removed_are_counted() -> None:
    lone = session(TenantId("t-gone"))
    state = Snapshot(at=1.0, host=HOST, tenants=(), sessions=(lone,), calls=(call(lone, CallState.RUNNING),))
    found = {_ordered(key): value for key, value in values(Metrics(lambda: state)).items()}
    assert found['corral_calls{state="running",tenant="removed"}'] == 1


def test_two_daemons_in_one_process_do_not_share_counts() -> None:
    first, second = Metrics(snapshot), Metrics(snapshot)
    first.begun("ci", 0.001)
    assert 'corral_calls_begun_total{tenant="ci"}' not in values(second)


async def test_the_loop_is_watched() -> None:
    thrice = asyncio.Event()

    class Watched(Metrics):
        def loop_lagged(self, seconds: float) -> None:
            super().loop_lagged(seconds)
            if values(self)["corral_loop_lag_seconds_count"] == 3:
                thrice.set()

    metrics = Watched(snapshot)
    task = asyncio.create_task(metrics.watch_loop(0.0))
    await asyncio.wait_for(thrice.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_every_series_is_documented_as_it_is() -> None:
    metrics = Metrics(snapshot, health=lambda: Health(ledger_bytes=1), per_call=True)
    metrics.begun("ci", 0.001)
    metrics.ended("ci", outcome(Reason.BRAKED, held=1.0))
    metrics.refused("ci", "x")
    metrics.decided("ci", decision(Action.BRAKE))
    metrics.dropped("bpf")
    metrics.more.append(lambda labels: full_collector())
    documented = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", DOCS.read_text(encoding="utf-8"), re.M)
    own = [row for row in documented if not row[0].startswith("corral_gateway_")]
    assert sorted(own) == sorted(_row(family) for family in metrics.collector().collect())


def test_every_series_of_the_gateway_is_documented() -> None:
    """In words of the page's own, which say more than a line of help can."""
    totals = TurnTotals()
    report = TurnReport(status=200, seconds=1.0, first_token=0.5, prompt=3, cached=1, generated=2, gap_seconds=0.1)
    totals.turn("ci", "local", msgspec.structs.replace(report, gaps=(1,) * (len(GAP_BUCKETS) + 1)))
    documented = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", DOCS.read_text(encoding="utf-8"), re.M)
    own = [row[:3] for row in documented if row[0].startswith("corral_gateway_")]
    assert sorted(own) == sorted(_row(family)[:3] for family in totals.collector(lambda name: name).collect())


def test_the_public_names_exist() -> None:
    assert all(hasattr(package, name) for name in package.__all__)


def _row(family: Metric) -> tuple[str, str, str, str]:
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return name, family.type, ", ".join(f"`{label}`" for label in labels), family.documentation


def _ordered(key: str) -> str:
    """Labels in the order of their names."""
    name, brace, labels = key.partition("{")
    return f"{name}{{{','.join(sorted(labels[:-1].split(',')))}}}" if brace else name
