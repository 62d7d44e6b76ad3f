"""The gateway's process: ``python -m agentd.gateway.worker --control FD --listen FD ...``, started by the daemon.

A process of its own, as streams of tokens are much work for an event loop, and the daemon's must answer a tool call's
begin within a millisecond. It ends when the daemon does, whichever way: its end of the socket pair says so. It gives
up root before it reads a byte from an agent.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pwd
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from agentd.gateway.client import Limits
from agentd.gateway.control import (
    MAX_LINE,
    Begin,
    ChannelBroken,
    ControlPort,
    Counted,
    Ready,
    lines,
    send,
    to_worker,
)
from agentd.gateway.server import Gateway
from agentd.gateway.upstream import Upstream
from agentd.log import configure, get_logger

log = get_logger("corral.gateway")

_COUNTED: Final = 1.0  # seconds between two messages with the totals, where they changed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The gateway's worker; started by agentd.")
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--listen", type=int, action="append", default=[])
    parser.add_argument("--user", default="")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="auto")
    parser.add_argument("--instance", default="corral")
    options = parser.parse_args(arguments)
    configure(level=options.log_level, form=options.log_format, instance=options.instance)
    listeners = [socket.socket(fileno=number) for number in options.listen]
    _preload()
    note = _drop(options.user) if options.user and os.geteuid() == 0 else ""
    try:
        asyncio.run(_run(socket.socket(fileno=options.control), listeners, note))
    except ChannelBroken as error:
        log.error("the daemon is not understood", error=str(error), remedy="restart agentd")
        return 1
    return 0


def _preload() -> None:
    """What Python would load at its first use: another user may not be able to read it."""
    import concurrent.futures.thread
    import encodings.idna  # noqa: F401

    "localhost".encode("idna")
    del concurrent


def _drop(user: str) -> str:
    """Become another user for good. What is wrong, where that cannot be."""
    try:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except (KeyError, OSError) as error:
        why = "there is no such user" if isinstance(error, KeyError) else error.strerror
        return f"gateway.user {user!r}: {why}, so the gateway runs as root; name another user (CAP_SETUID is needed)"
    return ""


async def _run(control: socket.socket, listeners: list[socket.socket], note: str) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: None)  # the daemon ends us, when it has ended what needs us
    reader, writer = await asyncio.open_unix_connection(sock=control, limit=MAX_LINE)
    messages = lines(reader)
    begin = to_worker.decode(await anext(messages, b""))
    if not isinstance(begin, Begin):
        raise ChannelBroken("it did not say what to serve")
    port = ControlPort(writer)
    gateway = Gateway(
        port,
        Upstream(
            begin.url,
            engine=begin.engine,
            api_key=begin.api_key,
            connections=begin.connections,
            first_byte=begin.first_byte,
            between=begin.between,
        ),
        limits=Limits(connections=begin.connections, streams=begin.streams, body=begin.body, buffered=begin.buffered),
    )
    for sock in listeners:
        await gateway.listen_on(sock)
    send(writer, Ready(note))
    counting = asyncio.create_task(_count(gateway, writer))
    try:
        async for line in messages:
            try:
                message = to_worker.decode(line)
            except msgspec.DecodeError as error:
                raise ChannelBroken(str(error)) from None
            if not isinstance(message, Begin):
                port.answered(message)
    finally:
        counting.cancel()
        await gateway.close()
        writer.close()


async def _count(gateway: Gateway, writer: asyncio.StreamWriter) -> None:
    last = None
    while True:
        totals = gateway.totals
        now = Counted(totals.requests, totals.refused, totals.reserved_fields, totals.unreadable, gateway.connections)
        if now != last:
            send(writer, now)
            last = now
        await asyncio.sleep(_COUNTED)


if __name__ == "__main__":
    sys.exit(main())
