"""What was recognised becomes a call: admitted, placed in a leaf, ended. See docs/attach.md for what this cannot do.

The process runs while it is recognised, so there is a race: what it did before it was placed is measured and kept with
the call. It cannot be refused before it began. When its call must wait, it is frozen until its turn (or runs on in the
agent's group, as the rules say); when its call is refused, it runs on there or is ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import structlog

from controller.host import Host
from controller.model import (
    Action,
    CallState,
    ControllerError,
    Decision,
    Intent,
    Outcome,
    Reason,
    Recognition,
    Refused,
    Usage,
)
from controller.queueing import Wait
from controller.recognise.attachment import Attachment
from controller.recognise.machine import Begin, Emptied, Join, MainExited
from controller.recognise.rules import OnRefusal, OnWait, RuleSet, command_of
from controller.recognise.source import group_of, is_within, spent
from controller.registry import Call, Session, now

log = structlog.get_logger("corral.recognise")

Classify = Callable[[str], tuple[str, str]]
"""Class and tool of a command's text."""

_NAME: Final = 200  # characters of a tool's name
_MISSED: Final = "it ended before it could be placed: what it used is charged to the agent"
_UNPLACED: Final = "no process of it could be placed before it ended: what it used is charged to the agent"


class Stage(StrEnum):
    PLACED = "placed"
    WAITS = "waits"
    ASIDE = "aside"  # no call: refused, or it was over before
    OVER = "over"


@dataclass(slots=True)
class Live:
    begin: Begin
    session: Session
    rules: RuleSet
    call: Call
    stage: Stage
    members: set[int] = field(default_factory=set)
    held: set[int] = field(default_factory=set)
    task: asyncio.Task[None] | None = None
    exited: MainExited | None = None


