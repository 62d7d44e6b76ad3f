"""The command line against a real daemon and real calls."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.support.daemons import DaemonFactory, DaemonUnderTest
from tests.unit.cli_support import Finished, corral

pytestmark = pytest.mark.host

TRACE: dict[str, Any] = {
    "schema": "agentcg-compact-v1",
    "dataset": "made",
    "task": "here",
    "t": [0.0, 1.0, 2.0, 3.0],
    "mem_mb": [20.0, 60.0, 30.0, 20.0],
    "cpu_cores": [0.1, 0.3, 0.2, 0.0],
    "tools": [[0.5, 2.5, "Bash", "test", "pytest"], [1.0, 1.2, "Read", "", ""]],
}


async def _corral(daemon: DaemonUnderTest, *argv: str, **variables: str) -> Finished:
    environment = {"CORRAL_SOCKET": str(daemon.broker_socket), **variables}
    return await corral(*argv, api=f"unix:{daemon.operator_socket}", environment=environment)


async def _json(daemon: DaemonUnderTest, *argv: str, **variables: str) -> Any:
    done = await _corral(daemon, *argv, "--json", **variables)
    assert done.code == 0, done.err
    return json.loads(done.out)


async def _acme(daemons: DaemonFactory) -> tuple[DaemonUnderTest, dict[str, str]]:
    """A daemon whose tenant acme is ours, and the variables of a session opened through its broker."""
    daemon = await daemons.start(tenants={"acme": {"uids": [os.getuid()]}})
    done = await _corral(daemon, "session", "open", "--tenant", "acme", "--name", "coder")
    assert done.code == 0, done.err
    return daemon, dict(word.partition("=")[::2] for word in shlex.split(done.out)[1:])


async def test_an_operator_sees_freezes_thaws_and_kills_a_call(daemons: DaemonFactory) -> None:
    daemon, session = await _acme(daemons)
    running = asyncio.create_task(
        _corral(
            daemon, "run", "--tool", "Bash", "--class", "test", "--memory", "64M:128M", "--", "sleep", "60", **session
        )
    )
    while not (calls := (await _json(daemon, "ps"))["calls"]):
        assert not running.done(), running.result().err + (daemon.directory / "agentd.log").read_text()
    (call,) = calls
    assert (call["tenant"], call["session"], call["state"], call["command"]) == ("acme", "coder", "running", "sleep 60")
    shown = await _json(daemon, "show", call["id"])
    assert [process["command"] for process in shown["processes"]] == ["sleep 60"]
    piece = call["id"][-8:]
    assert (await _json(daemon, "freeze", piece))["targets"][0]["call_ids"] == [call["id"]]
    assert "'corral thaw" in (await _corral(daemon, "explain", piece)).out
    assert (await _corral(daemon, "thaw", "coder")).out.startswith("thawed 1 call of session")
    changed = await _corral(daemon, "limits", piece, "--brake", "96M")
    assert changed.code == 0, changed.err
    assert (await _json(daemon, "limits", piece))["brake_bytes"] == 96 << 20
    assert (await _corral(daemon, "kill", piece)).out.startswith("killed call")
    ended = await running
    assert ended.code == -9  # corral run became the launcher, which dies as its child did
    assert "operator" in ended.err
    explained = await _json(daemon, "explain", call["id"])
    assert explained["reason"] == "operator_killed"
    assert {decision["action"] for decision in explained["decisions"]} >= {"freeze", "thaw", "limit", "kill"}


async def test_session_exec_is_an_agent_process_and_close_ends_the_session(daemons: DaemonFactory) -> None:
    daemon, session = await _acme(daemons)
    done = await _corral(daemon, "session", "exec", "--", "cat", "/proc/self/cgroup", **session)
    assert done.code == 0, done.err
    leaf = next(line for line in done.out.splitlines() if line.startswith("0::"))
    assert leaf.endswith(f"/{session['CORRAL_SESSION']}/agent")
    closed = await _corral(daemon, "session", "close", **session)
    assert closed.out == f"closed session {session['CORRAL_SESSION']}\n"
    again = await _corral(daemon, "session", "exec", "--", "true", **session)
    assert again.code in (4, 5), again.err


async def test_a_replay_leaves_calls_in_the_ledger(daemons: DaemonFactory, short_tmp: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc to build corral-replay with")
    program = short_tmp / "corral-replay"
    source = Path(__file__).parents[2] / "agentd/launcher/corral_replay.c"
    built = await asyncio.create_subprocess_exec(compiler, "-O2", "-pthread", "-o", str(program), str(source))
    assert await built.wait() == 0
    trace = short_tmp / "trace.json"
    trace.write_text(json.dumps(TRACE))
    daemon, _ = await _acme(daemons)
    argv = ("replay", str(trace), "--speed", "10", "--base", "10", "--tenant", "acme", "--declare", "peak")
    whole = await _json(daemon, *argv, CORRAL_REPLAY=str(program))
    (replay,) = whole["replays"]
    assert [call["verdict"] for call in replay["calls"]] == ["ok", "ok"]
    assert replay["framework"]["complete"]
    history = await daemon.client.call(
        daemon.client.operator.History, pb.HistoryRequest(session_id=replay["session"], limit=10)
    )
    recorded = {call.intent.tool: call for call in history.calls}
    assert set(recorded) == {"Bash", "Read"}
    assert recorded["Bash"].intent.call_class == "test"
    # 50 of its 60 MB are the tool's while it runs alone; its process needs a little more
    assert recorded["Bash"].usage.memory_peak_bytes >= 45_000_000


async def test_doctor_and_tenants(daemons: DaemonFactory) -> None:
    daemon, _ = await _acme(daemons)
    doctor = await _json(daemon, "doctor")
    assert doctor["source"].startswith("agentd at")
    made = await _json(daemon, "tenant", "set", "gamma", "--memory-max", "256M", "--priority", "30")
    assert made["limits"]["memory_max_bytes"] == 256 << 20
    listed = await _json(daemon, "tenant", "list")
    assert {"acme", "gamma"} <= {tenant["name"] for tenant in listed["tenants"]}
    wrong = await _corral(daemon, "tenant", "set", "Not A Name")
    assert wrong.code == 2
    assert wrong.err.count("\n") == 1
