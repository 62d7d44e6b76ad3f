"""What tests of the launcher share: the program, a broker in this process, and a shell on a terminal of its own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import subprocess
import termios
from pathlib import Path

from agentd.broker import Broker
from tests.unit.broker_handler import Recorder

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "agentd" / "launcher" / "corral-exec"
BOUND = 30.0  # seconds after which a wait is a failure, not slowness


def build() -> None:
    """Build the launcher unless what is there is newer than its sources."""
    sources = [*LAUNCHER.parent.glob("*.[ch]"), ROOT / "scripts" / "build-launcher"]
    if not LAUNCHER.exists() or LAUNCHER.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        subprocess.run([ROOT / "scripts" / "build-launcher"], check=True)


class Bench:
    """A broker on a socket of its own; starts launchers that find it, and ends those that a failed test left."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "broker.sock"
        self.handler = Recorder()
        self.broker: Broker | None = None
        self._started: list[asyncio.subprocess.Process] = []

    async def serve(self, handler: Recorder | None = None) -> Recorder:
        self.handler = handler or Recorder()
        self.broker = Broker(self.path, self.handler)
        await self.broker.start()
        return self.handler

    async def stop_serving(self) -> None:
        if self.broker is not None:
            await self.broker.close()
            self.broker = None

    def environment(self, **extra: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CORRAL_")}
        return {**clean, "CORRAL_SOCKET": str(self.path), **extra}

    async def start(
        self,
        *arguments: str,
        program: tuple[str, ...] = (str(LAUNCHER),),
        merge: bool = False,
        env: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        cwd: Path | None = None,
    ) -> asyncio.subprocess.Process:
        """In a session of its own, so that signals to its group reach nobody else."""
        process = await asyncio.create_subprocess_exec(
            *program,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if merge else asyncio.subprocess.PIPE,
            env=self.environment(**(env or {})),
            start_new_session=True,
            pass_fds=pass_fds,
            cwd=cwd,
        )
        self._started.append(process)
        return process

    async def run(
        self, *arguments: str, stdin: bytes = b"", merge: bool = False, env: dict[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Exit status (negative: the signal), stdout, stderr."""
        process = await self.start(*arguments, merge=merge, env=env)
        async with asyncio.timeout(BOUND):
            out, err = await process.communicate(stdin)
        assert process.returncode is not None
        return process.returncode, out.decode(), (err or b"").decode()

    async def close(self) -> None:
        for process in self._started:
            # the whole session: a launcher that was killed leaves its command behind
            for pid in members(process.pid):
                os.kill(pid, signal.SIGKILL)
            # to the end of its pipes, not only of the process: else their transports outlive the loop
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    await stream.read()
            if process.stdin is not None:
                process.stdin.close()
            await process.wait()
        await self.stop_serving()


def stat_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat from its state on (state, ppid, pgrp, session, ...); None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def members(session: int) -> list[int]:
    found = []
    for pid in processes():
        fields = stat_fields(pid)
        if fields is not None and int(fields[3]) == session and fields[0] != "Z":
            found.append(pid)
    return found


def child_of(pid: int) -> int:
    children = [other for other in processes() if (fields := stat_fields(other)) is not None and int(fields[1]) == pid]
    assert len(children) == 1, children
    return children[0]


async def in_state(pid: int, state: str) -> None:
    """Wait until the process is in that state ("T": stopped); the kernel offers a non-parent no event for it."""
    async with asyncio.timeout(BOUND):
        while (fields := stat_fields(pid)) is None or fields[0] != state:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)


async def handled(pid: int, number: signal.Signals) -> None:
    """Wait until no such signal is pending in the process: it has taken what it was sent."""
    async with asyncio.timeout(BOUND):
        while signal_bits(pid, "ShdPnd") >> (number - 1) & 1:  # noqa: ASYNC110 - as in in_state
            await asyncio.sleep(0.005)


def signal_bits(pid: int, name: str) -> int:
    match = re.search(rf"^{name}:\t([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None, name
    return int(match[1], 16)


def _take_terminal() -> None:
    """In the child: standard input becomes the controlling terminal of a session of its own."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """An interactive bash on a pseudo terminal, as a person has it: job control on."""

    PROMPT = "corral-test> "

    def __init__(self, bench: Bench, directory: Path) -> None:
        self._master, slave = os.openpty()
        os.set_blocking(self._master, False)
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO  # what is typed would be found in what is read
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self._seen = ""
        self._readable = asyncio.Event()
        self.shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "--noediting", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=bench.environment(PS1=self.PROMPT, HOME=str(directory), HISTFILE="", TERM="dumb"),
            preexec_fn=_take_terminal,  # noqa: PLW1509 - no threads use it
        )
        os.close(slave)
        asyncio.get_running_loop().add_reader(self._master, self._readable.set)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    async def until(self, text: str) -> str:
        """Read until ``text``; what came before it."""
        async with asyncio.timeout(BOUND):
            while text not in self._seen:
                await self._readable.wait()
                self._readable.clear()
                try:
                    self._seen += os.read(self._master, 65_536).decode(errors="replace")
                except BlockingIOError:
                    continue
        before, _, self._seen = self._seen.partition(text)
        return before

    async def command(self, text: str) -> str:
        """Run a line; its output, once the prompt is back."""
        self.type(text + "\n")
        return await self.until(self.PROMPT)

    async def close(self) -> None:
        for pid in members(self.shell.pid):
            os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(self.shell.wait)
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)
