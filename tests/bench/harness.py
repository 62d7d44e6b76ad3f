"""What every benchmark needs: a directory, C programs, a daemon of its own with a session, and launchers.

BenchError   the benchmark cannot run: names what, the cause and the remedy
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentd.api.client import Client, connect
from agentd.embedded import EmbeddedDaemon, PurgeFailed, Table, cgroup_mounts
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.bench.result import REPOSITORY

LAUNCHER: Final = REPOSITORY / "agentd" / "launcher" / "corral-exec"
SOURCES: Final = Path(__file__).resolve().parent
TENANT: Final = "bench"
STEP_WITHIN: Final = 120.0  # seconds for one program to answer: beyond it something hangs


class BenchError(Exception):
    """Names what cannot be measured, the cause and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """``directory`` is the benchmark's own and on a disk; ``runs`` None: the benchmark's default."""

    directory: Path
    quick: bool
    runs: int | None = None

    def count(self, *, full: int, quick: int) -> int:
        """How often each cell is run."""
        if self.runs is not None:
            return self.runs
        return quick if self.quick else full

    def say(self, text: str) -> None:
        """Progress, on stderr."""
        sys.stderr.write(f"bench: {text}\n")
        sys.stderr.flush()

    def compile(self, name: str) -> Path:
        """``name``.c of this directory as a static program: no dynamic loader blurs its start. Raises BenchError."""
        target = self.directory / name
        if target.exists():
            return target
        command = ["gcc", "-O2", "-std=gnu11", "-static", "-o", str(target), str(SOURCES / f"{name}.c")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as err:
            raise BenchError(f"gcc cannot be started ({err.strerror}): apt-get install gcc libc6-dev") from err
        if done.returncode:
            raise BenchError(f"{name}.c does not compile: {done.stderr.strip()[-800:]}")
        return target


class Corral:
    """A running daemon with one tenant and one open session."""

    def __init__(self, daemon: EmbeddedDaemon, client: Client, session: pb.OpenSessionResponse, mode: str) -> None:
        self.daemon: Final = daemon
        self.client: Final = client
        self.session_id: Final = session.session.id
        self.mode: Final = mode
        self.environment: Final[dict[str, str]] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CORRAL_")},
            "CORRAL_SOCKET": str(daemon.broker_socket),
            "CORRAL_TOKEN": session.token,
        }

    def launch(self, *command: str | Path, options: Sequence[str] = ()) -> list[str]:
        """The words that start ``command`` as a call; the environment must be ``environment``."""
        return [str(LAUNCHER), "--quiet", *options, "--", *(str(word) for word in command)]

    async def start(
        self, *command: str | Path, options: Sequence[str] = (), stderr: int | None = None
    ) -> asyncio.subprocess.Process:
        """A call in the background, with pipes for stdin and stdout."""
        return await start(self.launch(*command, options=options), environment=self.environment, stderr=stderr)

    async def snapshot(self) -> pb.SnapshotResponse:
        return await self.client.call(self.client.operator.Snapshot, pb.SnapshotRequest())

    async def outcome(self, call_id: str) -> pb.Outcome:
        """Of a call whose launcher has ended: a moment later it is known. Raises BenchError, ApiError."""
        from agentd.api.client import WrongMoment

        loop = asyncio.get_running_loop()
        deadline = loop.time() + 10
        while True:
            try:
                request = pb.GetOutcomeRequest(call_id=call_id)
                return (await self.client.call(self.client.agent.GetOutcome, request)).outcome
            except WrongMoment as err:
                # left-over processes get a moment before a call has its outcome
                if loop.time() > deadline:
                    raise BenchError(f"call {call_id} has no outcome 10 s after its launcher ended: {err}") from err
            await asyncio.sleep(0.01)

    async def group(self, call_id: str) -> list[Path]:
        """The leaf's directories in all hierarchies."""
        for call in (await self.snapshot()).calls:
            if call.id == call_id:
                return [path for mount in cgroup_mounts() if (path := mount / call.cgroup.lstrip("/")).is_dir()]
        raise BenchError(
            f"call {call_id} is not among the live ones; agentd's log ends with:\n{self.daemon.log_tail()}"
        )

    async def kill(self, target: str) -> None:
        await self.client.call(self.client.operator.Kill, pb.KillRequest(target=target))


