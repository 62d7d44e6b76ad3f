"""GPUs of a fake driver in a real daemon: processes found by their cgroup, charged to calls, sessions and tenants."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import WITHIN, corral_command, end, go, line, live_call, load_program
from tests.support.daemons import DaemonFactory, DaemonUnderTest
from tests.unit.nvml_fake.harness import build

NO_INSTANCE = 0xFFFFFFFF
GIB = 1 << 30


class Driver:
    """A scenario that a test changes to let the GPU work. Energy is in joules here."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.energy = 1_000
        self._clock = 1_000_000
        self.show()

    def show(self, *processes: tuple[int, int, int], joules: int = 0, more: str = "") -> None:
        """``processes``: pid, bytes, SM share in percent. ``joules``: more than before. ``more``: lines."""
        self.energy += joules
        self._clock += 1_000_000
        text = "driver 580.65\ncount 1\ndev 0 uuid GPU-1\ndev 0 name Fake GPU\ndev 0 temp 51\ndev 0 power 350000\n"
        text += f"dev 0 mem {80 * GIB} {sum(size for _, size, _ in processes)}\ndev 0 util 40 25\n"
        text += f"dev 0 energy {self.energy * 1000}\n"
        for pid, size, sm in processes:
            text += f"dev 0 proc {pid} {size} {NO_INSTANCE} {NO_INSTANCE}\ndev 0 share {self._clock} {pid} {sm} 5\n"
        text += more
        # whole or not at all: the library reads it at any moment
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.file)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: the fake libnvidia-ml.so.1 cannot be built")
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path / "scenario")


async def start(daemons: DaemonFactory, library: Path, driver: Driver, **gpu: str) -> DaemonUnderTest:
    tenants = {"acme": {"budgets": {"joules": "1000", "gpu_seconds": "1000"}}}
    daemon = daemons.make(tenants=tenants, settings={"gpu": {"interval": "100ms", "budget": "50%", **gpu}})
    daemon.environment |= {"LD_LIBRARY_PATH": str(library), "CORRAL_FAKE_NVML": str(driver.file)}
    await daemon.start()
    return daemon


async def tier(daemon: DaemonUnderTest) -> pb.TierStatus:
    return (await daemon.client.call(daemon.client.operator.Tier, pb.TierRequest())).tier


