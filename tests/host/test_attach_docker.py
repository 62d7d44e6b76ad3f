"""Containers as sessions, with a real Docker Engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from agentd.api.client import AlreadyThere, ApiError, BadRequest, NoSuchObject
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import WITHIN, hierarchies, one_daemon, soon
from tests.support.daemons import DaemonUnderTest
from tests.support.dockers import Docker, docker_engine, missing_for_docker

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]

# An agent as the first process of a container: it runs the line that appears in /command in a shell of its own.
AGENT = 'while true; do if [ -e /command ]; then read c </command; rm /command; sh -c "$c"; fi; sleep 0.05; done'


class Host:
    def __init__(self, daemon: DaemonUnderTest, docker: Docker) -> None:
        self.daemon = daemon
        self.docker = docker

    async def attach(self, *, rules: str = "", **selector: object) -> list[pb.Session]:
        request = pb.AttachRequest(tenant="acme", rules=rules, containers=pb.ContainerSelector(**selector))  # type: ignore[arg-type]
        return list((await self.daemon.client.call(self.daemon.client.operator.Attach, request)).sessions)

    async def calls(
        self, session: pb.Session, *, ended: bool, until: Callable[[list[pb.Call]], object]
    ) -> list[pb.Call]:
        """The session's calls that have ended, or live, once they are so; the oldest first."""
        calls: list[pb.Call] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHIN):
                while True:
                    snapshot = await self.daemon.snapshot(with_ended=True)
                    calls = sorted(
                        (c for c in snapshot.calls if c.session_id == session.id and c.HasField("outcome") is ended),
                        key=lambda c: c.begun_at,
                    )
                    if until(calls):
                        return calls
                    await asyncio.sleep(0.02)
        pytest.fail(f"never so: {[(c.command, c.outcome.reason) for c in calls]}; {self.daemon.log_tail()}")

    async def open_sessions(self, until: Callable[[dict[str, pb.Session]], object]) -> dict[str, pb.Session]:
        """By the container's name."""
        sessions: dict[str, pb.Session] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHIN):
                while True:
                    sessions = {s.name: s for s in (await self.daemon.snapshot()).sessions}
                    if until(sessions):
                        return sessions
                    await asyncio.sleep(0.02)
        pytest.fail(f"never so: {sorted(sessions)}; {self.daemon.log_tail()}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[Host]:
    missing = missing_for_docker()
    if missing:
        pytest.skip(missing)
    directory = Path(tempfile.mkdtemp(prefix="corral-docker-", dir="/tmp"))
    try:
        async with docker_engine(directory) as docker:
            settings = {"attach": {"docker": docker.url}}
            async with one_daemon(tenants={"acme": {}}, settings=settings) as daemon:
                yield Host(daemon, docker)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def test_what_docker_exec_starts_is_a_call(host: Host) -> None:
    container = await host.docker.run("exec", "sleep", "1000")
    [session] = await host.attach(name="exec")
    assert (session.container, session.name, session.rules) == (container, "exec", "generic")
    assert await host.docker.status("exec", "exec", "sh", "-c", "sleep 0.2; exit 3") == (3, "")
    [call] = await host.calls(session, ended=True, until=len)
    assert call.command == "sh -c sleep 0.2; exit 3"
    assert (call.outcome.wait_status, call.recognition.rule) == (3 << 8, "generic/shell")
    waiting = await host.docker.start("exec", "exec", "sleep", "1000")
    [live] = await host.calls(session, ended=False, until=len)
    [pid] = (host.daemon.groups(live)[0] / "cgroup.procs").read_text().split()
    assert hierarchies(pid)[""].endswith(live.cgroup)
    # the container's first process stays where docker put it, and another exec still finds its way in
    assert "corral-test" not in str(hierarchies(await host.docker("inspect", "-f", "{{.State.Pid}}", "exec")))
    assert (await host.docker.status("exec", "exec", "true"))[0] == 0
    await host.daemon.client.call(host.daemon.client.operator.Kill, pb.KillRequest(target=live.id))
    await waiting.communicate()
    assert waiting.returncode == 137
    await host.docker("rm", "--force", "exec")


async def test_what_the_agent_inside_starts_is_a_call(host: Host) -> None:
    await host.docker.run("inside", "sh", "-c", AGENT)
    [session] = await host.attach(name="inside", rules="claude-code")
    root = Path(f"/proc/{await host.docker('inspect', '-f', '{{.State.Pid}}', 'inside')}/root")
    (root / "command.new").write_text("sleep 0.1; exit 4\n")
    (root / "command.new").rename(root / "command")
    [call] = await host.calls(session, ended=True, until=len)
    assert (call.command, call.outcome.wait_status) == ("sh -c sleep 0.1; exit 4", 4 << 8)
    assert call.recognition.rule == "claude-code/bash-tool"
    await host.docker("rm", "--force", "inside")


async def test_calls_stay_below_the_containers_ceiling(host: Host) -> None:
    await host.docker.run("small", "sleep", "1000", options=("--memory=48m", "--pids-limit=30"))
    [session] = await host.attach(name="small")
    status, _ = await host.docker.status("exec", "small", "sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1")
    assert status != 0
    [call] = await host.calls(session, ended=True, until=len)
    assert call.outcome.reason == "oom_tenant"
    assert call.usage.memory_peak_bytes <= 49 << 20  # the kernel charges in batches
    await host.docker("update", "--memory=300m", "--memory-swap=300m", "small")
    group = next(p for m in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup") if (p := Path(m, host.daemon.name)).is_dir())
    group = group / session.tenant_id / session.id

    def limit() -> bool:
        file = next(f for n in ("memory.limit_in_bytes", "memory.max") if (f := group / n).exists())
        return file.read_text().strip() == str(300 << 20)

    await soon("the new limit", limit)
    await host.docker("rm", "--force", "small")


def a_device() -> tuple[str, int, int] | None:
    """One that root may open on this host, without a capability being asked for, and Docker's containers may not."""
    for name in ("fuse", "loop-control", *(path.name for path in Path("/sys/block").iterdir())):
        path = Path("/dev") / name
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        except OSError:
            continue
        mode, number = path.stat().st_mode, path.stat().st_rdev
        return "b" if stat.S_ISBLK(mode) else "c", os.major(number), os.minor(number)
    return None


async def test_a_call_opens_no_device_that_its_container_may_not(host: Host) -> None:
    """The container may make nodes (CAP_MKNOD), but not open them: that holds in the leaf, too."""
    device = a_device()
    if device is None:
        pytest.skip("this host has no device that could be opened")
    kind, major, minor = device
    await host.docker.run("devices", "sleep", "1000")
    [session] = await host.attach(name="devices")
    script = f"mknod /node {kind} {major} {minor}; while [ ! -e /go ]; do sleep 0.05; done; exec 3</node && echo opened"
    tool = await host.docker.start("exec", "devices", "sh", "-c", script)
    [call] = await host.calls(session, ended=False, until=lambda calls: calls and calls[0].recognition.seconds_before)
    [pid, *_] = (host.daemon.groups(call)[0] / "cgroup.procs").read_text().split()
    Path(f"/proc/{pid}/root/go").touch()
    out, _ = await tool.communicate()
    assert b"Operation not permitted" in out
    assert b"opened" not in out
    await host.docker("rm", "--force", "devices")


async def test_pause_and_stop_reach_the_calls(host: Host) -> None:
    await host.docker.run("paused", "sleep", "1000")
    [session] = await host.attach(name="paused")
    tool = await host.docker.start("exec", "paused", "sleep", "1000")
    await host.calls(session, ended=False, until=len)
    await host.docker("pause", "paused")
    await host.calls(session, ended=False, until=lambda calls: calls[0].state == pb.CALL_STATE_FROZEN)
    await host.docker("unpause", "paused")
    await host.calls(session, ended=False, until=lambda calls: calls[0].state == pb.CALL_STATE_RUNNING)
    await host.docker("stop", "--time=0", "paused")
    [call] = await host.calls(session, ended=True, until=len)
    assert call.outcome.wait_status == 9
    await host.open_sessions(lambda sessions: "paused" not in sessions)
    await tool.communicate()
    await host.docker("rm", "--force", "paused")


async def test_containers_are_found_by_label_and_followed(host: Host) -> None:
    await host.docker.run(
        "one", "sleep", "1000", options=("--label=role=agent", "--label=com.docker.compose.project=p")
    )
    await host.docker.run("other", "sleep", "1000", options=("--label=role=web",))
    [one] = await host.attach(labels=["role=agent"], compose_project="p", follow=True)
    assert one.name == "one"
    options = ("--label=role=agent", "--label=com.docker.compose.project=p")
    await host.docker.run("two", "sleep", "1000", options=options)
    await host.open_sessions(lambda sessions: "two" in sessions)
    # a restarted daemon goes on with those that it had, and follows those that start
    await host.daemon.restart(kill=True)
    await host.open_sessions(lambda sessions: {"one", "two"} <= sessions.keys())
    await host.docker.run("three", "sleep", "1000", options=options)
    sessions = await host.open_sessions(lambda sessions: "three" in sessions)
    assert "other" not in sessions
    assert sessions["one"].id == one.id
    assert (await host.docker.status("exec", "one", "sh", "-c", "sleep 0.1; exit 2"))[0] == 2
    [call] = await host.calls(one, ended=True, until=len)
    assert call.outcome.wait_status == 2 << 8
    reply = await host.daemon.client.call(host.daemon.client.operator.Detach, pb.DetachRequest(target="three"))
    assert list(reply.session_ids) == [sessions["three"].id]
    detach = pb.DetachRequest(target="role=agent")
    assert not (await host.daemon.client.call(host.daemon.client.operator.Detach, detach)).session_ids
    with pytest.raises(NoSuchObject):
        await host.daemon.client.call(host.daemon.client.operator.Detach, detach)
    await host.docker("rm", "--force", "one", "two", "three", "other")
    await host.open_sessions(lambda sessions: not sessions)


async def test_what_cannot_be_attached_is_said(host: Host) -> None:
    with pytest.raises(NoSuchObject, match="no running container matches"):
        await host.attach(name="no-such")
    await host.docker.run("twice", "sleep", "1000")
    await host.attach(name="twice")
    with pytest.raises(AlreadyThere, match="is a session already"):
        await host.attach(name="twice")
    with pytest.raises(ApiError, match="no set of rules"):
        await host.attach(name="twice", rules="none")
    with pytest.raises(NoSuchObject, match="no attached session or container"):
        await host.daemon.client.call(host.daemon.client.operator.Detach, pb.DetachRequest(target="nothing"))
    pid = int(await host.docker("inspect", "-f", "{{.State.Pid}}", "twice"))
    with pytest.raises(BadRequest, match="is in a container of its own"):
        await host.daemon.client.call(host.daemon.client.operator.Attach, pb.AttachRequest(tenant="acme", pid=pid))
    await host.docker("rm", "--force", "twice")
