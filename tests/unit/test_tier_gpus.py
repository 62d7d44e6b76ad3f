"""The GPU sampler over a driver of ours: charges, processes that ended, a driver that hangs."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import cast

from agentd.tier.gpus import Gpus
from agentd.tier.view import Owner
from gpu.nvml import (
    Absent,
    Availability,
    DeviceInfo,
    DeviceSample,
    DeviceState,
    Nvml,
    NvmlSample,
    NvmlState,
    ProcessMemory,
    ProcessShare,
    Why,
)

ALICE = Owner(tenant_id="t-a", session_id="s-a", call_id="c-a")
BOB = Owner(tenant_id="t-b", session_id="s-b")
READY = NvmlState(availability=Availability.READY)
UNSUPPORTED = Absent(Why.UNSUPPORTED, "nvmlCall")
GONE = 4_194_304 + 7  # above the kernel's largest pid: no such process


class Driver:
    """As much of gpu.nvml.Nvml as the sampler asks of it. ``step``: one second later, with these processes."""

    def __init__(self) -> None:
        self.clock = 0
        self.energy = 1000.0
        self.processes: tuple[tuple[int, int, float], ...] = ()
        self.state = READY
        self.let_go = threading.Event()
        self.let_go.set()
        self.closed = False

    @property
    def devices(self) -> tuple[DeviceInfo, ...]:
        return ()

    @property
    def binding(self) -> None:
        return None

    def handles(self) -> tuple[()]:
        return ()

    @property
    def events_guard(self) -> threading.Lock:
        return threading.Lock()

    @property
    def shutting(self) -> threading.Event:
        return threading.Event()

    def step(self, *processes: tuple[int, int, float], joules: float = 0.0) -> None:
        """``processes``: pid, bytes, share of the SMs."""
        self.clock += 1_000_000_000
        self.energy += joules
        self.processes = processes

    def sample_now(self) -> NvmlSample:
        assert self.let_go.wait(30)
        if not self.state.ready:
            return NvmlSample(state=self.state, at_nsec=self.clock)
        device = DeviceSample(
            index=0,
            uuid="GPU-1",
            at_nsec=self.clock,
            state=DeviceState.OK,
            memory_total=1000,
            memory_used=10,
            sm_utilisation=0.5,
            memory_utilisation=0.5,
            power=UNSUPPORTED,
            energy=self.energy,
            temperature=UNSUPPORTED,
            processes=tuple(ProcessMemory(pid=pid, bytes=size) for pid, size, _ in self.processes),
            shares=tuple(ProcessShare(pid=pid, sm=sm, memory=0.0, samples=1) for pid, _, sm in self.processes),
            context_switches=UNSUPPORTED,
            mig=(),
        )
        return NvmlSample(state=self.state, at_nsec=self.clock, devices=(device,))

    def close(self) -> None:
        self.closed = True


class Charges:
    def __init__(self, owners: dict[int, Owner]) -> None:
        self.owners = owners
        self.told: list[tuple[Owner, int, float, float]] = []

    def owner_of(self, pid: int) -> Owner | None:
        return self.owners.get(pid)

    def charge(self, owner: Owner, *, memory_bytes: int, gpu_seconds: float, joules: float) -> None:
        self.told.append((owner, memory_bytes, gpu_seconds, joules))


class Rig:
    def __init__(self, owners: dict[int, Owner]) -> None:
        self.driver = Driver()
        self.charges = Charges(owners)
        self.now = 0.0
        self.gpus = Gpus(self.charges, nvml=lambda: cast(Nvml, self.driver), clock=lambda: self.now)

    async def round(self) -> None:
        """The next sample, at once."""
        await self.gpus._round()


async def test_what_is_charged_and_to_whom() -> None:
    mine, other = os.getpid(), os.getppid()
    rig = Rig({mine: ALICE, other: BOB})
    rig.gpus._nvml, rig.gpus._enabled = cast(Nvml, rig.driver), "on"
    rig.driver.step((mine, 100, 0.5), (other, 50, 0.2))
    await rig.round()
    assert rig.charges.told == []  # one sample says nothing of time
    rig.driver.step((mine, 200, 0.5), (other, 50, 0.2), joules=100.0)
    await rig.round()
    assert sorted(rig.charges.told, key=lambda one: one[0].tenant_id) == [
        (ALICE, 200, 0.5, 50.0),
        (BOB, 50, 0.2, 20.0),
    ]
    totals = rig.gpus.tenants
    assert (totals["t-a"].joules, totals["t-a"].memory_bytes, totals["t-b"].seconds) == (50.0, 200, 0.2)
    rig.charges.told.clear()
    rig.driver.step((other, 50, 0.0))
    await rig.round()
    assert rig.charges.told == [(BOB, 50, 0.0, 0.0), (ALICE, 0, 0.0, 0.0)]  # what it held is gone, and said once
    (device,) = rig.gpus.devices()
    assert (device.energy_joules, device.state) == (100.0, "ok")
    assert "power: unsupported" in device.detail
    assert [one.pid for one in device.processes] == [other]
    await rig.gpus.stop()


async def test_a_process_that_has_ended_is_still_its_owners() -> None:
    rig = Rig({GONE: ALICE})
    rig.gpus._nvml, rig.gpus._enabled = cast(Nvml, rig.driver), "on"
    rig.driver.step((GONE, 100, 0.5))
    await rig.round()
    rig.charges.owners.clear()  # its cgroup can no longer be asked
    rig.driver.step((GONE, 0, 0.25), joules=40.0)
    await rig.round()
    assert rig.charges.told == [(ALICE, 0, 0.25, 10.0)]
    await rig.gpus.stop()


async def test_a_driver_that_hangs_holds_up_its_thread_alone() -> None:
    rig = Rig({})
    await rig.gpus.configure(enabled="auto", interval=0.1, share=1.0)
    async with asyncio.timeout(30):
        while rig.gpus.rounds == 0:
            await rig.gpus.sampled.wait()
    assert (rig.gpus.availability, rig.gpus.problem) == ("ready", "")
    rig.driver.let_go.clear()
    async with asyncio.timeout(30):
        while rig.gpus._asked_at is None:  # noqa: ASYNC110  the next round begins at the sampler's own beat
            await asyncio.sleep(0.01)
    rig.now += 60.0
    assert "has not answered for 60 s" in rig.gpus.problem
    assert len(rig.gpus.devices()) == 1  # the last sample is still shown
    await rig.gpus.stop()  # and nobody waits for it
    rig.driver.let_go.set()


async def test_no_driver_is_a_problem_only_where_gpus_are_asked_for() -> None:
    state = NvmlState(availability=Availability.NO_DRIVER, message="the module is not loaded", remedy="modprobe nvidia")
    for enabled, problem in (("auto", ""), ("on", "GPUs cannot be read: the module is not loaded; modprobe nvidia")):
        rig = Rig({})
        rig.driver.state = state
        await rig.gpus.configure(enabled=enabled, interval=0.1, share=1.0)
        async with asyncio.timeout(30):
            while rig.gpus.rounds == 0:
                await rig.gpus.sampled.wait()
        assert (rig.gpus.availability, rig.gpus.problem) == ("no_driver", problem)
        assert rig.gpus.detail == "the module is not loaded; modprobe nvidia"
        await rig.gpus.configure(enabled="off", interval=0.1, share=1.0)
        assert (rig.gpus.availability, rig.gpus.problem, rig.driver.closed) == ("", "", True)


async def test_rounds_that_cost_much_lie_further_apart() -> None:
    rig = Rig({})
    rig.gpus._share, rig.gpus._interval = 0.01, 1.0
    rig.gpus.cost = 0.002
    assert rig.gpus.share == 0.002  # of a core, each second
    rig.gpus.cost = 0.05
    assert rig.gpus.share == 0.01  # each 5 s
