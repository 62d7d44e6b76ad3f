"""The broker's listening socket: its limits, storms, exhaustion, stale sockets and second daemons."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd import wire
from agentd.broker import BadSocketPath, Broker, Peer, SocketInUse
from tests.unit.broker_client import Client, shrunk
from tests.unit.broker_handler import Recorder


@pytest.fixture
def handler() -> Recorder:
    return Recorder()


@pytest.fixture
async def broker(tmp_path: Path, handler: Recorder) -> AsyncIterator[Broker]:
    made = Broker(tmp_path / "broker.sock", handler, begin_timeout=30.0)
    await made.start()
    yield made
    await made.close()


async def test_half_open_connections_are_dropped(tmp_path: Path, handler: Recorder) -> None:
    broker = Broker(tmp_path / "b.sock", handler, begin_timeout=0.05)
    await broker.start()
    idle, running = Client(broker.path), Client(broker.path)
    running.begin()
    await running.granted()
    assert (await idle.refused()).code == "timeout"
    assert broker.connections == 1, "a call that runs is not half-open"
    await broker.close()
    idle.close()
    running.close()


async def test_one_user_cannot_take_all(tmp_path: Path, handler: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    uids = iter([1000, 1000, 1000, 1001, 1000])
    monkeypatch.setattr("agentd.broker.server.credentials", lambda sock: Peer(os.getpid(), next(uids), 0))
    broker = Broker(tmp_path / "b.sock", handler, max_per_uid=2)
    await broker.start()
    clients = [Client(broker.path) for _ in range(4)]
    answer = await clients[2].refused()
    assert answer.code == "too_many_connections"
    assert "user 1000" in answer.message
    clients[3].begin()
    await clients[3].granted()
    clients[0].close()
    await shrunk(broker, 2)
    clients.append(Client(broker.path))
    clients[4].begin()
    await clients[4].granted()
    await broker.close()
    for client in clients:
        client.close()


async def test_ten_thousand_connects_do_not_starve_a_call(tmp_path: Path, handler: Recorder) -> None:
    broker = Broker(tmp_path / "b.sock", handler, max_connections=100, begin_timeout=30.0)
    await broker.start()
    held: list[Client] = []
    made = 0
    honest = Client(broker.path)
    honest.begin()
    call_id = await honest.granted()
    while made < 10_000:
        try:
            held.append(Client(broker.path))
        except BlockingIOError:  # the backlog is full: the broker is served between our attempts, not after them
            await asyncio.sleep(0)
            continue
        made += 1
        if len(held) > 300:
            held.pop(0).close()
        if made == 5_000:
            honest.send(wire.End(wait_status=0, want=True))
    assert isinstance(await honest.receive(), wire.OutcomeReply)
    assert await handler.next("ended") == ("ended", call_id, 0, True)
    assert broker.connections <= 100
    for client in held:
        client.close()
    honest.close()
    await shrunk(broker, 0)
    late = Client(broker.path)
    late.begin()
    await late.granted()
    late.close()
    await broker.close()


async def test_running_out_of_descriptors_is_survived(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    accept = socket.socket.accept
    failures = 3

    def exhausted(self: socket.socket) -> tuple[socket.socket, object]:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", exhausted)
    monkeypatch.setattr("agentd.broker.server._EXHAUSTED_PAUSE", 0.001)
    client = Client(broker.path)
    client.begin()
    await client.granted()
    assert failures == 0
    client.close()


async def test_a_second_daemon_is_refused(broker: Broker, handler: Recorder) -> None:
    second = Broker(broker.path, handler)
    with pytest.raises(SocketInUse, match=r"broker\.sock: another daemon"):
        await second.start()
    await second.close()
    client = Client(broker.path)
    client.begin()
    await client.granted()
    client.close()


async def test_a_listener_without_our_lock_is_respected(tmp_path: Path, handler: Recorder) -> None:
    path = tmp_path / "b.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(os.fspath(path))
        other.listen()
        with pytest.raises(SocketInUse):
            await Broker(path, handler).start()
    assert path.exists()


async def test_a_stale_socket_is_replaced_with_the_right_mode(tmp_path: Path, handler: Recorder) -> None:
    path = tmp_path / "b.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(os.fspath(path))
    broker = Broker(path, handler, mode=0o620)
    await broker.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o620
    client = Client(path)
    client.begin()
    await client.granted()
    client.close()
    path.unlink()
    path.write_text("put there by somebody else")
    await broker.close()
    assert path.exists(), "only our own socket is removed"


async def test_bad_paths_name_path_and_remedy(tmp_path: Path, handler: Recorder) -> None:
    plain = tmp_path / "file"
    plain.write_text("precious")
    for path, says in (
        (plain, "no socket"),
        (tmp_path / "missing" / "b.sock", "directory must exist"),
        (tmp_path / ("x" * 120), "shorter"),
    ):
        with pytest.raises(BadSocketPath, match=says) as caught:
            await Broker(path, handler).start()
        assert str(path) in str(caught.value)
    assert plain.read_text() == "precious"
