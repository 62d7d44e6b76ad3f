"""For the end-to-end tests of the daemon: the tool that calls execute, and ways to wait for what happens to them."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import pytest

from agentd.embedded import Table, cgroup_mounts
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.support.daemons import DaemonFactory, DaemonUnderTest, Session, missing_for_daemon

MIB: Final = 1 << 20
WITHIN: Final = 30.0  # seconds: far more than anything here takes; a test that waits so long has failed
NOBODY: Final = 65_534
SOURCE: Final = Path(__file__).with_name("daemon_load.c")

T = TypeVar("T")


@functools.cache
def load_program() -> Path:
    """The tool of daemon_load.c, compiled once for a run, where every user may execute it."""
    directory = Path(tempfile.mkdtemp(prefix="corral-test-load-", dir="/tmp"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    directory.chmod(0o755)
    program = directory / "daemon_load"
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", str(program), str(SOURCE)], check=True)
    return program


@contextlib.asynccontextmanager
async def one_daemon(
    *, tenants: Mapping[str, Table] | None = None, settings: Mapping[str, Table] | None = None
) -> AsyncIterator[DaemonUnderTest]:
    """A daemon for the tests of a whole module, each with sessions of its own. It is purged at the end."""
    missing = missing_for_daemon()
    if missing:
        pytest.skip(missing)
    directory = Path(tempfile.mkdtemp(prefix="corral-test-", dir="/tmp"))
    directory.chmod(0o711)
    factory = DaemonFactory(directory)
    try:
        yield await factory.start(tenants=tenants, settings=settings)
    finally:
        try:
            await factory.close()
        finally:
            shutil.rmtree(directory, ignore_errors=True)


class Events:
    """What WatchSession said so far of one session, and waiting for more."""

    def __init__(self) -> None:
        self.updates: list[pb.WatchSessionResponse] = []
        self.error: Exception | None = None
        self._news = asyncio.Condition()

    async def follow(self, daemon: DaemonUnderTest, session: Session) -> None:
        try:
            request = pb.WatchSessionRequest(session_id=session.id)
            async for update in daemon.client.stream(daemon.client.agent.WatchSession, request):
                self.updates.append(update)
                async with self._news:
                    self._news.notify_all()
        except Exception as err:
            self.error = err
        finally:
            async with self._news:
                self._news.notify_all()

    async def until(self, what: str, found: Callable[[pb.WatchSessionResponse], bool]) -> pb.WatchSessionResponse:
        """The first update that is so, of those that came already or will."""
        at = 0
        async with self._news:
            try:
                async with asyncio.timeout(WITHIN):
                    while True:
                        for update in self.updates[at:]:
                            if found(update):
                                return update
                        at = len(self.updates)
                        assert self.error is None, f"the stream ended before {what}: {self.error}"
                        await self._news.wait()
            except TimeoutError:
                pytest.fail(f"never seen: {what}; seen: {[_short(u) for u in self.updates]}")

    async def decision(self, action: str, call_id: str = "") -> pb.Decision:
        """The first decision of this kind, of one call or of any."""
        update = await self.until(
            f"decision {action} {call_id}",
            lambda u: u.decision.action == action and call_id in ("", u.decision.call_id),
        )
        return update.decision

    async def state(self, state: pb.CallState, call_id: str = "") -> pb.Call:
        update = await self.until(
            f"a call that is {pb.CallState.Name(state)}",
            lambda u: u.HasField("call") and u.call.state == state and call_id in ("", u.call.id),
        )
        return update.call

    async def outcome(self, call_id: str = "") -> pb.Outcome:
        return (await self.state(pb.CALL_STATE_ENDED, call_id)).outcome


def _short(update: pb.WatchSessionResponse) -> str:
    if update.HasField("call"):
        return f"call {update.call.id} {pb.CallState.Name(update.call.state)}"
    return f"decision {update.decision.action}" if update.HasField("decision") else str(update.WhichOneof("update"))


@contextlib.asynccontextmanager
async def events_of(daemon: DaemonUnderTest, session: Session) -> AsyncIterator[Events]:
    """Follows the session; the stream stands when this returns, so that nothing is missed."""
    events = Events()
    task = asyncio.create_task(events.follow(daemon, session))
    try:
        await events.until("the session itself", lambda u: u.HasField("session"))
        yield events
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def line(process: asyncio.subprocess.Process) -> str:
    """The tool's next line. Its stderr is told where there is none."""
    assert process.stdout is not None
    async with asyncio.timeout(WITHIN):
        text = await process.stdout.readline()
    if not text:
        assert process.stderr is not None
        pytest.fail(f"ended without a word; stderr: {(await process.stderr.read()).decode()}")
    return text.decode().rstrip("\n")


