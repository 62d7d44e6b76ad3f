"""KV caches of a real llama.cpp server, moved by a real daemon while tool calls run."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.embedded import Table
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import WITHIN, corral_command, end, go, line, load_program
from tests.support import tiny_gguf
from tests.support.daemons import DaemonFactory, DaemonUnderTest, Session
from tests.support.llamacpp import llamacpp

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp has no wheel for this machine: no llama.cpp server"
)

PROMPT = "You are agent 7. Read the file, then say what it holds. " * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made = tmp_path / "saved"
    made.mkdir()
    return made


@pytest.fixture
async def url(model: Path, saved: Path) -> AsyncIterator[str]:
    async with llamacpp(model, saved) as where:
        yield where


def engine(url: str, saved: Path, **more: object) -> dict[str, Table]:
    table: dict[str, Any] = {
        "url": url,
        "kind": "llamacpp",
        "control": True,
        "declared_slots": True,
        "interval": "100ms",
        "offload_dir": str(saved),
        "bytes_per_token": tiny_gguf.KV_BYTES_PER_TOKEN,
        **more,
    }
    return {"engines": {"local": table}, "gpu": {"enabled": "off", "budget": "50%"}}


async def ask(url: str, slot: int, prompt: str = PROMPT) -> dict[str, Any]:
    """One turn in a slot, as an agent that names its own does it. Returns the server's timings."""
    body = {
        "prompt": prompt,
        "n_predict": 2,
        "temperature": 0,
        "ignore_eos": True,
        "id_slot": slot,
        "cache_prompt": True,
    }
    request = urllib.request.Request(  # noqa: S310  # our own server, over http
        url + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )

    def send() -> dict[str, Any]:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            timings: dict[str, Any] = json.load(answer)["timings"]
            return timings

    return await asyncio.to_thread(send)


async def turn(daemon: DaemonUnderTest, session: Session, url: str, slot: int, prompt: str = PROMPT) -> dict[str, Any]:
    """A turn, reported as an agent reports it."""
    timings = await ask(url, slot, prompt)
    request = pb.ReportTurnRequest(
        session_id=session.id,
        engine="local",
        conversation=f"slot:{slot}",
        prompt_tokens=timings["prompt_n"] + timings["cache_n"],
        cached_tokens=timings["cache_n"],
        generated_tokens=timings["predicted_n"],
        seconds=(timings["prompt_ms"] + timings["predicted_ms"]) / 1000,
        first_token_seconds=timings["prompt_ms"] / 1000,
    )
    await daemon.client.call(daemon.client.agent.ReportTurn, request)
    return timings


async def tier(daemon: DaemonUnderTest) -> pb.TierStatus:
    return (await daemon.client.call(daemon.client.operator.Tier, pb.TierRequest())).tier


