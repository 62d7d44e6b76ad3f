"""Who may do what: the whole matrix, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agentd.api.client import ApiError, Client, NoSuchObject, NotPermitted, connect
from agentd.api.identity import OPERATOR, Kind, Principal, parse_principal, tenant_principal
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.model import InvalidRequest, WrongState, new_call_id, new_session_id
from tests.unit.api_fake import Served, serve


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as it:
        yield it


async def ask(api: Client, service: str, method: str, request: Any) -> Any:
    stub: Any = getattr(getattr(api, service), method)
    if method in {"Watch", "WatchSession", "Trace"}:
        stream: Any = api.stream(stub, request)
        try:
            return await anext(stream)
        finally:
            await stream.aclose()
    return await api.call(stub, request)


OPERATOR_METHODS = sorted(method.name for method in pb.DESCRIPTOR.services_by_name["OperatorService"].methods)
AGENT_METHODS = sorted(method.name for method in pb.DESCRIPTOR.services_by_name["AgentService"].methods)


def operator_request(method: str) -> Any:
    request = getattr(pb, f"{method}Request")()
    if method in {"SetLimits", "SetPriority", "Freeze", "Thaw", "Kill"}:
        request.target = "acme"
    if method == "SetLimits":
        request.limits.pids = 3
    if method == "SetTenant":
        request.name = "acme"
    if method == "SetBudget":
        request.target, request.resource, request.limit = "acme", "tokens", 5.0
    if method == "Attach":
        request.tenant, request.pid = "acme", 4321
    if method == "Detach":
        request.target = "box"
    return request


@pytest.mark.parametrize("method", OPERATOR_METHODS)
async def test_operator_methods_are_the_operators_alone(served: Served, method: str) -> None:
    _, token = served.host.add_session("acme")
    callers = [
        (connect(served.acme), grpc.StatusCode.PERMISSION_DENIED),
        (connect(served.acme, token), grpc.StatusCode.PERMISSION_DENIED),
        (connect(served.anyone, token), grpc.StatusCode.PERMISSION_DENIED),
        # a token narrows: what holds a session's token is that session, wherever it calls from
        (connect(served.operator, token), grpc.StatusCode.PERMISSION_DENIED),
        (connect(served.anyone), grpc.StatusCode.UNAUTHENTICATED),
        (connect(served.operator, "no such token"), grpc.StatusCode.UNAUTHENTICATED),
    ]
    for api, status in callers:
        async with api:
            with pytest.raises(NotPermitted) as refused:
                await ask(api, "operator", method, operator_request(method))
        assert refused.value.status is status
        assert refused.value.remedy
    assert served.host.asked == []
    assert served.history.queries == []
    assert served.host.subscriptions == []
    request = operator_request(method)
    if method in ("Processes", "Trace"):
        session, _ = served.host.add_session("acme")
        request.call_id = served.host.add_call(session).id
    async with connect(served.operator) as api:
        await ask(api, "operator", method, request)


def agent_request(method: str, *, session_id: str, call_id: str) -> Any:
    request = getattr(pb, f"{method}Request")()
    if method in {"CloseSession", "BeginCall", "WatchSession", "GetBudget", "ReportTurn"}:
        request.session_id = session_id
    elif method != "OpenSession":
        request.call_id = call_id
    if method == "BeginCall":
        request.argv.append("true")
    if method == "AttachProcess":
        request.pid = 2
    return request


ON_OBJECTS = [method for method in AGENT_METHODS if method != "OpenSession"]


@pytest.mark.parametrize("method", ON_OBJECTS)
async def test_objects_of_others_do_not_exist(served: Served, method: str) -> None:
    """The answer for another's object and for one that never was differ in nothing but the id that was sent."""
    mine, token = served.host.add_session("acme")
    fellow, _ = served.host.add_session("acme")
    foreign, foreign_token = served.host.add_session("umbrella")
    of_fellow, of_foreign = served.host.add_call(fellow), served.host.add_call(foreign)
    other_ids = [(foreign.id, of_foreign.id), (new_session_id(), new_call_id())]
    as_session = [*other_ids, (fellow.id, of_fellow.id)]
    for api, ids in (
        (connect(served.acme), other_ids),
        (connect(served.acme, token), as_session),
        (connect(served.anyone, token), as_session),
        (connect(served.operator, token), as_session),
        (connect(served.umbrella, foreign_token), [(mine.id, new_call_id())]),
    ):
        said = set()
        async with api:
            for session_id, call_id in ids:
                with pytest.raises(NoSuchObject) as refused:
                    await ask(api, "agent", method, agent_request(method, session_id=session_id, call_id=call_id))
                assert refused.value.value in {session_id, call_id}
                said.add((str(refused.value), refused.value.status, refused.value.field, refused.value.remedy))
        assert len(said) == 1
    assert served.host.asked == []
    assert served.host.subscriptions == []


