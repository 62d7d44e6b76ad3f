"""Groups above the calls: what protects agents' own processes from reclaim, and where it is left alone."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from controller.backend import SessionRecord
from controller.backends.groups import Groups
from controller.cgroup import Tree
from controller.model import Limits, SessionView, TenantView, new_session_id, new_tenant_id
from controller.shelter import STEP, handed_down

MIB = 1 << 20


class Group:
    def __init__(self) -> None:
        self.limits: list[Limits] = []
        self.memory = 0

    def create(self, limits: Limits | None = None, *, exist_ok: bool = False) -> tuple[str, ...]:
        self.limits.append(limits or Limits())
        return ()

    def set(self, limits: Limits) -> tuple[str, ...]:
        self.limits.append(limits)
        return ()

    def memory_now(self) -> int:
        return self.memory

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


def made(mode: str, limits: Limits) -> tuple[Recorded, Groups, TenantView, SessionView]:
    tree = Recorded(mode)
    groups = Groups(cast("Tree", tree))
    tenant = TenantView(id=new_tenant_id(), name="acme", limits=limits, priority=50)
    groups.add_tenant(tenant)
    session = SessionView(id=new_session_id(), tenant_id=tenant.id, name="agent", uid=1000, opened_at=0.0, labels={})
    groups.add_session(SessionRecord(session=session, token_hash="0" * 64, token_expires=1.0))
    return tree, groups, tenant, session


def low_of(tree: Recorded) -> dict[str, int | None]:
    """The last that was set of each."""
    found: dict[str, int | None] = {}
    for name, group in tree.made.items():
        found[name] = None
        for limits in group.limits:
            if limits.memory_low is not None:
                found[name] = limits.memory_low
    return found


def test_agents_are_protected_and_as_much_as_they_use_is_handed_down() -> None:
    tree, groups, tenant, session = made("unified", Limits())
    tree.made["agent"].memory = 100 * MIB
    groups.shelter_agents(tenant.id, [session.id], True)
    low = low_of(tree)
    assert (low["agent"] or 0) >= 1 << 40
    assert low["session"] == low["tenant"]
    assert 100 * MIB < (low["session"] or 0) <= 107 * MIB, "what is handed down beyond it shelters the calls"
    assert low["calls"] is None


def test_it_follows_the_agent_in_steps() -> None:
    tree, groups, tenant, session = made("unified", Limits())
    group, agent = tree.made["session"], tree.made["agent"]
    agent.memory = 100 * MIB
    groups.shelter_agents(tenant.id, [session.id], True)
    writes = len(group.limits)
    agent.memory = 100 * MIB + 4096
    groups.shelter_agents(tenant.id, [session.id], True)
    assert len(group.limits) == writes, "nothing to write for a page"
    agent.memory = 300 * MIB
    groups.shelter_agents(tenant.id, [session.id], True)
    assert 300 * MIB < (low_of(tree)["session"] or 0) <= 320 * MIB


@given(used=st.integers(0, 1 << 45))
def test_what_is_handed_down_is_enough_and_not_much_more(used: int) -> None:
    assert used < handed_down(used) <= used + max(STEP, used // 8)


def test_what_an_operator_sets_of_a_tenant_stands() -> None:
    tree, groups, tenant, session = made("unified", Limits(memory_low=64 * MIB))
    tree.made["agent"].memory = 100 * MIB
    groups.shelter_agents(tenant.id, [session.id], False)
    assert low_of(tree)["tenant"] == 64 * MIB
    assert (low_of(tree)["session"] or 0) > 100 * MIB


def test_limits_of_a_tenant_that_were_set_anew_are_followed_by_its_shelter() -> None:
    tree, groups, tenant, session = made("unified", Limits())
    tree.made["agent"].memory = 100 * MIB
    groups.shelter_agents(tenant.id, [session.id], True)
    writes = len(tree.made["tenant"].limits)
    groups.add_tenant(tenant)
    groups.shelter_agents(tenant.id, [session.id], True)
    assert len(tree.made["tenant"].limits) == writes + 2


def test_a_host_without_it_is_not_asked() -> None:
    tree, groups, tenant, session = made("hybrid", Limits())
    groups.shelter_agents(tenant.id, [session.id], True)
    assert set(low_of(tree).values()) == {None}