async def until(daemon: DaemonUnderTest, what: str, so: Callable[[pb.TierStatus], bool]) -> pb.TierStatus:
    """The tier samples at its own beat and tells nobody when: asked until it is so."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WITHIN
    while not so(status := await tier(daemon)):
        assert loop.time() < deadline, f"never: {what}; {status}"
        await asyncio.sleep(0.05)
    return status


async def test_a_call_is_charged_for_what_its_process_uses(
    daemons: DaemonFactory, library: Path, driver: Driver
) -> None:
    daemon = await start(daemons, library, driver)
    session = await daemon.open_session("acme")
    process = await daemon.launch(session, load_program(), "pid", "wait", "exit:0", stdin=asyncio.subprocess.PIPE)
    pid = int((await line(process)).removeprefix("pid "))
    call = await live_call(daemon, session)
    await until(daemon, "a first sample", lambda status: len(status.devices) == 1)

    driver.show((pid, 2 * GIB, 60), (os.getpid(), GIB, 10), joules=100)
    status = await until(daemon, "the call's process", lambda s: len(s.devices[0].processes) == 2)
    owned = {one.pid: one for one in status.devices[0].processes}
    assert (owned[pid].call_id, owned[pid].session_id, owned[pid].tenant_id) == (call.id, session.id, session.tenant_id)
    assert (owned[pid].memory_bytes, owned[pid].sm_share) == (2 * GIB, 0.6)
    assert owned[os.getpid()].session_id == ""  # ours is no session of Corral's
    assert status.devices[0].name == "Fake GPU"
    assert (status.nvml, status.devices[0].state, status.devices[0].energy_joules) == ("ready", "ok", 100)

    now = await live_call(daemon, session)
    assert now.usage.gpu_memory_bytes == 2 * GIB
    assert now.usage.gpu_seconds > 0
    assert now.usage.gpu_joules == pytest.approx(60)
    (totals,) = (await tier(daemon)).tenants
    assert totals.tenant_id == session.tenant_id
    assert totals.joules == pytest.approx(60)

    driver.show(joules=7)  # nobody's: idle power
    status = await until(daemon, "no process", lambda s: not s.devices[0].processes)
    assert (await live_call(daemon, session)).usage.gpu_memory_bytes == 0
    go(process)
    assert (await end(process))[0] == 0
    (ended,) = (await daemon.history(session, ended=1)).calls
    assert ended.outcome.usage.gpu_joules == pytest.approx(60)
    assert ended.outcome.usage.gpu_seconds == pytest.approx(now.usage.gpu_seconds)
    (tenant,) = [one for one in (await daemon.snapshot()).tenants if one.name == "acme"]
    used = {one.resource: one.used for one in tenant.budgets}
    assert used["joules"] == pytest.approx(60)
    assert used["gpu_seconds"] == pytest.approx(now.usage.gpu_seconds)


async def test_a_gpu_that_is_lost_and_one_that_was_never_there(
    daemons: DaemonFactory, library: Path, driver: Driver
) -> None:
    daemon = await start(daemons, library, driver, enabled="on")
    await until(daemon, "a first sample", lambda status: len(status.devices) == 1)
    driver.show(more=f"event 0 79 {NO_INSTANCE} {NO_INSTANCE}\n")
    status = await until(daemon, "an error of the GPU", lambda s: bool(s.devices[0].faults))
    assert list(status.devices[0].faults) == ["XID 79: GPU has fallen off the bus"]
    driver.show(more="error 0 * 15\n")
    status = await until(daemon, "a lost GPU", lambda s: bool(s.devices) and s.devices[0].state == "lost")
    assert "looked for again" in status.devices[0].detail
    assert not status.devices[0].HasField("power_watts")
    session = await daemon.open_session("acme")  # calls do not mind
    assert (await daemon.call(session, "/bin/true"))[0] == 0

    bare = daemons.make(settings={"gpu": {"enabled": "on"}})
    await bare.start()
    status = await until(bare, "a look for the driver", lambda s: s.nvml not in ("", "closed"))
    assert status.nvml != "ready"
    assert status.nvml_detail
    assert not status.devices
    snapshot = await bare.snapshot()
    assert any("GPUs cannot be read" in text for text in snapshot.host.missing)
    assert snapshot.HasField("tier")


async def test_what_the_command_line_shows(daemons: DaemonFactory, library: Path, driver: Driver) -> None:
    daemon = await start(daemons, library, driver)
    driver.show((os.getpid(), GIB, 10))
    await until(daemon, "a process", lambda s: bool(s.devices) and bool(s.devices[0].processes))

    async def corral(*words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *corral_command("--api", daemon.operator_target, *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        status, out, err = await end(process)
        assert (status, err) == (0, "")
        return out

    text = await corral("tier")
    for word in ("Fake GPU", "ok", "1 GiB of 80 GiB", "350 W", str(os.getpid()), "nobody's", "[engines.NAME]"):
        assert word in text, text
    plain = json.loads(await corral("tier", "--json"))
    assert plain["nvml"] == "ready"
    assert plain["devices"][0]["processes"][0]["pid"] == os.getpid()


async def test_switched_off_no_gpu_is_read(daemons: DaemonFactory, library: Path, driver: Driver) -> None:
    daemon = await start(daemons, library, driver, enabled="off")
    status = await tier(daemon)
    assert (status.nvml, list(status.devices)) == ("", [])
    assert not (await daemon.snapshot()).HasField("tier")
    threads = {(task / "comm").read_text().strip() for task in Path(f"/proc/{daemon.pid}/task").iterdir()}
    assert not any(name.startswith("corral-nvml") for name in threads)
