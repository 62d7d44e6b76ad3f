"""Which processes are tool calls: a pure state machine over forks, execs and exits of attached sessions.

Every process of a session that is attached has a role. A child of the agent (or of a shell that it feeds) is *open*
until it calls exec: then the rules say what it is. It is one group with its own children until then, so that a
subshell which forks before it executes anything is one call and not several. What is born in a call is of the call,
whatever it executes, however often it forks away from its parent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from controller.recognise.rules import Kind, Parent, RuleSet, Verdict, judge


class Role(StrEnum):
    AGENT = "agent"
    SHELL = "shell"
    HELPER = "helper"
    OPEN = "open"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class Forked:
    at: int  # CLOCK_MONOTONIC, nanoseconds; of every event
    parent: int
    child: int
    born: int = 0  # where that was earlier than ``at``: of a process that was found, not seen to be forked


@dataclass(frozen=True, slots=True)
class Executed:
    """``group``: the process group, 0 where it is not known. ``scope``: of a process that came into a container.
    ``cpu_usec``: what it had used until then, where that is known."""

    at: int
    pid: int
    path: str
    argv: Sequence[str]
    group: int = 0
    scope: str = ""
    cpu_usec: int = 0


@dataclass(frozen=True, slots=True)
class Exited:
    """``status`` as of waitpid(2); None where it is not known. ``cpu_usec`` of all its threads, likewise."""

    at: int
    pid: int
    status: int | None
    cpu_usec: int | None = None


Event = Forked | Executed | Exited


@dataclass(frozen=True, slots=True)
class Begin:
    """A call was recognised. ``members``: all processes of it so far, the ``leader`` (its main process) first."""

    key: int
    scope: str
    leader: int
    members: tuple[int, ...]
    verdict: Verdict
    path: str
    argv: tuple[str, ...]
    born: int  # nanoseconds: when its leader was forked, or was first seen
    cpu_elsewhere: int = 0  # microseconds that its leader had used before it came into the container


@dataclass(frozen=True, slots=True)
class Join:
    """A process that was born in a call, perhaps before the call was placed."""

    key: int
    pid: int


@dataclass(frozen=True, slots=True)
class MainExited:
    key: int
    at: int
    status: int | None
    cpu_usec: int | None


@dataclass(frozen=True, slots=True)
class Emptied:
    """No process of the call is left. Its key is not used again."""

    key: int
    at: int


@dataclass(frozen=True, slots=True)
class RootExited:
    scope: str
    at: int


Step = Begin | Join | MainExited | Emptied | RootExited


@dataclass(slots=True)
class _Group:
    """Processes of one descent that are open together, or a call. ``leader`` is the agent's own child."""

    key: int
    scope: _Scope
    parent: Parent
    feeder: int  # the process whose child the leader is; 0: nobody's
    leader: int
    born: int
    members: dict[int, None] = field(default_factory=dict)
    call: bool = False
    led: bool = True  # the leader has not ended: a later process of its number is not the leader


@dataclass(slots=True)
class _Scope:
    name: str
    rules: RuleSet
    root: int
    calls: dict[int, _Group] = field(default_factory=dict)
    pids: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Process:
    role: Role
    scope: _Scope
    group: _Group | None = None
    origin: Parent | None = None  # whose child it is, where a further exec is to be asked about
    feeder: int = 0
    born: int = 0
    known: int = 0  # what is told of earlier moments is in it already

    @property
    def joined(self) -> _Group:
        """The group of one that is open or of a call: those have one."""
        if self.group is None:
            raise AssertionError(f"a process that is {self.role} belongs to no group")
        return self.group


