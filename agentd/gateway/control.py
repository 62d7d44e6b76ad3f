"""What the daemon and the gateway's worker say to each other: one JSON object a line, over a socket pair.

The worker asks for each turn, and tells how it went; the daemon answers. The worker reads what agents send, so the
daemon believes it nothing that it can check: messages have a type and a size, ids are looked up, and what a worker had
open ends with it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from msgspec import Struct

from agentd.gateway.errors import GatewayError, Refusal
from agentd.gateway.ports import Admission, Ask, TurnReport

MAX_LINE: Final = 1 << 20


class Begin(Struct, frozen=True, kw_only=True, tag="begin"):
    """Daemon to worker, first: what to serve. ``buffered`` and the others: see client.Limits."""

    engine: str
    url: str
    api_key: str
    connections: int
    streams: int
    body: int
    buffered: int
    first_byte: float
    between: float


class Granted(Struct, frozen=True, tag="granted"):
    id: int
    admission: Admission


class Refused(Struct, frozen=True, tag="refused"):
    id: int
    status: int
    code: str
    message: str
    retry_after: float | None = None


class Ready(Struct, frozen=True, tag="ready"):
    """Worker to daemon: it serves. ``note``: what is not as it should be."""

    note: str = ""


class Asked(Struct, frozen=True, tag="asked"):
    id: int
    ask: Ask


class Left(Struct, frozen=True, tag="left"):
    """Nobody waits for the admission any more."""

    id: int


class Ended(Struct, frozen=True, tag="ended"):
    id: int
    report: TurnReport


class Counted(Struct, frozen=True, tag="counted"):
    """Since the worker began, but ``open``: connections now."""

    requests: int
    refused: int
    reserved_fields: int
    unreadable: int
    open: int


ToWorker = Begin | Granted | Refused
ToDaemon = Ready | Asked | Left | Ended | Counted

to_worker: Final = msgspec.json.Decoder(ToWorker)
to_daemon: Final = msgspec.json.Decoder(ToDaemon)


class ChannelBroken(GatewayError):
    """The other side sent what is no message of ours."""


def send(writer: asyncio.StreamWriter, message: ToWorker | ToDaemon) -> None:
    writer.write(msgspec.json.encode(message) + b"\n")


async def lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Until the other side is gone. Raises ChannelBroken."""
    while True:
        try:
            line = await reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except asyncio.LimitOverrunError:
            raise ChannelBroken(f"a message of more than {MAX_LINE} bytes") from None
        yield line


class ControlPort:
    """The worker's TurnPort: asks the daemon."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Admission]] = {}
        self._turns: dict[int, int] = {}  # by the admission's identity: equal ones are different turns

    async def admit(self, ask: Ask) -> Admission:
        number = next(self._ids)
        future: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        send(self._writer, Asked(number, ask))
        try:
            admission = await future
        except asyncio.CancelledError:
            send(self._writer, Left(number))
            raise
        finally:
            self._waiting.pop(number, None)
        if ask.turn:
            self._turns[id(admission)] = number
        return admission

    def ended(self, admission: Admission, report: TurnReport) -> None:
        send(self._writer, Ended(self._turns.pop(id(admission)), report))

    def answered(self, message: Granted | Refused) -> None:
        future = self._waiting.get(message.id)
        if future is None or future.done():
            return  # its client has left meanwhile, and the daemon knows by now
        if isinstance(message, Granted):
            future.set_result(message.admission)
        else:
            future.set_exception(
                Refusal(message.status, message.code, message.message, retry_after=message.retry_after)
            )
