"""``corral trace`` with a real daemon: real tools where the system's Python has bcc and the kernel's headers are there
(scripts/lab test --kernel 6.1 --with bcc -- tests/host/test_trace.py), else the words that say what to install."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.trace import worker
from tests.support.daemons import DaemonFactory, DaemonUnderTest

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]  # five compilations in an emulated guest

WITHOUT = "no bcc or no kernel headers here: scripts/lab test --kernel 6.1 --with bcc -- tests/host/test_trace.py"
# opens what is not there, waits, writes past the page cache, starts something short
WORK = (
    "while ! [ -e {go} ]; do sleep 0.1; done; cat /no/such/file; sleep 0.2; "
    "dd if=/dev/zero of={io} bs=64k count=8 oflag=direct; /bin/true; while ! [ -e {stop} ]; do sleep 0.1; done"
)


def missing() -> str:
    """What keeps bcc from working here, as the worker would say it; the system's Python is asked, not ours."""
    release = platform.release()
    if subprocess.run(["/usr/bin/python3", "-c", "import bcc"], check=False, capture_output=True).returncode:
        return "python3-bpfcc"
    headers = any(Path(f"/lib/modules/{release}/{name}").exists() for name in ("build", "source"))
    return "" if headers or Path("/sys/kernel/kheaders.tar.xz").exists() else f"linux-headers-{release}"


async def start(daemon: DaemonUnderTest, *command: str) -> tuple[str, asyncio.subprocess.Process]:
    session = await daemon.open_session("acme", "coder")
    process = await daemon.launch(
        session, *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    while not (calls := [c for c in (await daemon.snapshot()).calls if c.state == pb.CALL_STATE_RUNNING]):
        pass  # it has not begun yet
    return calls[0].id, process


async def test_what_is_missing_is_said(daemons: DaemonFactory) -> None:
    wanted = missing()
    if not wanted:
        pytest.skip("bcc and this kernel's headers are here")
    daemon = await daemons.start()
    call_id, process = await start(daemon, "/bin/sleep", "60")
    stream = daemon.client.stream(daemon.client.operator.Trace, pb.TraceRequest(call_id=call_id))
    (update,) = [update async for update in stream]
    assert f"apt-get install {wanted}" in update.notice
    process.terminate()
    await process.wait()


async def test_a_call_under_every_tool(daemons: DaemonFactory, tmp_path: Path) -> None:
    if missing():
        pytest.skip(WITHOUT)
    go, stop, io = tmp_path / "go", tmp_path / "stop", tmp_path / "io"
    daemon = await daemons.start()
    call_id, process = await start(daemon, "/bin/sh", "-c", WORK.format(go=go, stop=stop, io=io))
    lines: list[pb.TraceResponse] = []
    async for update in daemon.client.stream(daemon.client.operator.Trace, pb.TraceRequest(call_id=call_id)):
        lines.append(update)
        if update.notice.startswith("tracing "):
            assert update.notice == "tracing offcpu, syscalls, files, blockio, processes", lines
            go.touch()
        if update.HasField("event") and update.event.tool == "processes" and "exec /bin/true" in update.event.text:
            stop.touch()
    assert await process.wait() == 0
    texts = [line.event.text for line in lines if line.HasField("event")]
    assert "/no/such/file: ENOENT" in texts
    assert any(text.startswith("exit with 0, lived") for text in texts)
    assert any(text.startswith("exit with 1") for text in texts)  # cat
    tables: dict[str, list[dict[str, Any]]] = {
        line.table.tool: [dict(zip(line.table.columns, row.cells, strict=True)) for row in line.table.rows]
        for line in lines
        if line.HasField("table")
    }
    assert tables.keys() == {"offcpu", "syscalls", "files", "blockio"}
    slept = [row for row in tables["offcpu"] if row["COMMAND"] == "sleep" and row["STATE"] == "asleep"]
    assert any("nanosleep" in row["WHERE"] and float(row["MOST MS"]) >= 90 for row in slept), json.dumps(slept)
    calls = {row["SYSCALL"]: row for row in tables["syscalls"]}
    assert int(calls["openat"]["ERRORS"]) >= 1
    assert int(calls["execve"]["TIMES"]) >= 3
    if tables["blockio"]:  # none where the directory is no disk's
        written = [row for row in tables["blockio"] if row["WHAT"] == "write"]
        assert sum(int(row["KIB"]) for row in written) >= 512


async def test_a_client_that_leaves_ends_the_worker(daemons: DaemonFactory) -> None:
    if missing():
        pytest.skip(WITHOUT)
    daemon = await daemons.start()
    call_id, process = await start(daemon, "/bin/sleep", "60")
    stream = daemon.client.stream(daemon.client.operator.Trace, pb.TraceRequest(call_id=call_id, tools=["syscalls"]))
    async with aclosing(cast("AsyncGenerator[pb.TraceResponse, None]", stream)):
        await anext(stream)
        (working,) = [os.pidfd_open(int(pid)) for pid in _workers()]
    with open(working, "rb", buffering=0):
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(working, ended.set)
        async with asyncio.timeout(60):
            await ended.wait()
        asyncio.get_running_loop().remove_reader(working)
    process.terminate()
    await process.wait()


def _workers() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(worker.__file__).encode() in words:
            found.append(path.parent.name)
    return found
