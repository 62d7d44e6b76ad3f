"""The demo as people run it: it holds, and when it is interrupted nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentd.demo.verdict import ENFORCING, OBSERVING
from agentd.embedded import cgroup_mounts, processes_with
from tests.support.daemons import REPOSITORY, missing_for_daemon

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(200),
    pytest.mark.skipif(bool(missing_for_daemon()), reason=missing_for_daemon() or "-"),
]


@asynccontextmanager
async def demo(directory: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agentd.demo.main",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(directory), "NO_COLOR": "1"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()  # it cleans up after itself
            await process.wait()


def left_of(process: asyncio.subprocess.Process, directory: Path) -> list[str]:
    groups = [str(path) for mount in cgroup_mounts() for path in mount.glob(f"corral-demo-{process.pid}-*")]
    pins = [str(path) for path in Path("/sys/fs/bpf").glob(f"corral-demo-{process.pid}-*")]
    homes = [str(path) for path in (directory).glob("corral-demo-*")]
    # every process below the demo has one of its directories as its home
    alive = [f"{pid} {name}" for pid, name in processes_with(f"TMPDIR={directory}") if pid != os.getpid()]
    return groups + pins + homes + alive


async def output_of(process: asyncio.subprocess.Process) -> str:
    out, _ = await process.communicate()
    return out.decode("utf-8", "replace")


async def test_demo_holds_and_leaves_nothing(short_tmp: Path) -> None:
    short_tmp.chmod(0o755)
    async with demo(short_tmp) as process:
        text = await output_of(process)
    assert process.returncode == 0, text
    assert len(re.findall("^✓ ", text, re.MULTILINE)) == len(ENFORCING), text
    table = text.partition("From the ledger:")[2]
    assert len(re.findall(r"^(?:acme|beta|greedy) ", table, re.MULTILINE)) >= 18
    assert left_of(process, short_tmp) == []


async def test_demo_observes_where_nothing_can_be_enforced(short_tmp: Path) -> None:
    short_tmp.chmod(0o755)
    async with demo(short_tmp, "--observe") as process:
        text = await output_of(process)
    assert process.returncode == 0, text
    assert "OBSERVE-ONLY" in text
    assert len(re.findall("^✓ ", text, re.MULTILINE)) == len(OBSERVING), text
    assert left_of(process, short_tmp) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_demo_leaves_nothing(short_tmp: Path, number: signal.Signals) -> None:
    short_tmp.chmod(0o755)
    async with demo(short_tmp) as process:
        assert process.stdout is not None
        async for line in process.stdout:
            if b" make " in line and b" begin " in line:  # in the middle of its work
                break
        process.send_signal(number)
        text = await output_of(process)
    assert process.returncode == 130, text
    assert left_of(process, short_tmp) == []
