"""Properties of the control policies, over arbitrary hosts."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.forecast import Future, Need
from controller.model import CallId, OnPressure, SessionId, TenantId
from controller.policy.account import margin
from controller.policy.fairness import champion, in_order
from controller.policy.rounds import decide
from controller.policy.settings import ControlConfig
from controller.state import CallFacts, Stage, State, Step, StepKind, TenantFacts

MIB = 1 << 20
CONFIG = ControlConfig()
TENANTS = [TenantId(f"t-{n}") for n in range(3)]
STAGES = [Stage.WAITING, Stage.RUNNING, Stage.RUNNING, Stage.HELD, Stage.HELD, Stage.PARKED]
ANSWERS = {StepKind.RAISE, StepKind.HOLD, StepKind.KILL}


@st.composite
def needs(draw: st.DrawFn, usage: int) -> Need:
    typical = usage + draw(st.integers(0, 300)) * MIB
    likely = typical + draw(st.integers(0, 300)) * MIB
    claim = likely + draw(st.integers(0, 2000)) * MIB
    ends = draw(st.floats(0.01, 100))
    futures = tuple(Future(ends, (0.0,), (max(1, size),)) for size in (typical, likely) * 4)
    return Need(typical, likely, claim, ends, ends * 2, futures, "class", draw(st.integers(0, 50)))


@st.composite
def states(draw: st.DrawFn) -> State:
    calls = []
    for number in range(draw(st.integers(0, 9))):
        stage = draw(
            st.sampled_from([Stage.WAITING, Stage.RUNNING, Stage.RUNNING, Stage.HELD, Stage.HELD, Stage.PARKED])
        )
        usage = 0 if stage is Stage.WAITING else draw(st.integers(0, 1500)) * MIB
        granted = usage if stage is Stage.HELD else usage + draw(st.integers(0, 200)) * MIB
        calls.append(
            CallFacts(
                id=CallId(f"c-{number}"),
                tenant_id=draw(st.sampled_from(TENANTS)),
                session_id=SessionId("s-0"),
                stage=stage,
                asked_at=draw(st.floats(0, 100)),
                begun_at=0.0 if stage is Stage.WAITING else draw(st.floats(0, 100)),
                held_since=draw(st.floats(50, 100)) if stage is Stage.HELD else None,
                priority=draw(st.integers(0, 3)) * 25,
                usage=usage,
                granted=0 if stage is Stage.WAITING else granted,
                hard_limit=draw(st.none() | st.integers(0, 800).map(lambda more: usage + (1 + more) * MIB)),  # noqa: B023
                on_pressure=draw(st.sampled_from([OnPressure.WAIT, OnPressure.WAIT, OnPressure.FAIL_FAST])),
                deadline=draw(st.none() | st.floats(100, 200)),
                cpu=draw(st.sampled_from([0.0, 1.0, 8.0])),
                squeezed=draw(st.booleans()),
                promised=draw(st.sampled_from([0, 0, granted])),
                unbraked=draw(st.sampled_from([False, False, True])),
                urgency=draw(st.sampled_from([0.0, 40.0])),
                need=draw(needs(usage)),
            )
        )
    tenants = {
        t: TenantFacts(
            id=t,
            weight=draw(st.sampled_from([1.0, 100.0, 1000.0])),
            memory_max=draw(st.none() | st.integers(0, 6000).map(lambda m: m * MIB)),
            max_calls=draw(st.none() | st.integers(1, 4)),
        )
        for t in TENANTS
    }
    capacity = draw(st.integers(256, 8192)) * MIB
    agents = draw(st.integers(0, 4096)) * MIB
    if draw(st.booleans()):  # the reserve is in use: where calls are frozen, and ended, for the agents
        agents = max(0, capacity - sum(c.usage for c in calls) + int(draw(st.floats(0, 1.2)) * (capacity // 19)))
    return State(
        at=100.0,
        capacity=capacity,
        reserve=capacity // 19,
        agents=agents,
        cpus=4.0,
        tenants=tenants,
        calls=tuple(calls),
    )


def bare(call: CallFacts) -> int:
    """What arming leaves a call at the least that had no threshold, and so could have taken all. Bytes."""
    return CONFIG.least_slack if call.stage is Stage.RUNNING and not call.granted else 0


def by_id(state: State) -> dict[CallId, CallFacts]:
    return {call.id: call for call in state.calls}


def after(state: State, steps: list[Step]) -> dict[CallId, int]:
    """What each begun call has or may use without asking once the steps are done."""
    reserved = {c.id: c.reserved for c in state.calls if c.begun}
    for step in steps:
        call = by_id(state)[step.call_id]
        if step.kind in {StepKind.ADMIT, StepKind.RAISE, StepKind.THROTTLE, StepKind.RELAX, StepKind.ARM}:
            reserved[step.call_id] = max(step.brake, call.usage)
        elif step.kind is StepKind.FREEZE:
            reserved[step.call_id] = call.usage
        elif step.kind is StepKind.KILL:
            reserved.pop(step.call_id, None)
    return reserved


@settings(max_examples=100, deadline=None)
@given(states(), st.randoms())
def test_the_same_host_gives_the_same_steps(state: State, shuffler: object) -> None:
    calls = list(state.calls)
    shuffler.shuffle(calls)  # type: ignore[attr-defined]
    assert decide(replace(state, calls=tuple(calls)), CONFIG) == decide(state, CONFIG)


@settings(max_examples=100, deadline=None)
@given(states())
def test_only_calls_are_acted_on_and_each_gets_its_answer(state: State) -> None:
    """The agents' own leaves have no name here; a call that an operator holds is left alone."""
    steps = decide(state, CONFIG)
    for step in steps:
        assert by_id(state)[step.call_id].stage is not Stage.PARKED
        assert step.reason
    answers = Counter(s.call_id for s in steps if s.kind in ANSWERS)
    begins = Counter(s.call_id for s in steps if s.kind in {StepKind.ADMIT, StepKind.WAIT, StepKind.REFUSE})
    for call in state.calls:
        if call.stage is Stage.HELD:
            assert answers[call.id] == 1
        if call.stage is Stage.WAITING:
            assert begins[call.id] == 1


