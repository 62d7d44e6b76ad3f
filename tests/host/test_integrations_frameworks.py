"""What agents bring, against the real thing: a framework with a scripted model, the official MCP client. No network.

Only where ``scripts/test-integrations`` has made an environment for them; its interpreter is in
CORRAL_INTEGRATIONS_PYTHON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.host.launcher_bench import LAUNCHER, build
from tests.support.daemons import REPOSITORY, DaemonFactory

PYTHON = os.environ.get("CORRAL_INTEGRATIONS_PYTHON", "")
SCRIPTS = REPOSITORY / "tests" / "integrations"
HUNGRY = "blocks = []\nfor _ in range(600): blocks.append(bytearray(b'x' * (1 << 20)))"

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not PYTHON, reason="needs agent frameworks: scripts/test-integrations installs and tests them"),
]


@pytest.fixture(scope="module", autouse=True)
def _launcher() -> None:
    build()


async def outcome(script: str, *arguments: str, environment: dict[str, str]) -> Any:
    """The JSON that the script prints."""
    process = await asyncio.create_subprocess_exec(
        *(PYTHON, str(SCRIPTS / script), *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def test_an_agent_of_pydantic_ai(daemons: DaemonFactory, tmp_path: Path) -> None:
    daemon = await daemons.start(tenants={"acme": {"memory_max": "512M"}})
    session = await daemon.open_session("acme")
    (tmp_path / "hungry.py").write_text(HUNGRY)
    said = await outcome(
        "scripted_agent.py",
        str(tmp_path / "hungry.py"),
        environment={**session.environment, "CORRAL_EXEC": str(LAUNCHER)},
    )
    (tool,) = said["tools"]
    assert tool["name"] == "run_command"
    assert tool["description"].startswith("Run a shell command")
    assert tool["parameters"]["required"] == ["command"]
    assert tool["parameters"]["properties"]["memory_peak_mib"]["description"] == "what its memory may burst to"

    plain, hungry, late, wrong = said["answers"]
    assert plain == "[exit status 3]\n[stdout]\nout\n\n[stderr]\nerr\n"
    assert hungry.startswith("[killed by signal 9]\n[corral, ")
    assert "What to try:" in hungry
    assert "corral: " not in hungry, "what was done is said once"
    assert late.startswith("The command was ended after 0.3 s")
    assert wrong.startswith("The command did not run. intent.memory_typical")
    assert said["output"] == "done"

    history = await daemon.history(session, ended=3)
    third, second, first = history.calls
    assert (first.intent.tool, first.intent.call_class) == ("run_command", "git")
    assert first.intent.memory_peak_bytes == 256 << 20, "what the program declared for all"
    assert second.intent.memory_peak_bytes == 48 << 20, "what the model declared for one"
    assert second.outcome.reason in hungry
    assert third.outcome.reason in {"signalled", "cancelled"}


@pytest.mark.parametrize(("mode", "version"), [("legacy", "2025-11-25"), ("auto", "2026-07-28")])
async def test_the_official_mcp_client(tmp_path: Path, mode: str, version: str) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "CORRAL_SESSION": "s-0123456789abcdef",
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
    }
    said = await outcome("mcp_client.py", sys.executable, mode, environment=environment)
    assert said["version"] == version
    assert said["tools"] == ["declare_intent", "get_budget", "explain_last_call"]
    assert said["declared"]["structuredContent"]["applies_to"] == "your next test command"
    assert said["declared"]["isError"] is False
    assert (said["wrong"]["isError"], said["wrong"]["content"][0]["type"]) == (True, "text")
