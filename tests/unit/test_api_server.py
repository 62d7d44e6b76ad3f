"""Listeners: sockets made safely, stale and live ones, abuse, health, reflection, mutual TLS, the end."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from agentd.api.client import ApiError, DaemonAway, NotPermitted, Rejected, TlsFiles, connect
from agentd.api.errors import ListenError, SecondDaemon
from agentd.api.identity import OPERATOR, parse_principal
from agentd.api.listen import TcpListener, UnixListener
from agentd.api.server import ApiServer, ServerLimits
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.unit.api_fake import FakeHistory, FakeHost, Served, features, serve

Raw = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as it:
        yield it


def new_server(host: FakeHost | None = None) -> ApiServer:
    return ApiServer(
        host or FakeHost(), FakeHistory(), features=features, tenant_uids=lambda _: frozenset(), version="1"
    )


async def test_sockets_have_their_mode_and_nothing_else_is_left(served: Served, tmp_path: Path) -> None:
    assert stat.S_IMODE(Path(served.operator).stat().st_mode) == 0o660
    assert stat.S_IMODE(Path(served.anyone).stat().st_mode) == 0o666
    names = {"operator", "acme", "umbrella", "anyone"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{n}.sock" for n in names} | {
        f"{n}.sock.lock" for n in names
    }
    await served.server.stop(grace=0.0)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.sock.lock" for name in names}


async def test_the_group_is_set(tmp_path: Path) -> None:
    groups = [gid for gid in os.getgroups() if gid != os.getegid()] or [os.getegid()]
    gid = 12_345 if os.geteuid() == 0 else groups[0]
    server = new_server()
    listener = UnixListener(path=tmp_path / "a.sock", principal=OPERATOR, gid=gid, mode=0o620)
    await server.start([listener])
    try:
        status = listener.path.stat()
        assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (gid, 0o620)
    finally:
        await server.stop(grace=0.0)


async def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    server = new_server()
    listener = UnixListener(path=tmp_path / "tenants/a b%41.sock", principal=OPERATOR)
    await server.start([listener])
    try:
        async with connect(str(listener.path)) as api:
            await api.call(api.operator.Doctor, pb.DoctorRequest())
    finally:
        await server.stop(grace=0.0)


async def test_a_second_daemon_is_refused_and_the_first_goes_on(served: Served) -> None:
    second = new_server()
    with pytest.raises(SecondDaemon, match="another daemon serves this socket"):
        await second.start([UnixListener(path=Path(served.operator), principal=OPERATOR)])
    async with connect(served.operator) as api:
        await api.call(api.operator.Doctor, pb.DoctorRequest())


async def test_a_live_socket_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        inode = path.stat().st_ino
        with pytest.raises(SecondDaemon):
            await new_server().start([UnixListener(path=path, principal=OPERATOR)])
        assert path.stat().st_ino == inode


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = new_server()
    await server.start([UnixListener(path=path, principal=OPERATOR)])
    try:
        async with connect(str(path)) as api:
            await api.call(api.operator.Doctor, pb.DoctorRequest())
    finally:
        await server.stop(grace=0.0)


async def test_a_socket_that_replaced_ours_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    server = new_server()
    await server.start([UnixListener(path=path, principal=OPERATOR)])
    path.unlink()
    path.write_text("somebody's")
    await server.stop(grace=0.0)
    assert path.read_text() == "somebody's"


async def test_start_is_all_or_nothing(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.sock", tmp_path / "bad.sock"
    bad.write_text("a file")
    server = new_server()
    with pytest.raises(ListenError, match="is not a socket"):
        await server.start([UnixListener(path=good, principal=OPERATOR), UnixListener(path=bad, principal=OPERATOR)])
    assert not good.exists()
    assert bad.read_text() == "a file"
    assert server.listeners == []
    bad.unlink()
    await server.start([UnixListener(path=good, principal=OPERATOR), UnixListener(path=bad, principal=OPERATOR)])
    await server.stop(grace=0.0)


async def test_paths_that_cannot_be(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ListenError, match="0777: others could put a socket"):
        await new_server().start([UnixListener(path=shared / "a.sock", principal=OPERATOR)])
    with pytest.raises(ListenError, match="too long"):
        await new_server().start([UnixListener(path=tmp_path / ("x" * 100), principal=OPERATOR)])
    (tmp_path / "file").write_text("")
    with pytest.raises(ListenError, match="its directory"):
        await new_server().start([UnixListener(path=tmp_path / "file/a.sock", principal=OPERATOR)])


async def test_listeners_come_and_go_while_it_runs(served: Served, tmp_path: Path) -> None:
    more = UnixListener(path=tmp_path / "more.sock", principal=OPERATOR)
    await served.server.add(more)
    with pytest.raises(ListenError, match="served already"):
        await served.server.add(more)
    async with connect(str(more.path)) as api:
        await api.call(api.operator.Doctor, pb.DoctorRequest())
        await served.server.remove(more, grace=0.0)
        with pytest.raises(DaemonAway):
            await api.call(api.operator.Doctor, pb.DoctorRequest())
    await served.server.remove(more)
    async with connect(served.operator) as api:
        await api.call(api.operator.Doctor, pb.DoctorRequest())


GARBAGE = [
    b"",
    b"\0" * 64,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\xff\xff\xff\1\5\0\0\0\1" + b"\x82" * 4096,
    os.urandom(65_536),
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_on_the_socket_harms_nobody(served: Served, data: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(served.acme)
    try:
        writer.write(data)
        async with connect(served.acme) as api:
            await api.call(api.agent.OpenSession, pb.OpenSessionRequest())
        writer.write_eof()
        async with asyncio.timeout(30):
            while await reader.read(65_536):
                pass
    except (ConnectionResetError, BrokenPipeError):
        pass  # the server hung up first
    finally:
        writer.close()
    assert [asked[0] for asked in served.host.asked] == ["open_session"]


async def test_half_open_connections_are_closed(tmp_path: Path) -> None:
    async with serve(tmp_path, limits=ServerLimits(handshake_seconds=0.2)) as served:
        reader, writer = await asyncio.open_unix_connection(served.acme)
        async with asyncio.timeout(30):
            try:
                while await reader.read(65_536):  # our side says nothing; theirs ends the connection
                    pass
            except ConnectionResetError:
                pass
        writer.close()


async def test_messages_that_are_no_messages(served: Served) -> None:
    async with connect(served.operator) as api:
        raw: Raw = api.channel.unary_unary("/corral.v1.OperatorService/Kill")
        for data in (b"\xff" * 20, b"\x0a\x02\xff\xfe"):  # not proto; a text that is not UTF-8
            with pytest.raises(grpc.aio.AioRpcError):
                await raw(data)
    assert served.host.asked == []


async def test_large_messages_are_refused(tmp_path: Path) -> None:
    limits = ServerLimits(max_message_bytes=64 * 1024)
    async with serve(tmp_path, limits=limits) as served, connect(served.acme) as api:
        with pytest.raises(Rejected, match="larger than max"):
            await api.call(api.agent.OpenSession, pb.OpenSessionRequest(name="x" * 100_000))
        await api.call(api.agent.OpenSession, pb.OpenSessionRequest())


async def test_too_many_rpcs_at_once_are_refused_on_that_listener_alone(tmp_path: Path) -> None:
    async with serve(tmp_path, limits=ServerLimits(max_rpcs=2)) as served:
        served.host.admit = asyncio.Event()
        session, _ = served.host.add_session("acme")
        request = pb.BeginCallRequest(session_id=session.id, argv=["true"])
        async with connect(served.acme) as api:
            waiting = [asyncio.create_task(api.call(api.agent.BeginCall, request, timeout=None)) for _ in range(2)]
            for _ in waiting:
                await served.host.queued.acquire()
            with pytest.raises(Rejected, match="try again later"):
                await api.call(api.agent.GetBudget, pb.GetBudgetRequest(session_id=session.id))
            async with connect(served.operator) as operator:
                await operator.call(operator.operator.Doctor, pb.DoctorRequest())
            served.host.admit.set()
            await asyncio.gather(*waiting)


async def test_health_and_reflection(served: Served) -> None:
    for target in (served.operator, served.acme):
        async with connect(target) as api:
            health = health_pb2_grpc.HealthStub(api.channel)
            for service in ("", "corral.v1.AgentService", "corral.v1.OperatorService"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            stub = reflection_pb2_grpc.ServerReflectionStub(api.channel)
            call = stub.ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(list_services="", file_by_filename="")])
            )
            answer = await call.read()
            call.cancel()
            assert answer.WhichOneof("message_response") == "error_response"
            call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            listed = [service.name for service in (await call.read()).list_services_response.service]
            call.cancel()
            assert {"corral.v1.AgentService", "corral.v1.OperatorService", "grpc.health.v1.Health"} <= set(listed)


async def test_stop_ends_streams_at_once_and_says_why(served: Served) -> None:
    session, _ = served.host.add_session("acme")
    async with connect(served.operator) as api:
        streams: list[Any] = [
            api.stream(api.operator.Watch, pb.WatchRequest(interval_seconds=3600)),
            api.stream(api.agent.WatchSession, pb.WatchSessionRequest(session_id=session.id)),
        ]
        for stream in streams:
            await anext(stream)
        stopping = asyncio.create_task(served.server.stop(grace=100.0))
        for stream in streams:
            with pytest.raises(DaemonAway, match="is stopping; connect again") as ended:
                await anext(stream)
            assert ended.value.code == "stopping"
        await stopping
    assert not served.host.hub.listened_to


async def test_stop_withdraws_queued_begins(served: Served) -> None:
    served.host.admit = asyncio.Event()
    session, _ = served.host.add_session("acme")
    async with connect(served.operator) as api:
        begin = asyncio.create_task(
            api.call(api.agent.BeginCall, pb.BeginCallRequest(session_id=session.id, argv=["true"]), timeout=None)
        )
        await served.host.queued.acquire()
        await served.server.stop(grace=0.05)
        with pytest.raises(ApiError):
            await begin
    await served.host.begin_cancelled.wait()
    assert served.host.calls == {}


async def test_stop_lets_a_short_answer_out(served: Served) -> None:
    served.host.admit = asyncio.Event()
    session, _ = served.host.add_session("acme")
    async with connect(served.operator) as api:
        begin = asyncio.create_task(
            api.call(api.agent.BeginCall, pb.BeginCallRequest(session_id=session.id, argv=["true"]), timeout=None)
        )
        await served.host.queued.acquire()
        stopping = asyncio.create_task(served.server.stop(grace=60.0))
        served.host.admit.set()
        assert (await begin).call.command == "true"
        await stopping


# --- mutual TLS -----------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of its own, made with openssl."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.directory.mkdir()
        self.certificate, self._key = directory / "ca.pem", directory / "ca.key"
        self._openssl(
            *("req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "1"),
            *("-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate),
        )

    def _openssl(self, *arguments: str | Path) -> None:
        done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def issue(self, name: str, *, names: str = "") -> TlsFiles:
        """``names``: subject alternative names, as openssl writes them."""
        stem = f"{name}-{len(list(self.directory.iterdir()))}"
        key, request, certificate, extensions = (
            self.directory / f"{stem}{suffix}" for suffix in (".key", ".csr", ".pem", ".ext")
        )
        self._openssl(
            *("req", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", f"/CN={name}"),
            *("-keyout", key, "-out", request),
        )
        extensions.write_text(f"subjectAltName={names}\n" if names else "basicConstraints=CA:FALSE\n")
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"),
            *("-days", "1", "-out", certificate, "-extfile", extensions),
        )
        return TlsFiles(ca=self.certificate, certificate=certificate, key=key)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours", "ours")


@pytest.fixture
def tcp(authority: Authority) -> TcpListener:
    own = authority.issue("agentd", names="IP:127.0.0.1,DNS:localhost")
    return TcpListener(
        address="127.0.0.1:0",
        certificate=own.certificate,
        key=own.key,
        client_ca=authority.certificate,
        clients={
            "alice": parse_principal("operator"),
            "bob.example": parse_principal("tenant:acme"),
            "carol.example": parse_principal("tenant:umbrella"),
        },
    )


async def test_mutual_tls_identities(served: Served, tcp: TcpListener, authority: Authority) -> None:
    port = await served.server.add(tcp)
    target = f"127.0.0.1:{port}"
    session, token = served.host.add_session("acme")

    async with connect(target, tls=authority.issue("alice")) as alice:
        await alice.call(alice.operator.Freeze, pb.FreezeRequest(target="acme"))
        assert served.host.asked == [("freeze", "acme", "operator:alice")]

    bob_files = authority.issue("whatever", names="DNS:bob.example")
    async with connect(target, tls=bob_files) as bob:
        await bob.call(bob.agent.GetBudget, pb.GetBudgetRequest(session_id=session.id))
        with pytest.raises(NotPermitted) as refused:
            await bob.call(bob.operator.Snapshot, pb.SnapshotRequest())
        assert refused.value.status is grpc.StatusCode.PERMISSION_DENIED
    async with connect(target, token, tls=bob_files) as bob:
        await bob.call(bob.agent.GetBudget, pb.GetBudgetRequest())

    for files in (
        authority.issue("mallory"),
        authority.issue("alice", names="DNS:mallory.example"),  # with alternative names, the common name says nothing
        authority.issue("x", names="DNS:bob.example,DNS:carol.example"),  # two clients in one
    ):
        async with connect(target, tls=files) as stranger:
            with pytest.raises(NotPermitted) as refused:
                await stranger.call(stranger.agent.GetBudget, pb.GetBudgetRequest(session_id=session.id))
            assert refused.value.status is grpc.StatusCode.UNAUTHENTICATED
            assert "api.tcp.clients" in refused.value.remedy


async def test_mutual_tls_refuses_strangers_and_plain_text(
    served: Served, tcp: TcpListener, authority: Authority, tmp_path: Path
) -> None:
    port = await served.server.add(tcp)
    target = f"127.0.0.1:{port}"
    theirs = Authority(tmp_path / "theirs", "theirs").issue("alice")
    forged = TlsFiles(ca=authority.certificate, certificate=theirs.certificate, key=theirs.key)
    async with connect(target, tls=forged) as stranger:
        with pytest.raises(DaemonAway, match="client_ca"):
            await stranger.call(stranger.operator.Snapshot, pb.SnapshotRequest())
    without = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    async with grpc.aio.secure_channel(target, without) as channel:
        raw: Raw = channel.unary_unary("/corral.v1.OperatorService/Snapshot")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await raw(b"")
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    async with grpc.aio.insecure_channel(target) as channel:
        raw = channel.unary_unary("/corral.v1.OperatorService/Snapshot")
        with pytest.raises(grpc.aio.AioRpcError):
            await raw(b"")
    assert served.host.asked == []


async def test_tcp_that_cannot_be_served_says_why(
    served: Served, tcp: TcpListener, authority: Authority, tmp_path: Path
) -> None:
    def changed(**parts: Path | str) -> TcpListener:
        values = {"address": "localhost:0", "certificate": tcp.certificate, "key": tcp.key, "client_ca": tcp.client_ca}
        return TcpListener(**{**values, **parts}, clients={})  # type: ignore[arg-type]  # of the right types, see calls

    junk = tmp_path / "junk.pem"
    junk.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    port = await served.server.add(tcp)
    for listener, said in (
        (changed(certificate=tmp_path / "missing.pem"), "missing.pem: No such file"),
        (changed(key=authority.issue("other").key), "its own key"),
        (changed(certificate=junk), "junk.pem"),
        (changed(client_ca=junk), "junk.pem"),
        (changed(address=f"127.0.0.1:{port}"), "cannot be listened on"),
        (changed(address="203.0.113.1:1"), "cannot be listened on"),
    ):
        with pytest.raises(ListenError, match=said):
            await served.server.add(listener)
    assert served.server.listeners[-1] == tcp
