"""Real daemons for tests: each in a process of its own, with a cgroup root and a pin directory that nobody else has.

async def test_something(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(tenants={"acme": {"memory_max": "512M"}})
    session = await daemon.open_session("acme")
    call = await daemon.launch(session, "/bin/sleep", "60", options=("--memory", "16M:32M"))
    await daemon.restart(kill=True)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from agentd.api.client import Client, connect
from agentd.demo.runner import credentials
from agentd.embedded import EmbeddedDaemon, EmbeddedError, Table, cgroup_mounts
from agentd.proto.corral.v1 import corral_pb2 as pb

REPOSITORY: Final = Path(__file__).resolve().parent.parent.parent
LAUNCHER: Final = REPOSITORY / "agentd" / "launcher" / "corral-exec"
HISTORY_WITHIN: Final = 15.0  # seconds


def missing_for_daemon() -> str:
    """Why no daemon can be tested here; empty when it can."""
    if not os.access(LAUNCHER, os.X_OK):
        return "corral-exec is not built: scripts/setup builds it with gcc"
    if not (REPOSITORY / "agentd" / "main.py").is_file():
        return "this checkout has no agentd/main.py"
    return ""


class Session:
    """An open session: ``environment`` makes launchers (and clients) part of it."""

    def __init__(self, reply: pb.OpenSessionResponse, socket: Path, uid: int) -> None:
        self.id: Final = reply.session.id
        self.tenant_id: Final = reply.session.tenant_id
        self.token: Final = reply.token
        self.uid: Final = uid
        self.environment: Final[dict[str, str]] = {
            "CORRAL_SOCKET": str(socket),
            "CORRAL_TOKEN": reply.token,
            "CORRAL_SESSION": reply.session.id,
        }


class DaemonUnderTest(EmbeddedDaemon):
    """One daemon with an operator's client and what tests do with both."""

    def __init__(
        self, directory: Path, *, tenants: Mapping[str, Table], settings: Mapping[str, Table] | None = None
    ) -> None:
        super().__init__(directory, tenants=tenants, settings=settings, label="corral-test")
        self.client: Client = connect(str(self.operator_socket))
        self._launched: list[asyncio.subprocess.Process] = []

    async def start(self, *, within: float = 120.0) -> None:
        """In an emulated guest on a busy machine the first start takes more than half a minute."""
        await super().start(within=within)

    async def open_session(self, tenant: str, name: str = "test", *, uid: int | None = None) -> Session:
        """A session whose processes run as ``uid`` (None: as the tests)."""
        uid = os.getuid() if uid is None else uid
        request = pb.OpenSessionRequest(tenant=tenant, name=name, uid=uid)
        return Session(await self.client.call(self.client.agent.OpenSession, request), self.broker_socket, uid)

    async def launch(
        self,
        session: Session,
        *command: str | Path,
        options: Sequence[str] = (),
        stdin: int = asyncio.subprocess.DEVNULL,
        stdout: int = asyncio.subprocess.PIPE,
        stderr: int = asyncio.subprocess.PIPE,
        environment: Mapping[str, str] | None = None,
    ) -> asyncio.subprocess.Process:
        """corral-exec with ``options``, in a process group of its own; killed at the end of the test if need be."""
        process = await asyncio.create_subprocess_exec(
            str(LAUNCHER),
            *options,
            "--",
            *(str(word) for word in command),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **session.environment, **(environment or {})},
            start_new_session=True,
            **credentials(None if session.uid == os.getuid() else session.uid),
        )
        self._launched.append(process)
        return process

    async def call(self, session: Session, *command: str | Path, options: Sequence[str] = ()) -> tuple[int, str, str]:
        """Launches and waits: exit status (negative: signal), stdout, stderr."""
        process = await self.launch(session, *command, options=options)
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")

    async def snapshot(self, *, with_ended: bool = False) -> pb.SnapshotResponse:
        return await self.client.call(self.client.operator.Snapshot, pb.SnapshotRequest(with_ended=with_ended))

    async def history(self, session: Session, *, ended: int = 0) -> pb.HistoryResponse:
        """The session's calls in the ledger, newest first, with decisions, once ``ended`` of them have an outcome."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + HISTORY_WITHIN
        request = pb.HistoryRequest(session_id=session.id, limit=10_000, with_decisions=True)
        while True:
            history = await self.client.call(self.client.operator.History, request)
            have = sum(call.HasField("outcome") for call in history.calls)
            if have >= ended:
                return history
            # the ledger is written in batches and tells nobody when: this is the one thing that has to be asked for
            assert loop.time() < deadline, f"{have} of {ended} ends in the ledger after {HISTORY_WITHIN:g} s"
            await asyncio.sleep(0.05)

    def groups(self, call: pb.Call) -> list[Path]:
        """The leaf's directories that exist, in every hierarchy."""
        return [path for mount in cgroup_mounts() if (path := mount / call.cgroup.lstrip("/")).is_dir()]

    async def restart(self, *, kill: bool = False) -> None:
        """Stops (or kills) the daemon and starts it again with the same configuration; calls go on running."""
        await (self.kill() if kill else self.stop())
        await self.start()

    async def close(self) -> None:
        """Ends all that was launched, then purges; raises PurgeFailed when something stays."""
        for process in self._launched:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        await asyncio.gather(*(process.wait() for process in self._launched))
        await self.client.close()
        await self.purge()


class DaemonFactory:
    """Makes daemons below one directory, and closes them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._daemons: list[DaemonUnderTest] = []

    def make(
        self, *, tenants: Mapping[str, Table] | None = None, settings: Mapping[str, Table] | None = None
    ) -> DaemonUnderTest:
        """A daemon that is not started yet. Without ``tenants``: one, called "acme"."""
        directory = self._directory / str(len(self._daemons))
        directory.mkdir()
        daemon = DaemonUnderTest(directory, tenants={"acme": {}} if tenants is None else tenants, settings=settings)
        self._daemons.append(daemon)
        return daemon

    async def start(
        self, *, tenants: Mapping[str, Table] | None = None, settings: Mapping[str, Table] | None = None
    ) -> DaemonUnderTest:
        daemon = self.make(tenants=tenants, settings=settings)
        await daemon.start()
        return daemon

    async def close(self) -> None:
        errors = []
        for daemon in self._daemons:
            try:
                await daemon.close()
            except EmbeddedError as err:
                errors.append(str(err))
        assert not errors, "\n".join(errors)
