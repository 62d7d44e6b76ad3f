"""The gateway's listeners and connections.

    gateway = Gateway(port, Upstream("http://127.0.0.1:8080", engine="local"), tells_usage=True)
    address = await gateway.listen_tcp("127.0.0.1", 0)
    ...
    await gateway.close()

Runs on whatever loop it is started on: in the daemon that is a process of its own (agentd.gateway.worker), so that no
stream of tokens delays the begin of a tool call.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Final

from agentd.gateway.client import Client, Limits, Memory, Reader
from agentd.gateway.errors import CannotServe, ClientGone, Refusal
from agentd.gateway.ports import TurnPort
from agentd.gateway.relay import Relay, Totals
from agentd.gateway.upstream import Upstream
from agentd.log import get_logger

log = get_logger("corral.gateway")

_BACKLOG: Final = 256


class Gateway:
    """One engine's gateway. ``tells_usage``: see Relay."""

    def __init__(
        self, port: TurnPort, upstream: Upstream, *, limits: Limits | None = None, tells_usage: bool = False
    ) -> None:
        self._limits = limits or Limits()
        self._upstream = upstream
        self._relay = Relay(port, upstream, self._limits, tells_usage=tells_usage)
        self._memory = Memory(self._limits.buffered, self._limits.share)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: dict[Client, None] = {}  # have asked for nothing yet, or for nothing more; the oldest first

    @property
    def totals(self) -> Totals:
        return self._relay.totals

    @property
    def connections(self) -> int:
        return len(self._tasks)

    @property
    def buffered(self) -> int:
        """Bytes of request bodies under way."""
        return self._memory.used

    async def listen_tcp(self, host: str, port: int) -> tuple[str, int]:
        """The address that it got. Raises CannotServe."""
        try:
            server = await asyncio.get_running_loop().create_server(self._protocol, host, port, backlog=_BACKLOG)
        except OSError as error:
            raise CannotServe(
                f"the gateway cannot listen on {host} port {port}: {error.strerror or error}; "
                "give another gateway.listen, or end the program that holds the port (ss -ltnp)"
            ) from None
        self._servers.append(server)
        address = server.sockets[0].getsockname()
        return address[0], address[1]

    async def listen_unix(self, path: Path) -> None:
        """Raises CannotServe. Permissions are the caller's."""
        try:
            server = await asyncio.get_running_loop().create_unix_server(self._protocol, path, backlog=_BACKLOG)
        except OSError as error:
            raise CannotServe(
                f"the gateway cannot listen on {path}: {error.strerror or error}; give another gateway.socket"
            ) from None
        self._servers.append(server)

    async def listen_on(self, sock: socket.socket) -> None:
        """A socket that somebody else has bound. It is closed with the gateway."""
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_UNIX:
            server = await loop.create_unix_server(self._protocol, sock=sock, backlog=_BACKLOG)
        else:
            server = await loop.create_server(self._protocol, sock=sock, backlog=_BACKLOG)
        self._servers.append(server)

    async def close(self) -> None:
        """Ends all turns under way; their engines' requests end with them."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
        self._upstream.close()

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(Reader(), self._connected)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or not isinstance(reader, Reader):
            raise TypeError("a connection without a task and a reader of ours")
        if len(self._tasks) >= self._limits.connections and not self._make_room():
            writer.transport.abort()
            return
        self._tasks.add(task)
        client = Client(reader, writer, self._limits, self._memory)
        try:
            await self._requests(client, task)
        except ClientGone:
            client.abort()
        except asyncio.CancelledError:
            client.abort()
            if not reader.gone:
                raise
        except Exception:  # a defect in one request must not end the others
            log.exception("a request to the gateway failed", remedy="report this with the lines above")
            client.abort()
        finally:
            reader.on_gone = None
            client.release()
            self._tasks.discard(task)
            await client.close()

    def _make_room(self) -> bool:
        """Who has waited longest without a request gives its place to a newcomer: connections that ask for nothing,
        which need no token, keep nobody out. Whether there was one."""
        client = next(iter(self._waiting), None)
        if client is None:
            return False
        del self._waiting[client]
        client.abort()
        return True

    async def _requests(self, client: Client, task: asyncio.Task[None]) -> None:
        first = True
        while client.keep_alive:
            try:
                self._waiting[client] = None
                try:
                    head = await client.head(first=first)
                finally:
                    self._waiting.pop(client, None)
                first = False
                if head is None:
                    return
                # From here on a client that leaves ends what it asked for, wherever that is.
                client.reader.on_gone = task.cancel
                if client.reader.gone:
                    raise ClientGone
                await self._relay.serve(client, head)
            except Refusal as refusal:
                self.totals.refused += 1
                if client.began_answer:
                    return
                await client.refuse(refusal)
            finally:
                client.reader.on_gone = None
                client.release()
