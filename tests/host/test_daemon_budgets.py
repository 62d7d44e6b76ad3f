"""Budgets of a real daemon: charged from the kernel's counters, refused when used up, refilled, and never lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from agentd.api.client import ApiError
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import end, go, line, live_call, load_program
from tests.support.daemons import REPOSITORY, DaemonFactory, DaemonUnderTest, Session

pytestmark = pytest.mark.host
PIPE, STDOUT = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
REFUSED = 125  # corral-exec's status where the tool was not started
QUICK = {"daemon": {"restart_grace": "1s"}, "host": {"sample_interval": "100ms"}}


async def set_budget(daemon: DaemonUnderTest, target: str, resource: str, limit: float, **more: object) -> pb.Budget:
    request = pb.SetBudgetRequest(target=target, resource=resource, limit=limit, **more)  # type: ignore[arg-type]
    answer = await daemon.client.call(daemon.client.operator.SetBudget, request)
    return next(b for b in answer.budgets if b.resource == resource)


async def budget(daemon: DaemonUnderTest, session: Session, resource: str, scope: str = "tenant") -> pb.Budget:
    request = pb.GetBudgetRequest(session_id=session.id)
    answer = await daemon.client.call(daemon.client.agent.GetBudget, request)
    (found,) = (b for b in answer.budgets if b.resource == resource and b.scope == scope)
    return found


async def test_calls_are_counted_refused_and_allowed_again_with_the_period(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(tenants={"acme": {"budgets": {"calls_begun": "2 per 3s hard"}}})
    session = await daemon.open_session("acme")
    for _ in range(5):  # a period may end in between, once
        status, _, err = await daemon.call(session, "/bin/true")
        if status != 0:
            break
    assert status == REFUSED
    assert "hard budget of calls_begun of tenant 'acme' is used up: 2 of 2" in err
    assert "it is full again in" in err
    refills_at = (await budget(daemon, session, "calls_begun")).refills_at
    assert refills_at % 3 == 0, "whole periods since 1970"
    await asyncio.sleep(max(0.0, refills_at - time.time()))  # a period is an amount of time: nothing tells its end
    status, _, err = await daemon.call(session, "/bin/true")
    assert status == 0, err
    decisions = (await daemon.history(session)).decisions
    assert any(d.action == "refuse" and d.reason.startswith("budget_exhausted") for d in decisions)


async def test_cpu_time_is_charged_as_it_is_used_and_a_running_call_may_finish(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(settings=QUICK)
    session = await daemon.open_session("acme")
    await set_budget(daemon, session.id, "cpu_seconds", 0.4, hard=True)
    await set_budget(daemon, "acme", "cpu_seconds", 3600.0)
    tool = await daemon.launch(session, load_program(), "cpu:600", "say:used", "wait", "exit:3", stdin=PIPE)
    assert await line(tool) == "used"
    call = await live_call(daemon, session)
    deadline = time.monotonic() + 20
    while (await budget(daemon, session, "cpu_seconds", "session")).remaining > 0:
        assert time.monotonic() < deadline, "the sampler never charged it"
        await asyncio.sleep(0.05)  # the sampler tells nobody
    status, _, err = await daemon.call(session, "/bin/true")
    assert status == REFUSED, "while the first still runs"
    assert f"budget of cpu_seconds of session {session.id} is used up" in err
    with pytest.raises(ApiError) as refused:
        await daemon.client.call(daemon.client.agent.BeginCall, pb.BeginCallRequest(session_id=session.id, argv=["x"]))
    assert refused.value.code == "budget_exhausted"

    go(tool)
    assert (await end(tool))[0] == 3
    answer = await daemon.client.call(daemon.client.agent.GetOutcome, pb.GetOutcomeRequest(call_id=call.id))
    assert answer.outcome.reason == "failed", "it was let finish"
    left = {b.scope: b for b in answer.outcome.budgets}
    used = answer.outcome.usage.cpu_usec / 1e6
    assert used > 0.5
    assert left["session"].used == pytest.approx(used, abs=1e-9)
    assert left["tenant"].used == pytest.approx(used, abs=1e-9)
    assert (left["session"].band, left["tenant"].band) == (pb.BUDGET_BAND_CRITICAL, pb.BUDGET_BAND_PLENTY)

    await set_budget(daemon, session.id, "cpu_seconds", 3600.0, hard=True)
    status, _, err = await daemon.call(session, "/bin/true")
    assert status == 0, err


async def test_a_budget_that_ends_calls_ends_a_runaway(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(tenants={"acme": {"session_budgets": {"cpu_seconds": "300ms end"}}}, settings=QUICK)
    session = await daemon.open_session("acme")
    status, _, err = await daemon.call(session, load_program(), "cpu:60000")
    assert status != 0
    assert "was ended because a budget is used up" in err
    assert "hard budget of cpu_seconds of this session is used up" in err
    (call,) = (await daemon.history(session, ended=1)).calls
    assert call.outcome.reason == "budget_exhausted"
    assert 0.3 <= call.outcome.usage.cpu_usec / 1e6 < 20


async def test_nothing_is_lost_or_charged_twice_by_a_daemon_that_is_killed(daemons: DaemonFactory) -> None:
    """A call that had ended, one that works on while no daemon runs, and one that ends meanwhile."""
    resources = {"cpu_seconds": "1h", "calls_begun": "100", "network_bytes": "1G", "memory_byte_seconds": "1G*1h"}
    daemon = await daemons.start(tenants={"acme": {"budgets": resources}}, settings=QUICK)
    session = await daemon.open_session("acme")
    await set_budget(daemon, session.id, "calls_begun", 50.0, period_seconds=86_400.0)
    await daemon.call(session, load_program(), "cpu:100")
    working = await daemon.launch(
        session, load_program(), "cpu:150", "say:one", "wait", "cpu:150", "say:two", "wait", stdin=PIPE
    )
    ending = await daemon.launch(session, load_program(), "cpu:100", "say:one", "wait", "cpu:100", stdin=PIPE)
    assert await line(working) == "one"
    assert await line(ending) == "one"
    await daemon.client.call(
        daemon.client.agent.ReportTurn, pb.ReportTurnRequest(session_id=session.id, prompt_tokens=5, seconds=1.0)
    )
    await daemon.call(session, "/bin/true")
    await daemon.history(session, ended=2)  # the turn was given to the ledger before these ends
    await daemon.kill()
    go(working)
    go(ending)
    assert await line(working) == "two"
    await daemon.start()
    assert (await end(ending))[0] == 0
    await daemon.restart(kill=True)
    go(working)
    assert (await end(working))[0] == 0

    history = await daemon.history(session, ended=4)
    used = sum(call.outcome.usage.cpu_usec for call in history.calls) / 1e6
    network = sum(call.outcome.usage.net_rx_bytes + call.outcome.usage.net_tx_bytes for call in history.calls)
    assert len(history.calls) == 4
    assert (await budget(daemon, session, "cpu_seconds")).used == pytest.approx(used, abs=1e-6)
    assert (await budget(daemon, session, "network_bytes")).used == network
    assert (await budget(daemon, session, "calls_begun")).used == 4
    of_session = await budget(daemon, session, "calls_begun", "session")
    assert (of_session.used, of_session.limit, of_session.period_seconds) == (4, 50, 86_400)
    assert (await budget(daemon, session, "memory_byte_seconds")).used > 0
    (seen,) = (s for s in (await daemon.snapshot()).sessions if s.id == session.id)
    assert (seen.turns.turns, seen.turns.prompt_tokens) == (1, 5)


async def test_a_soft_budget_is_told_once_at_each_step_down(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(tenants={"acme": {"session_budgets": {"calls_begun": "5"}}})
    session = await daemon.open_session("acme")
    said = [(await daemon.call(session, "/bin/true"))[::2] for _ in range(8)]
    assert [status for status, _ in said] == [0] * 8, "soft: it is only told"
    told = [number for number, (_, err) in enumerate(said) if "budget of calls_begun" in err]
    assert told == [4, 5], said
    assert "of this session is low: 1 of 5 left" in said[4][1]
    assert "is used up: 0 of 5 left" in said[5][1]


async def test_programs_are_told_with_the_outcome(daemons: DaemonFactory, tmp_path: Path) -> None:
    daemon = await daemons.start(tenants={"acme": {"session_budgets": {"calls_begun": "2 hard"}}})
    session = await daemon.open_session("acme")
    notes = []
    for number in range(3):
        told = tmp_path / str(number)
        await daemon.call(session, "/bin/true", options=("--quiet", "--outcome-file", str(told)))
        notes.append(json.loads(told.read_text()))
    assert [one["state"] for one in notes] == ["ended", "ended", "refused"]
    assert notes[0]["notes"] == []
    (note,) = notes[1]["notes"]
    assert "hard budget of calls_begun of this session is used up: 0 of 2 left" in note
    assert notes[2]["code"] == "budget_exhausted"


async def corral(daemon: DaemonUnderTest, *words: str, api: Path, session: Session | None = None) -> tuple[int, str]:
    """The command line: status, and both streams."""
    environment = {**os.environ, **(session.environment if session is not None else {}), "CORRAL_API": f"unix:{api}"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentd.cli", *words), env=environment, cwd=REPOSITORY, stdout=PIPE, stderr=STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_operators_and_agents_at_the_command_line(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(tenants={"acme": {"session_budgets": {"tokens": "2M hard"}}})
    session = await daemon.open_session("acme")
    words = ("budget", "set", "acme", "cpu_seconds", "10h", "--hard", "--per", "1d")
    status, said = await corral(daemon, *words, api=daemon.operator_socket)
    assert (status, "10 h 0 min" in said) == (0, True), said
    tenants_socket = daemon.runtime_dir / "tenants" / "acme.sock"
    status, said = await corral(daemon, "budget", api=tenants_socket, session=session)
    assert status == 0, said
    assert [line.split()[:2] for line in said.splitlines()[1:]] == [["tenant", "cpu_seconds"], ["session", "tokens"]]
    status, said = await corral(daemon, "budget", "set", "acme", "tokens", "1", api=tenants_socket, session=session)
    assert (status, "operator" in said) == (4, True), "agents set none"
    status, said = await corral(daemon, "budget", "remove", "acme", "cpu_seconds", api=daemon.operator_socket)
    assert (status, "no budget now" in said) == (0, True), said


async def test_a_reload_applies_budgets(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(tenants={"acme": {"budgets": {"calls_begun": "1 hard"}}})
    session = await daemon.open_session("acme")
    assert (await daemon.call(session, "/bin/true"))[0] == 0
    assert (await daemon.call(session, "/bin/true"))[0] == REFUSED
    text = daemon.config_file.read_text()
    assert '"1 hard"' in text
    daemon.config_file.write_text(text.replace('"1 hard"', '"2 hard"'))
    os.kill(daemon.pid, signal.SIGHUP)
    deadline = time.monotonic() + 20
    while (await budget(daemon, session, "calls_begun")).limit != 2:
        assert time.monotonic() < deadline, daemon.log_tail()
        await asyncio.sleep(0.05)  # a reload tells systemd alone
    assert (await daemon.call(session, "/bin/true"))[0] == 0
    assert (await daemon.call(session, "/bin/true"))[0] == REFUSED, "what was used stays used"
