"""The inference tier in virtual time: what must hold under every policy, and the bound that none can beat."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu.cost import ForwardModel, SwapModel
from gpu.errors import InvalidValue
from gpu.policy import (
    AlwaysDrop,
    AlwaysKeep,
    AlwaysOffload,
    Continuum,
    InferCept,
    KvPolicy,
    LeastRecentlyUsed,
    ShadowPrice,
)
from gpu.simulate import (
    Call,
    EngineModel,
    IdleKv,
    Script,
    Step,
    Timeline,
    TokenModel,
    lower_bound,
    script,
    simulate,
)
from gpu.simulate.fastswitch import Rung, SwitchModel, climb
from gpu.simulate.knowledge import Learner

POLICIES: Sequence[KvPolicy] = (
    ShadowPrice(),
    ShadowPrice(eager=True),
    InferCept(),
    Continuum(offload=True),
    AlwaysKeep(),
    AlwaysDrop(),
    AlwaysOffload(),
    LeastRecentlyUsed(),
)
MODEL = EngineModel(
    pool=20_000,
    bytes_per_token=1000,
    host_bytes=8_000_000,
    forward=ForwardModel(a=1e-9, b=1e-4),
    swap=SwapModel(bytes_per_second=2e8, latency=0.001),
)

_steps = st.builds(
    Step,
    prompt=st.integers(1, 1500),
    generated=st.integers(1, 300),
    pause=st.floats(0, 60),
    kinds=st.sampled_from([("Read",), ("Bash/test",), ("Bash/test", "Read")]),
)
_scripts = st.lists(
    st.builds(
        lambda steps, starts: Script("agent", tuple(steps), starts),
        st.lists(_steps, min_size=1, max_size=8),
        st.floats(0, 20),
    ),
    min_size=1,
    max_size=8,
)


def seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311  # chance that can be repeated


# --- workload --------------------------------------------------------------------------------------------------------


def test_a_recording_becomes_turns_and_pauses() -> None:
    calls = [
        Call(10.0, 12.0, "Read"),
        Call(10.1, 11.0, "Grep"),  # beside the first: one turn
        Call(20.0, 25.0, "Bash/test"),
        Call(25.1, 26.0, "Read"),  # at once after it: the model has not spoken between
        Call(40.0, 40.5, "Edit"),
    ]
    made = script("r", calls, random=seeded(1))
    assert [step.kinds for step in made.steps] == [("Grep", "Read"), ("Bash/test", "Read"), ("Edit",), ()]
    assert [step.pause for step in made.steps] == pytest.approx([2.0, 6.0, 0.5, 0.0])
    # 8 s between pauses, 0.8 s until the first token, 50 tokens a second
    assert made.steps[1].generated == 360
    assert made == script("r", calls, random=seeded(1))
    assert made != script("r", calls, random=seeded(2))
    with pytest.raises(InvalidValue, match="no tool call"):
        script("r", [], random=seeded(1))


def test_a_context_that_grows_too_long_is_compacted() -> None:
    calls = [Call(float(10 * at), float(10 * at + 1), "Read") for at in range(60)]
    model = TokenModel(first_prompt=2000, context=10_000)
    made = script("r", calls, random=seeded(3), model=model)
    assert any(step.fresh for step in made.steps)
    assert made.largest <= model.context + model.most


def test_only_what_has_ended_is_known() -> None:
    learner = Learner()
    before = learner.durations(("Read",))
    learner.ended(("Read",), 5.0)
    learner.ended(("Read", "Bash/test"), 900.0)  # whose time was it?
    assert list(before) == []
    assert list(learner.durations(("Read",))) == [5.0]
    assert list(learner.durations(("Bash/test",))) == []
    assert learner.durations(("Bash/test", "Read")) is learner.durations(("Bash/test",))  # unknown is slower


# --- engine ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@settings(max_examples=25, deadline=None)
@given(_scripts, st.integers(0, 20_000), st.booleans(), st.booleans())
def test_every_turn_runs_and_nothing_overflows(
    policy: KvPolicy, scripts: list[Script], host: int, partial: bool, delays: bool
) -> None:
    model = replace(MODEL, host_bytes=host * MODEL.bytes_per_token, partial=partial)
    run = simulate(scripts, model, policy, delays=delays, admission=True)
    assert run.turns == sum(len(one.steps) for one in scripts)
    assert len(run.session_seconds) == len(scripts)
    assert run.most_outside <= model.host_bytes
    if delays:
        assert run.most_used <= model.pool
    assert run.computed_tokens == run.recomputed_tokens + sum(s.prompt for one in scripts for s in one.steps)
    assert run == simulate(scripts, model, policy, delays=delays, admission=True)
    assert run.avoidable >= lower_bound(run.timeline, upper=run.avoidable, steps=40).avoidable * (1 - 1e-9)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@settings(max_examples=15, deadline=None)
@given(_scripts)
def test_without_delays_all_policies_meet_the_same_timeline(policy: KvPolicy, scripts: list[Script]) -> None:
    run, other = (simulate(scripts, MODEL, one, delays=False) for one in (policy, AlwaysKeep()))
    assert run.timeline == other.timeline
    assert run.first_token == other.first_token


@settings(max_examples=25, deadline=None)
@given(_scripts, st.booleans())
def test_where_all_fits_nothing_is_put_out(scripts: list[Script], delays: bool) -> None:
    room = replace(MODEL, pool=20 * sum(one.largest for one in scripts))
    for policy in (ShadowPrice(), ShadowPrice(eager=True), LeastRecentlyUsed()):
        run = simulate(scripts, room, policy, delays=delays)
        assert (run.drops, run.offloads, run.avoidable) == (0, 0, 0.0)


def test_a_context_that_cannot_fit_is_refused() -> None:
    with pytest.raises(InvalidValue, match="larger pool"):
        simulate([Script("a", (Step(30_000, 10, 0.0, ()),))], MODEL, AlwaysKeep())


def agents(count: int, seed: int) -> list[Script]:
    """Short and long pauses, which a policy can tell apart by their class once it has seen some."""
    random = seeded(seed)
    made = []
    for number in range(count):
        at, calls = 0.0, []
        for _ in range(16):
            at += random.uniform(2, 6)
            kind = random.choice(("Read", "Read", "Bash/test"))
            took = random.uniform(0.02, 0.3) if kind == "Read" else random.uniform(10, 60)
            calls.append(Call(at, at + took, kind))
            at += took
        made.append(script(f"a{number}", calls, random=random, starts=random.uniform(0, 30)))
    return made


def test_ours_costs_less_than_the_baselines_and_more_than_the_bound() -> None:
    scripts = agents(16, 5)
    model = EngineModel(
        pool=230_000,
        bytes_per_token=131_072,
        host_bytes=60_000 * 131_072,
        forward=ForwardModel(a=2e-10, b=8e-5),
        swap=SwapModel(bytes_per_second=12e9, latency=0.005),
    )
    ours, *others = (simulate(scripts, model, policy, delays=False) for policy in (ShadowPrice(), *POLICIES[2:]))
    bound = lower_bound(ours.timeline, upper=ours.avoidable)
    assert 0 < bound.avoidable <= ours.avoidable
    assert ours.cost < 1.4 * bound.total
    for other in others:
        assert ours.avoidable < other.avoidable, other.policy
    knowing = simulate(scripts, model, ShadowPrice(), delays=False, oracle=True)
    assert bound.avoidable <= knowing.avoidable < ours.avoidable


def test_fetching_ahead_saves_the_wait() -> None:
    """One session, whose KV another turn pushes out: with a known pause it is back when its call ends."""
    long = Script("long", (Step(9000, 10, 300.0, ("Bash/test",)), Step(10, 10, 0.0, ())), 0.0)
    other = Script("other", (Step(12_000, 10, 0.0, ()),), 40.0)
    model = replace(MODEL, host_bytes=1 << 40, forward=ForwardModel(b=4e-3), swap=SwapModel(bytes_per_second=1e6))
    run = simulate([long, other], model, ShadowPrice(), oracle=True)
    assert run.restores == 1
    assert run.first_token[2] < 0.1
    late = simulate([long, other], model, LeastRecentlyUsed(), oracle=True)
    assert late.first_token[2] > 0.9  # the copy of what was pushed out takes a second


# --- the bound -------------------------------------------------------------------------------------------------------


def brute_force(timeline: Timeline) -> float:
    """The optimum with whole sessions, over all places at all moments, by dynamic programming over joint states."""
    moments = sorted(timeline.room)
    spans = [[at for at, _ in moments if one.begin <= at < one.end] for one in timeline.idle]
    best: dict[tuple[str, ...], float] = {("pool",) * len(timeline.idle): 0.0}
    for at, room in moments:
        after: dict[tuple[str, ...], float] = {}
        for state, cost in best.items():
            moves = [
                ("pool", "host", "gone") if span and span[0] <= at <= span[-1] and was != "gone" else (was,)
                for was, span in zip(state, spans, strict=True)
            ]
            for new in itertools.product(*moves):
                active = [
                    (one, place)
                    for one, place, span in zip(timeline.idle, new, spans, strict=True)
                    if span and span[0] <= at <= span[-1]
                ]
                if sum(one.tokens for one, place in active if place == "pool") > room:
                    continue
                if sum(one.tokens for one, place in active if place == "host") > timeline.host_tokens:
                    continue
                moved = sum(
                    one.moved / 2
                    for one, was, place in zip(timeline.idle, state, new, strict=True)
                    if place not in (was, "gone")
                )
                total = cost + moved
                if total < after.get(new, float("inf")):
                    after[new] = total
        best = after
    return min(
        cost
        + sum(
            {"pool": 0.0, "host": one.moved / 2, "gone": one.computed}[place]
            for one, place in zip(timeline.idle, state, strict=True)
        )
        for state, cost in best.items()
    )


_idle = st.builds(
    lambda begin, length, tokens, cost, moved: IdleKv(float(begin), float(begin + length), tokens, cost, moved),
    st.integers(0, 4),
    st.integers(1, 5),
    st.integers(1, 10),
    st.floats(0.1, 10),
    st.one_of(st.just(float("inf")), st.floats(0.01, 12)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_idle, max_size=3), st.lists(st.integers(0, 20), min_size=5, max_size=5), st.integers(0, 10))
def test_the_bound_is_never_above_the_optimum(idle: list[IdleKv], room: list[int], host: int) -> None:
    timeline = Timeline(20, float(host), [(float(at), tokens) for at, tokens in enumerate(room)], idle, 1.0)
    bound = lower_bound(timeline)
    assert bound.avoidable <= brute_force(timeline) + 1e-9
    assert bound.total == bound.avoidable + 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(_idle, min_size=1, max_size=5), st.lists(st.integers(0, 5), min_size=5, max_size=5))
def test_with_equal_sizes_and_one_pool_the_bound_is_the_optimum(idle: list[IdleKv], room: list[int]) -> None:
    """Intervals over moments make a totally unimodular matrix: the relaxation is exact."""
    alike = [replace(one, tokens=1, moved=float("inf")) for one in idle]
    timeline = Timeline(5, 0.0, [(float(at), tokens) for at, tokens in enumerate(room)], alike, 0.0)
    best = brute_force(timeline)
    assert lower_bound(timeline, upper=best, steps=1500).avoidable == pytest.approx(best, rel=0.03, abs=1e-6)


# --- FastSwitch ------------------------------------------------------------------------------------------------------


def test_the_ladder_lowers_the_tail_step_by_step() -> None:
    model = SwitchModel(conversations=100)
    tails: list[tuple[float, float]] = []
    for rung in Rung:
        runs = [climb(rung, model, seed=seed) for seed in (1, 2)]
        waits = sorted(value for run in runs for value in run.first_token)
        gaps = sorted(value for run in runs for value in run.between)
        tails.append((waits[int(0.95 * len(waits))], gaps[int(0.999 * len(gaps))]))
    for (first, between), (next_first, next_between) in itertools.pairwise(tails):
        assert next_first < first
        assert next_between < between
    same = climb(Rung.REUSE, model, seed=1)
    assert same == climb(Rung.REUSE, model, seed=1)
    assert same.copied < climb(Rung.ASYNC, model, seed=1).copied


def test_groups_need_fewer_operations() -> None:
    model = SwitchModel()
    small, large = model.copy_seconds(4000, Rung.VLLM), model.copy_seconds(4000, Rung.GROUPS)
    assert small - large == pytest.approx((250 - 4) * 2 * 32 * model.dispatch)
    assert model.copy_seconds(0, Rung.VLLM) == 0.0
    with pytest.raises(InvalidValue):
        SwitchModel(pool=0)
