"""LiveSource against a gRPC server: what it asks, what it says when nobody answers, TCP with certificates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agentd.api.client import TlsFiles
from agentd.api.identity import parse_principal
from agentd.api.listen import TcpListener
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.corral.v1 import corral_pb2_grpc as rpc
from tests.tui.fixtures import BURST, NOW, PROCESSES, TEST, decision, samples, snapshot
from tests.unit.api_fake import serve
from tests.unit.test_api_server import Authority
from tui.source.live import RATE_SECONDS, LiveSource
from tui.source.protocol import PLOT_POINTS, Action, Away, SourceError


class _Daemon(rpc.OperatorServiceServicer):  # what is not there answers UNIMPLEMENTED
    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.denied = False

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        if self.denied:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "operators only; use the operator socket")
        yield pb.WatchResponse(snapshot=snapshot())
        await asyncio.Event().wait()

    async def History(self, request: pb.HistoryRequest, context: Any) -> pb.HistoryResponse:
        self.asked.append(request)
        return pb.HistoryResponse(calls=snapshot().calls[:1], decisions=[decision()], samples=samples())

    async def Moment(self, request: pb.MomentRequest, context: Any) -> pb.MomentResponse:
        self.asked.append(request)
        at = request.at if request.HasField("at") else NOW - 100
        return pb.MomentResponse(snapshot=snapshot(at=at), decisions=[decision(at=at)], next_decision_at=at + 7)

    async def Processes(self, request: pb.ProcessesRequest, context: Any) -> pb.ProcessesResponse:
        return pb.ProcessesResponse(processes=PROCESSES)

    async def Doctor(self, request: pb.DoctorRequest, context: Any) -> pb.DoctorResponse:
        return pb.DoctorResponse(features=[pb.Feature(name="tripwire")])

    async def SetLimits(self, request: pb.SetLimitsRequest, context: Any) -> pb.SetLimitsResponse:
        self.asked.append(request)
        return pb.SetLimitsResponse()

    async def SetPriority(self, request: pb.SetPriorityRequest, context: Any) -> pb.SetPriorityResponse:
        self.asked.append(request)
        return pb.SetPriorityResponse()

    async def Freeze(self, request: pb.FreezeRequest, context: Any) -> pb.FreezeResponse:
        if request.target == "c-none":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no call c-none; see corral ps")
        return pb.FreezeResponse(call_ids=[request.target])

    async def Thaw(self, request: pb.ThawRequest, context: Any) -> pb.ThawResponse:
        return pb.ThawResponse(call_ids=[request.target, "c-other"])


async def _serve(target: str, daemon: _Daemon | None = None) -> grpc.aio.Server:
    server = grpc.aio.server()
    rpc.add_OperatorServiceServicer_to_server(daemon or _Daemon(), server)  # type: ignore[abstract]
    server.add_insecure_port(target)
    await server.start()
    return server


async def test_it_reconnects_and_remembers_since_when_it_was_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tui.source.live.RETRY", (0.01,))
    target = f"unix:{tmp_path}/api.sock"
    source = LiveSource(target)
    updates = source.updates()
    first = await anext(updates)
    assert isinstance(first, Away)
    assert first.cause == "no daemon answers: its socket does not exist; systemctl start agentd"
    assert not first.denied
    server = await _serve(target)
    while isinstance(update := await anext(updates), Away):
        assert update.since == first.since
    assert len(update.snapshot.calls) == 4
    await server.stop(None)
    gone = await anext(updates)
    assert isinstance(gone, Away)
    assert gone.since >= first.since
    await updates.aclose()


async def test_no_permission_is_another_thing_than_no_daemon(tmp_path: Path) -> None:
    daemon = _Daemon()  # type: ignore[abstract]
    daemon.denied = True
    server = await _serve(f"unix:{tmp_path}/api.sock", daemon)
    updates = LiveSource(f"unix:{tmp_path}/api.sock").updates()
    first = await anext(updates)
    assert isinstance(first, Away)
    assert (first.denied, first.cause) == (True, "operators only; use the operator socket")
    await updates.aclose()
    await server.stop(None)


async def test_questions_and_actions(tmp_path: Path) -> None:
    daemon = _Daemon()  # type: ignore[abstract]
    target = f"unix:{tmp_path}/api.sock"
    server = await _serve(target, daemon)
    source = LiveSource(target)
    try:
        past = await source.call(BURST, until=NOW - 10)
        assert daemon.asked.pop().sample_points == PLOT_POINTS
        assert (len(past.samples), len(past.decisions)) == (21, 0)  # nothing later than was asked for
        assert len(await source.session_calls("s-coder", until=NOW)) == 1
        assert daemon.asked.pop().until == NOW

        moment = await source.moment(NOW - 50)
        assert [request.at for request in daemon.asked] == [NOW - 50, NOW - 50 - RATE_SECONDS]
        assert moment.before is not None
        assert (moment.at, moment.before.at, moment.next, moment.previous) == (NOW - 50, NOW - 60, NOW - 43, None)
        assert (await source.moment(None)).at == NOW - 100
        daemon.asked.clear()

        assert [process.pid for process in await source.processes(TEST)] == [4100, 4101, 4102]
        assert [feature.name for feature in await source.features()] == ["tripwire"]
        assert await source.act(Action(verb="freeze", target=TEST)) == [TEST]
        assert await source.act(Action(verb="thaw", target=TEST)) == [TEST, "c-other"]
        assert await source.act(Action(verb="priority", target=TEST, priority=7)) == [TEST]
        assert await source.act(Action(verb="limits", target=TEST, brake_bytes=0, cpu_cores=-1)) == [TEST]
        priority, limits = daemon.asked
        assert priority == pb.SetPriorityRequest(target=TEST, priority=7)
        assert limits == pb.SetLimitsRequest(target=TEST, brake_bytes=0, limits=pb.Limits(cpu_cores=-1))

        with pytest.raises(SourceError, match="no call c-none; see corral ps"):
            await source.act(Action(verb="freeze", target="c-none"))
        with pytest.raises(SourceError, match="older than the dashboard"):
            await source.act(Action(verb="kill", target=TEST))
    finally:
        await source.close()
        await server.stop(None)


def test_tcp_needs_certificates_and_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CORRAL_TLS_CA", "CORRAL_TLS_CERT", "CORRAL_TLS_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SourceError, match="CORRAL_TLS_CA, CORRAL_TLS_CERT, CORRAL_TLS_KEY"):
        LiveSource("localhost:7443")
    for name in ("CORRAL_TLS_CA", "CORRAL_TLS_CERT", "CORRAL_TLS_KEY"):
        monkeypatch.setenv(name, str(tmp_path / "missing.pem"))
    with pytest.raises(SourceError, match=r"missing\.pem: No such file"):
        LiveSource("localhost:7443")


async def test_over_tcp_with_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real server of the API, which wants a certificate of its own authority; and one that it does not know."""
    authority = Authority(tmp_path / "ours", "ours")
    own, alice = authority.issue("agentd", names="IP:127.0.0.1"), authority.issue("alice")
    listener = TcpListener(
        address="127.0.0.1:0",
        certificate=own.certificate,
        key=own.key,
        client_ca=authority.certificate,
        clients={"alice": parse_principal("operator")},
    )

    def become(files: TlsFiles) -> None:
        for name, path in (("CA", authority.certificate), ("CERT", files.certificate), ("KEY", files.key)):
            monkeypatch.setenv(f"CORRAL_TLS_{name}", str(path))

    async with serve(tmp_path) as served:
        target = f"127.0.0.1:{await served.server.add(listener)}"
        session, _ = served.host.add_session("acme")
        call = served.host.add_call(session)
        become(alice)
        source = LiveSource(target)
        updates = source.updates()
        first = await anext(updates)
        assert not isinstance(first, Away)
        assert [one.id for one in first.snapshot.calls] == [call.id]
        assert await source.act(Action(verb="freeze", target="acme")) == [call.id]
        assert served.host.asked[-1] == ("freeze", "acme", "operator:alice")
        await updates.aclose()
        await source.close()

        become(Authority(tmp_path / "theirs", "theirs").issue("alice"))
        updates = LiveSource(target).updates()
        refused = await anext(updates)
        assert isinstance(refused, Away)
        assert "refused the certificate" in refused.cause
        await updates.aclose()
