"""An agent of the tests, attached to a real daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import WITHIN, hierarchies, line
from tests.support.daemons import DaemonUnderTest

PIPE: Final = asyncio.subprocess.PIPE
SLEEPER: Final = "import time; time.sleep(60)"
AGENT: Final = Path(__file__).with_name("attach_agent.py")


class Agent:
    """The agent's process, and its session once it is attached."""

    def __init__(self, daemon: DaemonUnderTest, process: asyncio.subprocess.Process) -> None:
        self.daemon = daemon
        self.process = process
        self.session = pb.Session()

    @property
    def pid(self) -> int:
        return self.process.pid

    async def tell(self, words: list[str] | dict[str, str]) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words).encode() + b"\n")
        return await line(self.process)

    async def attach(self, *, tenant: str = "acme", rules: str = "") -> pb.Session:
        request = pb.AttachRequest(tenant=tenant, pid=self.pid, rules=rules)
        [self.session] = (await self.daemon.client.call(self.daemon.client.operator.Attach, request)).sessions
        return self.session

    async def ended(self, count: int) -> list[pb.Call]:
        """The session's calls that have ended, the oldest first, once there are so many."""
        calls: list[pb.Call] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHIN):
                while len(calls) < count:
                    await asyncio.sleep(0.02)
                    snapshot = await self.daemon.snapshot(with_ended=True)
                    calls = [c for c in snapshot.calls if c.session_id == self.session.id and c.HasField("outcome")]
        assert len(calls) == count, [c.command for c in calls]
        return sorted(calls, key=lambda c: c.begun_at)

    async def live(self) -> list[pb.Call]:
        calls = (await self.daemon.snapshot()).calls
        return sorted((c for c in calls if c.session_id == self.session.id), key=lambda c: c.begun_at)


@contextlib.asynccontextmanager
async def an_agent(daemon: DaemonUnderTest) -> AsyncIterator[Agent]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(AGENT), stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
    )
    try:
        assert await line(process) == "ready"
        yield Agent(daemon, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


def group_of(pid: int) -> str:
    return hierarchies(pid)[""]


def two_in(daemon: DaemonUnderTest, call: pb.Call) -> list[int]:
    pids = [int(pid) for pid in (daemon.groups(call)[0] / "cgroup.procs").read_text().split()]
    return sorted(pids) if len(pids) == 2 else []


async def live_calls(agent: Agent, count: int) -> list[pb.Call]:
    async with asyncio.timeout(WITHIN):
        while len(calls := await agent.live()) != count:  # noqa: ASYNC110 - another process is asked
            await asyncio.sleep(0.02)
    return calls


async def closed(agent: Agent, session: pb.Session) -> None:
    async with asyncio.timeout(WITHIN):
        while any(s.id == session.id for s in (await agent.daemon.snapshot()).sessions):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
