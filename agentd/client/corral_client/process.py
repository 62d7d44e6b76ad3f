"""``run`` and ``call``: as ``subprocess.run`` and ``subprocess.Popen``, and each is one tool call of Corral."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, AnyStr, Final, Literal, Self, Unpack, overload

from corral_client.errors import CallFailed, CallTimeout, CorralError
from corral_client.intent import Declared, Intent
from corral_client.launcher import Fail, Launch, Word, prepare
from corral_client.outcome import Outcome
from corral_client.session import Session

GRACE: Final = 2.0  # seconds between SIGTERM and SIGKILL for a tool that took too long

Stream = int | IO[Any] | None


class CompletedProcess(subprocess.CompletedProcess[AnyStr]):
    """With ``outcome``: how Corral saw the call."""

    def __init__(self, args: list[str], returncode: int, stdout: Any, stderr: Any, outcome: Outcome) -> None:
        super().__init__(args, returncode, stdout, stderr)
        self.outcome = outcome

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, outcome={self.outcome!r})"


class Call:
    """A tool call that runs. ``process`` is the launcher: its streams, signals and status are the tool's own.

    At the end of a ``with`` block the call is waited for; when the block failed, it is ended.
    """

    def __init__(self, launch: Launch, process: subprocess.Popen[bytes], command: list[str]) -> None:
        self._launch = launch
        self._outcome: Outcome | None = None
        self.process = process
        self.command = command

    @property
    def outcome(self) -> Outcome:
        """How it went, once it has ended. Raises Refused, DaemonAway or LauncherFailed where the tool did not run."""
        if self._outcome is None:
            code = self.process.poll()
            if code is None:
                raise CorralError(f"{self.command[0]!r} still runs, so that it has no outcome yet; wait() for it")
            try:
                self._outcome = self._launch.outcome(code)
            finally:
                self._launch.close()
        return self._outcome

    def wait(self, timeout: float | None = None) -> int:
        """The exit status (negative: the signal). Raises subprocess.TimeoutExpired after ``timeout`` seconds."""
        return self.process.wait(timeout)

    def end(self) -> None:
        """SIGTERM, then SIGKILL. The daemon ends whatever of the call outlives its launcher."""
        self.process.terminate()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if err is not None:
                self.end()
            self.process.__exit__(kind, err, trace)  # closes its pipes and waits
        finally:
            if err is None:
                _ = self.outcome
            self._launch.close()


def call(
    argv: Sequence[Word],
    *,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    cwd: Word | None = None,
    env: Mapping[str, str] | None = None,
    session: Session | None = None,
    socket: Word | None = None,
    fail: Fail | None = None,
    intent: Intent | None = None,
    **declared: Unpack[Declared],
) -> Call:
    """Starts ``argv`` as one tool call; use it in a ``with`` block.

    ``session``: whose; else that of the environment (CORRAL_TOKEN), else the daemon decides by user. ``fail``: what to
    do without a daemon, "closed" (nothing runs) or "open" (it runs uncontrolled, as ``outcome.state`` says); None
    leaves it to the host's configuration. The rest as subprocess.Popen. Raises LauncherMissing, OSError and TypeError.
    """
    with prepare(
        argv,
        Intent.of(intent, declared),
        session=session,
        socket=socket,
        fail=fail,
        environment=env,
    ) as launch:
        process = subprocess.Popen(
            launch.argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=launch.environment,
            pass_fds=(launch.write_fd,) if launch.controlled else (),
        )
    return Call(launch, process, [os.fspath(word) for word in argv])


@overload
def run(
    argv: Sequence[Word],
    *,
    text: Literal[True],
    input: str | None = None,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    cwd: Word | None = None,
    env: Mapping[str, str] | None = None,
    session: Session | None = None,
    socket: Word | None = None,
    fail: Fail | None = None,
    intent: Intent | None = None,
    **declared: Unpack[Declared],
) -> CompletedProcess[str]: ...


@overload
def run(
    argv: Sequence[Word],
    *,
    text: Literal[False] = False,
    input: bytes | None = None,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    cwd: Word | None = None,
    env: Mapping[str, str] | None = None,
    session: Session | None = None,
    socket: Word | None = None,
    fail: Fail | None = None,
    intent: Intent | None = None,
    **declared: Unpack[Declared],
) -> CompletedProcess[bytes]: ...


def run(
    argv: Sequence[Word],
    *,
    text: bool = False,
    input: str | bytes | None = None,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    cwd: Word | None = None,
    env: Mapping[str, str] | None = None,
    session: Session | None = None,
    socket: Word | None = None,
    fail: Fail | None = None,
    intent: Intent | None = None,
    **declared: Unpack[Declared],
) -> CompletedProcess[Any]:
    """Runs ``argv`` as one tool call and waits for it: ``subprocess.run`` with an ``outcome``.

    ``text``: UTF-8, with U+FFFD for what is not. ``timeout`` in seconds counts a wait in the queue, too; to have the
    daemon end the call, declare a ``deadline``. Raises CallTimeout; CallFailed with ``check``; Refused, DaemonAway,
    LauncherMissing and LauncherFailed where the tool did not run. The other options as for ``call``.
    """
    if capture_output:
        if stdout is not None or stderr is not None:
            raise ValueError("capture_output together with stdout or stderr; give one or the other")
        stdout = stderr = subprocess.PIPE
    if input is not None:
        if stdin is not None:
            raise ValueError("input together with stdin; give one or the other")
        stdin = subprocess.PIPE
    data = input.encode() if isinstance(input, str) else input
    with call(
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
            out, err = running.process.communicate(data, timeout)
        except subprocess.TimeoutExpired as late:
            running.end()
            outcome = Outcome()
            with contextlib.suppress(CorralError):
                outcome = running.outcome
            raise CallTimeout(
                running.command, late.timeout, _shown(late.output, text), _shown(late.stderr, text), outcome
            ) from None
    code = running.process.returncode
    shown_out, shown_err = _shown(out, text), _shown(err, text)
    if check and code:
        raise CallFailed(code, running.command, shown_out, shown_err, running.outcome)
    return CompletedProcess(running.command, code, shown_out, shown_err, running.outcome)


def _shown(data: bytes | None, text: bool) -> str | bytes | None:
    return data.decode("utf-8", "replace") if text and data is not None else data
