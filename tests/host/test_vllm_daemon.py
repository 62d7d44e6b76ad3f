"""A real daemon with the real vLLM on the CPU: its gateway, ledger and ``corral tier``. ``scripts/test --vllm``."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.embedded import Table
from agentd.proto.corral.v1 import corral_pb2 as pb
from gpu.engines import Batch, KvEventStream, Stored
from tests.host.daemon_tools import corral_command, end
from tests.support import tiny_hf
from tests.support.daemons import DaemonFactory, DaemonUnderTest, Session
from tests.support.peer import Peer
from tests.support.vllm import BLOCK, BLOCKS, PYTHON, RealVllm

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not PYTHON, reason="needs the real vLLM: scripts/test --vllm installs it and runs this"),
]

WITHIN = 90.0  # seconds: an engine that was away is asked again after up to 30
JSON = "Content-Type: application/json\r\n"  # vLLM refuses a body without it
PROMPT = "You are an agent that reads files and says what they hold. " * 8


@pytest.fixture(scope="module")
def server() -> Iterator[RealVllm]:
    directory = Path(tempfile.mkdtemp(prefix="cv", dir="/tmp"))
    made = RealVllm(tiny_hf.write(directory / "model"), directory)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def place(short_tmp: Path) -> Path:
    made = short_tmp / "gateway"
    made.mkdir(mode=0o755)
    return made


def settings(server: RealVllm, place: Path) -> dict[str, Table]:
    table: dict[str, Any] = {
        "url": server.url,
        "control": True,
        "priorities": True,
        "events": server.events,
        "replay": server.replay,
        "topic": server.topic,
        "interval": "100ms",
        "bytes_per_token": tiny_hf.KV_BYTES_PER_TOKEN,
    }
    return {
        "engines": {"local": table},
        "gpu": {"enabled": "off", "budget": "50%"},
        "gateway": {"socket": str(place / "gateway.sock")},
    }


@contextlib.asynccontextmanager
async def peer(place: Path) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_unix_connection(place / "gateway.sock")
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def status_when(
    daemon: DaemonUnderTest, what: str, so: Callable[[pb.TierStatus], bool], within: float = WITHIN
) -> pb.TierStatus:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not so(status := (await daemon.client.call(daemon.client.operator.Tier, pb.TierRequest())).tier):
        assert loop.time() < deadline, f"never: {what}; {status}; {daemon.log_tail()}"
        await asyncio.sleep(0.05)
    return status


def up(status: pb.TierStatus) -> bool:
    return bool(status.engines) and status.engines[0].state == "up"


async def turn(place: Path, session: Session, prompt: str, tokens: int = 8) -> Any:
    async with peer(place) as one:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        # what a client says of sessions and priorities is not the engine's to hear
        one.ask(
            {**body, "session_id": "forged", "priority": -99}, path="/v1/completions", token=session.token, extra=JSON
        )
        return await one.json()


async def turns(daemon: DaemonUnderTest, session: Session, count: int) -> pb.Turns:
    async with asyncio.timeout(WITHIN):
        while True:
            found = await daemon.snapshot()
            so_far = next(one.turns for one in found.sessions if one.id == session.id)
            if so_far.turns >= count:
                return so_far
            await asyncio.sleep(0.02)


async def tier_text(daemon: DaemonUnderTest) -> str:
    process = await asyncio.create_subprocess_exec(
        *corral_command("--api", daemon.operator_target, "tier"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    return (await end(process))[1]


async def test_turns_are_bound_booked_and_shown(daemons: DaemonFactory, server: RealVllm, place: Path) -> None:
    daemon = await daemons.start(settings=settings(server, place))
    status = await status_when(daemon, "the engine", up)
    (engine,) = status.engines
    assert (engine.kind, engine.kv_capacity_tokens) == ("vllm", BLOCK * BLOCKS)
    session = await daemon.open_session("acme")
    first = (await turn(place, session, PROMPT))["usage"]
    again = (await turn(place, session, PROMPT + "And then?"))["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] > 400
    booked = await turns(daemon, session, 2)
    assert booked.prompt_tokens == first["prompt_tokens"] + again["prompt_tokens"]
    assert booked.cached_tokens == again["prompt_tokens_details"]["cached_tokens"]
    assert booked.generated_tokens == 16

    # the engine's own events name the session that Corral gave it, never the one that the client claims
    names: set[str] = set()
    stream = KvEventStream(server.events, engine="test", replay=server.replay, topic=server.topic)
    async with stream, asyncio.timeout(WITHIN):
        async for update in stream:
            stored = [one for one in update.events if isinstance(one, Stored)] if isinstance(update, Batch) else []
            names |= {one.session for one in stored}
            if names - {""}:
                break
    assert "forged" not in names

    text = await tier_text(daemon)
    assert "vllm" in text
    assert "0.32" in text
    assert "resident" in text, text
    assert (await daemon.call(session, "/bin/true"))[0] == 0
    status = await status_when(daemon, "its KV", lambda s: bool(s.sessions))
    assert status.sessions[0].residency == "resident"
    assert status.sessions[0].bytes >= status.sessions[0].tokens * tiny_hf.KV_BYTES_PER_TOKEN


async def test_what_the_engine_evicts_is_on_record(daemons: DaemonFactory, server: RealVllm, place: Path) -> None:
    daemon = await daemons.start(settings=settings(server, place))
    await status_when(daemon, "the engine", up)
    session, rival = await daemon.open_session("acme"), await daemon.open_session("acme")
    await turn(place, session, "Of this session alone. " * 20)
    await turns(daemon, session, 1)
    for at in range(5):
        await turn(place, rival, f"{at} is a rival's turn, and long. " * 45, 60)
    status = await status_when(
        daemon, "its KV evicted", lambda s: any(one.session_id == session.id for one in s.switches)
    )
    (switch,) = [one for one in status.switches if one.session_id == session.id]
    assert (switch.kind, switch.why) == ("preempted", "the engine evicted its blocks")
    again = (await turn(place, session, "Of this session alone. " * 20))["usage"]
    assert not (again["prompt_tokens_details"] or {}).get("cached_tokens")
    status = await status_when(
        daemon,
        "the recomputation",
        lambda s: [one.kind for one in s.switches if one.session_id == session.id] == ["preempted", "recomputed"],
    )
    await daemon.restart(kill=True)  # what was on record stays
    status = await status_when(daemon, "the engine", up)
    kinds = [one.kind for one in status.switches if one.session_id == session.id]
    assert kinds == ["preempted", "recomputed"]


async def test_the_engine_dies_and_comes_back_under_the_daemon(
    daemons: DaemonFactory, server: RealVllm, place: Path
) -> None:
    """Last in this file: it ends the server."""
    daemon = await daemons.start(settings=settings(server, place))
    await status_when(daemon, "the engine", up)
    session = await daemon.open_session("acme")
    await turn(place, session, PROMPT)
    await turns(daemon, session, 1)
    await asyncio.to_thread(server.stop)
    status = await status_when(daemon, "the engine away", lambda s: s.engines[0].state == "down")
    assert "check that it runs" in status.engines[0].detail
    async with peer(place) as one:
        one.ask({"model": "tiny", "prompt": "hello"}, path="/v1/completions", token=session.token, extra=JSON)
        assert (await one.refused())[0] in (502, 503)
    await asyncio.to_thread(server.start)
    status = await status_when(daemon, "the engine back", up)
    status = await status_when(
        daemon, "its KV gone", lambda s: any(one.kind == "dropped" for one in s.switches), within=WITHIN
    )
    assert any("restarted" in one.why for one in status.switches)
    assert (await turn(place, session, PROMPT))["usage"]["completion_tokens"] == 8
