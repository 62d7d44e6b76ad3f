"""Causes that only a real kernel can prove: a disk that was full, and memory that ran out above every tenant."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.embedded import cgroup_mounts
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import MIB, end, events_of, go, line, load_program, soon
from tests.support.daemons import DaemonFactory, DaemonUnderTest

pytestmark = pytest.mark.host
PIPE = asyncio.subprocess.PIPE
SIZE = 256 * 1024
_LINK = "tp_name:\tsys_exit"  # in the fdinfo of the link by which a daemon traces full disks

# Fills the file system with what it is given, then says how the last write went.
FILL = """
import os, sys
print("ready", flush=True)
sys.stdin.readline()
fd = os.open("filler", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
try:
    while True:
        os.write(fd, bytes(4096))
except OSError as err:
    print(err.strerror, flush=True)
    sys.exit({status})
"""


@pytest.fixture
async def daemon(daemons: DaemonFactory) -> DaemonUnderTest:
    return await daemons.start(settings={"host": {"sample_interval": "100ms"}})


@pytest.fixture
def small() -> Iterator[Path]:
    """A file system of 256 KiB that everybody on this host can see. To be asked for before the daemon, whose calls must
    be gone before it is."""
    path = Path(tempfile.mkdtemp(prefix="corral-test-disk-", dir="/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "corral-test", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)
        path.rmdir()


def _few_names(directory: Path) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=6", str(directory)], check=True)


def _traced(daemon: DaemonUnderTest) -> bool:
    found = False
    for entry in os.scandir(f"/proc/{daemon.pid}/fdinfo"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found |= _LINK in Path(entry.path).read_text()
    return found


async def _fill(daemon: DaemonUnderTest, directory: Path, *, status: int, traced: bool) -> tuple[int, str, pb.Outcome]:
    """A tool that fills up ``directory``; let go once the daemon listens, or at once."""
    session = await daemon.open_session("acme")
    async with events_of(daemon, session) as events:
        command = ["/bin/sh", "-c", f'cd {directory} && exec "$@"', "sh", sys.executable, "-S", "-c"]
        process = await daemon.launch(session, *command, FILL.format(status=status), stdin=PIPE)
        assert await line(process) == "ready"
        if traced:
            await soon("the trace of full disks", lambda: _traced(daemon))
        go(process)
        assert await line(process) == "No space left on device"
        code, _, err = await end(process)
        return code, err, await events.outcome()


async def test_a_disk_that_was_full_is_proven(small: Path, daemon: DaemonUnderTest) -> None:
    (small / "cache").write_bytes(bytes(SIZE - 32 * 1024))  # nearly full: the daemon listens while a call runs
    status, err, outcome = await _fill(daemon, small, status=3, traced=True)
    assert status == 3
    assert outcome.reason == "disk_full"
    assert "a write of it found no space on the disk" in outcome.summary
    assert f"{small} has 0 B left of 256 KiB" in outcome.summary
    assert outcome.suggestions[0].startswith("remove what is not needed there")
    assert f"corral: {outcome.summary}" in err
    await soon("no call runs: nobody listens any more", lambda: not _traced(daemon))


async def test_a_call_that_made_do_with_a_full_disk_is_no_failure(small: Path, daemon: DaemonUnderTest) -> None:
    (small / "cache").write_bytes(bytes(SIZE - 32 * 1024))
    status, _, outcome = await _fill(daemon, small, status=0, traced=True)
    assert (status, outcome.reason, outcome.summary) == (0, "exited", "")


async def test_names_run_out_as_well(small: Path, daemon: DaemonUnderTest) -> None:
    _few_names(small)
    session = await daemon.open_session("acme")
    make = f"cd {small} && read line && for i in 1 2 3 4 5 6 7; do mkdir $i || exit 5; done"
    for n in range(4):
        (small / f"had-{n}").mkdir()
    async with events_of(daemon, session) as events:
        process = await daemon.launch(session, "/bin/sh", "-c", make, stdin=PIPE)
        await soon("the trace of full disks", lambda: _traced(daemon))
        go(process)
        assert (await end(process))[0] == 5
        outcome = await events.outcome()
    assert outcome.reason == "disk_full"
    assert f"{small} has no room for one more file" in outcome.summary


async def test_what_filled_up_between_two_looks_is_a_hint(
    small: Path, daemons: DaemonFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon looks once a minute here, and has not yet: nothing is proven, and that is what is said."""
    blind = await daemons.start(settings={"host": {"sample_interval": "1m"}})
    monkeypatch.chdir(small)  # where the call begins: that much is known of where it writes
    status, _, outcome = await _fill(blind, small, status=1, traced=False)
    assert status == 1
    assert outcome.reason == "failed"
    assert f"It may be for want of space, which was not watched: {small} has 0 B left of 256 KiB." in outcome.summary


async def test_memory_that_ran_out_above_every_tenant(daemons: DaemonFactory) -> None:
    """The host's own end cannot be provoked on a machine that others use (tests/lab does it): here it is the group that
    holds all of Corral, as under a unit's MemoryMax. No limit of the call, its session or its tenant was met."""
    daemon = await daemons.start()
    session = await daemon.open_session("acme")
    [limit] = [
        path
        for mount in cgroup_mounts()
        for name in ("memory.limit_in_bytes", "memory.max")
        if (path := mount / daemon.name / name).exists()
    ]
    async with events_of(daemon, session) as events:
        process = await daemon.launch(session, load_program(), "say:up", "wait", f"touch:{256 * MIB}", stdin=PIPE)
        assert await line(process) == "up"
        used = int((limit.parent / limit.name.replace("limit", "usage").replace("max", "current")).read_text())
        limit.write_text(str(used + 64 * MIB))
        go(process)
        status, _, err = await end(process)
        outcome = await events.outcome()
        limit.write_text("-1" if limit.name == "memory.limit_in_bytes" else "max")
    assert status == -signal.SIGKILL
    assert outcome.reason == "oom_host"
    assert outcome.usage.oom_kills >= 1
    assert "because all that Corral may use of this host ran out of memory" in outcome.summary
    assert "declare memory_peak" in outcome.suggestions[0]
    assert f"corral: {outcome.summary}" in err


async def test_advice_names_what_such_calls_came_to(daemons: DaemonFactory) -> None:
    """A dozen calls of one tool end by themselves at some 48 MiB; the next is given less, and told what they needed."""
    daemon = await daemons.start()
    session = await daemon.open_session("acme")
    kind = ("--tool", "suite", "--class", "test")
    for _ in range(12):
        assert (await daemon.call(session, load_program(), f"touch:{48 * MIB}", options=kind))[0] == 0
    async with events_of(daemon, session) as events:
        process = await daemon.launch(
            session, load_program(), "say:up", "wait", f"touch:{64 * MIB}", stdin=PIPE, options=kind
        )
        assert await line(process) == "up"
        call = await events.state(pb.CALL_STATE_RUNNING)
        request = pb.SetLimitsRequest(target=call.id, limits=pb.Limits(memory_max_bytes=24 * MIB))
        await daemon.client.call(daemon.client.operator.SetLimits, request)
        go(process)
        assert (await end(process))[0] == -signal.SIGKILL
        outcome = await events.outcome(call.id)
    assert outcome.reason == "oom_call"
    advice = outcome.suggestions[0]
    assert advice.startswith("declare a memory peak of about 5")
    assert "12 earlier calls of its tool and class typically peaked at 4" in advice
    assert advice.endswith("and it had 24 MiB")
    assert outcome.suggestions[1].endswith("so that it stays below 24 MiB")
