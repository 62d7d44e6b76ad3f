"""scripts/demo: prepares, runs, reports, judges and cleans up.

Exit status 0: every check held; 1: one did not; 2: it could not run; 130: interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agentd.api.client import ApiError
from agentd.demo import agents, report, verdict
from agentd.demo.agents import SESSIONS, TENANTS
from agentd.demo.daemon import Operator, leaves, tenant_cpu
from agentd.demo.runner import Run, Runner, Session, credentials
from agentd.demo.watch import Display, Lines, LiveTable, follow
from agentd.demo.workloads import REPOSITORY, FileServer, WorkloadError, Workloads, prepare
from agentd.embedded import EmbeddedDaemon, EmbeddedError
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import format_duration, parse_size

LAUNCHER: Final = REPOSITORY / "agentd" / "launcher" / "corral-exec"
FIRST_UID: Final = 64_701  # a range that Debian leaves free; a process needs no account
AGENTS_WITHIN: Final = 180.0  # seconds for all agents together: some 15 on two free CPUs


class DemoFailed(Exception):
    """The demo cannot go on: names what failed, the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class Options:
    lines: bool
    observe: bool
    keep: bool


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Three tenants' agents under one daemon.")
    parser.add_argument("--lines", action="store_true", help="lines instead of the live table, also on a terminal")
    parser.add_argument("--observe", action="store_true", help="run as on a host where nothing can be enforced")
    parser.add_argument("--keep", action="store_true", help="keep the temporary directory (logs, ledger, outputs)")
    options = Options(**vars(parser.parse_args(arguments)))
    try:
        with asyncio.Runner() as runner:
            return runner.run(_interruptible(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("demo: interrupted; what it had started was ended and removed\n")
        return 130
    except (DemoFailed, WorkloadError, EmbeddedError, ApiError) as err:
        sys.stderr.write(f"demo: {err}\n")
        return 2


async def _interruptible(options: Options) -> int:
    """Runs the demo in a directory of its own, which is removed whatever happens. SIGTERM counts as Ctrl-C does."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
    directory = Path(tempfile.mkdtemp(prefix="corral-demo-"))
    try:
        return await Demo(options, directory).run()
    finally:
        if options.keep:
            sys.stderr.write(f"demo: kept {directory}\n")
        else:
            shutil.rmtree(directory, ignore_errors=True)


class Demo:
    """One run, in ``directory``."""

    def __init__(self, options: Options, directory: Path) -> None:
        self._options = options
        self._directory = directory
        self._terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._colour = self._terminal and "NO_COLOR" not in os.environ
        self._runs: list[Run] = []

    async def run(self) -> int:
        if not os.access(LAUNCHER, os.X_OK):
            raise DemoFailed(f"{LAUNCHER} is missing: scripts/setup builds it with gcc; see .cache/setup.log")
        self._directory.chmod(0o711)  # the agents run as other users, and go through it
        began = time.monotonic()
        uids = self._uids()
        owners = {session: uids[tenant] for tenant, session in SESSIONS}
        workloads = await asyncio.to_thread(prepare, self._directory, owners)
        _say(f"inputs made in {format_duration(time.monotonic() - began)}")
        daemon = EmbeddedDaemon(
            self._directory,
            tenants={name: {**table, **_uids_of(uids[name])} for name, table in TENANTS.items()},
            settings={
                "daemon": {"log_format": "text", "mode": "observe" if self._options.observe else "auto"},
                "call": {"hold_max": "3s"},
                "host": {"sample_interval": "250ms"},
            },
            label="corral-demo",
        )
        try:
            began = time.monotonic()
            await daemon.start()
            _say(f"agentd is ready after {format_duration(time.monotonic() - began)} (cgroup root {daemon.name})")
            findings, enforced = await self._under(daemon, workloads, uids)
        finally:
            # shielded: what was started is removed also when a second Ctrl-C comes
            problems = await asyncio.shield(_purge(daemon))
        return self._judge(replace(findings, left=(*findings.left, *problems)), enforced=enforced)

    async def _under(
        self, daemon: EmbeddedDaemon, workloads: Workloads, uids: Mapping[str, int | None]
    ) -> tuple[verdict.Findings, bool]:
        """All that needs the running daemon: the agents, the ledger's table, and what the kernel counted."""
        operator = Operator(daemon.operator_socket)
        try:
            host = (await operator.snapshot()).host
            enforced = host.mode != "observe"
            for text in host.missing:
                _say(f"this host cannot: {text}")
            if not enforced:
                _say("OBSERVE-ONLY: usage is seen, nothing is limited")
            sessions = [await operator.open_session(tenant, session, uids[tenant]) for tenant, session in SESSIONS]
            watching = asyncio.create_task(follow(operator.watch(), self._display()))
            try:
                refused = await self._agents(daemon, workloads, sessions, enforced=enforced)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            history = await operator.ended([session.id for session in sessions], len(self._runs))
            snapshot = await operator.snapshot()
            self._report(history, snapshot, {session.id: session.name for session in sessions}, enforced=enforced)
            cpu = tenant_cpu(daemon.name, snapshot) if enforced else {}
            left = await leaves(daemon.name) if enforced else []
            for session in sessions:
                await operator.close_session(session)
        finally:
            await operator.close()
        ceilings = {name: parse_size(size) for name, t in TENANTS.items() if (size := t.get("memory_max")) is not None}
        findings = verdict.Findings(
            records=verdict.match(self._runs, history.calls, history.decisions),
            tenant_cpu_usec=cpu,
            tenant_memory_max=ceilings,
            left=tuple(left),
            refused=refused,
        )
        return findings, enforced

    async def _agents(
        self, daemon: EmbeddedDaemon, workloads: Workloads, sessions: Sequence[Session], *, enforced: bool
    ) -> Run | None:
        """Runs all agents at once. Returns the call that must be refused where nothing can be enforced."""
        runner = Runner(launcher=LAUNCHER, socket=daemon.broker_socket, workloads=workloads)
        refused = None
        began = time.monotonic()
        with FileServer(workloads.directory) as server:
            cast = agents.cast(workloads, server.port, enforced=enforced)
            try:
                async with asyncio.timeout(AGENTS_WITHIN), asyncio.TaskGroup() as group:
                    pairs = zip(cast, sessions, strict=True)
                    tasks = [group.create_task(runner.run(agent, session)) for agent, session in pairs]
            except TimeoutError:
                raise DemoFailed(
                    f"the agents did not end within {AGENTS_WITHIN:g} s; agentd's log ends with:\n{daemon.log_tail()}"
                ) from None
        for task in tasks:
            self._runs += task.result()
        if not enforced:
            refused = await runner.execute(agents.refused_call(), sessions[0])
        _say(f"{len(self._runs)} calls of {len(cast)} agents in {format_duration(time.monotonic() - began)}")
        return refused

    def _display(self) -> Display:
        if self._terminal and not self._options.lines:
            return LiveTable(sys.stdout, screen=shutil.get_terminal_size((120, 40)), colour=self._colour)
        return Lines(sys.stdout)

    def _report(
        self, history: pb.HistoryResponse, snapshot: pb.SnapshotResponse, sessions: Mapping[str, str], *, enforced: bool
    ) -> None:
        _say("")
        _say("From the ledger:" if enforced else "From the ledger (observe-only: usage without limits):")
        lines = report.table(
            history.calls,
            history.decisions,
            tenants={tenant.id: tenant.name for tenant in snapshot.tenants},
            sessions=sessions,
            width=shutil.get_terminal_size((160, 40)).columns if self._terminal else None,
            colour=self._colour,
        )
        for line in lines:
            _say(line)
        told = report.explanations(history.calls)
        if told:
            _say("")
            _say("What the agents were told:")
            for text in told:
                _say(f"  {text}")

    def _judge(self, findings: verdict.Findings, *, enforced: bool) -> int:
        _say("")
        checks = verdict.judge(findings, enforced=enforced)
        for check in checks:
            mark, colour = ("✓", "32") if check.held else ("✗", "31")
            painted = f"\x1b[{colour}m{mark}\x1b[0m" if self._colour else mark
            _say(f"{painted} {check.name}: {check.detail}")
        failed = sum(not check.held for check in checks)
        _say(f"{len(checks) - failed} of {len(checks)} checks held" + ("" if enforced else " (observe-only)"))
        _say("not shown: corral budget, session attach, trace, tier, top --web; the gateway: docs/")
        return 1 if failed else 0

    def _uids(self) -> dict[str, int | None]:
        """A uid for each tenant's agents, where we may choose one and it can reach all that the calls need."""
        if os.geteuid() == 0:
            uids = {tenant: FIRST_UID + number for number, tenant in enumerate(TENANTS)}
            needs = [sys.executable, "-c", "import pytest, agentd.demo.datajob"]
            environment = {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
            try:
                tried = subprocess.run(
                    needs, check=False, cwd="/", env=environment, capture_output=True, **credentials(FIRST_UID)
                )
                if tried.returncode == 0 and (LAUNCHER.stat().st_mode & 0o001):
                    _say(f"agents run as users of their own ({', '.join(f'{t}: {uid}' for t, uid in uids.items())})")
                    return dict(uids)
            except PermissionError:
                pass
            _say("agents run as root: other users cannot reach this checkout or its Python")
        return dict.fromkeys(TENANTS)


def _uids_of(uid: int | None) -> dict[str, list[int]]:
    return {} if uid is None else {"uids": [uid]}


async def _purge(daemon: EmbeddedDaemon) -> list[str]:
    """Ends and removes all that belongs to the daemon; what it could not, in words."""
    try:
        await daemon.purge()
    except EmbeddedError as err:
        return [str(err)]
    return []


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
