"""Limits that a host cannot enforce, or that are above a ceiling: refused before anything is touched."""

from __future__ import annotations

import pytest

from controller.ceilings import check_below, check_settable
from controller.config import CallConfig
from controller.model import UNLIMITED, CannotEnforce, Grant, Intent, InvalidRequest, Limits, OnPressure
from controller.policy.grant import Refusal, Room, decide

MIB = 1 << 20
ALL = frozenset({"memory", "cpu", "pids", "io"})


def room(*, controllers: frozenset[str] = ALL, tenant: Limits | None = None) -> Room:
    return Room(
        tenant_limits=tenant or Limits(),
        tenant_priority=50,
        host_total=1 << 34,
        enforced=True,
        controllers=controllers,
    )


@pytest.mark.parametrize(
    ("intent", "controller", "field"),
    [
        (Intent(memory_peak=64 * MIB), "memory", "memory_peak"),
        (Intent(cpu=1.5), "cpu", "cpu"),
        (Intent(pids=20), "pids", "pids"),
    ],
)
def test_a_call_that_asks_for_what_the_host_has_not(intent: Intent, controller: str, field: str) -> None:
    answer = decide(intent, room(controllers=ALL - {controller}), CallConfig())
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.field, answer.unenforceable) == ("no_controller", f"intent.{field}", True)
    assert controller in answer.message
    assert controller in answer.remedy
    assert answer.value
    assert isinstance(decide(intent, room(), CallConfig()), Grant)


@pytest.mark.parametrize("controller", ["memory", "pids"])
def test_defaults_fall_away_with_their_controller(controller: str) -> None:
    config = CallConfig(memory_max=512 * MIB, pids_max=100)
    whole = decide(Intent(), room(), config)
    without = decide(Intent(), room(controllers=ALL - {controller}), config)
    assert isinstance(whole, Grant)
    assert isinstance(without, Grant)
    assert whole.limits == Limits(memory_max=512 * MIB, pids_max=100)
    assert without.limits == whole.limits.only(ALL - {controller}) != whole.limits


def test_processes_have_the_tenants_ceiling() -> None:
    tenant = Limits(pids_max=50)
    answer = decide(Intent(pids=51), room(tenant=tenant), CallConfig())
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.field, answer.value) == ("above_ceiling", "intent.pids", "51")
    assert "50" in answer.remedy
    assert isinstance(decide(Intent(pids=50), room(tenant=tenant), CallConfig()), Grant)
    degraded = decide(Intent(pids=51, on_pressure=OnPressure.DEGRADE), room(tenant=tenant), CallConfig())
    assert isinstance(degraded, Grant)
    assert degraded.limits.pids_max == 50
    assert any("50 given" in note for note in degraded.notes)


def test_fewer_processes_than_asked_are_said() -> None:
    granted = decide(Intent(pids=500), room(), CallConfig(pids_max=100))
    assert isinstance(granted, Grant)
    assert granted.limits.pids_max == 100
    assert granted.notes == ("pids: 500 asked, 100 given (call.pids_max)",)


def test_lacking_and_only() -> None:
    limits = Limits(memory_max=MIB, memory_low=UNLIMITED, cpu_weight=50, pids_max=UNLIMITED, io_weight=10)
    assert limits.lacking(frozenset()) == {"memory_max": "memory", "cpu_weight": "cpu", "io_weight": "io"}
    assert limits.lacking(ALL) == {}
    assert limits.only(frozenset({"cpu"})) == Limits(cpu_weight=50)
    assert limits.only(ALL) == limits


def test_operators_are_told_what_cannot_be_set() -> None:
    with pytest.raises(CannotEnforce, match=r"limits\.memory_max_bytes: .*no memory controller.*corral doctor"):
        check_settable(Limits(memory_max=MIB, pids_max=5), ALL - {"memory"})
    check_settable(Limits(memory_max=UNLIMITED), ALL - {"memory"})  # lifting what is not there is no lie
    check_settable(Limits(memory_max=MIB), ALL)


@pytest.mark.parametrize(
    ("limits", "field", "value"),
    [
        (Limits(memory_max=2 * MIB), "memory_max_bytes", str(2 * MIB)),
        (Limits(memory_max=UNLIMITED), "memory_max_bytes", "unlimited"),
        (Limits(cpu_max=2.5), "cpu_cores", "2.5"),
        (Limits(pids_max=11), "pids", "11"),
    ],
)
def test_a_limit_above_its_parents(limits: Limits, field: str, value: str) -> None:
    ceiling = Limits(memory_max=MIB, cpu_max=2, pids_max=10)
    with pytest.raises(InvalidRequest, match="above the ceiling of tenant 'a'") as caught:
        check_below(limits, ceiling, "tenant 'a'")
    assert (caught.value.field, caught.value.value) == (f"limits.{field}", value)
    check_below(limits, Limits(), "tenant 'a'")
    check_below(ceiling, ceiling, "tenant 'a'")