async def until(daemon: DaemonUnderTest, what: str, so: Callable[[pb.TierStatus], bool]) -> pb.TierStatus:
    """Engines are asked at the daemon's own beat: asked until it is so."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WITHIN
    while not so(status := await tier(daemon)):
        assert loop.time() < deadline, f"never: {what}; {status}; {daemon.log_tail()}"
        await asyncio.sleep(0.02)
    return status


def is_up(status: pb.TierStatus) -> bool:
    return bool(status.engines) and status.engines[0].state == "up"


def residency(status: pb.TierStatus, session: Session) -> str:
    return next((one.residency for one in status.sessions if one.session_id == session.id), "")


def kinds(status: pb.TierStatus, session: Session) -> list[str]:
    return [one.kind for one in status.switches if one.session_id == session.id]


async def slot_tokens(url: str, slot: int) -> int:
    def get() -> Any:
        with urllib.request.urlopen(url + "/slots", timeout=10) as answer:  # noqa: S310
            return json.load(answer)

    return int((await asyncio.to_thread(get))[slot].get("n_prompt_tokens", 0))


BOUND = ("--engine", "local", "--conversation", "slot:0")


async def test_kv_leaves_at_a_call_and_is_back_for_the_next_turn(daemons: DaemonFactory, url: str, saved: Path) -> None:
    daemon = await daemons.start(settings=engine(url, saved, policy="always-offload"))
    await until(daemon, "the engine", is_up)
    session = await daemon.open_session("acme")
    first = await turn(daemon, session, url, 0)
    assert residency(await tier(daemon), session) == "resident"

    process = await daemon.launch(
        session, load_program(), "say:here", "wait", "exit:0", options=BOUND, stdin=asyncio.subprocess.PIPE
    )
    assert await line(process) == "here"
    status = await until(daemon, "the KV offloaded", lambda s: residency(s, session) == "offloaded")
    (kv,) = status.sessions
    assert kv.call_id
    assert kv.tokens >= first["prompt_n"]
    assert kv.bytes >= kv.tokens * tiny_gguf.KV_BYTES_PER_TOKEN
    assert await slot_tokens(url, 0) == 0  # saved, then erased
    assert len(list(saved.iterdir())) == 1

    go(process)
    assert (await end(process))[0] == 0
    status = await until(daemon, "the KV restored", lambda s: residency(s, session) == "resident")
    assert kinds(status, session) == ["offloaded", "restored"]
    again = await turn(daemon, session, url, 0, PROMPT + "And then?")
    assert again["cache_n"] >= first["prompt_n"] - 2  # nothing was computed again
    assert kinds(await tier(daemon), session) == ["offloaded", "restored"]
    await until(daemon, "the saved file removed", lambda s: not list(saved.iterdir()))

    history = await daemon.history(session, ended=1)
    acts = [(one.action, one.policy) for one in history.decisions if one.policy.startswith("kv:")]
    assert acts == [("offload", "kv:always-offload"), ("restore", "kv:always-offload")]
    assert all(one.evidence["tokens"] > 100 for one in history.decisions if one.policy.startswith("kv:"))
    snapshot = await daemon.snapshot()
    (turns,) = [one.turns for one in snapshot.sessions if one.id == session.id]
    assert turns.prefill_equivalents == first["prompt_n"] + again["prompt_n"]

    await daemon.restart(kill=True)  # what was on record stays
    assert kinds(await until(daemon, "the engine", is_up), session) == ["offloaded", "restored"]


async def test_what_was_offloaded_comes_back_under_the_next_daemon(
    daemons: DaemonFactory, url: str, saved: Path
) -> None:
    daemon = await daemons.start(settings=engine(url, saved, policy="always-offload"))
    await until(daemon, "the engine", is_up)
    session = await daemon.open_session("acme")
    first = await turn(daemon, session, url, 0)
    process = await daemon.launch(
        session, load_program(), "say:here", "wait", "exit:0", options=BOUND, stdin=asyncio.subprocess.PIPE
    )
    assert await line(process) == "here"
    await until(daemon, "the KV offloaded", lambda s: residency(s, session) == "offloaded")
    await daemon.stop()
    await daemon.start()
    await until(daemon, "what is known of before", lambda s: residency(s, session) == "offloaded")
    go(process)
    assert (await end(process))[0] == 0
    await until(daemon, "the KV restored", lambda s: residency(s, session) == "resident")
    assert (await turn(daemon, session, url, 0))["cache_n"] >= first["prompt_n"] - 2
    assert kinds(await tier(daemon), session) == ["offloaded", "restored"]


async def test_with_always_keep_nothing_moves(daemons: DaemonFactory, url: str, saved: Path) -> None:
    daemon = await daemons.start(settings=engine(url, saved, policy="always-keep"))
    await until(daemon, "the engine", is_up)
    session = await daemon.open_session("acme")
    first = await turn(daemon, session, url, 0)
    assert (await daemon.call(session, "/bin/true", options=BOUND))[0] == 0
    again = await turn(daemon, session, url, 0)
    assert again["cache_n"] >= first["prompt_n"] - 2
    status = await tier(daemon)
    assert (residency(status, session), kinds(status, session)) == ("resident", [])
    assert list(saved.iterdir()) == []


async def test_an_engine_that_is_only_observed_is_left_alone(daemons: DaemonFactory, url: str, saved: Path) -> None:
    daemon = await daemons.start(settings=engine(url, saved, policy="always-offload", control=False))
    await until(daemon, "the engine", is_up)
    session = await daemon.open_session("acme")
    await turn(daemon, session, url, 0)
    process = await daemon.launch(
        session, load_program(), "say:here", "wait", "exit:0", options=BOUND, stdin=asyncio.subprocess.PIPE
    )
    assert await line(process) == "here"
    status = await until(daemon, "the pause", lambda s: any(one.call_id for one in s.sessions))
    assert residency(status, session) == "resident"
    assert any("only observed" in hint for hint in status.hints)
    # two more looks at the engine: whatever would be done would be done by then
    before = await slot_tokens(url, 0)
    await daemon.call(session, "/bin/true", options=BOUND)
    assert await slot_tokens(url, 0) == before > 0
    go(process)
    await end(process)
    assert kinds(await tier(daemon), session) == []
    assert list(saved.iterdir()) == []


async def test_kv_is_back_before_the_declared_end(daemons: DaemonFactory, url: str, saved: Path) -> None:
    daemon = await daemons.start(settings=engine(url, saved, policy="always-offload"))
    await until(daemon, "the engine", is_up)
    session = await daemon.open_session("acme")
    first = await turn(daemon, session, url, 0)
    process = await daemon.launch(
        session,
        load_program(),
        "say:here",
        "wait",
        "exit:0",
        options=(*BOUND, "--duration", "2s"),
        stdin=asyncio.subprocess.PIPE,
    )
    assert await line(process) == "here"
    await until(daemon, "the KV put out", lambda s: residency(s, session) == "offloaded")
    status = await until(daemon, "the KV back", lambda s: residency(s, session) == "resident")
    (kv,) = status.sessions
    assert kv.call_id  # its call still runs
    assert kinds(status, session) == ["offloaded", "restored"]
    assert "declared end is near" in status.switches[-1].why
    assert (await turn(daemon, session, url, 0))["cache_n"] >= first["prompt_n"] - 2
    go(process)
    assert (await end(process))[0] == 0
    assert kinds(await tier(daemon), session) == ["offloaded", "restored"]


async def test_with_room_for_all_corrals_own_rule_moves_nothing(daemons: DaemonFactory, url: str, saved: Path) -> None:
    daemon = await daemons.start(settings=engine(url, saved, pressure=0.1))  # tokens are not what slots are short of
    await until(daemon, "the engine", is_up)
    one, other = await daemon.open_session("acme"), await daemon.open_session("acme")
    await turn(daemon, one, url, 0, PROMPT * 2)
    await turn(daemon, other, url, 1, PROMPT * 2)
    for session, slot in ((one, 0), (other, 1)):
        options = ("--engine", "local", "--conversation", f"slot:{slot}", "--duration", "1h")
        assert (await daemon.call(session, "/bin/true", options=options))[0] == 0
    assert (await turn(daemon, one, url, 0, PROMPT * 2))["cache_n"] > 100
    assert list((await tier(daemon)).switches) == []


async def test_a_slot_of_another_session_cannot_be_claimed(daemons: DaemonFactory, url: str, saved: Path) -> None:
    daemon = await daemons.start(settings=engine(url, saved, policy="always-drop"))
    await until(daemon, "the engine", is_up)
    owner, thief = await daemon.open_session("acme"), await daemon.open_session("acme")
    first = await turn(daemon, owner, url, 0)
    assert (await daemon.call(thief, "/bin/true", options=BOUND))[0] == 0
    assert (await daemon.call(thief, "/bin/true", options=(*BOUND[:3], "slot:999999999999999999")))[0] == 0
    assert (await daemon.call(thief, "/bin/true", options=("--engine", "other", "--conversation", "slot:0")))[0] == 0
    status = await tier(daemon)
    assert residency(status, thief) in ("", "none")
    assert (await turn(daemon, owner, url, 0))["cache_n"] >= first["prompt_n"] - 2


async def test_an_engine_that_comes_and_goes(daemons: DaemonFactory, model: Path, saved: Path) -> None:
    async with llamacpp(model, saved) as url:
        daemon = await daemons.start(settings=engine(url, saved, policy="always-offload"))
        await until(daemon, "the engine", is_up)
        session = await daemon.open_session("acme")
        await turn(daemon, session, url, 0)
    status = await until(daemon, "the engine away", lambda s: s.engines[0].state == "down")
    # refused, or cut off where the question was on its way when the engine ended: the words are the kernel's
    assert url in status.engines[0].detail
    assert "check that it runs" in status.engines[0].detail
    # a call begins and ends as ever; what cannot be moved stays as it was known
    assert (await daemon.call(session, "/bin/true", options=BOUND))[0] == 0
    assert kinds(await tier(daemon), session) == []
    process = await asyncio.create_subprocess_exec(
        *corral_command("--api", daemon.operator_target, "tier"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    text = (await end(process))[1]
    assert "down" in text, text


async def test_a_reload_brings_an_engine_and_takes_it_away(daemons: DaemonFactory, url: str, saved: Path) -> None:
    daemon = await daemons.start(settings={"gpu": {"enabled": "off"}})
    assert any("no inference engine is configured" in hint for hint in (await tier(daemon)).hints)
    bare = daemon.config_file.read_text()
    daemon.config_file.write_text(bare + f'\n[engines.local]\nurl = "{url}"\ninterval = "100ms"\n')
    os.kill(daemon.pid, signal.SIGHUP)
    status = await until(daemon, "the engine", is_up)
    assert not status.engines[0].control
    session = await daemon.open_session("acme")
    await turn(daemon, session, url, 0)
    assert residency(await tier(daemon), session) == "resident"

    daemon.config_file.write_text(bare + f'\n[engines.local]\nurl = "{url}"\ncontrol = true\n')
    os.kill(daemon.pid, signal.SIGHUP)
    status = await until(daemon, "control", lambda s: is_up(s) and s.engines[0].control)
    assert residency(status, session) == "resident"  # what was known stays known

    daemon.config_file.write_text(bare)
    os.kill(daemon.pid, signal.SIGHUP)
    status = await until(daemon, "no engine", lambda s: not s.engines)
    assert not status.sessions
    assert (await daemon.call(session, "/bin/true"))[0] == 0