@contextlib.asynccontextmanager
async def corral(
    context: Context,
    *,
    settings: Mapping[str, Table] | None = None,
    tenant: Table | None = None,
    others: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Corral]:
    """A daemon of its own, ready, with a session; purged at the end, whatever happens. ``others``: further tenants.
    Raises EmbeddedError."""
    if not os.access(LAUNCHER, os.X_OK):
        raise BenchError("corral-exec is not built: scripts/setup builds it with gcc; see .cache/setup.log")
    directory = context.directory / f"d{len(list(context.directory.glob('d*')))}"
    directory.mkdir()
    daemon = EmbeddedDaemon(
        directory,
        tenants={TENANT: tenant or {}, **{name: {} for name in others}},
        settings={"daemon": {"log_format": "text"}, **(settings or {})},
        label="corral-bench",
    )
    daemon.environment |= environment or {}
    try:
        await daemon.start(within=STEP_WITHIN)  # an emulated guest on a busy machine takes more than half a minute
        async with connect(str(daemon.operator_socket)) as client:
            request = pb.OpenSessionRequest(tenant=TENANT, name="bench", uid=os.getuid())
            session = await client.call(client.agent.OpenSession, request)
            host = (await client.call(client.operator.Snapshot, pb.SnapshotRequest())).host
            yield Corral(daemon, client, session, host.mode)
    finally:
        try:
            await asyncio.shield(daemon.purge())
        except PurgeFailed as err:
            # the figures stand; what stayed behind is removed by force, and is said
            context.say(str(err))


async def start(
    command: Sequence[str], *, environment: Mapping[str, str], cwd: Path | None = None, stderr: int | None = None
) -> asyncio.subprocess.Process:
    """In a process group of its own: a Ctrl-C is for the benchmark, which then ends its calls in order."""
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        env=environment,
        cwd=cwd,
        start_new_session=True,
        limit=1 << 24,
    )


async def run(
    command: Sequence[str], *, environment: Mapping[str, str], cwd: Path | None = None, within: float = STEP_WITHIN
) -> str:
    """What ``command`` wrote on stdout. BenchError when it fails or takes more than ``within`` seconds."""
    process = await start(command, environment=environment, cwd=cwd)
    try:
        out, _ = await asyncio.wait_for(process.communicate(), within)
    except TimeoutError:
        raise BenchError(f"{' '.join(command[:6])} ... did not end within {within:g} s") from None
    finally:
        await ended(process)
    if process.returncode != 0:
        words = out.decode("utf-8", "replace").strip()[-400:]
        raise BenchError(f"{' '.join(command[:8])} ... ended with status {process.returncode}: {words}")
    return out.decode("utf-8", "replace")


async def line_of(process: asyncio.subprocess.Process, within: float = STEP_WITHIN) -> str:
    """The next line of its stdout; BenchError when it ends or stays silent."""
    if process.stdout is None:
        raise BenchError("the program was started without a pipe for its output")
    try:
        line = await asyncio.wait_for(process.stdout.readline(), within)
    except TimeoutError:
        raise BenchError(f"process {process.pid} said nothing for {within:g} s") from None
    if not line.endswith(b"\n"):
        raise BenchError(f"process {process.pid} ended early, with status {await process.wait()}")
    return line.decode("utf-8", "replace").rstrip("\n")


async def tell(process: asyncio.subprocess.Process, text: str = "go") -> None:
    if process.stdin is None:
        raise BenchError("the program was started without a pipe for its input")
    process.stdin.write(f"{text}\n".encode())
    await process.stdin.drain()


async def ended(process: asyncio.subprocess.Process) -> None:
    """Kills it if it still runs, and waits. A killed launcher's call is cancelled by the daemon."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()


def first_file(groups: Sequence[Path], *names: str) -> Path:
    """The first of ``names`` that exists in any of the directories. BenchError when there is none."""
    for name in names:
        for group in groups:
            if (group / name).is_file():
                return group / name
    raise BenchError(f"none of {', '.join(names)} exists in {', '.join(map(str, groups)) or 'no directory'}")


MEMORY_NOW: Final = ("memory.current", "memory.usage_in_bytes")
MEMORY_PEAK: Final = ("memory.peak", "memory.max_usage_in_bytes")