@pytest.mark.parametrize("method", ON_OBJECTS)
async def test_owners_may(served: Served, method: str) -> None:
    session, token = served.host.add_session("acme")
    for target, with_token in (
        (served.operator, None),
        (served.acme, None),
        (served.acme, token),
        (served.anyone, token),
        (served.operator, token),
    ):
        call = served.host.add_call(session)
        async with connect(target, with_token) as api:
            request = agent_request(method, session_id=session.id, call_id=call.id)
            try:
                await ask(api, "agent", method, request)
            except ApiError as err:
                # seen, and then refused for what it is: pid 2 is root's, or no outcome yet
                reached = {"AttachProcess": ("pid",), "GetOutcome": ("call_id",)}
                assert err.field in reached.get(method, ()), err  # noqa: PT017
                assert method == "AttachProcess" or err.code == "wrong_state"  # noqa: PT017


async def test_parents_of_others_do_not_exist_either(served: Served) -> None:
    session, token = served.host.add_session("acme")
    fellow, _ = served.host.add_session("acme")
    of_fellow = served.host.add_call(fellow)
    request = pb.BeginCallRequest(session_id=session.id, argv=["true"], parent_id=of_fellow.id)
    async with connect(served.acme, token) as api:
        with pytest.raises(NoSuchObject) as hidden:
            await api.call(api.agent.BeginCall, request)
    async with connect(served.acme) as api:
        with pytest.raises(ApiError, match="another session") as refused:
            await api.call(api.agent.BeginCall, request)
    assert hidden.value.field == refused.value.field == "parent_id"
    assert served.host.asked == []


async def test_who_opens_sessions_of_whom(served: Served) -> None:
    _, token = served.host.add_session("acme")
    async with connect(served.acme) as api:
        await api.call(api.agent.OpenSession, pb.OpenSessionRequest(tenant="acme"))
        with pytest.raises(NoSuchObject):
            await api.call(api.agent.OpenSession, pb.OpenSessionRequest(tenant="umbrella"))
    async with connect(served.acme, token) as api:
        with pytest.raises(NotPermitted, match="no further session"):
            await api.call(api.agent.OpenSession, pb.OpenSessionRequest())
    async with connect(served.anyone) as api:
        with pytest.raises(NotPermitted) as refused:
            await api.call(api.agent.OpenSession, pb.OpenSessionRequest(tenant="acme"))
    assert refused.value.status is grpc.StatusCode.UNAUTHENTICATED
    assert [asked[:2] for asked in served.host.asked] == [("open_session", "acme")]


async def test_tokens_that_are_none_all_get_one_answer(served: Served) -> None:
    _, foreign = served.host.add_session("umbrella")
    _, closed = served.host.add_session("acme")
    del served.host.tokens[closed]
    said = set()
    for token in (foreign, closed, "x"):
        async with connect(served.acme, token) as api:
            with pytest.raises(NotPermitted) as refused:
                await api.call(api.agent.GetBudget, pb.GetBudgetRequest())
        assert token not in str(refused.value) or token == "x"  # noqa: S105
        said.add((str(refused.value), refused.value.status, refused.value.field, refused.value.value))
    assert len(said) == 1
    assert said.pop()[1:] == (grpc.StatusCode.UNAUTHENTICATED, "corral-token", "")


async def test_odd_tokens(served: Served) -> None:
    session, token = served.host.add_session("acme")
    async with connect(served.acme) as api:
        for metadata in ((("corral-token", token), ("corral-token", token)), (("corral-token", "x" * 600),)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await api.agent.GetBudget(pb.GetBudgetRequest(session_id=session.id), metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_refusals_of_the_host_reach_the_owner(served: Served) -> None:
    session, token = served.host.add_session("acme")
    async with connect(served.acme, token) as api:
        served.host.fail = WrongState("has running calls", field="session_id", value=session.id, remedy="set kill")
        with pytest.raises(ApiError, match="running calls"):
            await api.call(api.agent.CloseSession, pb.CloseSessionRequest())
        served.host.fail = InvalidRequest("does not fit", field="intent.pids", remedy="fewer")
        with pytest.raises(ApiError, match="does not fit"):
            await api.call(api.agent.BeginCall, pb.BeginCallRequest(argv=["true"]))
    assert served.host.calls == {}


def test_principals_as_text() -> None:
    assert parse_principal("operator") == OPERATOR
    assert parse_principal("tenant:acme") == tenant_principal("acme")
    session_id = new_session_id()
    assert str(Principal(kind=Kind.SESSION, session_id=session_id, uid=3)) == f"session:{session_id}"
    assert [str(OPERATOR), str(tenant_principal("acme"))] == ["operator", "tenant:acme"]
    for text in ("", "root", "tenant:", "tenant:../x", "operator:x", "session:s", "tenant:A"):
        with pytest.raises(ValueError, match="nobody"):
            parse_principal(text)
