"""A client of the broker for its tests."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from pathlib import Path

from agentd import wire
from agentd.broker import Broker

BEGIN = wire.encode(wire.Begin(argv=("true",)))


class Client:
    """One connection of this very process; its pidfd is thus the right one."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self.sock.connect(os.fspath(path))
        except BaseException:
            self.sock.close()
            raise

    def send(self, data: bytes | wire.Message, *fds: int) -> None:
        packet = data if isinstance(data, bytes) else wire.encode(data)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([packet], ancillary)

    def begin(self, data: bytes = BEGIN) -> None:
        self.send_with_pidfd(data)

    def send_with_pidfd(self, data: bytes | wire.Message, pid: int = 0) -> None:
        pidfd = os.pidfd_open(pid or os.getpid())
        try:
            self.send(data, pidfd)
        finally:
            os.close(pidfd)

    async def receive(self) -> wire.Message | None:
        """The next message; None at the end."""
        async with asyncio.timeout(20):
            while True:
                try:
                    data = await asyncio.get_running_loop().sock_recv(self.sock, wire.MAX_MESSAGE)
                except ConnectionResetError:  # it closed with ours unread; what it said is still there
                    continue
                return wire.decode(data) if data else None

    async def refused(self) -> wire.Refused:
        answer = await self.receive()
        assert isinstance(answer, wire.Refused), answer
        assert await self.receive() is None
        return answer

    async def granted(self) -> str:
        answer = await self.receive()
        assert isinstance(answer, wire.Grant), answer
        return answer.call_id

    def close(self) -> None:
        self.sock.close()


class Clients:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._all: list[Client] = []

    def __call__(self) -> Client:
        client = Client(self._path)
        self._all.append(client)
        return client

    def close(self) -> None:
        for client in self._all:
            client.close()


async def shrunk(broker: Broker, connections: int) -> None:
    """Wait until the broker has let go of all but ``connections``; nothing signals that to the outside."""
    async with asyncio.timeout(20):
        while broker.connections > connections:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)
