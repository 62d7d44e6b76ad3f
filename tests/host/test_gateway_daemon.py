"""The gateway of a real daemon: its own process, sessions' tokens, budgets, KV of a real llama.cpp server."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.embedded import StartFailed, Table
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import NOBODY, WITHIN
from tests.support import tiny_gguf
from tests.support.daemons import DaemonFactory, DaemonUnderTest, Session
from tests.support.llamacpp import llamacpp
from tests.support.peer import Peer
from tests.support.scripted import Exchange, Scripted, scripted

pytestmark = pytest.mark.host

ANSWER = b'{"usage":{"prompt_tokens":70,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":60}}}'


async def answer(exchange: Exchange) -> None:
    await exchange.answer(ANSWER)


@pytest.fixture
async def engine() -> AsyncIterator[Scripted]:
    async with scripted(answer) as upstream:
        yield upstream


def settings(url: str, directory: Path, **engine: object) -> dict[str, Table]:
    table: dict[str, Any] = {"url": url, "kind": "llamacpp", **engine}
    return {
        "engines": {"local": table},
        "gpu": {"enabled": "off"},
        "gateway": {"socket": str(directory / "gateway.sock")},
    }


@pytest.fixture
def place(short_tmp: Path) -> Path:
    """Other users get through to the socket in it. (Not pytest's own: that it closes to them whenever one starts.)"""
    made = short_tmp / "gateway"
    made.mkdir(mode=0o755)
    return made


@contextlib.asynccontextmanager
async def peer(directory: Path) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_unix_connection(directory / "gateway.sock")
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def turns(daemon: DaemonUnderTest, session: Session, *, count: int = 0) -> pb.Turns:
    """Once so many are booked: an answer's last byte is a moment ahead of the books."""
    async with asyncio.timeout(WITHIN):
        while True:
            found = await daemon.snapshot()
            so_far = next(one.turns for one in found.sessions if one.id == session.id)
            if so_far.turns >= count:
                return so_far
            await asyncio.sleep(0.02)


def workers(daemon: DaemonUnderTest) -> list[int]:
    found = []
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (directory / "cmdline").read_bytes().split(b"\0")
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            if b"agentd.gateway.worker" in words and parent == daemon.pid:
                found.append(int(directory.name))
    return found


async def until(what: str, so: Callable[[], bool]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WITHIN
    while not so():
        assert loop.time() < deadline, f"never: {what}"
        await asyncio.sleep(0.02)


async def test_a_turn_is_the_sessions_own_and_is_counted(daemons: DaemonFactory, engine: Scripted, place: Path) -> None:
    daemon = await daemons.start(settings=settings(engine.url, place))
    session, other = await daemon.open_session("acme"), await daemon.open_session("acme")
    async with peer(place) as one:
        one.ask({"model": "m", "session_id": other.id}, token=session.token)
        assert (await one.answer())[2] == ANSWER
        one.ask({}, token=session.token)
        await one.json()
        found = await turns(daemon, session, count=2)
        assert (found.turns, found.prompt_tokens, found.cached_tokens, found.generated_tokens) == (2, 140, 120, 10)
        assert (await turns(daemon, other)).turns == 0
        one.ask({}, token="A" * 32)
        assert await one.refused() == (401, "invalid_api_key")
        close = pb.CloseSessionRequest(session_id=session.id)
        await daemon.client.call(daemon.client.agent.CloseSession, close)
        one.ask({}, token=session.token)
        assert await one.refused() == (401, "invalid_api_key")
    (worker,) = workers(daemon)
    status = Path(f"/proc/{worker}/status").read_text()
    if os.geteuid() == 0:
        assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
    assert await daemon.stop() == 0
    await until("the worker has ended", lambda: not Path(f"/proc/{worker}").exists())
    assert not (place / "gateway.sock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
async def test_another_users_token_is_refused_where_the_kernel_says_who_asks(
    daemons: DaemonFactory, engine: Scripted, place: Path
) -> None:
    daemon = await daemons.start(settings=settings(engine.url, place))
    session = await daemon.open_session("acme", uid=NOBODY + 1)
    script = f"""
import socket
s = socket.socket(socket.AF_UNIX)
s.connect({str(place / "gateway.sock")!r})
s.sendall(b"GET /v1/models HTTP/1.1\\r\\nAuthorization: Bearer {session.token}\\r\\n\\r\\n")
print(s.recv(12).decode())
"""
    told = {}
    for uid in (NOBODY + 1, NOBODY):
        process = await asyncio.create_subprocess_exec(
            "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "/usr/bin/env", "python3", "-c", script,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        told[uid] = (await process.communicate())[0].decode().strip()
    assert told == {NOBODY + 1: "HTTP/1.1 200", NOBODY: "HTTP/1.1 403"}


async def test_a_budget_of_tokens_ends_turns_before_the_engine_hears_of_them(
    daemons: DaemonFactory, engine: Scripted, place: Path
) -> None:
    daemon = await daemons.start(
        tenants={"acme": {"session_budgets": {"tokens": "100 hard"}}}, settings=settings(engine.url, place)
    )
    session = await daemon.open_session("acme")
    async with peer(place) as one:
        for _ in range(2):  # 75 tokens each: the second begins with 25 left
            one.ask({}, token=session.token)
            await one.json()
        one.ask({}, token=session.token)
        status, headers, body = await one.answer()
        assert (status, headers["x-should-retry"]) == (429, "false")
        assert b'"code":"budget_exhausted"' in body
        assert b"tokens" in body
        assert sum(b"POST" in exchange.head for exchange in engine.exchanges) == 2
        request = pb.SetBudgetRequest(target=session.id, resource="tokens", limit=1000, hard=True)
        await daemon.client.call(daemon.client.operator.SetBudget, request)
        one.ask({}, token=session.token)
        await one.json()


async def test_it_comes_back_when_its_process_dies_and_goes_when_the_daemon_does(
    daemons: DaemonFactory, engine: Scripted, place: Path
) -> None:
    daemon = await daemons.start(settings=settings(engine.url, place))
    session = await daemon.open_session("acme")
    async with peer(place) as one:
        one.ask({}, token=session.token)
        await one.json()
        await turns(daemon, session, count=1)  # what a worker has not told yet is lost with it
        (first,) = workers(daemon)
        os.kill(first, signal.SIGKILL)
        assert await one.ended()
    async with peer(place) as one:  # waits in the backlog until there is a worker
        one.ask({}, token=session.token)
        await one.json()
    (second,) = workers(daemon)
    assert second != first
    await daemon.restart(kill=True)
    await until("the old worker has ended", lambda: not Path(f"/proc/{second}").exists())
    async with peer(place) as one:
        one.ask({}, token=session.token)
        await one.json()
    # the second may be lost with the daemon's last 50 ms; the first is on disk
    assert (await turns(daemon, session, count=2)).prompt_tokens >= 140


async def test_an_address_that_cannot_be_had_is_said(daemons: DaemonFactory, engine: Scripted, place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = settings(engine.url, place)
        daemon = daemons.make(settings={**config, "gateway": {"listen": f"127.0.0.1:{port}"}})
        with pytest.raises(StartFailed, match=rf"the gateway cannot listen on 127.0.0.1 port {port}"):
            await daemon.start()


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="no llama.cpp server for this machine")
async def test_sessions_take_turns_in_one_slot_of_a_real_server_and_nothing_is_computed_twice(
    daemons: DaemonFactory, place: Path
) -> None:
    model = tiny_gguf.write(place / "tiny.gguf")
    saved = place / "saved"
    saved.mkdir()
    async with llamacpp(model, saved, slots=1) as url:
        config = settings(
            url, place, control=True, offload_dir=str(saved), bytes_per_token=tiny_gguf.KV_BYTES_PER_TOKEN
        )
        daemon = await daemons.start(settings=config)

        async def status() -> pb.TierStatus:
            return (await daemon.client.call(daemon.client.operator.Tier, pb.TierRequest())).tier

        async with asyncio.timeout(WITHIN):
            while (await status()).engines[0].state != "up":  # noqa: ASYNC110  asked at the daemon's own beat
                await asyncio.sleep(0.05)
        sessions = [await daemon.open_session("acme", name) for name in ("one", "two")]
        texts = [f"{session.id} says what it has to say, " * 12 for session in sessions]
        async with peer(place) as client:
            for _ in range(3):
                for number, session in enumerate(sessions):
                    body = {"prompt": texts[number], "max_tokens": 4, "temperature": 0, "stream": True}
                    body |= {"logit_bias": [[token, False] for token in range(tiny_gguf.FIRST_LETTER)]}
                    client.ask(body, path="/v1/completions", token=session.token)
                    code, _, raw = await client.answer()
                    assert (code, b"[DONE]" in raw) == (200, True), raw
                    texts[number] += " and more"
        for session in sessions:
            found = await turns(daemon, session, count=3)
            first = found.prompt_tokens - found.cached_tokens
            assert found.turns == 3
            assert found.cached_tokens > 700, f"{first} of {found.prompt_tokens} were computed"
        kinds = [one.kind for one in (await status()).switches]
        assert kinds.count("restored") >= 3, kinds
        assert "recomputed" not in kinds
