"""Where the dashboard's pictures come from: a daemon, or a fixed list (tests, screenshots).

SourceError: an action was refused or could not be sent; its text is for the operator.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar, cast

import grpc
from google.protobuf.message import Message

from agentd.proto.corral.v1 import corral_pb2 as pb

_OPERATORS: Final = "/corral.v1.OperatorService/"
_RETRY: Final = (0.5, 1.0, 2.0, 5.0)  # seconds between tries; the last one for as long as it takes
_ACT_WITHIN: Final = 10.0  # seconds
_SILENT: Final = (
    5.0  # pictures that did not come, after which the daemon counts as away (a stopped process says nothing)
)
_MAX_MESSAGE: Final = 64 * 1024 * 1024

_Reply = TypeVar("_Reply", bound=Message)


class SourceError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Away:
    """No daemon answers. ``since`` unix seconds; ``cause`` in words. The source goes on trying."""

    since: float
    cause: str


Update = pb.WatchResponse | Away


class Source(Protocol):
    @property
    def name(self) -> str:
        """Which daemon, for the screen."""
        ...

    def updates(self) -> AsyncIterator[Update]:
        """Pictures, calls and decisions as they come. Never raises for a daemon that is away: it says Away."""
        ...

    async def freeze(self, target: str) -> list[str]:
        """The ids of the calls that were reached. Raises SourceError; so do the other two."""
        ...

    async def thaw(self, target: str) -> list[str]: ...

    async def kill(self, target: str) -> list[str]: ...


class LiveSource:
    """The daemon at ``target`` ("unix:/path"), a picture every ``interval`` seconds."""

    def __init__(self, target: str, *, interval: float = 1.0) -> None:
        self._target = target
        self._interval = interval

    @property
    def name(self) -> str:
        return self._target

    async def updates(self) -> AsyncGenerator[Update, None]:
        away_since: float | None = None
        tries = 0
        while True:
            cause = "the daemon closed the stream"
            async with self._channel() as channel:
                watch: grpc.aio.UnaryStreamMultiCallable[pb.WatchRequest, pb.WatchResponse] = channel.unary_stream(
                    _OPERATORS + "Watch",
                    request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=pb.WatchResponse.FromString,
                )
                stream = watch(pb.WatchRequest(interval_seconds=self._interval))
                replies = stream.__aiter__()
                try:
                    while True:
                        # Pictures come at every interval: silence is a daemon that hangs, which gRPC does not notice.
                        reply = await asyncio.wait_for(anext(replies), self._interval + _SILENT)
                        away_since, tries = None, 0
                        yield reply
                except StopAsyncIteration:
                    pass
                except TimeoutError:
                    cause = f"no picture for {self._interval + _SILENT:.0f} s"
                except grpc.RpcError as err:
                    cause = _cause(err)
                finally:
                    stream.cancel()
            away_since = away_since if away_since is not None else time.time()
            yield Away(away_since, cause)
            await asyncio.sleep(_RETRY[min(tries, len(_RETRY) - 1)])
            tries += 1

    async def freeze(self, target: str) -> list[str]:
        return list((await self._act("Freeze", pb.FreezeRequest(target=target), pb.FreezeResponse)).call_ids)

    async def thaw(self, target: str) -> list[str]:
        return list((await self._act("Thaw", pb.ThawRequest(target=target), pb.ThawResponse)).call_ids)

    async def kill(self, target: str) -> list[str]:
        return list((await self._act("Kill", pb.KillRequest(target=target), pb.KillResponse)).call_ids)

    async def _act(self, method: str, request: Message, reply: type[_Reply]) -> _Reply:
        async with self._channel() as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[Message, _Reply] = channel.unary_unary(
                _OPERATORS + method,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=reply.FromString,
            )
            try:
                return await call(request, timeout=_ACT_WITHIN)
            except grpc.RpcError as err:
                raise SourceError(_cause(err)) from None

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(
            self._target, options=[("grpc.max_receive_message_length", _MAX_MESSAGE), ("grpc.enable_http_proxy", 0)]
        )


def _cause(err: grpc.RpcError) -> str:
    failed = cast("grpc.aio.AioRpcError", err)  # the only RpcError that grpc.aio raises
    if failed.code() is grpc.StatusCode.UNAVAILABLE:
        return "no daemon answers"
    return failed.details() or failed.code().name.lower()


class FixtureSource:
    """A fixed list of updates, then silence. ``acted`` records what was asked for; ``refuse`` refuses it."""

    def __init__(self, updates: Iterable[Update], *, name: str = "fixture", refuse: str = "") -> None:
        self._updates = list(updates)
        self._name = name
        self._refuse = refuse
        self.acted: list[tuple[str, str]] = []

    @property
    def name(self) -> str:
        return self._name

    async def updates(self) -> AsyncIterator[Update]:
        for update in self._updates:
            yield update

    async def freeze(self, target: str) -> list[str]:
        return self._act("freeze", target)

    async def thaw(self, target: str) -> list[str]:
        return self._act("thaw", target)

    async def kill(self, target: str) -> list[str]:
        return self._act("kill", target)

    def _act(self, verb: str, target: str) -> list[str]:
        self.acted.append((verb, target))
        if self._refuse:
            raise SourceError(self._refuse)
        return [target]