class Placing:
    """The calls of all attached sessions, by the machine's keys."""

    def __init__(self, host: Host, classify: Classify, on_placed: Callable[[int], None]) -> None:
        self._host = host
        self._shared = host.shared
        self._classify = classify
        self._on_placed = on_placed
        self._live: dict[int, Live] = {}
        self.missed = 0  # calls that had ended before they could be placed
        self.placed = 0

    # --- steps of the machine ----------------------------------------------------------------------------------------

    def begin(self, step: Begin, session: Session, attachment: Attachment, rules: RuleSet, *, over: bool) -> None:
        """``over``: its end is known already."""
        try:
            call = self._prepare(step, session)
        except ControllerError as err:
            log.warning("a tool call was recognised, and cannot be begun", session=session.id, error=str(err))
            return
        live = self._live[step.key] = Live(step, session, rules, call, Stage.ASIDE, set(step.members))
        call.recognition = Recognition(rule=self._rule(live), seconds_before=0.0, cpu_usec_before=0)
        if over:
            live.stage = Stage.OVER
            return
        try:
            wait = self._host.begin_now(call)
        except ControllerError as err:
            self._refused(live, err, attachment)
            return
        if wait is None:
            self._place(live, attachment)
        else:
            self._wait(live, wait, attachment)

    def join(self, step: Join, attachment: Attachment) -> None:
        live = self._live.get(step.key)
        if live is None:
            return
        live.members.add(step.pid)
        match live.stage:
            case Stage.PLACED:
                self._move(live, step.pid, attachment)
            case Stage.WAITS:
                self._hold(live, step.pid, attachment)
            case _:
                pass

    def main_exited(self, step: MainExited) -> None:
        live = self._live.get(step.key)
        if live is None:
            return
        live.exited = step
        if live.stage is Stage.PLACED:
            live.call.wait_status = step.status
            self._count_unplaced(live, step)
            if not self._shared.backend.pids(live.call.ref):
                self._host.endings.main_exited(live.call, step.status)

    def _count_unplaced(self, live: Live, step: MainExited) -> None:
        call = live.call
        if not call.populated and call.recognition is not None:
            call.recognition = replace(
                call.recognition,
                seconds_before=max(0, step.at - live.begin.born) / 1e9,
                cpu_usec_before=max(0, (step.cpu_usec or 0) - live.begin.cpu_elsewhere),
            )

    def emptied(self, step: Emptied) -> None:
        """No process of it is left, wherever it was."""
        live = self._live.pop(step.key, None)
        if live is None:
            return
        if live.task is not None:
            live.task.cancel()
        match live.stage:
            case Stage.OVER | Stage.WAITS:
                self._record(live, step.at)
            case Stage.PLACED if live.call.outcome is None and not self._shared.backend.pids(live.call.ref):
                self._host.endings.main_exited(live.call, live.call.wait_status)
            case _:
                pass

    def adopt(self, key: int, call: Call, begin: Begin, rules: RuleSet) -> None:
        """A call that an earlier daemon placed."""
        self._live[key] = Live(begin, call.session, rules, call, Stage.PLACED)

    def drop(self, session: Session) -> None:
        for key, live in list(self._live.items()):
            if live.session is session:
                if live.task is not None:
                    live.task.cancel()
                del self._live[key]

    # --- inside ------------------------------------------------------------------------------------------------------

    def _prepare(self, step: Begin, session: Session) -> Call:
        text = command_of(step.argv)
        call_class, tool = self._classify(text)
        name = step.verdict.tool or tool or step.path.rpartition("/")[2]
        intent = Intent(tool=_printable(name), call_class=step.verdict.call_class or call_class)
        call = self._host.prepare(session.id, intent=intent, argv=step.argv or [step.path])
        call.main_pid = step.leader
        return call

    @staticmethod
    def _rule(live: Live) -> str:
        return f"{live.rules.name}/{live.begin.verdict.rule}"

    def _place(self, live: Live, attachment: Attachment) -> None:
        """Moves what there is of it, the main process first; what is born meanwhile follows with its event."""
        before = memory = 0
        moved = 0
        for pid in live.begin.members:
            used = spent(pid)
            if self._move(live, pid, attachment):
                moved += 1
                before += used.cpu_usec
                memory += used.memory
        call = live.call
        call.recognition = Recognition(
            rule=self._rule(live),
            seconds_before=max(0, time.monotonic_ns() - live.begin.born) / 1e9,
            cpu_usec_before=max(0, before - live.begin.cpu_elsewhere),
            memory_before=memory if moved else None,
        )
        live.stage = Stage.PLACED
        if not moved:
            self.missed += 1
            call.grant = replace(call.grant, notes=(*call.grant.notes, _UNPLACED))
            return  # the event of its end, which is on its way, ends it
        self.placed += 1
        call.populated = True
        self._shared.remember(call)
        self._shared.publish(call)

    def _move(self, live: Live, pid: int, attachment: Attachment) -> bool:
        descriptor = self._hold_number(live, pid, attachment)
        if descriptor is None:
            return False
        try:
            self._shared.backend.place(live.call.ref, pid, descriptor)
            live.call.populated = True
            self._on_placed(pid)
            return True
        except ControllerError as err:
            log.debug("a process of a recognised call was not placed", call=live.call.id, pid=pid, error=str(err))
            return False
        finally:
            os.close(descriptor)

    def _hold_number(self, live: Live, pid: int, attachment: Attachment) -> int | None:
        """A pidfd, if the process still is where one of this session's must be: its number may have been given to
        another since the event."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return None
        whose = self._shared.backend.whose(pid)
        if whose.session_id == live.session.id and whose.call_id in {None, live.call.id}:
            return descriptor
        if whose.session_id is None and is_within(group_of(pid), attachment.group):
            return descriptor
        os.close(descriptor)
        return None

    def _wait(self, live: Live, wait: Wait, attachment: Attachment) -> None:
        live.stage = Stage.WAITS
        if live.rules.on_wait is OnWait.FREEZE:
            for pid in live.begin.members:
                self._hold(live, pid, attachment)
        live.task = asyncio.create_task(self._turn(live, wait, attachment), name=f"recognised-{live.call.id}")

    def _hold(self, live: Live, pid: int, attachment: Attachment) -> None:
        if live.rules.on_wait is not OnWait.FREEZE:
            return
        descriptor = self._hold_number(live, pid, attachment)
        if descriptor is None:
            return
        os.close(descriptor)
        session = live.session
        try:
            if self._shared.backend.hold_process(session.tenant.id, session.id, pid):
                live.held.add(pid)
        except ControllerError as err:
            log.warning("a call that must wait could not be frozen, it runs on", call=live.call.id, error=str(err))

    async def _turn(self, live: Live, wait: Wait, attachment: Attachment) -> None:
        try:
            await self._host.wait_turn(live.call, wait)
        except ControllerError as err:
            self._refused(live, err, attachment)
            return
        live.task = None
        self._place(replace_members(live), attachment)

    def _end(self, live: Live, pid: int, attachment: Attachment) -> None:
        descriptor = self._hold_number(live, pid, attachment)
        if descriptor is not None:
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended by itself
            finally:
                os.close(descriptor)

    def _refused(self, live: Live, err: ControllerError, attachment: Attachment) -> None:
        """It runs already. By the rules it goes on in the agent's group, or it is ended."""
        live.stage = Stage.ASIDE
        end = live.rules.on_refusal is OnRefusal.END and isinstance(err, Refused)
        session = live.session
        decision = Decision(
            at=now(),
            action=Action.KILL if end else Action.ADVISE,
            policy="recognise",
            reason=f"{live.call.command[:80]!r} was not begun as a call ({err}); it was "
            + ("ended" if end else "left to run with the agent"),
            tenant_id=session.tenant.id,
            session_id=session.id,
            evidence={},
        )
        self._shared.journal.decision(decision)
        self._shared.hub.publish(decision)
        for pid in sorted(live.members):
            if end:
                self._end(live, pid, attachment)
            elif pid in live.held:
                try:
                    self._shared.backend.enter_session(session.tenant.id, session.id, pid)
                except ControllerError as problem:
                    log.error("a frozen process could not be let go", pid=pid, error=str(problem))
        live.held.clear()

    def _record(self, live: Live, at: int) -> None:
        """A call that was over before it had a leaf: with what the kernel's events say of it, and no more."""
        call, exited = live.call, live.exited
        self.missed += 1
        life = max(0, at - live.begin.born) / 1e9
        cpu = exited.cpu_usec if exited is not None and exited.cpu_usec is not None else 0
        cpu = max(0, cpu - live.begin.cpu_elsewhere)
        ended_at = now() - max(0, time.monotonic_ns() - at) / 1e9
        call.begun_at = ended_at - life
        call.recognition = Recognition(rule=self._rule(live), seconds_before=life, cpu_usec_before=cpu)
        note = "it ended while it waited" if live.stage is Stage.WAITS else _MISSED
        call.grant = replace(call.grant, enforced=False, notes=(*call.grant.notes, note))
        call.usage = Usage(cpu_usec=cpu)
        call.wait_status = exited.status if exited is not None else None
        call.outcome = Outcome(
            call_id=call.id,
            reason=reason_of(call.wait_status),
            ended_at=ended_at,
            wait_status=call.wait_status,
            usage=call.usage,
            wall_seconds=life,
            held_seconds=0.0,
            decisions=(),
            summary="",
        )
        shared = self._shared
        shared.registry.retire(call)
        shared.meter.begun(call.tenant.name, 0.0)
        shared.meter.ended(call.tenant.name, call.outcome)
        shared.journal.call_begun(replace(call.view(), state=CallState.RUNNING, outcome=None))
        shared.journal.call_ended(call.view(), _nothing)
        shared.publish(call)


def replace_members(live: Live) -> Live:
    """With all processes that came while it waited, the main one first."""
    leader = live.begin.leader
    live.begin = replace(live.begin, members=tuple(sorted(live.members, key=lambda pid: (pid != leader, pid))))
    return live


def reason_of(status: int | None) -> Reason:
    if status is None:
        return Reason.UNKNOWN
    if os.WIFSIGNALED(status):
        return Reason.SIGNALLED
    return Reason.EXITED if status == 0 else Reason.FAILED


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:_NAME]


def _nothing() -> None:
    pass
