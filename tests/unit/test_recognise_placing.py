"""What becomes of recognised calls, over a backend without a kernel: the processes are real ones that sleep."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.backend import Whose
from controller.config import HostConfig, TenantConfig
from controller.host import Host
from controller.model import CallState, CallView, CgroupError, Reason, SessionId
from controller.recognise.machine import Event, Executed, Exited, Forked
from controller.recognise.recogniser import Recogniser
from controller.recognise.rules import Library
from tests.support.backend import FixedReader, RecordingBackend, RecordingJournal

SHELL = ("bash", "-c", "make")


class Backend(RecordingBackend):
    """Knows whose the agent's processes are, as the tree of groups would."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: dict[int, SessionId] = {}

    def whose(self, pid: int) -> Whose:
        return Whose(self.ours.get(pid))

    def enter_session(self, tenant_id: object, session_id: SessionId, pid: int) -> None:
        super().enter_session(tenant_id, session_id, pid)  # type: ignore[arg-type]
        self.ours[pid] = session_id


class Source:
    """Tells what the test says. It hears of every process, as netlink does."""

    def __init__(self) -> None:
        self.lost = self.unseen = 0
        self.waiting: list[Event] = []
        self.placed_pids: list[int] = []
        self._reader, self._writer = os.pipe()

    def fileno(self) -> int:
        return self._reader

    def watch(self, pid: int) -> None:
        pass

    unwatch = watch

    def placed(self, pid: int) -> None:
        self.placed_pids.append(pid)

    def watch_group(self, group: str, scope: str) -> None:
        pass

    def unwatch_group(self, scope: str) -> None:
        pass

    def read(self, most: int) -> Iterator[Event]:
        os.read(self._reader, 1)
        events, self.waiting = self.waiting, []
        yield from events

    async def tell(self, *events: Event) -> None:
        self.waiting += events
        os.write(self._writer, b"x")
        for _ in range(3):
            await asyncio.sleep(0)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


class Bench:
    def __init__(self, rules: Path) -> None:
        self.backend = Backend()
        self.journal = RecordingJournal()
        config = HostConfig(tenants=(TenantConfig(name="acme"), TenantConfig(name="narrow", max_calls=1)))
        self.host = Host(config, self.backend, self.journal, FixedReader())
        self.source = Source()
        self.recogniser = Recogniser(self.host, Library(rules), lambda text: ("build", text), lambda _: self.source)
        self.children: list[subprocess.Popen[bytes]] = []
        self.at = 1 << 62

    def child(self) -> int:
        process = subprocess.Popen(["sleep", "100"])
        self.children.append(process)
        return process.pid

    def attach(self, *, tenant: str = "acme", rules: str = "") -> int:
        pid = self.child()
        session = self.recogniser.attach_process(tenant=tenant, name="", labels={}, pid=pid, rules=rules)
        assert session.rules == (rules or "generic")
        return pid

    async def begin(self, agent: int, *after: Event, argv: tuple[str, ...] = SHELL) -> int:
        """A child of the agent that executes ``argv``; its number."""
        pid = self.child()
        self.backend.ours[pid] = self.backend.ours[agent]
        self.at += 10
        await self.source.tell(
            Forked(self.at, agent, pid), Executed(self.at + 1, pid, "/bin/bash", argv), *(e for e in after)
        )
        return pid

    def calls(self) -> list[CallView]:
        return [*(c.view() for c in self.host.registry.calls.values()), *self.host.registry.recently_ended()]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    ending = 'version = 1\nname = "strict"\ndescription = ""\non_refusal = "end"\n[[rule]]\nname = "all"\nis = "call"\n'
    (tmp_path / "strict.toml").write_text(ending)
    made = Bench(tmp_path)
    made.host.start()
    try:
        yield made
    finally:
        await made.recogniser.stop()
        await made.host.stop()
        for process in made.children:
            process.kill()
            process.wait()


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not so():  # noqa: ASYNC110 - several tasks lead there
            await asyncio.sleep(0.01)


async def test_a_recognised_call_is_placed_and_ends_with_its_status(bench: Bench) -> None:
    agent = bench.attach()
    pid = await bench.begin(agent)
    [call] = bench.calls()
    assert (call.command, call.intent.tool, call.intent.call_class) == ("bash -c make", "make", "build")
    assert bench.backend.leaves[call.id].pids == {pid}
    assert bench.source.placed_pids == [pid]
    assert call.recognition is not None
    assert call.recognition.rule == "generic/shell"
    bench.backend.leaves[call.id].pids.clear()
    await bench.source.tell(Exited(bench.at + 5, pid, 512, 10))
    [ended] = bench.calls()
    assert ended.outcome is not None
    assert (ended.outcome.reason, ended.outcome.wait_status) == (Reason.FAILED, 512)