@settings(max_examples=100, deadline=None)
@given(states())
def test_never_all_are_held(state: State) -> None:
    """The progress guarantee: something runs after every round, or a call was ended so that something will. Only a
    call beside which there is no other may be held: for what agents, or calls that an operator holds, give back."""
    steps = decide(state, CONFIG)
    kinds = {s.call_id: s.kind for s in steps if s.kind in ANSWERS | {StepKind.FREEZE}}
    live = [c for c in state.calls if c.begun and c.stage is not Stage.PARKED]
    runs = [c for c in live if c.stage is Stage.RUNNING and c.id not in kinds]
    if len(live) == 1 and not runs and set(kinds.values()) == {StepKind.HOLD}:
        assert state.agents + sum(c.usage for c in state.calls if c.stage is Stage.PARKED) >= CONFIG.raise_step
    elif live and not runs:
        assert StepKind.RAISE in kinds.values() or StepKind.KILL in kinds.values()


@settings(max_examples=100, deadline=None)
@given(states())
def test_a_hold_is_bounded(state: State) -> None:
    for step in decide(state, CONFIG):
        call = by_id(state)[step.call_id]
        if step.kind is StepKind.HOLD and call.held_since is not None:
            assert state.at - call.held_since < CONFIG.hold_max
            assert call.on_pressure is not OnPressure.FAIL_FAST


