"""A daemon: the present through Watch, the past through its ledger, actions through its API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import grpc

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.source.connection import AGENTS, OPERATORS, Connection
from tui.source.protocol import PLOT_POINTS, Action, Away, CallPast, Moment, Update

RETRY: Final = (0.5, 1.0, 2.0, 5.0)  # seconds between tries; the last one for as long as it takes
SILENT: Final = 5.0  # seconds beyond an interval without a picture: away (a stopped process says nothing)
MAX_CALLS: Final = 500  # of a session's page
# Between the two pictures of a moment. The ledger keeps a sample every 10 s by default, so that a shorter gap would see
# the same sample twice and say that nothing was used.
RATE_SECONDS: Final = 10.0


class LedgerSource:
    """What a daemon's ledger knows; the part of LiveSource that looks back."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def moment(self, at: float | None) -> Moment:
        now = await self._moment(at)
        earlier = await self._moment(now.snapshot.at - RATE_SECONDS) if at is not None else None
        return Moment(
            at=now.snapshot.at,
            snapshot=now.snapshot,
            before=earlier.snapshot if earlier is not None else None,
            decisions=list(now.decisions),
            previous=now.previous_decision_at if now.HasField("previous_decision_at") else None,
            next=now.next_decision_at if now.HasField("next_decision_at") else None,
            first=now.first_at if now.HasField("first_at") else None,
            last=time.time(),
        )

    async def _moment(self, at: float | None) -> pb.MomentResponse:
        request = pb.MomentRequest(at=max(0.0, at) if at is not None else None)
        return await self._connection.ask(OPERATORS, "Moment", request, pb.MomentResponse)

    async def call(self, call_id: str, *, until: float | None = None) -> CallPast:
        request = pb.HistoryRequest(call_id=call_id, with_samples=True, with_decisions=True, sample_points=PLOT_POINTS)
        reply = await self._connection.ask(OPERATORS, "History", request, pb.HistoryResponse)
        return CallPast(
            call=reply.calls[0] if reply.calls else None,
            decisions=[d for d in reply.decisions if until is None or d.at <= until],
            samples=[s for s in reply.samples if until is None or s.at <= until],
            names=dict(reply.names),
        )

    async def session_calls(self, session_id: str, *, until: float | None = None) -> Sequence[pb.Call]:
        request = pb.HistoryRequest(session_id=session_id, until=until, limit=MAX_CALLS)
        return list((await self._connection.ask(OPERATORS, "History", request, pb.HistoryResponse)).calls)


class LiveSource(LedgerSource):
    """The daemon at ``target`` ("unix:/path" or "HOST:PORT"), a picture every ``interval`` seconds. Raises SourceError
    where TCP lacks its certificates."""

    live = True

    def __init__(self, target: str, *, interval: float = 1.0) -> None:
        super().__init__(Connection(target))
        self._interval = interval

    @property
    def name(self) -> str:
        return self._connection.target

    async def updates(self) -> AsyncGenerator[Update, None]:
        away_since: float | None = None
        tries = 0
        while True:
            cause, denied = "the daemon closed the stream", False
            async with self._connection.channel() as channel:
                watch: grpc.aio.UnaryStreamMultiCallable[pb.WatchRequest, pb.WatchResponse] = channel.unary_stream(
                    OPERATORS + "Watch",
                    request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=pb.WatchResponse.FromString,
                )
                stream = watch(pb.WatchRequest(interval_seconds=self._interval))
                replies = stream.__aiter__()
                try:
                    while True:
                        # Pictures come at every interval: silence is a daemon that hangs, which gRPC does not notice.
                        reply = await asyncio.wait_for(anext(replies), self._interval + SILENT)
                        away_since, tries = None, 0
                        yield reply
                except StopAsyncIteration:
                    pass
                except TimeoutError:
                    cause = f"no picture for {self._interval + SILENT:.0f} s"
                except grpc.RpcError as err:
                    cause, denied = self._connection.cause(err), self._connection.denied(err)
                finally:
                    stream.cancel()
            away_since = away_since if away_since is not None else time.time()
            yield Away(away_since, cause, denied)
            await asyncio.sleep(RETRY[min(tries, len(RETRY) - 1)])
            tries += 1

    async def budgets(self, session_id: str) -> Sequence[pb.Budget]:
        request = pb.GetBudgetRequest(session_id=session_id)
        return list((await self._connection.ask(AGENTS, "GetBudget", request, pb.GetBudgetResponse)).budgets)

    async def processes(self, call_id: str) -> Sequence[pb.Process]:
        request = pb.ProcessesRequest(call_id=call_id)
        return list((await self._connection.ask(OPERATORS, "Processes", request, pb.ProcessesResponse)).processes)

    async def features(self) -> Sequence[pb.Feature]:
        return list((await self._connection.ask(OPERATORS, "Doctor", pb.DoctorRequest(), pb.DoctorResponse)).features)

    async def act(self, action: Action) -> Sequence[str]:
        ask, target = self._connection.ask, action.target
        match action.verb:
            case "freeze":
                return list(
                    (await ask(OPERATORS, "Freeze", pb.FreezeRequest(target=target), pb.FreezeResponse)).call_ids
                )
            case "thaw":
                thawed = await ask(OPERATORS, "Thaw", pb.ThawRequest(target=target), pb.ThawResponse)
                return list(thawed.call_ids)
            case "kill":
                killed = await ask(OPERATORS, "Kill", pb.KillRequest(target=target), pb.KillResponse)
                return list(killed.call_ids)
            case "priority":
                priority = pb.SetPriorityRequest(target=target, priority=action.priority or 0)
                await ask(OPERATORS, "SetPriority", priority, pb.SetPriorityResponse)
            case "limits":
                limits = pb.Limits(
                    memory_max_bytes=action.memory_max_bytes, cpu_cores=action.cpu_cores, pids=action.pids
                )
                request = pb.SetLimitsRequest(target=target, limits=limits, brake_bytes=action.brake_bytes)
                await ask(OPERATORS, "SetLimits", request, pb.SetLimitsResponse)
        return [target]

    async def close(self) -> None:
        await self._connection.close()
