"""The quick way in: what begins without a round is what a round would let in, with the same threshold."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from hypothesis import event, given, settings
from hypothesis import strategies as st

from controller.config import HostConfig, TenantConfig
from controller.forecast import Kind, Learner, life_of
from controller.model import ControllerError, Intent, Limits, OnPressure, Usage
from controller.policy.rounds import decide
from controller.registry import Call, now
from controller.state import StepKind
from tests.unit.test_host import MIB, Rig, rig, turn

TOOLS = ["", "pytest", "git"]

intents = st.builds(
    lambda tool, typical, more, duration, pressure, declared: Intent(
        tool=tool,
        memory_typical=typical * MIB if declared > 1 else None,
        memory_peak=(typical + more) * MIB if declared > 0 else None,
        duration=duration,
        on_pressure=pressure,
    ),
    st.sampled_from(TOOLS),
    st.integers(1, 400),
    st.integers(0, 400),
    st.none() | st.floats(0.1, 20),
    st.sampled_from(OnPressure),
    st.integers(0, 2),
)
lives = st.lists(st.tuples(st.sampled_from(TOOLS), st.floats(0, 30), st.integers(0, 600)), max_size=60)
hosts = st.tuples(st.integers(0, 8000), st.sampled_from([0, 0, 500, 2000]), st.integers(0, 500))
running = st.lists(st.tuples(intents, st.integers(0, 300), st.floats(0, 20)), max_size=6)


async def one(
    asked: Intent,
    past: list[tuple[str, float, int]],
    beside: list[tuple[Intent, int, float]],
    sizes: tuple[int, int, int],
) -> None:
    available, ceiling, agents = sizes
    limits = Limits(memory_max=ceiling * MIB if ceiling else None)
    config = HostConfig(tenants=(TenantConfig(name="acme", uids=frozenset({1000}), limits=limits),))
    async with rig(config) as r:
        for tool, seconds, peak in past:
            kind = Kind(tenant="t-elsewhere", tool=tool, session="s-elsewhere")
            r.host.foresight.learner.learn(life_of(kind, seconds, ((seconds / 2, peak * MIB // 2),), peak * MIB))
        session = r.open()
        for intent, memory, age in beside:
            begin_one(r, session, intent, memory, age)
        calls = r.host.registry.begun_calls()
        for call in calls:
            r.backend.tenant_use[call.ref.tenant_id] = agents * MIB + sum(c.memory for c in calls)
        r.reader.available = available * MIB
        await r.host.sampler.round()
        r.host.plenty.refresh(now(), forecasts=3)
        call = r.host.prepare(session, intent=asked, argv=["x"])
        try:
            r.host.starts.grant(call)
        except ControllerError:
            return  # never, whatever the moment
        if not r.host.plenty.lets_in(call):
            return
        event("let in")
        steps = decide(r.host.facts.state(now(), asking=call), config.control())
        [step] = [s for s in steps if s.call_id == call.id]
        assert (step.kind, step.brake) == (StepKind.ADMIT, call.promised), step


def begin_one(r: Rig, session: str, intent: Intent, memory: int, age: float) -> None:
    call: Call = r.host.prepare(r.host.registry.session(session).id, intent=intent, argv=["x"])
    try:
        if r.host.begin_now(call) is not None:
            return
    except ControllerError:
        return
    call.begun_at -= age
    call.memory = memory * MIB
    leaf = r.backend.leaves[call.id]
    leaf.memory, leaf.usage = memory * MIB, replace(Usage(), memory_now=memory * MIB)


@settings(max_examples=150, deadline=None)
@given(
    intents, lives, running, st.tuples(st.integers(0, 8000), st.sampled_from([0, 0, 500, 2000]), st.integers(0, 500))
)
def test_what_is_let_in_without_a_round_a_round_lets_in(
    asked: Intent,
    past: list[tuple[str, float, int]],
    beside: list[tuple[Intent, int, float]],
    sizes: tuple[int, int, int],
) -> None:
    asyncio.run(one(asked, past, beside, sizes))


@settings(max_examples=200, deadline=None)
@given(lives, intents)
def test_no_forecast_of_a_new_call_is_above_its_bound(past: list[tuple[str, float, int]], intent: Intent) -> None:
    learner = Learner()
    for tool, seconds, most in past:
        learner.learn(life_of(Kind(tool=tool), seconds, ((seconds / 3, most * MIB // 3),), most * MIB))
    kind, size, peak = Kind(tool=intent.tool), intent.memory_typical, intent.memory_peak
    need = learner.forecast(kind, ident="c", declared_typical=size, declared_peak=peak)
    typical, most = learner.at_most(kind, declared_typical=size, declared_peak=peak)
    assert need.typical <= typical
    assert max(need.claim, *(future.peak for future in need.futures)) <= most


async def test_a_quiet_host_needs_no_forecast_and_a_full_one_does() -> None:
    async with rig() as r:
        session = r.open("default")
        await turn()  # the round that every start makes
        first = r.launch(session, Intent(memory_peak=100 * MIB))
        assert first.forecast is None, "it was let in without a forecast"
        r.reader.available = 500 * MIB
        r.host.plenty.refresh(now())
        second = r.host.prepare(session, intent=Intent(memory_peak=100 * MIB), argv=["x"])
        assert not r.host.plenty.lets_in(second)