async def test_losses_one_after_the_other_cost_one_look_at_all_processes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that forks faster than it is heard must not keep the daemon looking through /proc."""
    looks = 0
    agent_pids = bench.backend.agent_pids

    def counted(*whose: Any) -> Iterable[int]:
        nonlocal looks
        looks += 1
        return agent_pids(*whose)

    agent = bench.attach()
    pid = await bench.begin(agent)
    [call] = bench.calls()
    monkeypatch.setattr(bench.backend, "agent_pids", counted)
    bench.backend.leaves[call.id].pids.clear()
    bench.children[-1].kill()
    bench.children[-1].wait()
    for _ in range(5):
        bench.source.lost += 1
        await bench.source.tell()
    await until(lambda: bench.calls()[0].outcome is not None)  # the end of the call was among what was lost
    assert not bench.recogniser.knows(pid)
    assert looks < 5
    assert "lost 5 times" in bench.recogniser.problems()[0]
    await until(lambda: looks >= 2)  # what was lost since is found a second later


async def test_a_call_waits_for_its_leaf_to_be_empty(bench: Bench) -> None:
    agent = bench.attach()
    pid = await bench.begin(agent)
    [call] = bench.calls()
    left = bench.child()
    bench.backend.leaves[call.id].pids = {left}
    await bench.source.tell(Exited(bench.at + 5, pid, 0, 10))
    assert bench.calls()[0].state is CallState.RUNNING
    bench.backend.leaves[call.id].pids.clear()
    bench.host.events.on_empty(call.id)
    [ended] = bench.calls()
    assert ended.outcome is not None
    assert ended.outcome.reason is Reason.EXITED


async def test_what_was_over_before_it_was_read_is_on_record_without_a_leaf(bench: Bench) -> None:
    agent = bench.attach()
    pid = bench.child()
    bench.backend.ours[pid] = bench.backend.ours[agent]
    at = bench.at
    await bench.source.tell(
        Forked(at, agent, pid), Executed(at + 1, pid, "/bin/bash", SHELL), Exited(at + 2_000_000, pid, 9, 700)
    )
    assert bench.backend.leaves == {}
    [call] = bench.calls()
    assert call.outcome is not None
    assert (call.outcome.reason, call.outcome.wait_status, call.usage.cpu_usec) == (Reason.SIGNALLED, 9, 700)
    assert call.outcome.wall_seconds == pytest.approx(0.002)
    assert not call.grant.enforced
    assert "charged to the agent" in call.grant.notes[0]
    assert [c.id for c in bench.journal.begun] == [c.id for c in bench.journal.ended] == [call.id]
    assert bench.recogniser.placing.missed == 1


async def test_a_number_that_is_another_process_now_is_not_moved(bench: Bench) -> None:
    agent = bench.attach()
    pid = bench.child()  # of nobody's session: as if the number had been used again
    at = bench.at
    await bench.source.tell(Forked(at, agent, pid), Executed(at + 1, pid, "/bin/bash", SHELL))
    [call] = bench.calls()
    assert bench.backend.leaves[call.id].pids == set()
    assert bench.source.placed_pids == []
    await bench.source.tell(Exited(at + 2, pid, 0, 300))
    [ended] = bench.calls()
    assert ended.outcome is not None
    assert ended.recognition is not None
    assert ended.recognition.cpu_usec_before == 300


async def test_a_call_that_must_wait_is_held_until_its_turn(bench: Bench) -> None:
    agent = bench.attach(tenant="narrow")
    first = await bench.begin(agent)
    second = await bench.begin(agent)
    assert bench.backend.waiting == [second]
    states = {c.main_pid: c.state for c in bench.host.registry.calls.values()}
    assert states[second] is CallState.QUEUED
    [running] = [c for c in bench.host.registry.calls.values() if c.main_pid == first]
    bench.backend.leaves[running.id].pids.clear()
    await bench.source.tell(Exited(bench.at + 5, first, 0, 10))
    await until(lambda: bench.source.placed_pids == [first, second])


async def test_one_that_ends_while_it_waits_is_on_record(bench: Bench) -> None:
    agent = bench.attach(tenant="narrow")
    await bench.begin(agent)
    second = await bench.begin(agent)
    await bench.source.tell(Exited(bench.at + 5, second, 9, 10))
    await until(lambda: any("while it waited" in note for c in bench.calls() for note in c.grant.notes))
    assert sum(c.outcome is None for c in bench.calls()) == 1


async def test_a_call_that_gets_no_leaf_runs_on_with_the_agent_and_that_is_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = bench.attach(rules="strict")

    def full(*_: object) -> str:
        raise CgroupError("no room", remedy="none")

    monkeypatch.setattr(bench.backend, "add_call", full)
    pid = await bench.begin(agent)
    assert bench.calls() == []
    [decision] = [d for d in bench.journal.decisions if d.policy == "recognise"]
    assert "left to run with the agent" in decision.reason
    assert next(p for p in bench.children if p.pid == pid).poll() is None


async def test_lost_events_and_what_was_not_seen_are_told(bench: Bench) -> None:
    agent = bench.attach()
    assert bench.recogniser.problems() == ()
    bench.source.lost, bench.source.unseen = 2, 3
    pid = bench.children[0].pid
    bench.children[0].kill()
    bench.children[0].wait()
    assert pid == agent
    await bench.source.tell()  # it looks again, and finds that the agent has ended
    unseen, lost = bench.recogniser.problems()
    assert "3 processes ended before" in unseen
    assert "lost 2 times" in lost
    await until(lambda: not bench.host.registry.sessions)


async def test_detaching_ends_the_recognition_and_then_the_session(bench: Bench) -> None:
    agent = bench.attach()
    pid = await bench.begin(agent)
    session = bench.backend.ours[agent]
    bench.recogniser.detach(session)
    await bench.begin(agent)
    [call] = bench.calls()
    assert session in bench.host.registry.sessions
    bench.backend.leaves[call.id].pids.clear()
    await bench.source.tell(Exited(bench.at + 5, pid, 0, 10))
    await until(lambda: session not in bench.host.registry.sessions)
