"""The demo's inputs are real, and its agents run them; here through a launcher that only executes the command."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agentd.demo import agents
from agentd.demo.agents import SESSIONS, TENANTS, Agent, ToolCall
from agentd.demo.datajob import main as datajob
from agentd.demo.runner import Run, Runner, Session
from agentd.demo.workloads import COMMITS, FileServer, Workloads, prepare
from controller.model import command_text

pytestmark = pytest.mark.skipif(not (shutil.which("git") and shutil.which("gcc")), reason="needs git and gcc")

EXECUTES_ITS_COMMAND = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
shift
exec "$@"
"""


@pytest.fixture(scope="module")
def workloads(tmp_path_factory: pytest.TempPathFactory) -> Workloads:
    return prepare(tmp_path_factory.mktemp("demo"), {session: None for _, session in SESSIONS})


@pytest.fixture
def runner(workloads: Workloads, tmp_path: Path) -> Runner:
    launcher = tmp_path / "pass-through"
    launcher.write_text(EXECUTES_ITS_COMMAND)
    launcher.chmod(0o755)
    return Runner(launcher=launcher, socket=tmp_path / "none.sock", workloads=workloads)


def session_of(agent: Agent) -> Session:
    return Session(tenant=agent.tenant, name=agent.session, id=f"s-{agent.session}", token="")


def find(cast: tuple[Agent, ...], tool: str) -> tuple[Agent, ToolCall]:
    return next((agent, call) for agent in cast for call in agent.calls() if call.tool == tool)


def test_cast_is_three_tenants_with_enough_calls(workloads: Workloads) -> None:
    cast = agents.cast(workloads, 1, enforced=True)
    assert [(agent.tenant, agent.session) for agent in cast] == list(SESSIONS)
    assert {agent.tenant for agent in cast} == set(TENANTS)
    calls = [call for agent in cast for call in agent.calls()]
    assert len(calls) >= 18
    assert {"git", "search", "build", "test", "data"} <= {call.call_class for call in calls}
    assert {agent.tenant for agent in cast for call in agent.calls() if call.overreaches} == {"greedy"}
    for call in calls:
        assert call.overreaches == (call.memory is not None and call.needs_memory > call.memory[1] << 20)


def test_a_command_is_unique_within_its_session(workloads: Workloads) -> None:
    for agent in agents.cast(workloads, 1, enforced=True):
        commands = [command_text(call.argv) for call in agent.calls()]
        assert len(set(commands)) == len(commands), agent.session


def test_observe_only_declares_nothing_that_must_be_enforced(workloads: Workloads) -> None:
    cast = agents.cast(workloads, 1, enforced=False)
    options = [option for agent in cast for call in agent.calls() for option in call.options()]
    assert not {"--memory", "--cpu", "--pids"} & set(options)
    assert "--memory" in agents.refused_call().options()


async def run(runner: Runner, workloads: Workloads, tool: str) -> Run:
    with FileServer(workloads.directory) as server:
        agent, call = find(agents.cast(workloads, server.port, enforced=True), tool)
        return await runner.execute(call, session_of(agent))


def commits_of(clone: str) -> int:
    count = subprocess.run(["git", "-C", clone, "rev-list", "--count", "HEAD"], check=True, capture_output=True)
    return int(count.stdout)


async def test_git_clones_a_repository_with_history(runner: Runner, workloads: Workloads) -> None:
    done = await run(runner, workloads, "git")
    assert done.status == 0, done.output
    clone = done.call.argv[-1]
    commits = commits_of(clone)
    assert commits > COMMITS / 2
    assert len(list(Path(clone).rglob("*.py"))) == commits  # a file a commit


async def test_search_reads_the_tree_and_finds(runner: Runner, workloads: Workloads) -> None:
    done = await run(runner, workloads, "grep")
    assert done.status == 0, done.output
    assert "__aenter__" in done.output or "__aexit__" in done.output
    assert workloads.source_bytes > 5_000_000


async def test_c_project_compiles_and_checks_itself(runner: Runner, workloads: Workloads) -> None:
    done = await run(runner, workloads, "make")
    assert done.status == 0, done.output
    assert "0 of 18 units failed" in done.output


async def test_c_project_notices_a_wrong_unit(runner: Runner, workloads: Workloads) -> None:
    agent, call = find(agents.cast(workloads, 1, enforced=True), "make")
    unit = workloads.home("ci") / "c" / "unit03.c"
    unit.write_text(unit.read_text().replace("value != i", "value == i"))
    broken = next(
        c for a in agents.cast(workloads, 1, enforced=True) if a.session == "ci" for c in a.calls() if c.tool == "make"
    )
    done = await runner.execute(broken, session_of(agent))
    assert call.cwd != broken.cwd
    assert done.status != 0
    assert "1 of 18 units failed" in done.output


async def test_fetch_gets_every_byte(runner: Runner, workloads: Workloads) -> None:
    done = await run(runner, workloads, "fetch")
    assert done.status == 0, done.output
    assert Path(done.call.argv[-1]).stat().st_size == workloads.fetch_bytes == done.call.known_received


async def test_wheel_is_built_without_network(runner: Runner, workloads: Workloads) -> None:
    done = await run(runner, workloads, "pip")
    assert done.status == 0, done.output
    assert [path.name.split("-")[0] for path in (workloads.home("refactor") / "out").glob("*.whl")] == ["corral"]


async def test_suite_of_a_real_package_passes(runner: Runner, workloads: Workloads) -> None:
    done = await run(runner, workloads, "pytest")
    assert done.status == 0, done.output
    assert " passed" in done.output


def test_data_job_checks_its_aggregates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.csv"
    assert datajob(["--megabytes", "5", "--step", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out == "5 MiB in 3 chunks aggregated, 0 wrong\n"
    assert len(out.read_text().splitlines()) == 4


async def test_cancelled_runner_ends_its_calls(runner: Runner, workloads: Workloads) -> None:
    marker = workloads.directory / f"alive-{os.getpid()}"
    os.mkfifo(marker)
    # the call holds the writing end as long as it lives
    argv = ("/bin/sh", "-c", f"exec 3>{marker}; echo up >&3; exec sleep 600")
    session = Session(tenant="acme", name="refactor", id="s", token="")
    task = asyncio.create_task(runner.execute(ToolCall(tool="sh", call_class="test", argv=argv), session))
    with await asyncio.to_thread(marker.open, "rb") as pipe:  # opens when the call has opened its end
        assert await asyncio.to_thread(pipe.readline) == b"up\n"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(pipe.read) == b"", "what it wrote besides"
