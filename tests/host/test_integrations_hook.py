"""corral-hook with a real shell, launcher and daemon: an agent's command from its event to its outcome."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.launcher_bench import LAUNCHER, Bench, build
from tests.support.daemons import REPOSITORY, DaemonFactory

pytestmark = pytest.mark.host

HUNGRY = "blocks = []\nfor _ in range(600): blocks.append(bytearray(b'x' * (1 << 20)))"


@pytest.fixture(scope="module", autouse=True)
def _launcher() -> None:
    build()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.serve()
    yield made
    await made.close()


class Agent:
    """What Claude Code does with its Bash tool: an event before, the command in a shell, an event after."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        (directory / "run").mkdir(mode=0o700)
        self.directory = directory
        self.environment = {
            **os.environ,
            "CORRAL_EXEC": str(LAUNCHER),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "PYTHONPATH": str(REPOSITORY),
            "CORRAL_HOOK_CONFIG": str(directory / "hook.toml"),
            **environment,
        }
        (directory / "hook.toml").write_text('[class.script]\nmemory = "16M:48M"\n')
        self._uses = 0

    async def _run(self, *argv: str, data: bytes = b"", cwd: Path | None = None) -> tuple[int, bytes, bytes]:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
            cwd=cwd or self.directory,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate(data)
        assert process.returncode is not None
        return process.returncode, out, err

    async def hook(self, event: dict[str, Any]) -> dict[str, Any]:
        code, out, err = await self._run(sys.executable, "-m", "agentd.hook", data=json.dumps(event).encode())
        assert (code, err) == (0, b"")
        return json.loads(out)["hookSpecificOutput"] if out else {}

    async def bash(self, command: str) -> tuple[int, str, str, str]:
        """Status, stdout, stderr, and what the hook had to say afterwards."""
        self._uses += 1
        event = {
            "hook_event_name": "PreToolUse",
            "tool_name": "Bash",
            "tool_input": {"command": command},
            "tool_use_id": f"toolu_{self._uses}",
        }
        before = await self.hook(event)
        assert "permissionDecision" not in before
        code, out, err = await self._run("bash", "-c", before["updatedInput"]["command"])
        after = await self.hook(
            {
                **event,
                "hook_event_name": "PostToolUse" if code == 0 else "PostToolUseFailure",
                "tool_input": before["updatedInput"],
                "tool_response": {"stdout": out.decode(), "stderr": ""},
            }
        )
        return code, out.decode(), err.decode(), after.get("additionalContext", "")


async def test_a_command_of_an_agent(bench: Bench, tmp_path: Path) -> None:
    agent = Agent(tmp_path, {"CORRAL_SOCKET": str(bench.path)})
    (tmp_path / "sub dir").mkdir()
    assert await agent.bash("cd 'sub dir' && pwd; echo \"it's\" | cat") == (0, f"{tmp_path}/sub dir\nit's\n", "", "")
    begin = bench.handler.begins[0][1]
    assert begin.argv == ("bash", "-c", 'pwd; echo "it\'s" | cat')
    assert (begin.intent.tool, begin.intent.call_class) == ("pwd", "file")
    bench.handler.outcome = ("braked", "It was held for 2 s.")
    code, _, err, context = await agent.bash("python3 -c 'raise SystemExit(3)'")
    assert (code, err) == (3, "corral: It was held for 2 s.\n")
    assert context.endswith("reason braked: It was held for 2 s.")
    assert bench.handler.begins[1][1].intent.memory_peak == 48 << 20
    assert [path.name for path in (tmp_path / "run" / "corral-hook").iterdir()] == ["last-default"]


async def test_as_a_shell_it_runs_the_whole_line_as_one_call(bench: Bench, tmp_path: Path) -> None:
    agent = Agent(tmp_path, {"CORRAL_SOCKET": str(bench.path)})
    line = f"cd /tmp && eval 'python3 -c \"print(1)\"' && pwd -P >| {tmp_path}/cwd"
    code, out, err = await agent._run(sys.executable, "-m", "agentd.hook", "-c", line)
    assert (code, out, err) == (0, b"1\n", b"")
    assert (tmp_path / "cwd").read_text() == "/tmp\n"
    begin = bench.handler.begins[0][1]
    assert begin.argv == ("bash", "-c", line)
    assert (begin.intent.tool, begin.intent.call_class) == ("python3", "script")
    await bench.stop_serving()
    code, out, err = await agent._run(sys.executable, "-m", "agentd.hook", "-c", "echo on; exit 5")
    assert (code, out) == (5, b"on\n")
    assert b"UNCONTROLLED" in err or b"no daemon" in err


async def test_under_a_real_daemon(daemons: DaemonFactory, tmp_path: Path) -> None:
    daemon = await daemons.start()
    session = await daemon.open_session("acme")
    agent = Agent(tmp_path, session.environment)
    (tmp_path / "hungry.py").write_text(HUNGRY)
    code, out, _, context = await agent.bash("echo fine")
    assert (code, out, context) == (0, "fine\n", "")
    code, _, err, context = await agent.bash(f"{sys.executable} hungry.py")
    assert code != 0
    assert "corral: The 'python3' call was" in err
    assert "What to try:" in context
    history = await daemon.history(session, ended=2)
    assert [(call.intent.call_class, call.intent.tool) for call in history.calls] == [
        ("script", "python3"),
        ("file", "echo"),
    ]
    assert history.calls[0].outcome.reason in {"brake_killed", "oom_call"}
    assert history.calls[0].outcome.reason in context
