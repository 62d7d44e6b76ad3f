"""The CPU scheduler under a real daemon, on a kernel that can load it: weights, and every way in which it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from agentd.proto.corral.v1 import corral_pb2 as pb
from bpf import sched
from tests.host.daemon_tools import one_daemon
from tests.support.daemons import DaemonUnderTest, Session

WITHIN = 120.0  # seconds: the guest is emulated
SPIN = "while :; do :; done & while :; do :; done"
SYSRQ = Path("/proc/sysrq-trigger")

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(sched.unavailable()), reason=f"no CPU scheduler: {sched.unavailable()}"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[DaemonUnderTest]:
    async with one_daemon(tenants={"acme": {}, "beta": {}}, settings={"sched": {"mode": "auto"}}) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def daemon(shared: DaemonUnderTest) -> AsyncIterator[DaemonUnderTest]:
    await in_force(shared)
    yield shared
    for session in (await shared.snapshot()).sessions:
        await shared.client.call(shared.client.operator.Kill, pb.KillRequest(target=session.id))


async def until(holds: Callable[[], bool], what: str) -> None:
    """sysfs tells nobody when it changes, so it is asked."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WITHIN
    while not holds():
        assert loop.time() < deadline, f"{what}: not within {WITHIN:g} s"
        await asyncio.sleep(0.2)


async def in_force(daemon: DaemonUnderTest) -> None:
    try:
        await until(lambda: sched.running() == "corral", "the scheduler is in force")
    except AssertionError as err:
        raise AssertionError(f"{err}; missing:\n{await missing(daemon)}\nlog:\n{daemon.log_tail()}") from err


async def missing(daemon: DaemonUnderTest) -> str:
    return "\n".join((await daemon.snapshot()).host.missing)


async def until_told(daemon: DaemonUnderTest, text: str, *, told: bool = True) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WITHIN
    while (text in (seen := await missing(daemon))) is not told:
        assert loop.time() < deadline, f"{text!r}, told: {not told}, after {WITHIN:g} s: {seen!r}"
        await asyncio.sleep(0.2)


async def spin(daemon: DaemonUnderTest, session: Session, *options: str) -> Path:
    """A call with two processes that never rest; its leaf."""
    before = {call.id for call in (await daemon.snapshot()).calls}
    await daemon.launch(session, "/bin/sh", "-c", SPIN, options=options)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WITHIN
    while True:
        for call in (await daemon.snapshot()).calls:
            if call.id not in before and call.cgroup:
                return daemon.groups(call)[0]
        assert loop.time() < deadline, "the call does not begin"
        await asyncio.sleep(0.1)


def cpu_usec(leaf: Path) -> int:
    return int((leaf / "cpu.stat").read_text().split()[1])


async def used(*leaves: Path, total: int) -> list[int]:
    """What each used while all of them used ``total`` microseconds together."""
    at = [cpu_usec(leaf) for leaf in leaves]
    await until(lambda: sum(map(cpu_usec, leaves)) - sum(at) >= total, f"{total} us of CPU")
    return [cpu_usec(leaf) - then for leaf, then in zip(leaves, at, strict=True)]


async def test_priorities_are_weights(daemon: DaemonUnderTest) -> None:
    """75 against 25 is 200 against 50; that much is not asked of an emulated machine, the direction is."""
    session = await daemon.open_session("acme")
    low = await spin(daemon, session, "--priority", "25")
    high = await spin(daemon, session, "--priority", "75")
    less, more = await used(low, high, total=4_000_000)
    assert more > 2 * less > 0


async def test_a_tenant_is_not_outnumbered(daemon: DaemonUnderTest) -> None:
    """Three calls of one tenant against one of another: half each, not three quarters."""
    many, one = await daemon.open_session("acme"), await daemon.open_session("beta")
    leaves = [await spin(daemon, many) for _ in range(3)]
    alone = await spin(daemon, one)
    *those, own = await used(*leaves, alone, total=6_000_000)
    assert 0.35 < own / (own + sum(those)) < 0.65


async def test_the_lightest_still_runs(daemon: DaemonUnderTest) -> None:
    """By weight alone its turn would be minutes away, and the kernel's watchdog would end the scheduler."""
    session = await daemon.open_session("acme")
    leaves = [await spin(daemon, session) for _ in range(2)]
    for call in (await daemon.snapshot()).calls:
        weight = 1 if daemon.groups(call)[0] == leaves[0] else 10_000
        request = pb.SetLimitsRequest(target=call.id, limits=pb.Limits(cpu_weight=weight))
        await daemon.client.call(daemon.client.operator.SetLimits, request)
    for _ in range(3):
        before = cpu_usec(leaves[0])
        await until(lambda before=before: cpu_usec(leaves[0]) > before + 1000, "the light one has run")  # type: ignore[misc] # mypy cannot infer a lambda's defaults
    assert sched.running() == "corral"


async def test_it_ends_with_the_daemon_and_calls_go_on(daemon: DaemonUnderTest) -> None:
    leaf = await spin(daemon, await daemon.open_session("acme"))
    await daemon.kill()
    await until(lambda: sched.running() == "", "the kernel's own scheduler is back")
    assert min(await used(leaf, total=300_000)) > 0
    await daemon.start()
    await in_force(daemon)
    assert min(await used(leaf, total=300_000)) > 0
    await daemon.stop()
    await until(lambda: sched.running() == "", "the kernel's own scheduler is back")
    await daemon.start()


async def test_ejected_the_kernels_own_takes_over_and_it_comes_back(daemon: DaemonUnderTest) -> None:
    leaf = await spin(daemon, await daemon.open_session("acme"))
    SYSRQ.write_text("S")  # the administrator's way to get rid of any of them
    await until_told(daemon, "the kernel has ended it: disabled by sysrq-S")
    assert sched.running() == ""
    assert min(await used(leaf, total=300_000)) > 0
    await in_force(daemon)
    await until_told(daemon, "CPU scheduler", told=False)
    assert min(await used(leaf, total=300_000)) > 0


async def test_a_cpu_quota_holds_because_it_stands_aside(daemon: DaemonUnderTest) -> None:
    leaf = await spin(daemon, await daemon.open_session("acme"), "--cpu", "0.5")
    await until_told(daemon, "the CPU scheduler stands aside")
    await until(lambda: sched.running() == "", "the kernel's own scheduler is back")
    await until(lambda: "nr_throttled 0\n" not in (leaf / "cpu.stat").read_text(), "the quota is met")
