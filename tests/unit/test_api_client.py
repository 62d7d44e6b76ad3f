"""The client: targets, the environment, what its errors say, and the synchronous half against a server in a thread."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agentd.api import client
from agentd.api.client import (
    ApiError,
    BadRequest,
    DaemonAway,
    NoSuchObject,
    NotPermitted,
    NotSupported,
    Target,
    TimedOut,
    TlsFiles,
    connect,
    connect_sync,
)
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.model import new_call_id
from tests.unit.api_fake import Served, serve


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CORRAL_"):
            monkeypatch.delenv(name)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as it:
        yield it


@pytest.fixture
def served_aside(tmp_path: Path) -> Iterator[Served]:
    """Served by a loop in another thread, for the synchronous client."""
    started: Any = threading.Event()
    box: list[Served] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        async with serve(tmp_path) as it:
            box.append(it)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.Runner(loop_factory=lambda: loop).run(run()))
    thread.start()
    try:
        assert started.wait(30)
        yield box[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.mark.parametrize(
    ("text", "uri", "shown"),
    [
        ("/run/corral/operator.sock", "unix:/run/corral/operator.sock", "/run/corral/operator.sock"),
        ("unix:/a/b", "unix:/a/b", "/a/b"),
        ("unix:///a/b", "unix:/a/b", "/a/b"),
        ("/a b%41", "unix:/a%20b%2541", "/a b%41"),
        ("host.example:7443", "host.example:7443", "host.example:7443"),
        ("[::1]:7443", "[::1]:7443", "[::1]:7443"),
    ],
)
def test_targets(text: str, uri: str, shown: str) -> None:
    target = Target.parse(text)
    assert (target.uri, str(target)) == (uri, shown)


def test_relative_targets_are_made_absolute() -> None:
    assert Target.parse("./a.sock").path == Path("a.sock").absolute()
    assert Target.parse("unix:a.sock").path == Path("a.sock").absolute()


@pytest.mark.parametrize("text", ["host", "host:", ":7443", "host:port", "http://x", "-"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(BadRequest, match="no target"):
        Target.parse(text)


def test_where_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    with connect_sync() as api:
        assert (str(api.target), api.metadata) == ("/run/corral/operator.sock", ())
    monkeypatch.setenv("CORRAL_API", "/elsewhere.sock")
    monkeypatch.setenv("CORRAL_TOKEN", "from-environment")
    with connect_sync() as api:
        assert (str(api.target), api.metadata) == ("/elsewhere.sock", (("corral-token", "from-environment"),))
    with connect_sync("/given.sock", "given") as api:
        assert (str(api.target), api.metadata) == ("/given.sock", (("corral-token", "given"),))


def test_tcp_wants_certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="CORRAL_TLS_CA, CORRAL_TLS_CERT, CORRAL_TLS_KEY"):
        connect_sync("host:7443")
    for name in ("CORRAL_TLS_CA", "CORRAL_TLS_CERT", "CORRAL_TLS_KEY"):
        monkeypatch.setenv(name, str(tmp_path / "missing.pem"))
    with pytest.raises(NotPermitted, match=r"missing\.pem: No such file"):
        connect_sync("host:7443")
    with pytest.raises(NotPermitted):
        connect_sync("host:7443", tls=TlsFiles(ca=tmp_path, certificate=tmp_path, key=tmp_path))


async def test_no_daemon_at_all(tmp_path: Path) -> None:
    async with connect(str(tmp_path / "none.sock")) as api:
        with pytest.raises(DaemonAway, match=r"not running.*does not exist; start it with: systemctl start agentd"):
            await api.call(api.operator.Snapshot, pb.SnapshotRequest())
        with pytest.raises(DaemonAway, match="does not exist"):
            await anext(api.stream(api.operator.Watch, pb.WatchRequest()))


async def test_a_daemon_that_died(tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with connect(str(path)) as api:
        with pytest.raises(DaemonAway, match="nobody listens on"):
            await api.call(api.operator.Snapshot, pb.SnapshotRequest())


async def test_a_connection_that_is_lost(served: Served) -> None:
    async with connect(served.operator) as api:
        stream = api.stream(api.operator.Watch, pb.WatchRequest(interval_seconds=3600))
        await anext(stream)
        await served.server.stop(grace=0.0)
        with pytest.raises(ApiError):
            await anext(stream)


AS_NOBODY = """
import os, sys
from agentd.api.client import ApiError, connect_sync
from agentd.proto.corral.v1 import corral_pb2 as pb
import grpc._channel  # grpc would import it when the first channel is made
os.setgroups([]); os.setgid(65534); os.setuid(65534)  # after the imports: nobody may not be able to read them
with connect_sync(sys.argv[1]) as api:
    try:
        api.call(api.operator.Snapshot, pb.SnapshotRequest())
    except ApiError as err:
        print(type(err).__name__, err.status.name, err)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who may not connect")
