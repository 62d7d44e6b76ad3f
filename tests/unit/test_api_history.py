"""History through a real ledger file: written by the writer, read by the reader, asked for through the API's port."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from agentd.api.history import LedgerHistory
from agentd.api.ports import HistoryQuery
from agentd.ledger import Ledger, LedgerReader
from controller.model import CallState, CallView, ControllerError, SessionView, Usage
from tests.unit.api_fake import NOW, FakeHost, make_call, make_decision, make_outcome


async def fill(path: Path) -> tuple[list[SessionView], list[CallView]]:
    """Two tenants with a session each; two calls of the first, one of the second, each with samples and a decision."""
    ledger = Ledger.open(path)
    host = FakeHost()
    sessions = [host.add_session("acme")[0], host.add_session("umbrella")[0]]
    for tenant in host.tenants.values():
        ledger.tenant_set(tenant)
    for session in sessions:
        ledger.session_opened(session)
    calls = [
        replace(make_call(of), begun_at=NOW + offset)
        for offset, of in enumerate((sessions[0], sessions[0], sessions[1]))
    ]
    committed = asyncio.Event()
    for call in calls:
        ledger.call_begun(call)
        for at in (1.0, 2.0):
            ledger.sample(call.begun_at + at, call.id, CallState.RUNNING, Usage(cpu_usec=int(at), faults=5))
        ledger.decision(replace(make_decision(call), at=call.begun_at + 1))
        ended = replace(call, state=CallState.ENDED, outcome=make_outcome(call.id))
        ledger.call_ended(ended, committed.set)
    await ledger.close()
    assert committed.is_set()
    return sessions, calls


async def test_filters_decisions_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    sessions, calls = await fill(path)
    with LedgerReader(path) as reader:
        history = LedgerHistory(reader)

        page = await history.history(HistoryQuery())
        assert [call.id for call in page.calls] == [call.id for call in reversed(calls)]
        assert (list(page.decisions), list(page.samples)) == ([], [])
        assert page.calls[0].outcome is not None

        page = await history.history(HistoryQuery(tenant="acme", with_decisions=True, with_samples=True))
        assert {call.id for call in page.calls} == {calls[0].id, calls[1].id}
        assert [decision.call_id for decision in page.decisions] == [calls[0].id, calls[1].id]
        assert {sample.call_id for sample in page.samples} == {calls[0].id, calls[1].id}
        assert len(page.samples) == 4
        assert (page.samples[0].usage.cpu_usec, page.samples[0].usage.faults) == (1, 5)

        page = await history.history(HistoryQuery(session_id=sessions[1].id, with_decisions=True))
        assert [decision.call_id for decision in page.decisions] == [calls[2].id]
        page = await history.history(HistoryQuery(call_id=calls[1].id, with_samples=True))
        assert [sample.at for sample in page.samples] == [calls[1].begun_at + 1, calls[1].begun_at + 2]
        page = await history.history(HistoryQuery(since=NOW + 1, until=NOW + 2))
        assert [call.id for call in page.calls] == [calls[1].id]
        assert len((await history.history(HistoryQuery(limit=1))).calls) == 1
        assert (await history.history(HistoryQuery(tenant="nobody", with_decisions=True))).decisions == []


async def test_samples_are_thinned_on_request(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    _, calls = await fill(path)
    with LedgerReader(path) as reader:
        query = HistoryQuery(call_id=calls[0].id, with_samples=True, sample_points=1)
        page = await LedgerHistory(reader).history(query)
    assert [(sample.at, sample.usage.cpu_usec) for sample in page.samples] == [(calls[0].begun_at + 2, 2)]


async def test_a_moment_of_the_past(tmp_path: Path) -> None:
    """Calls begin at NOW, a second and two seconds later, have samples and decisions, and all end at NOW + 3."""
    path = tmp_path / "ledger.sqlite"
    sessions, calls = await fill(path)
    with LedgerReader(path) as reader:
        history = LedgerHistory(reader)

        first = await history.moment(None)
        assert (first.at, first.first) == (NOW, NOW)
        assert [call.id for call in first.calls] == [calls[0].id]
        assert first.calls[0].state is CallState.RUNNING
        assert first.calls[0].usage == Usage()  # no sample was taken yet
        assert (first.previous_decision, first.next_decision) == (None, NOW + 1)
        assert {session.id for session in first.sessions} == {session.id for session in sessions}
        assert [tenant.name for tenant in first.tenants] == ["acme", "umbrella"]

        later = await history.moment(NOW + 2)
        assert {call.id for call in later.calls} == {call.id for call in calls}
        of_first = next(call for call in later.calls if call.id == calls[0].id)
        assert (of_first.usage.cpu_usec, of_first.outcome) == (2, None)
        assert [decision.at for decision in later.decisions] == [NOW + 1, NOW + 2]
        assert (later.previous_decision, later.next_decision) == (NOW + 1, NOW + 3)

        over = await history.moment(NOW + 3)
        assert list(over.calls) == []
        before = await history.moment(NOW - 100)
        assert (list(before.calls), list(before.decisions), before.next_decision) == ([], [], NOW + 1)


async def test_a_ledger_without_calls_has_no_first_moment(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    await Ledger.open(path).close()
    with LedgerReader(path) as reader:
        assert (await LedgerHistory(reader).moment(None)).first is None


async def test_a_fault_of_the_ledger_says_file_cause_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    await fill(path)
    reader = LedgerReader(path)
    reader.close()
    with pytest.raises(ControllerError) as fault:
        await LedgerHistory(reader).history(HistoryQuery())
    assert str(path) in str(fault.value)
    assert fault.value.remedy
