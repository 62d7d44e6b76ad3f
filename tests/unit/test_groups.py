"""Groups above the calls: what protects agents' own processes from reclaim, and where it is left alone."""

from __future__ import annotations

from typing import cast

from controller.backend import SessionRecord
from controller.cgroup import Tree
from controller.groups import Groups
from controller.model import Limits, SessionView, TenantView, new_session_id, new_tenant_id

MIB = 1 << 20


class Group:
    def __init__(self) -> None:
        self.limits: list[Limits] = []

    def create(self, limits: Limits | None = None, *, exist_ok: bool = False) -> tuple[str, ...]:
        self.limits.append(limits or Limits())
        return ()

    def set_xattr(self, data: bytes) -> None:
        pass


class Recorded:
    """A tree of which only the limits are of interest."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.controllers = frozenset({"memory", "cpu", "pids"})
        self.made = {name: Group() for name in ("tenant", "session", "agent", "calls")}

    def tenant(self, *_: str) -> Group:
        return self.made["tenant"]

    def session(self, *_: str) -> Group:
        return self.made["session"]

    def agent(self, *_: str) -> Group:
        return self.made["agent"]

    def calls(self, *_: str) -> Group:
        return self.made["calls"]


def low_of(mode: str, limits: Limits) -> dict[str, int | None]:
    tree = Recorded(mode)
    groups = Groups(cast("Tree", tree))
    tenant = TenantView(id=new_tenant_id(), name="acme", limits=limits, priority=50)
    groups.add_tenant(tenant)
    session = SessionView(id=new_session_id(), tenant_id=tenant.id, name="agent", uid=1000, opened_at=0.0, labels={})
    groups.add_session(SessionRecord(session=session, token_hash="0" * 64, token_expires=1.0))
    return {name: group.limits[0].memory_low for name, group in tree.made.items()}


def test_agents_are_protected_and_calls_are_not() -> None:
    low = low_of("unified", Limits())
    assert low["agent"] == low["session"] == low["tenant"]
    assert (low["agent"] or 0) >= 1 << 40, "each level must hand it down"
    assert low["calls"] is None


def test_what_an_operator_sets_of_a_tenant_stands() -> None:
    assert low_of("unified", Limits(memory_low=64 * MIB))["tenant"] == 64 * MIB


def test_a_host_without_it_is_not_asked() -> None:
    assert set(low_of("hybrid", Limits()).values()) == {None}