def test_a_user_who_may_not_is_told_the_group() -> None:
    # not below tmp_path, whose parents are root's alone
    with tempfile.TemporaryDirectory(prefix="corral-test-") as directory, socket.socket(socket.AF_UNIX) as held:
        Path(directory).chmod(0o755)
        path = Path(directory) / "operator.sock"
        held.bind(str(path))
        held.listen()
        os.chown(path, 0, 1)  # the group "daemon", on every Linux
        path.chmod(0o660)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(path)], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.stdout.startswith("NotPermitted PERMISSION_DENIED"), done.stderr
    assert "members of the group 'daemon' may connect" in done.stdout


async def test_an_older_daemon(served: Served) -> None:
    async with connect(served.operator) as api:
        later: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        later = api.channel.unary_unary("/corral.v1.OperatorService/Later")
        with pytest.raises(NotSupported, match="update the daemon"):
            await api.call(later, b"")


async def test_no_answer_in_time(served: Served) -> None:
    served.host.admit = asyncio.Event()
    session, _ = served.host.add_session("acme")
    async with connect(served.operator) as api:
        with pytest.raises(TimedOut, match="no answer in time"):
            await api.call(api.agent.BeginCall, pb.BeginCallRequest(session_id=session.id, argv=["true"]), timeout=0.1)


def test_the_synchronous_half(served_aside: Served) -> None:
    host = served_aside.host
    session, token = host.add_session("acme")
    with connect_sync(served_aside.operator) as api:
        answer = api.call(api.operator.Snapshot, pb.SnapshotRequest())
        assert [one.id for one in answer.sessions] == [session.id]
        stream = api.stream(api.operator.Watch, pb.WatchRequest(interval_seconds=0.1))
        assert [next(stream).WhichOneof("update") for _ in range(2)] == ["snapshot", "snapshot"]
        stream.close()  # type: ignore[attr-defined]  # it is a generator
        with pytest.raises(BadRequest, match="interval_seconds"):
            next(api.stream(api.operator.Watch, pb.WatchRequest(interval_seconds=-1)))
    with connect_sync(served_aside.anyone, token) as api:
        with pytest.raises(NoSuchObject) as missing:
            api.call(api.agent.GetOutcome, pb.GetOutcomeRequest(call_id=new_call_id()))
        assert missing.value.field == "call_id"
    with connect_sync(f"{served_aside.operator}.none") as api, pytest.raises(DaemonAway):
        api.call(api.operator.Snapshot, pb.SnapshotRequest())


def test_every_status_has_a_kind_of_its_tree() -> None:
    kinds = {value for value in vars(client).values() if isinstance(value, type) and issubclass(value, ApiError)}
    assert {kind.__name__ for kind in kinds} <= set(str(client.__doc__).replace("├─", " ").replace("└─", " ").split())
    assert set(client._KINDS.values()) | {client.ApiError, client.DaemonFailed} == kinds
