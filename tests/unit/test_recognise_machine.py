"""The recogniser's state machine, over sequences of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.recognise.machine import (
    Begin,
    Emptied,
    Event,
    Executed,
    Exited,
    Forked,
    Join,
    Machine,
    MainExited,
    Role,
    RootExited,
    Step,
)
from controller.recognise.rules import Library

AGENT = 100


class Told:
    """A machine with one attached agent (process 100), and short words for what happens."""

    def __init__(self, rules: str = "generic") -> None:
        self.machine = Machine()
        self.machine.add_scope("s", Library().load(rules), AGENT)
        self.at = 0
        self.steps: list[Step] = []

    def feed(self, event: Event) -> list[Step]:
        steps = self.machine.feed(event)
        self.steps += steps
        return steps

    def now(self) -> int:
        self.at += 1000
        return self.at

    def fork(self, parent: int, *children: int) -> list[Step]:
        return [step for child in children for step in self.feed(Forked(self.now(), parent, child))]

    def exec(self, pid: int, *argv: str, group: int = 0, scope: str = "") -> list[Step]:
        return self.feed(Executed(self.now(), pid, f"/bin/{argv[0]}", argv, group, scope))

    def exit(self, pid: int, status: int = 0) -> list[Step]:
        return self.feed(Exited(self.now(), pid, status, 5))

    def begins(self) -> list[Begin]:
        return [step for step in self.steps if isinstance(step, Begin)]


def test_a_shell_of_the_agent_is_a_call_until_its_last_process_ends() -> None:
    told = Told()
    assert told.fork(AGENT, 1) == []
    [begin] = told.exec(1, "bash", "-c", "make")
    assert isinstance(begin, Begin)
    assert (begin.leader, begin.members, begin.scope, begin.born) == (1, (1,), "s", 1000)
    assert begin.verdict.rule == "shell"
    assert told.fork(1, 2) == [Join(begin.key, 2)]
    assert told.exec(2, "make") == []
    assert told.fork(2, 3) == [Join(begin.key, 3)]
    assert told.exit(3) == []
    [main] = told.exit(1, 256)
    assert main == MainExited(begin.key, told.at, 256, 5)
    assert told.exit(2) == [Emptied(begin.key, told.at)]


def test_nested_shells_are_one_call_and_an_exec_in_it_begins_none() -> None:
    told = Told()
    told.fork(AGENT, 1)
    told.exec(1, "bash", "-c", "sh -c 'git status'")
    told.fork(1, 2)
    told.exec(2, "sh", "-c", "git status")
    told.exec(2, "git", "status")
    told.exec(1, "git", "diff")
    assert len(told.begins()) == 1


def test_a_daemonised_child_stays_with_its_call() -> None:
    told = Told()
    told.fork(AGENT, 1)
    told.exec(1, "bash", "-c", "serve &")
    told.fork(1, 2)
    told.fork(2, 3)  # setsid and a second fork: its parent goes
    told.exit(2)
    [main] = told.exit(1)
    assert isinstance(main, MainExited)
    assert told.machine.role(3) is Role.CALL
    told.fork(3, 4)
    told.exec(3, "node", "serve.js")
    assert len(told.begins()) == 1
    told.exit(3)
    assert isinstance(told.exit(4)[-1], Emptied)


def test_helpers_keep_all_that_they_start() -> None:
    told = Told()
    told.fork(AGENT, 1)
    told.exec(1, "npx", "-y", "@modelcontextprotocol/server-git")
    told.fork(1, 2)
    told.exec(2, "bash", "-c", "git log")
    told.exec(1, "bash", "-c", "git log")
    assert told.begins() == []
    assert told.machine.role(2) is Role.HELPER


def test_a_wrapper_is_asked_about_again_when_it_executes_what_it_wraps() -> None:
    told = Told()
    told.fork(AGENT, 1)
    assert told.exec(1, "env", "X=1", "bash", "-c", "make") == []
    assert told.machine.asks_about(1)
    [begin] = told.exec(1, "bash", "-c", "make")
    assert isinstance(begin, Begin)
    assert not told.machine.asks_about(1)


def test_a_subshell_that_forks_before_it_executes_is_one_call() -> None:
    told = Told()
    told.fork(AGENT, 1)
    told.exec(1, "bash")  # fed: it stays with the agent
    assert told.machine.role(1) is Role.SHELL
    told.fork(1, 2)  # ( a; b )
    told.fork(2, 3)
    [begin] = told.exec(3, "make")
    assert isinstance(begin, Begin)
    assert (begin.leader, begin.members) == (2, (2, 3))
    assert begin.verdict.rule == "fed-command"
    told.exit(3)
    told.fork(2, 4)
    assert told.exec(4, "cargo", "test") == []
    assert len(told.begins()) == 1


def test_commands_of_a_fed_shell_are_calls_and_the_shell_is_none() -> None:
    told = Told()
    told.fork(AGENT, 1)
    told.exec(1, "bash", "--norc")
    for pid in (2, 3):
        told.fork(1, pid)
        told.exec(pid, "pytest", group=1)  # no job control: all are in the shell's process group
    assert [b.leader for b in told.begins()] == [2, 3]
    told.exit(2)
    told.exit(3)
    assert told.machine.role(1) is Role.SHELL


@pytest.mark.parametrize("order", [(2, 3, 4), (3, 2, 4), (4, 3, 2)])
def test_a_pipeline_under_job_control_is_one_call(order: Sequence[int]) -> None:
    told = Told()
    told.fork(AGENT, 1)
    told.exec(1, "bash", "-i")
    told.fork(1, 2, 3, 4)
    for pid in order:
        told.exec(pid, "grep", "x", group=2)
    [begin] = told.begins()
    assert begin.leader == 2
    joined = {step.pid for step in told.steps if isinstance(step, Join)}
    assert joined | set(begin.members) == {2, 3, 4}


def test_the_agents_own_forks_are_no_calls() -> None:
    told = Told()
    told.fork(AGENT, 1)
    told.fork(1, 2)
    assert told.exit(2) == []
    assert told.exit(1) == []
    assert told.steps == []


def test_what_comes_into_a_container_is_a_call() -> None:
    told = Told()
    [begin] = told.exec(7, "pytest", scope="s")
    assert isinstance(begin, Begin)
    assert begin.leader == 7
    assert told.exec(8, "pytest") == []
    assert told.exec(9, "pytest", scope="another") == []


def test_an_agent_that_comes_into_a_container_is_an_agent() -> None:
    told = Told()
    told.exec(7, "claude", scope="s")
    assert told.machine.role(7) is Role.AGENT
    told.fork(7, 8)
    assert isinstance(told.exec(8, "bash", "-c", "ls")[0], Begin)


def test_the_roots_end_is_told() -> None:
    told = Told()
    assert told.exit(AGENT) == [RootExited("s", told.at)]


def test_events_of_others_and_of_what_was_found_already_are_nothing() -> None:
    told = Told()
    told.at = 10_000
    told.fork(AGENT, 1)
    told.exec(1, "bash", "-c", "make")
    steps = told.machine.feed(Forked(5_000, AGENT, 1))  # it waited in the queue while the process was found
    assert steps == []
    assert told.machine.role(1) is Role.CALL
    assert told.fork(55, 56) == []
    assert told.exit(56) == []


def test_a_number_that_is_used_again_after_a_lost_end_is_another_process() -> None:
    told = Told()
    told.fork(AGENT, 1)
    [first] = told.exec(1, "bash", "-c", "make")
    assert isinstance(first, Begin)
    steps = told.fork(AGENT, 1)
    assert steps == [MainExited(first.key, told.at, None, None), Emptied(first.key, told.at)]
    [second] = told.exec(1, "bash", "-c", "make")
    assert isinstance(second, Begin)
    assert second.key != first.key


def test_a_part_that_has_the_leaders_number_is_not_the_leader() -> None:
    told = Told()
    told.fork(AGENT, 2)
    (begun,) = told.exec(2, "bash", "-c", "x")
    assert isinstance(begun, Begin)
    told.fork(2, 1)
    assert told.exit(2, 3) == [MainExited(begun.key, told.at, 3, 5)]
    assert told.fork(1, 2) == [Join(begun.key, 2)]
    assert told.exit(2, 4) == []
    assert told.exit(1) == [Emptied(begun.key, told.at)]


def test_an_adopted_call_goes_on() -> None:
    told = Told()
    key = told.machine.adopt_call("s", 5, [5, 6])
    assert told.fork(6, 7) == [Join(key, 7)]
    told.exit(7)
    told.exit(6)
    assert told.exit(5, 9) == [MainExited(key, told.at, 9, 5), Emptied(key, told.at)]


def test_a_dropped_scope_is_forgotten() -> None:
    told = Told()
    told.fork(AGENT, 1)
    told.exec(1, "bash", "-c", "x")
    told.machine.drop_scope("s")
    assert told.exit(1) == []
    assert not told.machine.knows(AGENT)
    assert list(told.machine.pids("s")) == []


PIDS = st.integers(1, 12)
WORDS = st.sampled_from(
    [("bash", "-c", "x"), ("bash",), ("git", "x"), ("node", "x"), ("env",), ("gopls",), ("tmux",), ("claude",)]
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("fork"), st.sampled_from([AGENT, *range(1, 13)]), PIDS),
        st.tuples(st.just("exec"), PIDS, WORDS, st.integers(0, 12), st.sampled_from(["", "s", "x"])),
        st.tuples(st.just("exit"), st.sampled_from([AGENT, *range(1, 13)])),
    ),
    max_size=120,
)


@settings(max_examples=300)
@given(EVENTS)
def test_any_history_keeps_its_books(history: list[tuple[Any, ...]]) -> None:
    """Every call begins once, its end comes once and after everything else of it, no process is of two calls, and
    when all have ended nothing is left."""
    told = Told()
    begun: dict[int, set[int]] = {}
    ended: set[int] = set()
    main_ended: set[int] = set()
    where: dict[int, int] = {}

    def check(steps: list[Step]) -> None:
        for step in steps:
            match step:
                case Begin():
                    assert step.key not in begun
                    assert step.leader == step.members[0] or step.leader not in step.members
                    begun[step.key] = set(step.members)
                    for pid in step.members:
                        assert pid not in where
                        where[pid] = step.key
                case Join():
                    assert step.key in begun
                    assert step.key not in ended
                    assert step.pid not in where
                    where[step.pid] = step.key
                case MainExited():
                    assert step.key in begun
                    assert step.key not in main_ended
                    main_ended.add(step.key)
                case Emptied():
                    assert step.key not in ended
                    ended.add(step.key)
                    assert step.key not in where.values()

    for kind, *rest in history:
        if kind == "fork":
            parent, child = int(rest[0]), int(rest[1])
            if child == parent:
                continue
            where.pop(child, None)
            check(told.fork(parent, child))
        elif kind == "exec":
            pid, words, group, scope = rest
            check(told.exec(int(pid), *words, group=int(group), scope=str(scope)))
        else:
            where.pop(int(rest[0]), None)
            check(told.exit(int(rest[0])))
    for pid in range(1, 13):
        where.pop(pid, None)
        check(told.exit(pid))
    assert set(begun) == ended
    assert set(told.machine.pids("s")) <= {AGENT}
