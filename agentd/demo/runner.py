"""Runs the agents: each opens its session and executes its rounds, one launcher process for each call."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

from agentd.demo.agents import Agent, ToolCall
from agentd.demo.workloads import REPOSITORY, Workloads

REFUSED: Final = 125  # exit status of corral-exec when the call never started
TAIL: Final = 600  # characters of what a call wrote


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An open session, as the broker gave it."""

    tenant: str
    name: str
    id: str
    token: str
    uid: int | None = None  # what its agent runs as; None: as the demo itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the agent saw of one call. ``status`` as of ``subprocess``: negative when it died of a signal."""

    session: Session
    call: ToolCall
    status: int
    begun_at: float  # seconds of the event loop's clock
    wall_seconds: float
    output: str  # the last characters of what it wrote, the launcher's own words included


class Runner:
    """``launcher`` is corral-exec; ``workloads.directory`` gets the calls' outputs."""

    def __init__(self, *, launcher: Path, socket: Path, workloads: Workloads) -> None:
        self._launcher = launcher
        self._socket = socket
        self._workloads = workloads
        self._outputs = workloads.directory / "outputs"
        self._outputs.mkdir(exist_ok=True)
        self._number = 0

    async def run(self, agent: Agent, session: Session) -> list[Run]:
        """Executes the agent's rounds. Cancelled: its calls are ended before this returns."""
        runs: list[Run] = []
        for calls in agent.rounds:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.execute(call, session)) for call in calls]
            runs += [task.result() for task in tasks]
        return runs

    async def execute(self, call: ToolCall, session: Session) -> Run:
        loop = asyncio.get_running_loop()
        self._number += 1
        output = self._outputs / f"{self._number:03d}-{session.name}-{call.tool}.out"
        begun_at = loop.time()
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                str(self._launcher),
                *call.options(),
                "--",
                *call.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=call.cwd or self._workloads.home(session.name),
                env=self._environment(session),
                **credentials(session.uid),
                start_new_session=True,  # a Ctrl-C is for the demo, which then ends its calls in order
            )
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            await _end(process)
            raise
        text = output.read_bytes()[-TAIL:].decode("utf-8", "replace").strip()
        return Run(
            session=session,
            call=call,
            status=status,
            begun_at=begun_at,
            wall_seconds=loop.time() - begun_at,
            output=text,
        )

    def _environment(self, session: Session) -> Mapping[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
        return kept | {
            "HOME": str(self._workloads.home(session.name)),
            "TMPDIR": str(self._workloads.home(session.name)),
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GIT_CONFIG_GLOBAL": str(self._workloads.directory / "gitconfig"),
            "CORRAL_SOCKET": str(self._socket),
            "CORRAL_TOKEN": session.token,
            "CORRAL_SESSION": session.id,
        }


class Credentials(TypedDict, total=False):
    """Arguments of subprocess.Popen."""

    user: int
    group: int
    extra_groups: list[int]


def credentials(uid: int | None) -> Credentials:
    """To start a process as ``uid``, in a group of the same number and in no other. None: as the caller."""
    return {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to the launcher, which passes it on; after a moment SIGKILL to all of its process group."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(asyncio.shield(process.wait()), 2.0)
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
