"""vLLM's KV event stream over ZeroMQ, without holes.

A PUB socket sends (topic, 8-byte big-endian sequence, payload) and forgets; a ROUTER beside it replays from a sequence
number on, out of a ring of the last messages, and ends with the sequence -1. A subscriber that comes late, or loses
messages, asks there; what the ring no longer has is a ``Gap``, said and not hidden.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from gpu.engines.vllm_events import MAX_MESSAGE, BadEvent, Batch, Gap, KvUpdate, Restarted, decode
from gpu.errors import EngineUnreachable, InvalidValue, MissingPackage

if TYPE_CHECKING:
    import zmq.asyncio

_END: Final = (1 << 64) - 1  # -1 as eight bytes
_REPLAY_SECONDS: Final = 5.0  # without a message; the engine's thread answers at its own beat of 0.1 s
_MAX_REPLAY: Final = 1_000_000  # messages; vLLM's ring has 10,000
_QUEUE: Final = 100_000  # as vLLM's own


class KvEventStream:
    """``async with KvEventStream(...) as stream: async for update in stream: index.feed(update)``

    :param endpoint: where the engine publishes (``ipc://…`` or ``tcp://…``)
    :param replay: its replay socket; "": there is none, so that what is lost stays lost
    :param bind: bind instead of connecting: vLLM *connects* to a plain ``tcp://host:port``. Until the stream is
        iterated, such an engine sends nothing: a bound SUB socket subscribes from within its own calls
    :raises MissingPackage: pyzmq is not installed
    """

    def __init__(
        self,
        endpoint: str,
        *,
        engine: str,
        replay: str = "",
        topic: str = "",
        bind: bool = False,
        replay_seconds: float = _REPLAY_SECONDS,
    ) -> None:
        for one in (endpoint, *((replay,) if replay else ())):
            if not one.startswith(("ipc://", "tcp://", "inproc://")) or len(one) > 256:
                raise InvalidValue(
                    f"engine {engine}: KV event endpoint {one[:64]!r}", remedy="give ipc://PATH or tcp://HOST:PORT"
                )
        if bind and not endpoint.startswith("tcp://"):
            # ZeroMQ would take an ipc path away from the engine that has bound it, without a word.
            raise InvalidValue(
                f"engine {engine}: binding KV event endpoint {endpoint!r}",
                remedy="vLLM binds ipc endpoints itself; bind only tcp://HOST:PORT, to which it connects",
            )
        self._endpoint = endpoint
        self._replay = replay
        self._topic = topic
        self._bind = bind
        self._engine = engine
        self._replay_seconds = replay_seconds
        self._context: zmq.asyncio.Context | None = None
        self._sub: zmq.asyncio.Socket | None = None
        self._next = 0  # the sequence number that comes next
        self._last_at = float("-inf")  # the engine's time of the newest batch delivered
        self._pending: deque[KvUpdate] = deque()
        self._closed = False
        #: Messages that could not be read.
        self.bad = 0

    async def __aenter__(self) -> Self:
        """
        :raises EngineUnreachable: the endpoint cannot be opened (a host that has no address, a path that is taken)
        """
        zmq = _zmq()
        self._context = zmq.asyncio.Context()
        try:
            sub = self._context.socket(zmq.SUB)
            self._sub = sub
            sub.setsockopt(zmq.LINGER, 0)
            sub.setsockopt(zmq.RCVHWM, _QUEUE)
            sub.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
            sub.setsockopt(zmq.SUBSCRIBE, self._topic.encode())
            if self._bind:
                sub.bind(self._endpoint)
            else:
                sub.connect(self._endpoint)
            if self._replay:
                await self._catch_up(0, None)  # what happened before we came
        except BaseException as error:
            await self.close()
            if isinstance(error, zmq.ZMQError):
                raise EngineUnreachable(
                    f"KV events at {self._endpoint}, {self._replay or 'without replay'}: {error}",
                    engine=self._engine,
                    remedy="check the endpoints of its --kv-events-config",
                ) from error
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._closed = True
        sub, self._sub = self._sub, None
        if sub is not None:
            sub.close(linger=0)
        context, self._context = self._context, None
        if context is not None:
            context.destroy(linger=0)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> KvUpdate:
        while not self._pending:
            if self._sub is None:
                raise StopAsyncIteration
            try:
                frames = await self._sub.recv_multipart()
            except asyncio.CancelledError:
                # Closing a socket cancels what waits for it. That is the end of the stream, not of the task.
                task = asyncio.current_task()
                if self._closed and not (task and task.cancelling()):
                    raise StopAsyncIteration from None
                raise
            await self._take(frames)
        return self._pending.popleft()

    async def _take(self, frames: list[bytes]) -> None:
        """One live message."""
        if len(frames) != 3 or len(frames[1]) != 8:
            self.bad += 1
            return
        seq = int.from_bytes(frames[1], "big")
        update = self._decode(seq, frames[2], replayed=False)
        if seq < self._next:
            # Either a message that the replay gave already, or an engine that began anew. The engine's clock tells:
            # what was replayed is not newer than the newest that was delivered.
            if isinstance(update, Gap) or update.at <= self._last_at:
                return
            self._pending.append(Restarted())
            self._next = 0
            self._last_at = float("-inf")
        if seq > self._next:
            await self._catch_up(self._next, seq)
        if seq >= self._next:  # else the replay had it
            self._deliver(seq, update)

    def _decode(self, seq: int, payload: bytes, *, replayed: bool) -> Batch | Gap:
        try:
            return decode(seq, payload, replayed=replayed)
        except BadEvent as error:
            self.bad += 1
            return Gap(seq, seq, f"the message cannot be read: {error}")

    def _deliver(self, seq: int, update: Batch | Gap) -> None:
        self._next = seq + 1
        if isinstance(update, Batch):
            self._last_at = max(self._last_at, update.at)
        self._pending.append(update)

    async def _catch_up(self, first: int, live: int | None) -> None:
        """Ask for ``first`` and on. What is missing before ``live`` (or before what the ring still has) is a gap."""
        why = "there is no replay endpoint"
        if self._replay:
            why = await self._replay_from(first)
        if live is not None and self._next < live:
            self._pending.append(Gap(self._next, live - 1, why))
            self._next = live

    async def _replay_from(self, first: int) -> str:
        """Delivers what is replayed. Returns why what is still missing is missing."""
        if self._context is None:
            return "the stream is closed"
        zmq = _zmq()
        # A socket for each request: a late answer to an earlier one must not be taken for this one's.
        dealer = self._context.socket(zmq.DEALER)
        try:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
            dealer.connect(self._replay)
            await dealer.send_multipart([b"", first.to_bytes(8, "big")])
            for _ in range(_MAX_REPLAY):
                frames = await asyncio.wait_for(dealer.recv_multipart(), self._replay_seconds)
                if len(frames) < 2 or len(frames[-2]) != 8:
                    self.bad += 1
                    continue
                seq = int.from_bytes(frames[-2], "big")
                if seq == _END:
                    return "the engine no longer has them"
                if seq < self._next:
                    continue
                if seq > self._next:
                    self._pending.append(Gap(self._next, seq - 1, "the engine no longer has them"))
                self._deliver(seq, self._decode(seq, frames[-1], replayed=True))
            return "the replay does not end"
        except TimeoutError:
            return f"the replay endpoint was silent for {self._replay_seconds:g} s"
        finally:
            dealer.close(linger=0)


def _zmq() -> Any:
    try:
        import zmq
        import zmq.asyncio
    except ImportError as error:
        raise MissingPackage(
            "vLLM's KV events need the Python package pyzmq", remedy="install Corral with its extra: corral[gpu]"
        ) from error
    return zmq
