"""corral.v1.OperatorService over a real unix socket, with a host and a ledger that record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from agentd.api.attached import Selector
from agentd.api.client import BadRequest, NoSuchObject, NotPermitted, connect
from agentd.api.ports import HistoryPage, HistoryQuery, MomentPage, SampleView
from agentd.api.validate import MAX_HISTORY
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.model import CallState, Limits, Tripwire, Usage, new_call_id
from tests.unit.api_fake import NOW, Served, make_call, make_decision, serve


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as it:
        yield it


async def test_snapshot_shows_everything(served: Served) -> None:
    session, _ = served.host.add_session("acme")
    running = served.host.add_call(session)
    ended = served.host.add_call(session, state=CallState.ENDED)
    async with connect(served.operator) as api:
        now = await api.call(api.operator.Snapshot, pb.SnapshotRequest())
        both = await api.call(api.operator.Snapshot, pb.SnapshotRequest(with_ended=True))
    assert [tenant.name for tenant in now.tenants] == ["acme", "umbrella"]
    assert [one.id for one in now.sessions] == [session.id]
    assert [call.id for call in now.calls] == [running.id]
    assert [call.id for call in both.calls] == [running.id, ended.id]
    assert (now.host.mode, now.host.version, list(now.host.missing)) == ("hybrid", "1.2.3", ["sched_ext"])
    assert now.host.HasField("io_pressure")
    assert not now.host.HasField("memory_pressure")


async def test_history_asks_the_ledger(served: Served) -> None:
    session, _ = served.host.add_session("acme")
    call = make_call(session)
    served.history.page = HistoryPage(
        calls=[call],
        decisions=[make_decision(call)],
        samples=[SampleView(at=NOW, call_id=call.id, state=CallState.BRAKED, usage=Usage(faults=3))],
    )
    async with connect(served.operator) as api:
        page = await api.call(
            api.operator.History,
            pb.HistoryRequest(
                since=1.0,
                until=2.0,
                tenant="acme",
                session_id=session.id,
                call_id=call.id,
                limit=7,
                with_samples=True,
                with_decisions=True,
                sample_points=50,
            ),
        )
        await api.call(api.operator.History, pb.HistoryRequest())
    assert served.history.queries == [
        HistoryQuery(
            since=1.0,
            until=2.0,
            tenant="acme",
            session_id=session.id,
            call_id=call.id,
            limit=7,
            with_samples=True,
            with_decisions=True,
            sample_points=50,
        ),
        HistoryQuery(),
    ]
    assert page.calls[0].id == call.id
    assert page.decisions[0].action == "brake"
    assert (page.samples[0].state, page.samples[0].usage.faults) == (pb.CALL_STATE_BRAKED, 3)


async def test_moment_asks_the_ledger_and_tells_no_present_of_the_host(served: Served) -> None:
    session, _ = served.host.add_session("acme")
    call = make_call(session)
    served.history.moment_page = MomentPage(
        at=NOW, sessions=[session], calls=[call], decisions=[make_decision(call)], previous_decision=NOW - 1, first=1.0
    )
    async with connect(served.operator) as api:
        found = await api.call(api.operator.Moment, pb.MomentRequest(at=NOW + 5))
        first = await api.call(api.operator.Moment, pb.MomentRequest())
        with pytest.raises(BadRequest, match=r"at: -1.0 is no moment"):
            await api.call(api.operator.Moment, pb.MomentRequest(at=-1))
    assert served.history.moments == [NOW + 5, None]
    assert (found.snapshot.at, first.snapshot.at) == (NOW + 5, NOW)
    assert [one.id for one in found.snapshot.calls] == [call.id]
    assert (found.previous_decision_at, found.HasField("next_decision_at"), found.first_at) == (NOW - 1, False, 1.0)
    assert (found.snapshot.host.mode, found.snapshot.host.version) == ("hybrid", "1.2.3")
    assert found.snapshot.host.memory_total_bytes == 0
    assert not found.snapshot.host.HasField("io_pressure")


async def test_processes_of_a_call_that_has_no_leaf_here_are_none(served: Served) -> None:
    session, _ = served.host.add_session("acme")
    call = served.host.add_call(session)
    async with connect(served.operator) as api:
        assert not (await api.call(api.operator.Processes, pb.ProcessesRequest(call_id=call.id))).processes
        with pytest.raises(NoSuchObject):
            await api.call(api.operator.Processes, pb.ProcessesRequest(call_id=new_call_id()))
        with pytest.raises(BadRequest):
            await api.call(api.operator.Processes, pb.ProcessesRequest(call_id="../etc"))
    async with connect(served.acme) as api:
        with pytest.raises(NotPermitted):
            await api.call(api.operator.Processes, pb.ProcessesRequest(call_id=call.id))
        with pytest.raises(NotPermitted):
            await api.call(api.operator.Moment, pb.MomentRequest())


async def test_set_tenant_limits_and_priority(served: Served) -> None:
    session, _ = served.host.add_session("acme")
    call = served.host.add_call(session)
    async with connect(served.operator) as api:
        answer = await api.call(
            api.operator.SetTenant,
            pb.SetTenantRequest(name="acme", limits=pb.Limits(memory_max_bytes=-1, cpu_cores=-1, pids=9), priority=0),
        )
        await api.call(api.operator.SetTenant, pb.SetTenantRequest(name="acme"))
        await api.call(
            api.operator.SetLimits,
            pb.SetLimitsRequest(target=session.id, limits=pb.Limits(cpu_weight=10_000, io_weight=1)),
        )
        await api.call(api.operator.SetLimits, pb.SetLimitsRequest(target=call.id, brake_bytes=1 << 27))
        await api.call(api.operator.SetLimits, pb.SetLimitsRequest(target=call.id, notify_bytes=0))
        await api.call(api.operator.SetPriority, pb.SetPriorityRequest(target="acme", priority=100))
    assert answer.tenant.limits == pb.Limits(memory_max_bytes=-1, cpu_cores=-1, pids=9)
    assert served.host.asked == [
        ("set_tenant", "acme", Limits(memory_max=-1, cpu_max=-1.0, pids_max=9), 0),
        ("set_tenant", "acme", None, None),
        ("set_limits", session.id, Limits(cpu_weight=10_000, io_weight=1), None),
        # a threshold that a request leaves out stays as it is
        ("set_limits", call.id, Limits(), Tripwire(notify=1 << 20, brake=1 << 27)),
        ("set_limits", call.id, Limits(), Tripwire(notify=None, brake=1 << 28)),
        ("set_priority", "acme", 100),
    ]


@pytest.mark.parametrize("verb", ["Freeze", "Thaw", "Kill"])
async def test_freeze_thaw_kill(served: Served, verb: str) -> None:
    session, _ = served.host.add_session("acme")
    call = served.host.add_call(session)
    async with connect(served.operator) as api:
        method: Any = getattr(api.operator, verb)
        answer = await api.call(method, getattr(pb, f"{verb}Request")(target=call.id))
    assert list(answer.call_ids) == [call.id]
    assert served.host.asked == [(verb.lower(), call.id, "operator")]


async def test_doctor(served: Served) -> None:
    async with connect(served.operator) as api:
        answer = await api.call(api.operator.Doctor, pb.DoctorRequest())
    assert list(answer.features) == [
        pb.Feature(
            name="tripwire",
            found=False,
            detail="no BTF",
            cost="no brake in the kernel",
            remedy="boot a kernel with BTF",
        )
    ]


LONG = "x" * 10_000
BAD_REQUESTS: list[tuple[str, Any, str]] = [
    ("History", pb.HistoryRequest(since=float("nan")), "since"),
    ("History", pb.HistoryRequest(until=-1.0), "until"),
    ("History", pb.HistoryRequest(since=2.0, until=1.0), "since"),
    ("History", pb.HistoryRequest(limit=MAX_HISTORY + 1), "limit"),
    ("History", pb.HistoryRequest(tenant=LONG), "tenant"),
    ("History", pb.HistoryRequest(session_id="acme"), "session_id"),
    ("History", pb.HistoryRequest(call_id="' OR 1=1"), "call_id"),
    ("SetTenant", pb.SetTenantRequest(), "name"),
    ("SetTenant", pb.SetTenantRequest(name=LONG), "name"),
    ("SetTenant", pb.SetTenantRequest(name="../x"), "name"),
    ("SetTenant", pb.SetTenantRequest(name="a", priority=101), "priority"),
    ("SetTenant", pb.SetTenantRequest(name="a", limits=pb.Limits(memory_max_bytes=0)), "limits.memory_max_bytes"),
    ("SetTenant", pb.SetTenantRequest(name="a", limits=pb.Limits(memory_high_bytes=-2)), "limits.memory_high_bytes"),
    ("SetTenant", pb.SetTenantRequest(name="a", limits=pb.Limits(memory_low_bytes=1 << 60)), "limits.memory_low_bytes"),
    ("SetTenant", pb.SetTenantRequest(name="a", limits=pb.Limits(cpu_cores=float("nan"))), "limits.cpu_cores"),
    ("SetTenant", pb.SetTenantRequest(name="a", limits=pb.Limits(cpu_cores=float("inf"))), "limits.cpu_cores"),
    ("SetTenant", pb.SetTenantRequest(name="a", limits=pb.Limits(cpu_weight=-1)), "limits.cpu_weight"),
    ("SetTenant", pb.SetTenantRequest(name="a", limits=pb.Limits(io_weight=10_001)), "limits.io_weight"),
    ("SetTenant", pb.SetTenantRequest(name="a", limits=pb.Limits(pids=0)), "limits.pids"),
    ("SetLimits", pb.SetLimitsRequest(target=LONG, limits=pb.Limits(pids=1)), "target"),
    ("SetLimits", pb.SetLimitsRequest(target="acme"), "limits"),
    ("SetLimits", pb.SetLimitsRequest(target="acme", brake_bytes=1 << 30), "target"),
    ("SetLimits", pb.SetLimitsRequest(target="CALL", brake_bytes=1), "brake_bytes"),
    ("SetLimits", pb.SetLimitsRequest(target="CALL", notify_bytes=1 << 29), "notify_bytes"),
    ("SetPriority", pb.SetPriorityRequest(target="a b"), "target"),
    ("SetPriority", pb.SetPriorityRequest(target="acme", priority=101), "priority"),
    ("Freeze", pb.FreezeRequest(), "target"),
    ("Thaw", pb.ThawRequest(target="/"), "target"),
    ("Kill", pb.KillRequest(target=LONG), "target"),
]


@pytest.mark.parametrize(("method", "request_", "field"), BAD_REQUESTS, ids=lambda value: str(value)[:40])
async def test_bad_requests_change_nothing(served: Served, method: str, request_: Any, field: str) -> None:
    session, _ = served.host.add_session("acme")
    call = served.host.add_call(session)
    request = type(request_)()
    request.CopyFrom(request_)
    if getattr(request, "target", "") == "CALL":
        request.target = call.id
    async with connect(served.operator) as api:
        with pytest.raises(BadRequest) as refused:
            await api.call(getattr(api.operator, method), request)
    assert (refused.value.status, refused.value.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert refused.value.remedy
    assert served.host.asked == []
    assert served.history.queries == []


async def test_thresholds_of_a_call_that_is_not_there(served: Served) -> None:
    async with connect(served.operator) as api:
        with pytest.raises(NoSuchObject) as missing:
            await api.call(api.operator.SetLimits, pb.SetLimitsRequest(target=new_call_id(), brake_bytes=1 << 30))
    assert missing.value.field == "target"


async def test_watch_gives_a_snapshot_then_updates_and_snapshots_at_the_interval(served: Served) -> None:
    session, _ = served.host.add_session("acme")
    call = served.host.add_call(session)
    async with connect(served.operator) as api:
        stream = api.stream(api.operator.Watch, pb.WatchRequest(interval_seconds=0.1))
        first = await anext(stream)
        assert first.snapshot.calls[0].id == call.id
        served.host.hub.publish(replace(call, brakes=2))
        served.host.hub.publish(make_decision(call))
        served.host.hub.publish(session)
        seen: dict[str, Any] = {}
        async for answer in stream:
            seen[answer.WhichOneof("update") or ""] = answer
            if len(seen) == 4:
                break
        await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert seen["call"].call.brakes == 2
    assert seen["decision"].decision.call_id == call.id
    assert seen["session"].session.id == session.id
    assert seen["snapshot"].snapshot.host.version == "1.2.3"


@pytest.mark.parametrize("interval", [0.01, -1.0, 1e9, float("nan")])
async def test_watch_refuses_odd_intervals(served: Served, interval: float) -> None:
    async with connect(served.operator) as api:
        with pytest.raises(BadRequest) as refused:
            await anext(api.stream(api.operator.Watch, pb.WatchRequest(interval_seconds=interval)))
    assert refused.value.field == "interval_seconds"
    assert not served.host.hub.listened_to


async def _until_nobody_listens(served: Served) -> None:
    for subscription in served.host.subscriptions:
        async for _ in subscription:  # ends when it is closed
            pass
    assert not served.host.hub.listened_to


async def test_watch_ends_when_its_client_goes(served: Served) -> None:
    async with connect(served.operator) as api:
        await anext(api.stream(api.operator.Watch, pb.WatchRequest(interval_seconds=3600)))
        assert served.host.hub.listened_to
    async with asyncio.timeout(30):
        await _until_nobody_listens(served)


async def test_a_watcher_that_does_not_read_costs_bounded_memory_and_is_told_what_it_lost(served: Served) -> None:
    session, _ = served.host.add_session("acme")
    call = served.host.add_call(session, command="x" * 4000)
    async with connect(served.operator) as api:
        stream = api.operator.Watch(pb.WatchRequest(interval_seconds=3600))
        assert (await anext(aiter(stream))).WhichOneof("update") == "snapshot"
        (subscription,) = served.host.subscriptions
        published = 0
        # until the connection's window is full, and then the queue; both hold far less than the bound below
        while subscription.lost < 100:
            served.host.hub.publish(replace(call, brakes=published))
            published += 1
            if published % 50 == 0:
                await asyncio.sleep(0)
            assert published < 1_000_000
        served.host.hub.publish(make_decision(call, "the last"))
        got = lost = 0
        async for answer in stream:
            kind = answer.WhichOneof("update")
            got += kind == "call"
            lost += answer.lost.updates
            if kind == "decision":
                break
        stream.cancel()
    assert lost >= 100
    assert got + lost == published
    async with asyncio.timeout(30):
        await _until_nobody_listens(served)


async def test_a_watcher_that_goes_while_its_window_is_full_is_forgotten(served: Served) -> None:
    session, _ = served.host.add_session("acme")
    call = served.host.add_call(session, command="x" * 4000)
    async with connect(served.operator) as api:
        stream = api.operator.Watch(pb.WatchRequest(interval_seconds=3600))
        await anext(aiter(stream))
        (subscription,) = served.host.subscriptions
        while not subscription.lost:
            served.host.hub.publish(call)
            await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await _until_nobody_listens(served)


async def test_what_may_be_attached_is_checked(served: Served) -> None:
    wrong = {
        "a process or containers": pb.AttachRequest(tenant="acme"),
        "and not both": pb.AttachRequest(tenant="acme", pid=5, containers=pb.ContainerSelector(name="x")),
        "cannot name a tenant": pb.AttachRequest(tenant="../x", pid=5),
        "no process that can be moved": pb.AttachRequest(tenant="acme", pid=1),
        "match every container": pb.AttachRequest(tenant="acme", containers=pb.ContainerSelector(follow=True)),
        "not printable": pb.AttachRequest(tenant="acme", containers=pb.ContainerSelector(name="a\nb")),
        "give at most 16": pb.AttachRequest(tenant="acme", containers=pb.ContainerSelector(labels=["x"] * 17)),
    }
    async with connect(served.operator) as api:
        for cause, request in wrong.items():
            with pytest.raises(BadRequest, match=cause):
                await api.call(api.operator.Attach, request)
        with pytest.raises(BadRequest, match="is empty"):
            await api.call(api.operator.Detach, pb.DetachRequest())
        assert served.host.asked == []
        selector = pb.ContainerSelector(labels=["role=agent"], compose_project="p", follow=True)
        request = pb.AttachRequest(tenant="acme", name="n", rules="codex", containers=selector)
        [session] = (await api.call(api.operator.Attach, request)).sessions
        assert session.tenant_id
    asked = Selector(labels=("role=agent",), project="p", follow=True)
    assert served.host.asked == [("attach", "acme", "n", {}, asked, "codex")]
