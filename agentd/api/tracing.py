"""Trace over the API: one running call, by the tools of ``agentd.trace``, until it ends or the client goes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import assert_never

from agentd.api import validate
from agentd.api.errors import Context, answering
from agentd.api.identity import Access
from agentd.api.ports import HostPort, Subscription
from agentd.processes import unified_mount
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.corral.v1 import corral_pb2_grpc
from agentd.trace import Event, Notice, Table, Tracer
from agentd.trace.tracer import MAX_SECONDS, TOOLS, Line
from controller.model import CallId, CallState, CallView, CannotEnforce, InvalidRequest, NotFound, WrongState


class TracingMethods(corral_pb2_grpc.OperatorServiceServicer):
    _access: Access
    _host: HostPort
    _tracer: Tracer

    async def Trace(self, request: pb.TraceRequest, context: Context) -> AsyncIterator[pb.TraceResponse]:
        async with answering(context, "Trace"):
            self._access.operator(context)
            tools, seconds = _tools(request), _seconds(request.seconds)
            call = self._host.peek(validate.call_id(request.call_id))
            subscription = self._host.subscribe(session_id=call.session_id)
            try:
                ended = asyncio.Event()
                watching = asyncio.create_task(self._until_ended(subscription, call.id, ended))
                try:
                    call = self._host.peek(call.id)  # after the subscription: its end is not missed
                    group = _group_of(call)
                    found = self._tracer.trace(group, tools=tools, seconds=seconds, ended=ended)
                    async with aclosing(found) as lines:
                        async for line in lines:
                            yield to_proto(line)
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)
            finally:
                subscription.close()

    async def _until_ended(self, subscription: Subscription, call_id: CallId, ended: asyncio.Event) -> None:
        lost = 0
        async for update in subscription:
            about = isinstance(update, CallView) and update.id == call_id and update.state is CallState.ENDED
            if about or (subscription.lost != lost and self._has_ended(call_id)):
                break
            lost = subscription.lost
        ended.set()

    def _has_ended(self, call_id: CallId) -> bool:
        """Asked where updates were lost, and its end may have been among them."""
        try:
            return self._host.peek(call_id).state is CallState.ENDED
        except NotFound:
            return True


def _tools(request: pb.TraceRequest) -> list[str]:
    for tool in request.tools:
        if tool not in TOOLS:
            raise InvalidRequest("no such tool", field="tools", value=tool, remedy=f"choose of {', '.join(TOOLS)}")
    return [tool for tool in TOOLS if tool in request.tools] or list(TOOLS)


def _seconds(asked: float) -> float:
    if not math.isfinite(asked) or not 0 <= asked <= MAX_SECONDS:
        raise InvalidRequest(
            f"{asked:g} s", field="seconds", value=str(asked), remedy=f"give 0 (until the call ends) to {MAX_SECONDS:g}"
        )
    return asked or MAX_SECONDS


def _group_of(call: CallView) -> Path:
    """The call's directory in the v2 hierarchy: the programs ask whether a task is below it."""
    if call.state in (CallState.ENDED, CallState.QUEUED):
        raise WrongState(
            f"{call.id} is {call.state.value}", field="call_id", value=call.id, remedy="trace a call while it runs"
        )
    mount = unified_mount(Path("/proc/self/mountinfo").read_text("utf-8", "replace"))
    if mount is None or not call.cgroup:
        raise CannotEnforce(
            "this host has no cgroup v2 hierarchy, by which a call's tasks are told from others",
            field="call_id",
            value=call.id,
            remedy="mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) and restart agentd",
        )
    return mount / call.cgroup.lstrip("/")


def to_proto(line: Line) -> pb.TraceResponse:
    match line:
        case Event():
            return pb.TraceResponse(
                event=pb.TraceEvent(
                    at=line.at, tool=line.tool, pid=line.pid, command=line.command, text=line.text, value=line.value
                )
            )
        case Table():
            rows = [pb.TraceRow(cells=row) for row in line.rows]
            return pb.TraceResponse(table=pb.TraceTable(tool=line.tool, columns=line.columns, rows=rows))
        case Notice():
            return pb.TraceResponse(notice=line.text)
        case _:
            assert_never(line)
