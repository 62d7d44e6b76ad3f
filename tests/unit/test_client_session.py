"""Sessions of corral-client over a real broker's socket, and the client's surface."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import corral_client as corral
from agentd.broker import Broker, Peer
from controller.model import NotAllowed, WrongState
from corral_client import aio, errors
from corral_client.intent import Declared
from corral_client.outcome import parse_outcome
from tests.unit.broker_handler import Recorder

CLIENT = Path(corral.__file__).parent


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[tuple[Path, Recorder]]:
    handler = Recorder()
    made = Broker(tmp_path / "b", handler)
    await made.start()
    yield tmp_path / "b", handler
    await made.close()


async def test_open_enter_close(broker: tuple[Path, Recorder]) -> None:
    path, handler = broker
    async with await aio.open_session("acme", "nightly", socket=path) as session:
        assert await handler.next("open") == ("open", "acme", "nightly")
        assert session.environment == {
            "CORRAL_SESSION": session.id,
            "CORRAL_TOKEN": "token-of-the-session",
            "CORRAL_SOCKET": str(path),
        }
        assert session.token not in repr(session)
    assert await handler.next("close") == ("close", session.token, True)
    session.close()  # once more does nothing, and so does not block


async def test_an_agent_that_entered_is_not_ended_with_its_session(broker: tuple[Path, Recorder]) -> None:
    path, handler = broker
    async with await aio.open_session("acme", socket=path) as session:
        await asyncio.to_thread(session.enter)
        assert await handler.next("enter") == ("enter", os.getpid(), None, session.token)
    assert await handler.next("close") == ("close", session.token, False)


class Failing(Recorder):
    async def open_session(self, peer: Peer, tenant: str, name: str) -> tuple[str, str]:
        if tenant == "other":
            raise NotAllowed("user 7 may not", remedy="use a tenant of yours")
        return await super().open_session(peer, tenant, name)

    async def close_session(self, peer: Peer, token: str, kill: bool) -> None:
        raise WrongState("still runs 2 calls", remedy="wait for them")


async def test_refusals_keep_their_code(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "b", Failing())
    await broker.start()
    with pytest.raises(corral.NotPermitted, match="use a tenant of yours"):
        await aio.open_session("other", socket=tmp_path / "b")
    session = await aio.open_session("acme", socket=tmp_path / "b")
    with pytest.raises(corral.Refused, match="wait for them") as caught:
        await asyncio.to_thread(session.close)
    assert caught.value.code == "wrong_state"
    # what went wrong inside matters more than that the session could not be closed
    with pytest.raises(ZeroDivisionError):
        async with session:
            _ = 1 / 0
    await broker.close()


async def test_no_broker(tmp_path: Path) -> None:
    with pytest.raises(corral.DaemonAway, match="CORRAL_SOCKET"):
        await aio.open_session("acme", socket=tmp_path / "none")
    (tmp_path / "plain").touch()
    with pytest.raises(corral.DaemonAway):
        await aio.open_session("acme", socket=tmp_path / "plain")


def test_the_session_of_the_environment() -> None:
    session = corral.Session.from_environment({"CORRAL_TOKEN": "t", "CORRAL_SESSION": "s-1", "CORRAL_SOCKET": "/x"})
    assert (session.id, session.token, session.socket) == ("s-1", "t", "/x")
    with pytest.raises(corral.CorralError, match="corral session open"):
        corral.Session.from_environment({})


# --- intents


def test_an_intent_as_options() -> None:
    intent = corral.Intent(
        tool="pytest",
        call_class="test",
        memory=(300 << 20, 1 << 30),
        cpu=1.5,
        pids=64,
        duration=30,
        deadline=300.5,
        priority=70,
        network=["10.0.0.0/8", "192.0.2.1:443"],
        gpu=True,
        on_pressure="fail_fast",
        engine="vllm-0",
        conversation="--odd",
    )
    assert intent.options() == [
        "--tool=pytest",
        "--class=test",
        "--engine=vllm-0",
        "--conversation=--odd",
        "--memory=314572800:1073741824",
        "--cpu=1.500000",
        "--pids=64",
        "--duration=30",
        "--deadline=300.500000",
        "--priority=70",
        "--network=10.0.0.0/8,192.0.2.1:443",
        "--gpu",
        "--on-pressure=fail_fast",
    ]
    assert corral.Intent().options() == []
    assert corral.Intent(memory=7).options() == ["--memory=:7"]
    assert corral.Intent(memory="300M:1G", network="none").options() == ["--memory=300M:1G", "--network=none"]


def test_keywords_win_over_an_intent() -> None:
    base = corral.Intent(tool="make", memory=1 << 30)
    assert corral.Intent.of(base, {"memory": 5}) == corral.Intent(tool="make", memory=5)
    assert set(Declared.__annotations__) == set(inspect.signature(corral.Intent).parameters)


# --- outcomes


def told(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_an_outcome_is_read() -> None:
    read = parse_outcome(
        told(state="ended", call_id="c-1", status=9, reason="oom_call", message="It …", suggestions=["a", "b"]), -9
    )
    assert read == corral.Outcome(
        state="ended", call_id="c-1", reason="oom_call", message="It …", suggestions=("a", "b"), wait_status=9
    )
    assert (read.controlled, read.acted) == (True, True)
    # the daemon did not say in time
    assert parse_outcome(told(state="ended", call_id="c-1", status=0), 0) == corral.Outcome(
        state="ended", call_id="c-1", wait_status=0
    )
    assert parse_outcome(told(state="uncontrolled", status=0), 0).controlled is False


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (told(state="refused", code="budget_exhausted", message="used up"), corral.Refused, "used up"),
        (told(state="no_daemon", message="cannot reach"), corral.DaemonAway, 'fail="open"'),
        (told(state="failed", message="corral-exec: no"), corral.LauncherFailed, "no"),
        (b"", corral.LauncherFailed, "older than this client"),
    ],
)
def test_a_tool_that_did_not_run_raises(data: bytes, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        parse_outcome(data, 125)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b"null", b"\xff", told(state="new"), told(state=7), b'{"state":"ended"', b"1e999"]
)
def test_what_cannot_be_read_is_unknown(data: bytes) -> None:
    assert parse_outcome(data, 1) == corral.Outcome()


def test_odd_fields_are_left_out() -> None:
    read = parse_outcome(told(state="ended", call_id=3, status="x", reason=None, suggestions=["a", 7]), 0)
    assert read == corral.Outcome(state="ended", suggestions=("a",))


# --- the surface


def test_what_is_public() -> None:
    for module in (corral, aio):
        names = {
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", "").startswith("corral_client")
        }
        assert set(module.__all__) <= names
        assert sorted(module.__all__) == module.__all__


def test_the_tree_of_errors_is_the_documented_one() -> None:
    documented = {word for word in (errors.__doc__ or "").split() if word in vars(errors)}
    real = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert documented == real
    assert all(issubclass(vars(errors)[name], corral.CorralError) for name in real)


def test_the_core_imports_the_standard_library_alone() -> None:
    allowed = {*sys.stdlib_module_names, "corral_client", "__future__"}
    optional = {"api.py": {"grpc"}, "pydantic_ai.py": {"pydantic_ai"}}
    for path in CLIENT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                assert name.partition(".")[0] in allowed | optional.get(path.name, set()), f"{path.name}: {name}"
