"""Rates and charges between two samples: pure, so every case is made by hand or by hypothesis."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu.nvml import (
    Absent,
    Availability,
    DeviceSample,
    DeviceState,
    NvmlSample,
    NvmlState,
    ProcessMemory,
    ProcessShare,
    Why,
    charge,
    charge_all,
    memory_by_owner,
    rates,
)

NONE = Absent(Why.UNSUPPORTED, "call", 3)
SECOND = 1_000_000_000


def sample(at: float = 0.0, *, uuid: str = "GPU-a", state: DeviceState = DeviceState.OK, **fields: Any) -> DeviceSample:
    readings = {field.name for field in dataclasses.fields(DeviceSample)} - {"index", "uuid", "at_nsec", "state"}
    values: dict[str, Any] = {**dict.fromkeys(readings, NONE), **fields}
    return DeviceSample(index=0, uuid=uuid, at_nsec=int(at * SECOND), state=state, **values)


def share(pid: int, sm: float) -> ProcessShare:
    return ProcessShare(pid=pid, sm=sm, memory=0.0, samples=1)


def test_power_is_the_energy_counter_over_time() -> None:
    between = rates(sample(energy=100.0), sample(2.0, energy=700.0))
    assert between is not None
    assert (between.seconds, between.joules, between.watts) == (2.0, 600.0, 300.0)


def test_a_counter_that_fell_says_nothing() -> None:
    between = rates(sample(energy=100.0, power=50.0), sample(1.0, energy=5.0, power=50.0))
    assert between is not None
    assert between.joules is None


@pytest.mark.parametrize(
    "pair",
    [
        (sample(), sample(0.0)),
        (sample(1.0), sample(0.0)),
        (sample(), sample(1.0, uuid="GPU-b")),
        (sample(), sample(1.0, state=DeviceState.LOST)),
        (sample(uuid=""), sample(1.0, uuid="")),
    ],
)
def test_samples_that_cannot_be_compared(pair: tuple[DeviceSample, DeviceSample]) -> None:
    assert rates(*pair) is None
    assert charge(*pair, lambda pid: pid) == ()


def test_two_contexts_of_one_process_hold_its_memory_once_but_mig_instances_add_up() -> None:
    held = sample(
        processes=(
            ProcessMemory(pid=1, bytes=100),
            ProcessMemory(pid=1, bytes=100, graphics=True),
            ProcessMemory(pid=2, bytes=30, gpu_instance_id=1, compute_instance_id=0),
            ProcessMemory(pid=2, bytes=30, gpu_instance_id=2, compute_instance_id=0),
            ProcessMemory(pid=3, bytes=None),
        )
    )
    assert memory_by_owner(held, {1: "call", 2: "call", 3: "x"}.get) == {"call": 160}


def test_devices_are_matched_by_uuid_not_by_index() -> None:
    state = NvmlState(availability=Availability.READY)
    before = NvmlSample(state=state, at_nsec=0, devices=(sample(uuid="a", energy=0.0), sample(uuid="b", energy=0.0)))
    after = NvmlSample(
        state=state, at_nsec=SECOND, devices=(sample(1.0, uuid="b", energy=9.0, shares=(share(1, 1.0),)),)
    )
    (mine,) = [one for one in charge_all(before, after, lambda _pid: "me") if one.owner == "me"]
    assert (mine.joules, mine.gpu_seconds) == (9.0, 1.0)


_shares = st.lists(st.tuples(st.integers(1, 20), st.floats(0.0, 1.0)), max_size=12, unique_by=lambda one: one[0])


@given(_shares, st.floats(0.0, 1e6), st.floats(0.01, 3600.0), st.integers(1, 5))
def test_what_is_charged_adds_up_to_what_the_device_used(
    shares: list[tuple[int, float]], joules: float, seconds: float, owners: int
) -> None:
    before = sample(energy=0.0)
    after = sample(seconds, energy=joules, shares=tuple(share(pid, sm) for pid, sm in shares))
    usage = charge(before, after, lambda pid: None if pid % 3 == 0 else f"call-{pid % owners}")
    between = rates(before, after)
    assert between is not None
    assert between.gpu_seconds is not None
    assert sum(one.joules for one in usage) == pytest.approx(joules)
    assert sum(one.gpu_seconds for one in usage) == pytest.approx(between.gpu_seconds)
    assert all(one.joules >= 0 and 0 <= one.gpu_seconds <= between.seconds * 1.000001 for one in usage)
    assert len({one.owner for one in usage}) == len(usage)
