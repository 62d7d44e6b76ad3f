"""A daemon of one's own: started for a demonstration, a benchmark or a test, and removed without a trace.

It is the real ``python -m agentd.main`` in a process of its own. What sets it apart from the host's daemon is its
configuration: state and sockets in a directory given by the caller, a cgroup root and a BPF pin directory that nobody
else has.

EmbeddedError
 ├─ StartFailed    the daemon ended, or was not ready in time; carries the last lines of its log
 └─ PurgeFailed    something of it could not be removed; says what
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

Scalar = str | int | float | bool | Sequence[str] | Sequence[int]
Table = Mapping[str, "Scalar | Table"]

LOG_TAIL: Final = 12  # lines of the daemon's log in an error
REPOSITORY: Final = Path(__file__).resolve().parent.parent


class EmbeddedError(Exception):
    """Base of all: the message names the daemon's log, the cause and the remedy."""


class StartFailed(EmbeddedError):
    pass


class PurgeFailed(EmbeddedError):
    pass


def to_toml(table: Table, prefix: str = "") -> str:
    """A configuration as TOML text. JSON's strings, numbers, booleans and arrays of those are TOML's, too."""
    lines, tables = [], []
    for key, value in table.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{key}"
            tables.append(f"\n[{name}]\n{to_toml(value, f'{name}.')}")
        else:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=True)}\n")
    return "".join(lines + tables)


