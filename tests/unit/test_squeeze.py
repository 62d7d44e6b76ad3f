"""A squeeze: what it makes of a grant's limits, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.backend import CallRecord
from controller.backends.records import decode, encode
from controller.model import UNLIMITED, Action, CallState, Decision, Intent, Limits, Squeeze, squeezed
from controller.policy.done import SQUEEZES
from controller.throttle import relax, throttle
from tests.unit.test_host import rig, state, turn

MIB = 1 << 20
_sizes = st.none() | st.just(UNLIMITED) | st.integers(4096, 1 << 40)
_weights = st.none() | st.integers(1, 10_000)
_cores = st.none() | st.just(-1.0) | st.floats(0.01, 64)
_limits = st.builds(Limits, memory_high=_sizes, cpu_max=_cores, cpu_weight=_weights, io_weight=_weights)
_squeezes = st.builds(
    Squeeze,
    memory_high=st.none() | st.integers(4096, 1 << 40),
    cpu_max=st.none() | st.floats(0.01, 64),
    cpu_weight=_weights,
    io_weight=_weights,
)


@given(_limits, _squeezes)
def test_it_takes_and_never_gives(granted: Limits, squeeze: Squeeze) -> None:
    now = squeezed(granted, squeeze)
    for name in ("memory_high", "cpu_max"):
        value, before, taken = getattr(now, name), getattr(granted, name), getattr(squeeze, name)
        for ceiling in (before, taken):
            if ceiling not in (None, UNLIMITED):
                assert value != UNLIMITED
                assert value <= ceiling, name
    for name in ("cpu_weight", "io_weight"):
        value, before, taken = getattr(now, name), getattr(granted, name), getattr(squeeze, name)
        assert value == (before if before is not None else UNLIMITED) if taken is None else value <= (before or 100)


@given(_limits)
def test_without_it_every_knob_is_as_granted(granted: Limits) -> None:
    now = squeezed(granted, None)
    for name in ("memory_high", "cpu_max", "cpu_weight", "io_weight"):
        before = getattr(granted, name)
        assert getattr(now, name) == (before if before is not None else UNLIMITED), name
    assert (now.memory_max, now.memory_low, now.pids_max) == (None, None, None)


async def test_throttle_and_relax_are_on_record_and_survive() -> None:
    async with rig() as r:
        call = r.launch(r.open())
        squeeze = Squeeze(memory_high=32 * MIB, cpu_weight=10, reason="the host is short of memory")
        done = throttle(r.host.shared, call, squeeze, policy="ladder", evidence={"free_bytes": 5.0})
        assert done.applied is not None
        assert state(call) is CallState.THROTTLED
        assert call.squeeze == done.applied == r.backend.leaves[call.id].squeeze
        assert call.squeeze is not None
        assert call.squeeze.since > 0
        said = call.decisions[-1]
        assert said.action is Action.THROTTLE
        assert said.reason == "the host is short of memory: memory above 32 MiB is reclaimed, CPU weight 10"
        assert said.evidence.keys() & SQUEEZES
        assert said.evidence == {"memory_high_bytes": 32.0 * MIB, "cpu_weight": 10.0, "free_bytes": 5.0}
        record = r.backend.leaves[call.id].record
        assert record is not None
        assert decode(CallRecord, encode(record)).call.squeeze == call.squeeze, "the next daemon must know"

        again = len(call.decisions)
        throttle(r.host.shared, call, squeeze, policy="ladder")
        assert len(call.decisions) == again, "the same once more is no decision"

        relax(r.host.shared, call, policy="ladder", reason="the host has room again")
        assert state(call) is CallState.RUNNING
        assert r.backend.leaves[call.id].squeeze is None
        assert call.decisions[-1].action is Action.RELAX
        assert call.squeezed_seconds >= 0
        again = len(call.decisions)
        relax(r.host.shared, call, policy="ladder", reason="once more")
        assert len(call.decisions) == again
        await turn()


@pytest.mark.parametrize(("waited", "told"), [(61.0, True), (0.5, False)])
async def test_a_call_that_waited_long_is_told_so_at_its_end(waited: float, told: bool) -> None:
    async with rig() as r:
        call = r.host.prepare(r.open(), intent=Intent(tool="pytest"), argv=["tool"])
        call.asked_at -= waited
        assert r.host.begin_now(call) is None
        call.was_queued = True
        call.decisions.append(
            Decision(
                at=call.asked_at,
                action=Action.QUEUE,
                policy="admission",
                reason="the tenant runs 1 calls, 1 allowed at once",
                tenant_id=call.ref.tenant_id,
                evidence={},
            )
        )
        acted: list[bool] = []
        r.host.place(call, 100, 99, lambda: acted.append(True))
        assert bool(acted) is told, "its launcher must want the outcome"
        r.exits(call, 100)
        outcome = await r.host.end(call.id, 0)
        wanted = "The 'pytest' call waited 1 min 1 s in the queue before it began: the tenant runs 1 calls"
        assert outcome.summary.startswith(wanted) if told else outcome.summary == ""


async def test_an_outcome_says_how_long_and_why_a_call_was_slowed() -> None:
    async with rig() as r:
        call = r.launch(r.open())
        squeeze = Squeeze(cpu_weight=10, reason="the host is short of memory")
        throttle(r.host.shared, call, squeeze, policy="ladder")
        assert call.squeeze is not None
        call.squeeze = replace(call.squeeze, since=call.squeeze.since - 42)
        r.exits(call, 100)
        outcome = await r.host.end(call.id, 0)
        assert outcome.summary.startswith("The call was slowed for 42 s (the host is short of memory: CPU weight 10).")
        assert outcome.reason.value == "exited"
        assert call.view().squeeze is None


async def test_a_host_that_cannot_says_so_and_the_call_is_not_throttled() -> None:
    async with rig(enforcing=False) as r:
        call = r.launch(r.open())
        r.backend.cannot_squeeze = "this host only observes"
        done = throttle(r.host.shared, call, Squeeze(cpu_weight=10), policy="ladder")
        assert done.applied is None
        assert done.notes == ("this host only observes",)
        assert state(call) is CallState.RUNNING
        assert not call.decisions