class Machine:
    """Scopes are sessions, by their id. ``feed`` takes one event and returns what follows from it."""

    def __init__(self) -> None:
        self._processes: dict[int, _Process] = {}
        self._scopes: dict[str, _Scope] = {}
        self._calls: dict[int, _Group] = {}
        self._keys = 0

    # --- scopes ------------------------------------------------------------------------------------------------------

    def add_scope(self, name: str, rules: RuleSet, root: int) -> None:
        """``root``: the agent's own process, or the first one of a container."""
        scope = self._scopes[name] = _Scope(name, rules, root)
        self._forget_process(root)
        self._know(root, _Process(Role.AGENT, scope))

    def drop_scope(self, name: str) -> None:
        scope = self._scopes.pop(name, None)
        if scope is not None:
            for pid in list(scope.pids):
                self._forget_process(pid)
            for key in scope.calls:
                self._calls.pop(key, None)

    def add_helper(self, scope: str, pid: int) -> None:
        """One that was found without a parent that is known: it stays with the agent, with all below it."""
        if pid not in self._processes:
            self._know(pid, _Process(Role.HELPER, self._scopes[scope]))

    def adopt_call(self, scope_name: str, main: int, members: Sequence[int]) -> int:
        """A call that is placed already (an earlier daemon did it). Returns its key."""
        scope = self._scopes[scope_name]
        group = self._new_group(scope, Parent.AGENT, 0, main, 0)
        group.call = True
        scope.calls[group.key] = self._calls[group.key] = group
        for pid in members:
            self._forget_process(pid)
            group.members[pid] = None
            self._know(pid, _Process(Role.CALL, scope, group))
        return group.key

    def knows(self, pid: int) -> bool:
        return pid in self._processes

    def role(self, pid: int) -> Role | None:
        process = self._processes.get(pid)
        return process.role if process is not None else None

    def scope_name(self, pid: int) -> str:
        process = self._processes.get(pid)
        return process.scope.name if process is not None else ""

    def asks_about(self, pid: int) -> bool:
        """Whether an exec of this process can decide anything: only then are its words worth reading."""
        process = self._processes.get(pid)
        return process is not None and (process.role is Role.OPEN or process.origin is not None)

    def pids(self, scope: str) -> Iterator[int]:
        found = self._scopes.get(scope)
        return iter(sorted(found.pids)) if found is not None else iter(())

    # --- events ------------------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> list[Step]:
        match event:
            case Forked():
                return self._forked(event)
            case Executed():
                return self._executed(event)
            case Exited():
                return self._exited(event.at, event.pid, event.status, event.cpu_usec)

    def _forked(self, event: Forked) -> list[Step]:
        steps: list[Step] = []
        known = self._processes.get(event.child)
        if known is not None and event.at <= known.known:
            return steps
        if known is not None:  # its end was lost, and its number is used again
            steps += self._exited(event.at, event.child, None, None)
        parent = self._processes.get(event.parent)
        if parent is None or event.child == event.parent:
            return steps
        scope, born = parent.scope, event.born or event.at
        match parent.role:
            case Role.AGENT | Role.SHELL:
                origin = Parent.SHELL if parent.role is Role.SHELL else Parent.AGENT
                group = self._new_group(scope, origin, event.parent, event.child, born)
                group.members[event.child] = None
                self._know(event.child, _Process(Role.OPEN, scope, group, born=born, known=event.at))
            case Role.HELPER:
                self._know(event.child, _Process(Role.HELPER, scope, born=born, known=event.at))
            case Role.OPEN | Role.CALL:
                group = parent.joined
                group.members[event.child] = None
                self._know(event.child, _Process(parent.role, scope, group, born=born, known=event.at))
                if parent.role is Role.CALL:
                    steps.append(Join(group.key, event.child))
        return steps

    def _executed(self, event: Executed) -> list[Step]:
        process = self._processes.get(event.pid)
        if process is None:
            scope = self._scopes.get(event.scope)
            if scope is None:
                return []
            group = self._new_group(scope, Parent.ENTRY, 0, event.pid, event.at)
            group.members[event.pid] = None
            process = _Process(Role.OPEN, scope, group, born=event.at)
            self._know(event.pid, process)
        if process.role is not Role.OPEN:
            if process.origin is None:
                return []
            # a wrapper that has done its part (env, nice, a launcher): what it executes now is asked about
            group = self._new_group(process.scope, process.origin, process.feeder, event.pid, process.born)
            group.members[event.pid] = None
            process.role, process.group = Role.OPEN, group
        return self._decide(event, process.joined)

    def _decide(self, event: Executed, group: _Group) -> list[Step]:
        verdict = judge(group.scope.rules, group.parent, event.path, event.argv)
        if verdict.kind is Kind.CALL:
            return self._begin(event, group, verdict)
        role = Role(verdict.kind.value)
        # what stays by default, or feeds a shell, may still execute what a rule knows
        again = group.parent if not verdict.final or role is Role.SHELL else None
        for pid in group.members:
            member = self._processes[pid]
            member.role, member.group = role, None
            if pid == event.pid:
                member.origin, member.feeder = again, group.feeder
        return []

    def _begin(self, event: Executed, group: _Group, verdict: Verdict) -> list[Step]:
        same = self._pipeline(event, group)
        if same is not None and same.call:
            steps: list[Step] = []
            for pid in group.members:
                same.members[pid] = None
                self._make_part(pid, same)
                steps.append(Join(same.key, pid))
            return steps
        if same is not None:  # a later part of the pipeline was the first to execute
            group.members |= same.members
            group.leader, group.born, group.led = same.leader, same.born, same.led
        group.call = True
        group.scope.calls[group.key] = self._calls[group.key] = group
        for pid in group.members:
            self._make_part(pid, group)
        members = tuple(sorted(group.members, key=lambda pid: pid != group.leader))
        return [
            Begin(
                key=group.key,
                scope=group.scope.name,
                leader=group.leader,
                members=members,
                verdict=verdict,
                path=event.path,
                argv=tuple(event.argv),
                born=group.born,
                cpu_elsewhere=event.cpu_usec if group.parent is Parent.ENTRY else 0,
            )
        ]

    def _make_part(self, pid: int, call: _Group) -> None:
        member = self._processes[pid]
        member.role, member.group, member.origin = Role.CALL, call, None

    def _pipeline(self, event: Executed, group: _Group) -> _Group | None:
        """A shell with job control puts what belongs to one pipeline into one process group, led by its first process.
        The group of that one: a call, or still open; None where this is another child of the shell."""
        if group.parent is not Parent.SHELL or event.group in {0, group.leader}:
            return None
        for call in group.scope.calls.values():
            if call.leader == event.group and call.feeder == group.feeder:
                return call
        first = self._processes.get(event.group)
        other = first.group if first is not None and first.role is Role.OPEN else None
        return other if other is not None and other.leader == event.group and other.feeder == group.feeder else None

    def _exited(self, at: int, pid: int, status: int | None, cpu_usec: int | None) -> list[Step]:
        process = self._forget_process(pid)
        if process is None:
            return []
        steps: list[Step] = []
        group = process.group
        first = group is not None and group.led and pid == group.leader
        if group is not None and first:
            group.led = False
        if group is not None and group.call:
            if first:
                steps.append(MainExited(group.key, at, status, cpu_usec))
            if not group.members:
                group.scope.calls.pop(group.key, None)
                self._calls.pop(group.key, None)
                steps.append(Emptied(group.key, at))
        if pid == process.scope.root:
            steps.append(RootExited(process.scope.name, at))
        return steps

    # --- inside ------------------------------------------------------------------------------------------------------

    def _know(self, pid: int, process: _Process) -> None:
        self._processes[pid] = process
        process.scope.pids.add(pid)

    def _forget_process(self, pid: int) -> _Process | None:
        process = self._processes.pop(pid, None)
        if process is not None:
            process.scope.pids.discard(pid)
            if process.group is not None:
                process.group.members.pop(pid, None)
        return process

    def _new_group(self, scope: _Scope, parent: Parent, feeder: int, leader: int, born: int) -> _Group:
        self._keys += 1
        return _Group(key=self._keys, scope=scope, parent=parent, feeder=feeder, leader=leader, born=born)
