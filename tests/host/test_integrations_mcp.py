"""corral-mcp under a real daemon: what a model declares reaches its next command, and what became of it comes back."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.launcher_bench import LAUNCHER, build
from tests.support.daemons import REPOSITORY, DaemonFactory

pytestmark = pytest.mark.host
PIPE = asyncio.subprocess.PIPE

META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
HUNGRY = "blocks = []\nfor _ in range(600): blocks.append(bytearray(b'x' * (1 << 20)))"


@pytest.fixture(scope="module", autouse=True)
def _launcher() -> None:
    build()


class Model:
    """Talks to one corral-mcp, as an agent on behalf of its model does."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def use(self, tool: str, **arguments: object) -> tuple[str, dict[str, Any] | None]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        params = {"name": tool, "arguments": arguments, "_meta": META}
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        async with asyncio.timeout(30):
            answer = json.loads(await self._process.stdout.readline())
        result = answer["result"]
        return result["content"][0]["text"], None if result["isError"] else result["structuredContent"]

    async def close(self) -> None:
        _, err = await self._process.communicate(b"")
        assert (self._process.returncode, err) == (0, b"")


@pytest.fixture
async def start() -> AsyncIterator[Callable[[dict[str, str]], Awaitable[Model]]]:
    """Starts servers; those that a failed test left are ended."""
    started: list[asyncio.subprocess.Process] = []

    async def one(environment: dict[str, str]) -> Model:
        argv = (sys.executable, "-m", "agentd.mcp")
        process = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)
        started.append(process)
        return Model(process)

    yield one
    for process in started:
        if process.returncode is None:
            await process.communicate(b"")  # the end of its input is its end


async def test_a_model_declares_and_asks(
    daemons: DaemonFactory, tmp_path: Path, start: Callable[[dict[str, str]], Awaitable[Model]]
) -> None:
    daemon = await daemons.start(tenants={"acme": {"memory_max": "512M", "max_calls": 8}})
    session = await daemon.open_session("acme")
    (tmp_path / "run").mkdir(mode=0o700)
    environment = {
        **os.environ,
        **session.environment,
        "CORRAL_EXEC": str(LAUNCHER),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "PYTHONPATH": str(REPOSITORY),
    }
    (tmp_path / "hungry.py").write_text(HUNGRY)
    model = await start(environment)

    text, data = await model.use("get_budget")
    assert data is not None
    assert any(row["resource"].startswith("memory") and row["scope"] == "tenant" for row in data["budgets"]), text
    text, data = await model.use("explain_last_call")
    assert (data, text) == (None, "No command of this session has ended under Corral lately.")

    text, data = await model.use("declare_intent", memory_typical="16M", memory_peak="48M", call_class="script")
    assert data is not None, text
    line = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentd.hook", "wrap", f"{sys.executable} {tmp_path}/hungry.py"),
        stdout=PIPE,
        env=environment,
    )
    command = (await line.communicate())[0].decode()
    assert "--memory=16777216:50331648" in command
    shell = await asyncio.create_subprocess_exec("bash", "-c", command, stderr=PIPE, env=environment)
    await shell.communicate()
    text, data = await model.use("explain_last_call")
    assert data is not None, text
    assert data["reason"] in {"brake_killed", "oom_call"}
    assert data["summary"] in text
    assert data["suggestions"]

    running = await daemon.launch(session, "sh", "-c", "echo up; exec sleep 60", options=("--tool", "sleeper"))
    assert running.stdout is not None
    await running.stdout.readline()
    (call,) = [call for call in (await daemon.snapshot()).calls if call.state == pb.CALL_STATE_RUNNING]
    text, data = await model.use("declare_intent", call_id=call.id, memory_peak="64M")
    assert data is not None, text
    (call,) = [one for one in (await daemon.snapshot()).calls if one.id == call.id]
    assert (call.intent.tool, call.intent.memory_peak_bytes) == ("sleeper", 64 << 20), "the rest stays as declared"
    text, data = await model.use("declare_intent", call_id="c-0000000000000000", cpu=1)
    assert (data, "no call of this session that runs" in text) == (None, True)
    await model.close()

    stranger = await start({**environment, "CORRAL_TOKEN": "of-nobody"})
    text, data = await stranger.use("get_budget")
    assert data is None
    assert "cannot be asked" in text
    assert "of-nobody" not in text
    await stranger.close()