@settings(max_examples=100, deadline=None)
@given(states())
def test_no_authority_is_loosened(state: State) -> None:
    """Thresholds stay below hard limits, tenants below their ceilings, calls within the host's memory (the first in
    rank may go into the reserve); what was above before does not grow."""
    steps = decide(state, CONFIG)
    reserved = after(state, steps)
    before: dict[TenantId, int] = defaultdict(int)
    now: dict[TenantId, int] = defaultdict(int)
    for call in state.calls:
        limit = call.hard_limit
        if limit is not None and call.id in reserved:
            assert reserved[call.id] <= max(limit, call.reserved)
            armed = any(s.kind is StepKind.ARM and s.call_id == call.id for s in steps)
            assert not armed or reserved[call.id] <= max(call.usage, limit - margin(limit)), "its last stop explains"
        before[call.tenant_id] += (call.reserved + bare(call)) if call.begun else 0
        now[call.tenant_id] += reserved.get(call.id, 0)
    for tenant in state.tenants.values():
        if tenant.memory_max is not None:
            assert now[tenant.id] <= max(before[tenant.id], tenant.memory_max)
    most = state.capacity - state.agents + int(state.reserve * CONFIG.champion_reserve)
    # where nothing runs, a call of which nothing is known begins with the least there is, whatever the agents take
    alone = not any(call.begun and call.stage is not Stage.PARKED for call in state.calls)
    guess = CONFIG.first_grant if alone and any(not call.begun for call in state.calls) else 0
    assert sum(now.values()) <= max(most, sum(before.values()) + guess)


@settings(max_examples=100, deadline=None)
@given(states())
def test_the_lowest_priority_goes_first(state: State) -> None:
    """Nobody is frozen, or ended to save the host, while a call of lower priority and more use goes on."""
    steps = decide(state, CONFIG)
    acted = {s.call_id for s in steps if s.kind is StepKind.FREEZE or s.code == "host_full"}
    for victim in (by_id(state)[i] for i in acted):
        for other in state.calls:
            if other.id in acted or not other.begun or other.stage is Stage.PARKED:
                continue
            if victim.stage is Stage.RUNNING and other.stage is Stage.HELD:
                continue  # holding it once more would change nothing
            assert not (other.priority < victim.priority and other.usage > victim.usage)


@settings(max_examples=100, deadline=None)
@given(states())
def test_the_champion_is_never_frozen(state: State) -> None:
    first = champion(state.calls)
    for step in decide(state, CONFIG):
        if first is not None and step.call_id == first.id:
            assert step.kind is not StepKind.FREEZE


def _waiting(name: str, asked_at: float, **changes: object) -> CallFacts:
    facts: dict[str, object] = {
        "id": CallId(name),
        "tenant_id": TENANTS[0],
        "session_id": SessionId("s-0"),
        "stage": Stage.WAITING,
        "asked_at": asked_at,
    }
    return CallFacts(**(facts | changes))  # type: ignore[arg-type]  # a table of one type would say less


def _order(*calls: CallFacts, **changes: object) -> list[str]:
    return [c.id for c in in_order(replace(State(at=100.0, capacity=1), calls=calls, **changes), CONFIG)]  # type: ignore[arg-type]


def test_who_waits_longer_comes_first_and_age_beats_priority_in_the_end() -> None:
    assert _order(_waiting("c-b", 90.0), _waiting("c-a", 95.0)) == ["c-b", "c-a"]
    assert _order(_waiting("c-old", 90.0), _waiting("c-high", 99.0, priority=70)) == ["c-high", "c-old"]
    assert _order(_waiting("c-old", 70.0), _waiting("c-high", 99.0, priority=70)) == ["c-old", "c-high"]


def test_a_tenant_that_has_much_waits_behind_one_that_has_little() -> None:
    big = replace(_waiting("c-run", 0.0), stage=Stage.RUNNING, usage=500 * MIB)
    assert _order(big, _waiting("c-a", 95.0), _waiting("c-b", 96.0, tenant_id=TENANTS[1])) == ["c-b", "c-a"]


def test_a_near_deadline_goes_ahead() -> None:
    assert _order(_waiting("c-a", 95.0), _waiting("c-b", 96.0, deadline=100.5)) == ["c-b", "c-a"]


