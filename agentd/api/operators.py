"""corral.v1.OperatorService: what the people who run the host call, and the dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from agentd.api import validate
from agentd.api.attached import AttachedMethods, AttachPort
from agentd.api.budgets import BudgetOperatorMethods
from agentd.api.convert import (
    call_to_proto,
    decision_to_proto,
    feature_to_proto,
    host_to_proto,
    limits_from_proto,
    sample_to_proto,
    session_to_proto,
    snapshot_to_proto,
    tenant_to_proto,
    threshold_from_proto,
)
from agentd.api.errors import Context, Stopping, answering
from agentd.api.identity import Access
from agentd.api.ports import Features, HistoryPort, HistoryQuery, HostPort, TierPort
from agentd.api.streams import MAX_OPERATOR_STREAMS, Streams, Tick, merged
from agentd.api.tier import TierMethods, tier_to_proto
from agentd.api.tracing import TracingMethods
from agentd.processes import processes_of
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.trace import Tracer
from controller.model import CallView, Decision, InvalidRequest, Limits, Tripwire

# Fields of HostStatus that the ledger does not keep.
_OF_NOW: Final = ("memory_total_bytes", "memory_available_bytes", "cpu_pressure", "memory_pressure", "io_pressure")


class OperatorServicer(AttachedMethods, BudgetOperatorMethods, TierMethods, TracingMethods):
    """Of one listener. Every method asks first whether an operator is calling."""

    def __init__(
        self,
        host: HostPort,
        history: HistoryPort,
        access: Access,
        *,
        features: Features,
        version: str,
        tier: TierPort,
        tracer: Tracer,
        attach: AttachPort | None = None,
    ) -> None:
        self._host = host
        self._history = history
        self._access = access
        self._features = features
        self._version = version
        self._tier = tier
        self._tracer = tracer
        self._attach = attach
        self.streams = Streams(MAX_OPERATOR_STREAMS)

    async def Snapshot(self, request: pb.SnapshotRequest, context: Context) -> pb.SnapshotResponse:
        async with answering(context, "Snapshot"):
            self._access.operator(context)
            return self._snapshot(with_ended=request.with_ended)

    def _snapshot(self, *, with_ended: bool = False) -> pb.SnapshotResponse:
        found = snapshot_to_proto(self._host.snapshot(with_ended=with_ended), self._version)
        if self._tier.configured:
            found.tier.CopyFrom(tier_to_proto(self._tier.view()))
        return found

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        async with answering(context, "Watch"):
            principal = self._access.operator(context)
            interval = validate.interval(request.interval_seconds)
            # subscribed before the first look, so that nothing falls between the two
            with self.streams.hold(str(principal), context, self._host.subscribe) as subscription:
                yield pb.WatchResponse(snapshot=self._snapshot())
                lost = subscription.lost
                async with aclosing(merged(subscription, interval)) as updates:
                    async for update in updates:
                        if subscription.lost != lost:
                            # more may be lost while an answer waits for room: those are for the next round
                            before, lost = lost, subscription.lost
                            yield pb.WatchResponse(lost=pb.Lost(updates=lost - before))
                            yield pb.WatchResponse(snapshot=self._snapshot())
                        if isinstance(update, Tick):
                            yield pb.WatchResponse(snapshot=self._snapshot())
                        elif isinstance(update, CallView):
                            yield pb.WatchResponse(call=call_to_proto(update))
                        elif isinstance(update, Decision):
                            yield pb.WatchResponse(decision=decision_to_proto(update))
                        else:
                            yield pb.WatchResponse(session=session_to_proto(update))
                raise Stopping

    async def History(self, request: pb.HistoryRequest, context: Context) -> pb.HistoryResponse:
        async with answering(context, "History"):
            self._access.operator(context)
            page = await self._history.history(_history_query(request))
            return pb.HistoryResponse(
                calls=[call_to_proto(call) for call in page.calls],
                decisions=[decision_to_proto(decision) for decision in page.decisions],
                samples=[sample_to_proto(sample) for sample in page.samples],
                names=page.names,
            )

    async def Moment(self, request: pb.MomentRequest, context: Context) -> pb.MomentResponse:
        async with answering(context, "Moment"):
            self._access.operator(context)
            page = await self._history.moment(validate.moment(request.at, "at") if request.HasField("at") else None)
            # what kind of host it is does not change with time; what it had free then was not kept
            host = host_to_proto(self._host.snapshot().host, self._version)
            for name in _OF_NOW:
                host.ClearField(name)
            return pb.MomentResponse(
                snapshot=pb.SnapshotResponse(
                    at=page.at,
                    host=host,
                    tenants=[tenant_to_proto(tenant) for tenant in page.tenants],
                    sessions=[session_to_proto(session) for session in page.sessions],
                    calls=[call_to_proto(call) for call in page.calls],
                ),
                decisions=[decision_to_proto(decision) for decision in page.decisions],
                previous_decision_at=page.previous_decision,
                next_decision_at=page.next_decision,
                first_at=page.first,
            )

    async def Processes(self, request: pb.ProcessesRequest, context: Context) -> pb.ProcessesResponse:
        async with answering(context, "Processes"):
            principal = self._access.operator(context)
            call = self._access.call(principal, validate.call_id(request.call_id), "call_id")
            # /proc answers slowly for a process that exits or is stopped in the middle of a fault
            found = await asyncio.to_thread(processes_of, call.cgroup)
            return pb.ProcessesResponse(
                processes=[
                    pb.Process(
                        pid=process.pid,
                        parent_pid=process.parent,
                        state=process.state,
                        memory_bytes=process.memory_bytes,
                        cpu_seconds=process.cpu_seconds,
                        command=process.command,
                    )
                    for process in found
                ]
            )

    async def SetTenant(self, request: pb.SetTenantRequest, context: Context) -> pb.SetTenantResponse:
        async with answering(context, "SetTenant"):
            self._access.operator(context)
            tenant = self._host.set_tenant(
                validate.tenant_name(request.name),
                limits=limits_from_proto(request.limits) if request.HasField("limits") else None,
                priority=validate.priority(request.priority) if request.HasField("priority") else None,
            )
            return pb.SetTenantResponse(tenant=tenant_to_proto(tenant))

    async def SetLimits(self, request: pb.SetLimitsRequest, context: Context) -> pb.SetLimitsResponse:
        async with answering(context, "SetLimits"):
            principal = self._access.operator(context)
            target = validate.target(request.target)
            limits = limits_from_proto(request.limits)
            tripwire = None
            if request.HasField("notify_bytes") or request.HasField("brake_bytes"):
                if not target.startswith("c-"):
                    raise InvalidRequest(
                        "only a call has thresholds",
                        field="target",
                        value=target,
                        remedy="give the id of a call (c-...)",
                    )
                tripwire = _tripwire(request, self._access.call(principal, target, "target").grant.tripwire)
            if tripwire is None and limits == Limits():
                raise InvalidRequest(
                    "nothing is to be changed", field="limits", remedy="set at least one limit or threshold"
                )
            self._host.set_limits(target, limits=limits, tripwire=tripwire)
            return pb.SetLimitsResponse()

    async def SetPriority(self, request: pb.SetPriorityRequest, context: Context) -> pb.SetPriorityResponse:
        async with answering(context, "SetPriority"):
            self._access.operator(context)
            self._host.set_priority(validate.target(request.target), validate.priority(request.priority))
            return pb.SetPriorityResponse()

    async def Freeze(self, request: pb.FreezeRequest, context: Context) -> pb.FreezeResponse:
        async with answering(context, "Freeze"):
            by = str(self._access.operator(context))
            return pb.FreezeResponse(call_ids=await self._host.freeze(validate.target(request.target), by=by))

    async def Thaw(self, request: pb.ThawRequest, context: Context) -> pb.ThawResponse:
        async with answering(context, "Thaw"):
            by = str(self._access.operator(context))
            return pb.ThawResponse(call_ids=await self._host.thaw(validate.target(request.target), by=by))

    async def Kill(self, request: pb.KillRequest, context: Context) -> pb.KillResponse:
        async with answering(context, "Kill"):
            by = str(self._access.operator(context))
            return pb.KillResponse(call_ids=await self._host.kill(validate.target(request.target), by=by))

    async def Doctor(self, request: pb.DoctorRequest, context: Context) -> pb.DoctorResponse:
        async with answering(context, "Doctor"):
            self._access.operator(context)
            return pb.DoctorResponse(features=[feature_to_proto(feature) for feature in self._features()])


def _tripwire(request: pb.SetLimitsRequest, now: Tripwire) -> Tripwire:
    """The call's thresholds with those that the request sets."""
    notify, brake = now.notify, now.brake
    if request.HasField("notify_bytes"):
        notify = threshold_from_proto(request.notify_bytes, "notify_bytes")
    if request.HasField("brake_bytes"):
        brake = threshold_from_proto(request.brake_bytes, "brake_bytes")
    if notify is not None and brake is not None and notify > brake:
        raise InvalidRequest(
            f"{notify} is above the brake, {brake}",
            field="notify_bytes",
            value=str(notify),
            remedy="give a notice of at most the brake; a threshold that is left out stays as it is",
        )
    return Tripwire(notify=notify, brake=brake)


def _history_query(request: pb.HistoryRequest) -> HistoryQuery:
    since = validate.moment(request.since, "since") if request.HasField("since") else None
    until = validate.moment(request.until, "until") if request.HasField("until") else None
    if since is not None and until is not None and since > until:
        raise InvalidRequest(
            f"{since} is after until, {until}", field="since", value=str(since), remedy="give an earlier moment"
        )
    return HistoryQuery(
        since=since,
        until=until,
        tenant=validate.tenant_name(request.tenant, "tenant") if request.tenant else "",
        session_id=validate.session_id(request.session_id) if request.session_id else None,
        call_id=validate.call_id(request.call_id) if request.call_id else None,
        limit=validate.history_limit(request.limit),
        with_samples=request.with_samples,
        with_decisions=request.with_decisions,
        sample_points=validate.history_limit(request.sample_points, "sample_points") if request.sample_points else 0,
    )
