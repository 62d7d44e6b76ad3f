"""Whose a GPU process is, and what is charged to whom."""

from __future__ import annotations

import pytest

from agentd.tier import charging
from agentd.tier.charging import HostCharges
from agentd.tier.view import Owner
from controller.backend import Whose
from controller.model import NotFound, SessionId
from controller.recognise.attachment import Attachment
from tests.unit.test_host import rig


async def test_a_calls_usage_has_it_and_later_readings_keep_it() -> None:
    async with rig() as it:
        session = it.open()
        call = it.launch(session)
        charges = HostCharges(it.host)
        owner = Owner(tenant_id=call.tenant.id, session_id=session, call_id=call.id)
        charges.charge(owner, memory_bytes=1 << 30, gpu_seconds=0.5, joules=10.0)
        charges.charge(owner, memory_bytes=2 << 30, gpu_seconds=0.25, joules=5.0)
        usage = it.host.call(call.id).usage  # read anew, from the kernel
        assert (usage.gpu_memory_bytes, usage.gpu_seconds, usage.gpu_joules) == (2 << 30, 0.75, 15.0)
        charges.charge(owner, memory_bytes=0, gpu_seconds=0.0, joules=0.0)
        it.exits(call, 100)
        outcome = await it.host.end(call.id, 0)
        assert (outcome.usage.gpu_memory_bytes, outcome.usage.gpu_seconds) == (0, 0.75)


async def test_a_call_without_a_gpu_says_nothing_of_one() -> None:
    async with rig() as it:
        call = it.launch(it.open())
        assert it.host.call(call.id).usage.gpu_seconds is None


async def test_what_no_live_call_used_is_its_sessions() -> None:
    async with rig() as it:
        session = it.open()
        call = it.launch(session)
        told: list[tuple[SessionId, float, float]] = []
        charges = HostCharges(it.host, lambda *what: told.append(what))
        agent = Owner(tenant_id=call.tenant.id, session_id=session)
        charges.charge(agent, memory_bytes=5, gpu_seconds=1.0, joules=2.0)
        charges.charge(agent, memory_bytes=5, gpu_seconds=0.0, joules=0.0)  # holds memory, and did nothing
        it.exits(call, 100)
        await it.host.end(call.id, 0)
        late = Owner(tenant_id=call.tenant.id, session_id=session, call_id=call.id)
        charges.charge(late, memory_bytes=0, gpu_seconds=0.5, joules=1.0)
        assert told == [(session, 1.0, 2.0), (session, 0.5, 1.0)]

        def gone(session_id: SessionId, seconds: float, joules: float) -> None:
            raise NotFound("no open session", remedy="open one")

        HostCharges(it.host, gone).charge(agent, memory_bytes=0, gpu_seconds=1.0, joules=1.0)  # nobody is left to pay


async def test_whose_a_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as it:
        session, container = it.open(), it.open()
        call = it.launch(session)
        found = it.host.registry.sessions[container]
        found.attachment = Attachment(rules="default", pid=1, start=0, container="abc", group="/docker/abc")
        paths = {7: "/docker/abc/inner", 8: "/docker/abcd", 9: ""}
        monkeypatch.setattr(charging, "group_of", lambda pid: paths[pid])
        tree = {5: Whose(session, call.id), 6: Whose(session)}
        monkeypatch.setattr(it.backend, "whose", lambda pid: tree.get(pid, Whose()))
        charges = HostCharges(it.host)
        tenant = call.tenant.id
        assert charges.owner_of(5) == Owner(tenant_id=tenant, session_id=session, call_id=call.id)
        assert charges.owner_of(6) == Owner(tenant_id=tenant, session_id=session)
        assert charges.owner_of(7) == Owner(tenant_id=tenant, session_id=container)
        assert charges.owner_of(8) is None  # a name that only begins alike
        assert charges.owner_of(9) is None

        def raises(pid: int) -> Whose:
            raise NotFound("no such process", remedy="look again")

        monkeypatch.setattr(it.backend, "whose", raises)
        assert charges.owner_of(5) is None
