"""The same for asyncio.

async with await aio.open_session("acme", "fix-1234") as session:
    done = await aio.run(["pytest", "-q"], session=session, tool="pytest", capture_output=True)

    async with aio.call(["make", "-j4"], session=session, memory="1G:4G", stdout=PIPE) as building:
        async for line in building.process.stdout: ...
    print(building.outcome.message)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

from corral_client import session as blocking
from corral_client.errors import CallFailed, CallTimeout, CorralError
from corral_client.intent import Declared, Intent
from corral_client.launcher import Fail, Launch, Word, prepare
from corral_client.outcome import Outcome
from corral_client.process import GRACE, CompletedProcess, Stream

__all__ = ["Call", "Session", "call", "open_session", "run"]


class Session(blocking.Session):
    """As ``corral_client.Session``; ``async with`` closes it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        # shielded: a task that is being cancelled still has its session closed
        await asyncio.shield(asyncio.to_thread(self.__exit__, kind, err, trace))


async def open_session(tenant: str = "", name: str = "", *, socket: str | os.PathLike[str] | None = None) -> Session:
    opened = await asyncio.to_thread(blocking.open_session, tenant, name, socket=socket)
    return Session(opened.id, opened.token, opened.socket)


class Call:
    """A tool call that runs; ``process`` is the launcher, whose streams, signals and status are the tool's own."""

    def __init__(self, launch: Launch, process: Process, command: list[str]) -> None:
        self._launch = launch
        self._outcome: Outcome | None = None
        self.process = process
        self.command = command

    @property
    def outcome(self) -> Outcome:
        """How it went, once it has ended. Raises Refused, DaemonAway or LauncherFailed where the tool did not run."""
        if self._outcome is None:
            code = self.process.returncode
            if code is None:
                raise CorralError(f"{self.command[0]!r} still runs, so that it has no outcome yet; wait() for it")
            try:
                self._outcome = self._launch.outcome(code)
            finally:
                self._launch.close()
        return self._outcome

    async def wait(self) -> int:
        """The exit status (negative: the signal)."""
        return await self.process.wait()

    async def end(self) -> None:
        """SIGTERM, then SIGKILL. The daemon ends whatever of the call outlives its launcher."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
            try:
                async with asyncio.timeout(GRACE):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
        await self.process.wait()


@contextlib.asynccontextmanager
async def call(
    argv: Sequence[Word],
    *,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    cwd: Word | None = None,
    env: Mapping[str, str] | None = None,
    session: blocking.Session | None = None,
    socket: Word | None = None,
    fail: Fail | None = None,
    intent: Intent | None = None,
    **declared: Unpack[Declared],
) -> AsyncIterator[Call]:
    """As ``corral_client.call``. The call is waited for at the end of the block, and ended when the block fails or its
    task is cancelled."""
    with prepare(
        argv, Intent.of(intent, declared), session=session, socket=socket, fail=fail, environment=env
    ) as launch:
        process = await asyncio.create_subprocess_exec(
            *launch.argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=launch.environment,
            pass_fds=(launch.write_fd,) if launch.controlled else (),
        )
    running = Call(launch, process, [os.fspath(word) for word in argv])
    try:
        yield running
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()
        _ = running.outcome
    finally:
        if process.returncode is None:
            await asyncio.shield(running.end())
        launch.close()


async def run(
    argv: Sequence[Word],
    *,
    input: bytes | None = None,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    capture_output: bool = False,
    timeout: float | None = None,  # noqa: ASYNC109 - as subprocess.run: the tool is ended, too
    check: bool = False,
    cwd: Word | None = None,
    env: Mapping[str, str] | None = None,
    session: blocking.Session | None = None,
    socket: Word | None = None,
    fail: Fail | None = None,
    intent: Intent | None = None,
    **declared: Unpack[Declared],
) -> CompletedProcess[bytes]:
    """As ``corral_client.run``, in bytes. A task that is cancelled ends its tool."""
    if capture_output:
        if stdout is not None or stderr is not None:
            raise ValueError("capture_output together with stdout or stderr; give one or the other")
        stdout = stderr = PIPE
    if input is not None:
        if stdin is not None:
            raise ValueError("input together with stdin; give one or the other")
        stdin = PIPE
    out: bytes | None
    err: bytes | None
    async with call(
        argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
        session=session,
        socket=socket,
        fail=fail,
        intent=intent,
        **declared,
    ) as running:
        try:
            async with asyncio.timeout(timeout):
                out, err = await running.process.communicate(input)
        except TimeoutError:
            await running.end()
            outcome = Outcome()
            with contextlib.suppress(CorralError):
                outcome = running.outcome
            raise CallTimeout(running.command, timeout or 0.0, None, None, outcome) from None
    code = running.process.returncode or 0
    if check and code:
        raise CallFailed(code, running.command, out, err, running.outcome)
    return CompletedProcess(running.command, code, out, err, running.outcome)
