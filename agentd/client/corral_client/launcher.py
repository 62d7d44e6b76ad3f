"""corral-exec: where it is, how it is called, and the pipe on which it tells how the call went."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from corral_client.errors import LauncherMissing
from corral_client.intent import Intent
from corral_client.outcome import Outcome, parse_outcome
from corral_client.session import Session

Fail = Literal["open", "closed"]
Word = str | os.PathLike[str]

_PLACES: Final = ("/usr/lib/corral", "/usr/libexec/corral", "/opt/corral/agentd/launcher")
_MOST: Final = 65_536  # bytes of an outcome; corral-exec keeps it below what a pipe holds
_NAME: Final = "corral-exec"


def find_launcher(environment: Mapping[str, str] = os.environ) -> str:
    """Named by CORRAL_EXEC, else in PATH, else where packages put it. Raises LauncherMissing."""
    named = environment.get("CORRAL_EXEC", "")
    if named:
        if os.access(named, os.X_OK):
            return named
        raise LauncherMissing(f"CORRAL_EXEC={named} is no program; unset it, or name the built corral-exec")
    found = shutil.which(_NAME, path=environment.get("PATH"))
    if found:
        return found
    for place in _PLACES:
        candidate = Path(place, _NAME)
        if os.access(candidate, os.X_OK):
            return str(candidate)
    raise LauncherMissing(
        f"{_NAME} is not in PATH or {', '.join(_PLACES)}; install it (scripts/build-launcher builds it), or name it in "
        "CORRAL_EXEC"
    )


@dataclass(slots=True)
class Launch:
    """One start: ``argv`` and ``environment`` for the process, and the way back. ``controlled`` is False where there is
    no launcher and the caller accepts that (``fail="open"``)."""

    argv: list[str]
    environment: dict[str, str]
    controlled: bool
    read_fd: int = -1
    write_fd: int = -1
    told: bytearray = field(default_factory=bytearray)

    def started(self) -> None:
        """The process has its end of the pipe: ours would keep it open."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close(self) -> None:
        self.started()
        if self.read_fd >= 0:
            os.close(self.read_fd)
            self.read_fd = -1

    def outcome(self, returncode: int) -> Outcome:
        """Once the process has ended: all that it wrote is in the pipe, so this never blocks. Raises Refused,
        DaemonAway or LauncherFailed where the tool did not run."""
        if not self.controlled:
            return Outcome(state="uncontrolled")
        while self.read_fd >= 0 and len(self.told) <= _MOST:
            try:
                chunk = os.read(self.read_fd, _MOST)
            except BlockingIOError:  # a process that outlived its launcher still holds the other end
                break
            if not chunk:
                break
            self.told += chunk
        return parse_outcome(bytes(self.told), returncode)


@contextlib.contextmanager
def prepare(
    command: Sequence[Word],
    intent: Intent,
    *,
    session: Session | None,
    socket: Word | None,
    fail: Fail | None,
    environment: Mapping[str, str] | None,
) -> Iterator[Launch]:
    """Everything that a start needs; what was opened is closed when the block fails, and by ``close`` else."""
    if isinstance(command, (str, bytes)) or not command:
        raise TypeError(f"argv is {command!r}; give a list of words, for a shell ['bash', '-c', 'the command']")
    words = [os.fspath(word) for word in command]
    env = dict(os.environ if environment is None else environment)
    if session is not None:
        env.update(session.environment)
    if socket is not None:
        env["CORRAL_SOCKET"] = os.fspath(socket)
    try:
        launcher = find_launcher(env)
    except LauncherMissing:
        if fail != "open":
            raise
        env.pop("CORRAL_CALL", None)  # an outer call's id would be a lie
        yield Launch(words, env, controlled=False)
        return
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_fd, False)
    options = [f"--outcome-fd={write_fd}", *intent.options()]
    if fail is not None:
        options.append(f"--fail={fail}")
    launch = Launch([launcher, *options, "--", *words], env, True, read_fd, write_fd)
    try:
        yield launch
    except BaseException:
        launch.close()
        raise
    launch.started()