def test_a_call_that_does_not_fit_waits_with_an_eta_or_is_refused() -> None:
    need = Need(400 * MIB, 400 * MIB, 400 * MIB, 7.0, 9.0, (Future(7.0, (0.0,), (400 * MIB,)),) * 8, "class", 20)
    running = replace(_waiting("c-run", 0.0), stage=Stage.RUNNING, usage=400 * MIB, granted=400 * MIB, need=need)
    state = State(at=100.0, capacity=600 * MIB, calls=(running, _waiting("c-wait", 99.0, need=need)))
    [step] = [s for s in decide(state, CONFIG) if s.call_id == "c-wait"]
    assert (step.kind, step.eta) == (StepKind.WAIT, 7.0)
    assert step.reason == "such a call takes about 400 MiB, 200 MiB are free"
    hasty = replace(state, calls=(running, _waiting("c-wait", 99.0, need=need, on_pressure=OnPressure.FAIL_FAST)))
    [step] = [s for s in decide(hasty, CONFIG) if s.call_id == "c-wait"]
    assert (step.kind, step.code) == (StepKind.REFUSE, "no_memory")


def test_two_that_cannot_both_finish_take_turns() -> None:
    """Each of the two would need the other's memory: the older one goes on, the younger one waits for its end."""
    need = Need(900 * MIB, 900 * MIB, 900 * MIB, 5.0, 9.0, (), "class", 20)
    old = replace(_waiting("c-old", 0.0), stage=Stage.HELD, begun_at=1.0, held_since=99.0, usage=300 * MIB, need=need)
    young = replace(old, id=CallId("c-young"), begun_at=2.0)
    kinds = {s.call_id: s.kind for s in decide(State(at=100.0, capacity=1000 * MIB, calls=(old, young)), CONFIG)}
    assert kinds == {"c-old": StepKind.RAISE, "c-young": StepKind.HOLD}


def test_the_reserve_loosens_no_hard_limit() -> None:
    """Found by the property above: a call that alone is left goes into the host's reserve, never past its own limit."""
    full = replace(
        _waiting("c-a", 0.0),
        stage=Stage.HELD,
        held_since=99.0,
        usage=100 * MIB,
        hard_limit=110 * MIB,
        granted=100 * MIB,
    )
    [step] = decide(State(at=100.0, capacity=100 * MIB, agents=99 * MIB, calls=(full,)), CONFIG)
    assert step.kind is StepKind.KILL
    roomy = replace(full, hard_limit=120 * MIB)
    [step] = decide(State(at=100.0, capacity=4096 * MIB, reserve=205 * MIB, agents=3990 * MIB, calls=(roomy,)), CONFIG)
    assert (step.kind, step.brake) == (StepKind.RAISE, 120 * MIB - 120 * MIB // 16), "below it by the brake's margin"


def test_a_call_above_all_others_is_given_what_it_likely_needs_at_once() -> None:
    need = Need(40 * MIB, 200 * MIB, 220 * MIB, 5.0, 9.0, (Future(5.0, (0.0,), (40 * MIB,)),) * 8, "class", 20)
    low = replace(_waiting("c-low", 0.0), stage=Stage.RUNNING, priority=20, usage=50 * MIB, granted=60 * MIB, need=need)
    asks = _waiting("c-high", 99.0, priority=80, need=need)
    held = replace(asks, stage=Stage.HELD, begun_at=1.0, held_since=99.9, usage=48 * MIB, granted=48 * MIB)
    state = State(at=100.0, capacity=600 * MIB, calls=(low, asks))
    [begins] = [s for s in decide(state, CONFIG) if s.call_id == "c-high"]
    assert (begins.kind, begins.brake) == (StepKind.ADMIT, 208 * MIB)
    [goes_on] = [s for s in decide(replace(state, calls=(low, held)), CONFIG) if s.call_id == "c-high"]
    assert (goes_on.kind, goes_on.brake) == (StepKind.RAISE, 200 * MIB)
    equal = replace(low, priority=80)
    [begins] = [s for s in decide(replace(state, calls=(equal, asks)), CONFIG) if s.call_id == "c-high"]
    assert begins.brake == 48 * MIB, "among equals each has a little more than is typical"
    [goes_on] = [s for s in decide(replace(state, calls=(equal, held)), CONFIG) if s.call_id == "c-high"]
    assert goes_on.brake == 80 * MIB, "and is led on in steps"
    tight = [s for s in decide(replace(state, capacity=250 * MIB), CONFIG) if s.call_id == "c-high"]
    assert all(step.brake <= 190 * MIB for step in tight), "never more than there is"