class EmbeddedDaemon:
    """One daemon and everything that belongs to it, below ``directory`` (which the caller makes and removes).

    ``tenants`` and ``settings`` go into the configuration as they are (docs/configuration.md); ``settings`` may
    override every table. Sockets live in ``directory``: keep its path below 60 characters (a socket's path has at
    most 107).
    """

    def __init__(
        self,
        directory: Path,
        *,
        tenants: Mapping[str, Table],
        settings: Mapping[str, Table] | None = None,
        label: str = "corral-embedded",
        python: str = sys.executable,
    ) -> None:
        self.directory = directory
        self.name: Final = f"{label}-{os.getpid()}-{secrets.token_hex(3)}"
        self.runtime_dir: Final = directory / "run"
        self.state_dir: Final = directory / "state"
        self.broker_socket: Final = self.runtime_dir / "broker.sock"
        self.operator_socket: Final = self.runtime_dir / "operator.sock"
        self.pin_dir: Final = Path("/sys/fs/bpf") / self.name
        self.config_file: Final = directory / "agentd.toml"
        self.log_file: Final = directory / "agentd.log"
        self.environment: dict[str, str] = {}  # more of it, for the daemon alone
        self._python = python
        self._process: asyncio.subprocess.Process | None = None
        self._notify: socket.socket | None = None  # open as long as the daemon runs: it goes on telling its state
        self._was_ready = False
        for made in (self.runtime_dir, self.state_dir):
            made.mkdir(parents=True, exist_ok=True)
        configuration: dict[str, Table] = {
            "daemon": {"state_dir": str(self.state_dir), "runtime_dir": str(self.runtime_dir)},
            "cgroup": {"root": self.name},
            "bpf": {"pin_dir": str(self.pin_dir)},
            "api": {"operator_group": _own_group()},
            "tenants": tenants,
        }
        for key, table in (settings or {}).items():
            configuration[key] = {**configuration.get(key, {}), **table}
        self.config_file.write_text(to_toml(configuration), encoding="utf-8")

    @property
    def operator_target(self) -> str:
        """For ``grpc.aio.insecure_channel``."""
        return f"unix:{self.operator_socket}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise EmbeddedError(f"daemon {self.name} is not running; start() it first")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, *, within: float = 30.0) -> None:
        """Starts the daemon and returns once it says READY=1 (sd_notify). ``within`` seconds, or StartFailed."""
        if self.running:
            raise EmbeddedError(f"daemon {self.name} runs already (pid {self.pid}); stop() it first")
        address = self.directory / "notify.sock"
        address.unlink(missing_ok=True)
        self._notify = notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            notify.bind(str(address))
            notify.setblocking(False)
            self._process = await self._spawn(address)
        except BaseException:
            self._close_notify()
            raise
        ended = asyncio.ensure_future(self._process.wait())
        ready = asyncio.ensure_future(_ready(notify))
        try:
            await asyncio.wait((ended, ready), timeout=within, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and ready.exception() is None:
                self._was_ready = True
                return
            what = f"ended with status {ended.result()}" if ended.done() else f"was not ready within {within:g} s"
        finally:
            for task in (ended, ready):
                task.cancel()
            await asyncio.gather(ended, ready, return_exceptions=True)
        await self.kill()
        raise StartFailed(f"agentd {self.name} {what}; its log {self.log_file} ends with:\n{self.log_tail()}")

    async def _spawn(self, notify: Path) -> asyncio.subprocess.Process:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CORRAL_") and k != "JOURNAL_STREAM"}
        environment |= {"NOTIFY_SOCKET": str(notify), "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"}
        environment |= self.environment
        with self.log_file.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                self._python,
                "-m",
                "agentd.main",
                "--config",
                str(self.config_file),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.directory,
                start_new_session=True,  # a Ctrl-C is for the caller, who then stops it in order
            )

    async def stop(self, *, within: float = 20.0) -> int:
        """SIGTERM: the daemon ends, calls go on running. Its exit status; it is killed after ``within`` seconds."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(asyncio.shield(self._process.wait()), within)
            except TimeoutError:
                return await self.kill()
        self._close_notify()
        return await self._process.wait()

    def _close_notify(self) -> None:
        if self._notify is not None:
            self._notify.close()
            self._notify = None

    async def kill(self) -> int:
        """SIGKILL, as a crash would. Its exit status (-9, unless it had ended before)."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        status = await self._process.wait()
        self._close_notify()
        return status

    async def purge(self, *, within: float = 30.0) -> None:
        """Ends the daemon and all of its calls, and removes its cgroups and pins; checks that nothing is left."""
        await self.stop()
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"}
        with self.log_file.open("ab") as log:
            purge = await asyncio.create_subprocess_exec(
                self._python,
                "-m",
                "agentd.main",
                "--config",
                str(self.config_file),
                "--purge",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.directory,
                start_new_session=True,
            )
            try:
                status = await asyncio.wait_for(purge.wait(), within)
            except TimeoutError:
                purge.kill()
                await purge.wait()
                status = None
        left = await self._settled()
        # a daemon that never came up (its configuration may be wrong) has nothing to purge, and need not be able to
        if left or (status != 0 and self._was_ready):
            await self._scrub()
            state = f"did not end within {within:g} s" if status is None else f"ended with status {status}"
            raise PurgeFailed(
                f"agentd --purge of {self.name} {state}; left behind, and then removed by force: "
                f"{', '.join(left) or 'nothing'}; the log {self.log_file} ends with:\n{self.log_tail()}"
            )

    async def _settled(self, *, within: float = 8.0) -> list[str]:
        """What is left once launchers, whose calls and daemon are gone, had time to notice and to end."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        while True:
            left = self.leftovers()
            if not left or loop.time() > deadline:
                return left
            await asyncio.sleep(0.1)

    async def _scrub(self) -> None:
        """Removes by the kernel's own means what a daemon left that could not purge itself. As far as that goes."""
        groups = [group for mount in cgroup_mounts() if (group := mount / self.name).is_dir()]
        for pid, _ in processes_with(f"CORRAL_SOCKET={self.broker_socket}"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for group in groups:
            kill_group(group)
        for _ in range(50):  # a killed process leaves its group a moment later, and no event says so on v1
            for group in groups:
                for directory, _, _ in os.walk(group, topdown=False):
                    with contextlib.suppress(OSError):
                        Path(directory).rmdir()
            if not any(group.is_dir() for group in groups):
                break
            await asyncio.sleep(0.1)
        shutil.rmtree(self.pin_dir, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """Cgroup directories, processes and pins that belong to this daemon and still exist."""
        found = [str(path) for mount in cgroup_mounts() if (path := mount / self.name).is_dir()]
        if self.pin_dir.is_dir():
            found.append(str(self.pin_dir))
        found += [f"process {pid} ({name})" for pid, name in processes_with(f"CORRAL_SOCKET={self.broker_socket}")]
        return found

    def log_tail(self) -> str:
        try:
            lines = self.log_file.read_text("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return "  (no log)"
        return "\n".join(f"  | {line}" for line in lines[-LOG_TAIL:]) or "  (empty)"


def _own_group() -> str:
    """The group of the operator's socket: the caller's, as the host may have none for operators."""
    try:
        return grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        return ""


async def _ready(notify: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        message = await loop.sock_recv(notify, 4096)
        if b"READY=1" in message.split(b"\n"):
            return


def cgroup_mounts() -> list[Path]:
    """Where cgroup hierarchies of either version are mounted: v2 first."""
    mounts: dict[str, list[Path]] = {"cgroup2": [], "cgroup": []}
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        left, _, right = line.partition(" - ")
        kind = right.split(" ", 1)[0]
        if kind in mounts:
            # octal escapes of blanks in a path, see proc_pid_mountinfo(5)
            mounts[kind].append(Path(left.split(" ")[4].encode().decode("unicode_escape")))
    return mounts["cgroup2"] + mounts["cgroup"]


def kill_group(group: Path) -> None:
    """SIGKILL to all below ``group``, where it is a v2 group; nothing elsewhere (v1 has no such file)."""
    with contextlib.suppress(OSError):
        # without O_CREAT: a file must not appear where the kernel made none
        descriptor = os.open(group / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"1")
        finally:
            os.close(descriptor)


def processes_with(assignment: str) -> list[tuple[int, str]]:
    """Processes whose initial environment holds ``NAME=value``, with their names; only those that we may look at."""
    needle, found = assignment.encode(), []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        # a process may end, or be another user's, while we look
        with contextlib.suppress(OSError):
            if needle in (directory / "environ").read_bytes().split(b"\0"):
                found.append((int(directory.name), (directory / "comm").read_text("utf-8", "replace").strip()))
    return found
