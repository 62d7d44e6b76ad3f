"""Properties of admission, over arbitrary intents and hosts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.config import CallConfig
from controller.model import UNLIMITED, Grant, Intent, InvalidRequest, Limits, Network, OnPressure
from controller.policy.grant import Refusal, Room, decide

MIB = 1 << 20
GIB = 1 << 30
CONFIG = CallConfig()

memory = st.none() | st.integers(MIB, 64 * GIB)
ceilings = st.none() | st.just(UNLIMITED) | st.integers(MIB, 64 * GIB)


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    peak, typical = draw(memory), draw(memory)
    if peak is not None and typical is not None:
        typical, peak = sorted((typical, peak))
    return Intent(
        memory_typical=typical,
        memory_peak=peak,
        cpu=draw(st.none() | st.floats(0.01, 64)),
        pids=draw(st.none() | st.integers(1, 100_000)),
        priority=draw(st.none() | st.integers(0, 100)),
        network=draw(st.sampled_from([Network.ANY, Network.NONE])),
        on_pressure=draw(st.sampled_from(OnPressure)),
    )


@st.composite
def rooms(draw: st.DrawFn, *, controllers: frozenset[str] | None = None) -> Room:
    total = draw(st.integers(GIB, 64 * GIB))
    return Room(
        tenant_limits=Limits(memory_max=draw(ceilings), cpu_max=draw(st.none() | st.just(-1.0) | st.floats(0.1, 64))),
        tenant_priority=draw(st.integers(0, 100)),
        host_total=total,
        enforced=draw(st.booleans()),
        can_gate_network=draw(st.booleans()),
        can_brake=draw(st.booleans()),
        controllers=controllers
        if controllers is not None
        else draw(st.frozensets(st.sampled_from(["memory", "cpu", "pids"]))),
    )


def is_limit(value: float | None) -> bool:
    return value is not None and value != UNLIMITED


@given(intents(), rooms())
def test_the_same_question_has_the_same_answer(intent: Intent, room: Room) -> None:
    assert decide(intent, room, CONFIG) == decide(intent, room, CONFIG)


@given(intents(), rooms())
def test_nothing_above_the_tenants_ceilings(intent: Intent, room: Room) -> None:
    grant = decide(intent, room, CONFIG)
    if not isinstance(grant, Grant):
        return
    assert grant.priority <= room.tenant_priority
    ceiling = room.tenant_limits.memory_max
    if ceiling is not None and is_limit(ceiling):
        assert all(v is None or v <= ceiling for v in (grant.limits.memory_max, grant.tripwire.brake))
    cores = room.tenant_limits.cpu_max
    if cores is not None and is_limit(cores):
        assert grant.limits.cpu_max is None or grant.limits.cpu_max <= cores
    assert grant.limits.pids_max is None or grant.limits.pids_max <= (CONFIG.pids_max or 0)
    assert not grant.limits.lacking(room.controllers) or not room.enforced


@given(intents(), rooms(controllers=frozenset({"memory", "cpu", "pids"})))
def test_what_was_asked_for_is_in_force_or_less_is_said(intent: Intent, room: Room) -> None:
    """Advisory intents tighten: no limit is looser than what the call itself declared."""
    grant = decide(intent, room, CONFIG)
    if not isinstance(grant, Grant):
        return
    if not room.enforced:
        assert not intent.asks_for_limits
        assert grant.limits == Limits()
        assert not grant.enforced
        return
    if intent.cpu is not None:
        assert grant.limits.cpu_max is not None
        assert grant.limits.cpu_max <= intent.cpu
        assert grant.limits.cpu_max == intent.cpu or any(note.startswith("cpu:") for note in grant.notes)
    if intent.pids is not None:
        assert grant.limits.pids_max is not None
        assert grant.limits.pids_max <= intent.pids
    if intent.memory_peak is not None:
        if room.can_brake:
            assert grant.tripwire.brake is not None
            assert grant.tripwire.brake <= intent.memory_peak
        else:
            assert any(note.startswith("brake:") for note in grant.notes)
        assert grant.limits.memory_max is not None
        assert grant.limits.memory_max <= 2 * intent.memory_peak
    if grant.tripwire.notify is not None and grant.tripwire.brake is not None:
        assert grant.tripwire.notify < grant.tripwire.brake
    if intent.network is not Network.ANY:
        assert room.can_gate_network


@given(intents(), rooms())
def test_a_refusal_has_all_its_parts(intent: Intent, room: Room) -> None:
    answer = decide(intent, room, CONFIG)
    if isinstance(answer, Refusal):
        assert answer.code
        assert answer.message
        assert answer.remedy


@given(intents(), rooms())
def test_more_room_never_refuses_what_less_room_granted(intent: Intent, room: Room) -> None:
    roomier = replace(room, host_total=2 * room.host_total)
    if isinstance(decide(intent, room, CONFIG), Grant):
        assert isinstance(decide(intent, roomier, CONFIG), Grant)


def test_what_typically_needs_more_than_the_host_has_is_refused_or_takes_less() -> None:
    room = Room(tenant_limits=Limits(), tenant_priority=50, host_total=GIB, enforced=True)
    answer = decide(Intent(memory_typical=2 * GIB), room, CONFIG)
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.field) == ("no_memory", "intent.memory_typical")
    assert isinstance(decide(Intent(memory_typical=2 * GIB, on_pressure=OnPressure.DEGRADE), room, CONFIG), Grant)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0, 5000.0])
def test_numbers_that_are_none(value: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Intent(cpu=value)
    assert caught.value.field == "intent.cpu"


def test_rates_are_defaults_and_what_a_host_cannot_is_said() -> None:
    config = CallConfig(io_max=1 << 20, egress_max=1 << 21)
    room = Room(tenant_limits=Limits(), tenant_priority=50, host_total=GIB, enforced=True)
    able = decide(Intent(), replace(room, controllers=frozenset({"memory", "pids", "io", "egress"})), config)
    assert isinstance(able, Grant)
    assert (able.limits.io_max, able.limits.egress_max, able.notes) == (1 << 20, 1 << 21, ())
    unable = decide(Intent(), replace(room, controllers=frozenset({"memory", "pids"})), config)
    assert isinstance(unable, Grant)
    assert (unable.limits.io_max, unable.limits.egress_max) == (None, None)
    assert unable.notes == tuple(
        f"{name}: not to be had on this host (see corral doctor)" for name in ("io_max", "egress_max")
    )