def go(process: asyncio.subprocess.Process) -> None:
    """Lets a tool that waits go on."""
    assert process.stdin is not None
    process.stdin.write(b"go\n")


async def end(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    """What is left of its output, and its status (negative: a signal)."""
    async with asyncio.timeout(WITHIN):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


async def until_gone(pid: int) -> None:
    """Until a process (not a child of ours) has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        await asyncio.wait_for(gone.wait(), WITHIN)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def soon(what: str, value: Callable[[], T]) -> T:
    """For what the kernel or another process tells nobody: asks until the answer is true."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WITHIN
    while not (found := value()):
        assert loop.time() < deadline, f"never: {what}"
        await asyncio.sleep(0.01)
    return found


def hierarchies(pid: int | str = "self") -> dict[str, str]:
    """Controller ("" for v2) to path, of a process."""
    return parse_cgroups(Path(f"/proc/{pid}/cgroup").read_text())


def parse_cgroups(text: str) -> dict[str, str]:
    return {name: path for _, name, path in (entry.split(":", 2) for entry in text.splitlines())}


def leaves(daemon: DaemonUnderTest) -> list[str]:
    """Leaves of calls that exist, in every hierarchy."""
    return [
        str(path)
        for mount in cgroup_mounts()
        if (root := mount / daemon.name).is_dir()
        for path in root.glob("t-*/s-*/calls/c-*")
    ]


async def live_call(daemon: DaemonUnderTest, session: Session) -> pb.Call:
    """The session's only live call."""
    calls = [c for c in (await daemon.snapshot()).calls if c.session_id == session.id]
    assert len(calls) == 1, calls
    return calls[0]


async def operate(daemon: DaemonUnderTest, what: str, target: str) -> list[str]:
    """freeze, thaw or kill, through the API."""
    operator = daemon.client.operator
    match what:
        case "freeze":
            return list((await daemon.client.call(operator.Freeze, pb.FreezeRequest(target=target))).call_ids)
        case "thaw":
            return list((await daemon.client.call(operator.Thaw, pb.ThawRequest(target=target))).call_ids)
        case _:
            return list((await daemon.client.call(operator.Kill, pb.KillRequest(target=target))).call_ids)


def corral_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "agentd.cli", *words]


def cpu_quota(daemon: DaemonUnderTest, call: pb.Call) -> tuple[int, int]:
    """Microseconds of CPU in each period, and the period, as the kernel has them for the call's leaf."""
    for path in daemon.groups(call):
        if (v1 := path / "cpu.cfs_quota_us").exists():
            return int(v1.read_text()), int((path / "cpu.cfs_period_us").read_text())
        if (v2 := path / "cpu.max").exists():
            quota, period = v2.read_text().split()
            return int(quota), int(period)
    pytest.fail(f"no CPU controller's file for {call.cgroup}")


def registered(daemon: DaemonUnderTest) -> int:
    """How many calls the kernel side counts for."""
    pinned = daemon.pin_dir / "maps" / "calls"
    if not pinned.exists():
        return 0
    dump = subprocess.run(["bpftool", "-j", "map", "dump", "pinned", str(pinned)], check=True, capture_output=True)
    return len(json.loads(dump.stdout))
