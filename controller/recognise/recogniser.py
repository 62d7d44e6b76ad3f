"""Attached sessions: which there are, the events of their processes, and what follows from them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from controller.backend import Backend
from controller.host import Host
from controller.model import (
    AlreadyExists,
    CannotEnforce,
    ControllerError,
    InvalidRequest,
    NotFound,
    SessionId,
    SessionView,
    WrongState,
)
from controller.processes import procfs
from controller.processes.errors import NetlinkError
from controller.recognise.attachment import Attachment
from controller.recognise.finding import NotAnAgent, descendants, found_processes, monotonic_of
from controller.recognise.machine import (
    Begin,
    Emptied,
    Exited,
    Forked,
    Join,
    Machine,
    MainExited,
    RootExited,
    Step,
)
from controller.recognise.placing import Classify, Placing
from controller.recognise.rules import Kind, Library, RuleSet, Verdict
from controller.recognise.source import NetlinkSource, Source, arguments, executed, group_of, is_within, program
from controller.registry import Session

log = structlog.get_logger("corral.recognise")

_ROUND: Final = 512  # events that one wake-up handles
_MOVE_PASSES: Final = 16
_CONTAINER_GRACE: Final = 2.0  # seconds in which the kernel ends what is of a container whose first process ended
_LOOK_EVERY: Final = 1.0  # seconds between two looks at all processes: who makes events be lost must not keep us at it
_LEAVE_RETRY: Final = 1.0  # seconds between looks whether a session that ends is empty of calls


@dataclass(slots=True)
class _Attached:
    session: Session
    attachment: Attachment
    rules: RuleSet
    leaving: bool = False  # no call begins in it any more; it is closed when those that run have ended


class Recogniser:
    """``open_source``: where events come from; opened with the first attached session, closed with the last."""

    def __init__(
        self,
        host: Host,
        library: Library,
        classify: Classify,
        open_source: Callable[[Recogniser], Source] | None = None,
    ) -> None:
        self._host = host
        self._library = library
        self._open_source = open_source or NetlinkSource
        self._machine = Machine()
        self.placing = Placing(host, classify, self._placed)
        self._attached: dict[str, _Attached] = {}
        self._source: Source | None = None
        self._lost = 0
        self._dropped = 0  # events, since the daemon started
        self._unseen = 0  # processes, by sources that are closed
        self._tasks: set[asyncio.Task[None]] = set()
        self._look: asyncio.TimerHandle | None = None
        self._looked = float("-inf")

    @property
    def backend(self) -> Backend:
        return self._host.shared.backend

    # --- attaching ---------------------------------------------------------------------------------------------------

    def attach_process(
        self, *, tenant: str, name: str, labels: Mapping[str, str], pid: int, rules: str = ""
    ) -> SessionView:
        """Makes a session of a running agent. Its process and those below it move into the session's group. Raises
        what is wrong; then nothing has changed, but that processes may have been moved and moved back."""
        chosen = self._library.load(rules)
        stat = procfs.read_stat(pid)
        try:
            family = descendants(pid)
        except NotAnAgent as err:
            raise InvalidRequest(str(err), field="pid", value=str(pid), remedy=err.remedy) from None
        if stat is None or not stat.alive:
            raise NotFound(
                f"no process {pid}", field="pid", value=str(pid), remedy="name the agent's process: ps, pgrep"
            )
        self._forget_closed()
        taken = self._host.whose(pid).session_id
        if not self._is_free(pid) or self._machine.knows(pid):
            raise AlreadyExists(
                f"process {pid} is of session {taken} already",
                field="pid",
                value=str(pid),
                remedy="close that, or detach it",
            )
        self._listen()
        session = self._open(
            tenant=tenant,
            name=name or _name_of(pid),
            labels=labels,
            uid=procfs.owner(pid) or 0,
            attachment=Attachment(rules=chosen.name, pid=pid, start=stat.start),
        )
        try:
            self.backend.keep_device_filter(session.tenant.id, session.id, group_of(pid))
            self._enter(session, pid, family)
        except ControllerError:
            self._spawn(self._host.close_session(session.id, kill=False))
            raise
        self._follow(session, chosen)
        return session.view()

    def attach_group(
        self,
        *,
        tenant: str,
        name: str,
        labels: Mapping[str, str],
        pid: int,
        container: str,
        rules: str = "",
    ) -> SessionView:
        """Makes a session of a container whose first process is ``pid``. Its processes stay where they are."""
        chosen = self._library.load(rules)
        stat = procfs.read_stat(pid)
        group = group_of(pid)
        if stat is None or not group:
            raise NotFound(f"container {container[:12]}: its first process has ended", remedy="start the container")
        if not is_within(group, group):
            raise CannotEnforce(
                f"container {container[:12]} has no cgroup of its own", remedy="run it without --cgroup-parent=/"
            )
        self._forget_closed()
        if self.of_container(container) is not None:
            raise AlreadyExists(
                f"container {container[:12]} is a session already", field="containers.name", remedy="detach it first"
            )
        self._listen()
        attachment = Attachment(rules=chosen.name, pid=pid, start=stat.start, container=container, group=group)
        session = self._open(tenant=tenant, name=name, labels=labels, uid=procfs.owner(pid) or 0, attachment=attachment)
        try:
            self.backend.keep_device_filter(session.tenant.id, session.id, group)
            self._follow(session, chosen)
        except ControllerError:
            self._forget(session.id)
            self._spawn(self._host.close_session(session.id, kill=False))
            raise
        return session.view()

    def _open(self, *, tenant: str, name: str, labels: Mapping[str, str], uid: int, attachment: Attachment) -> Session:
        session, _ = self._host.sessions.open(
            tenant_name=tenant, name=name, uid=uid, labels=labels, attachment=attachment
        )
        return session

    def _is_free(self, pid: int) -> bool:
        """Of no session that is open: an agent that was detached stays in the group of its former session."""
        session_id = self._host.whose(pid).session_id
        return session_id is None or session_id not in self._host.registry.sessions

    def _forget_closed(self) -> None:
        """Sessions that were closed otherwise than by us."""
        for attached in list(self._attached.values()):
            if attached.session.closed_at is not None:
                self._forget(attached.session.id)

    def _enter(self, session: Session, pid: int, family: list[int]) -> None:
        """Children that are forked while their parents are moved show up in the next pass."""
        for _ in range(_MOVE_PASSES):
            outside = [p for p in family if self._is_free(p)]
            if not outside:
                return
            for one in outside:
                try:
                    self._host.enter_session(session.id, one)
                except ControllerError:
                    if one == pid or procfs.read_stat(one) is not None:
                        raise
            family = descendants(pid)
        raise WrongState(
            f"process {pid} starts processes faster than they can be moved",
            field="pid",
            remedy="stop it, and try again",
        )

    def resume(self) -> None:
        """After a restart: goes on with the attached sessions that an earlier daemon left."""
        for session in list(self._host.registry.sessions.values()):
            attachment = session.attachment
            if attachment is None:
                continue
            try:
                rules = self._library.load(attachment.rules)
                self._listen()
            except ControllerError as err:
                log.error("the calls of a session are no longer recognised", session=session.id, error=str(err))
                continue
            stat = procfs.read_stat(attachment.pid)
            if stat is None or not stat.alive or stat.start != attachment.start:
                self._attached[session.id] = _Attached(session, attachment, rules)
                self._leave(session.id)
                continue
            for pid in self.backend.held_processes(session.tenant.id, session.id):
                self._host.enter_session(session.id, pid)
            self._follow(session, rules)

    def _follow(self, session: Session, rules: RuleSet) -> None:
        """From now on its events count; what is there already is told to the machine as if it had just come."""
        attachment = session.attachment
        if attachment is None:
            return
        machine = self._machine
        self._attached[session.id] = _Attached(session, attachment, rules)
        source = self._listening
        machine.add_scope(session.id, rules, attachment.pid)
        source.watch(attachment.pid)
        if attachment.group:
            source.watch_group(attachment.group, session.id)
        for call in list(session.calls.values()):
            pids = self._host.processes(call.id)
            if call.recognition is not None and pids:
                key = machine.adopt_call(session.id, call.main_pid, pids)
                self.placing.adopt(key, call, _adopted(key, session.id, call.main_pid), rules)
                for pid in pids:
                    source.watch(pid)
                    source.placed(pid)
        self._find(self._attached[session.id])
        log.info("attached", session=session.id, pid=attachment.pid, rules=rules.name, container=attachment.container)

    def check_rules(self, name: str) -> None:
        """Raises NotFound or InvalidRequest."""
        self._library.load(name)

    def _find(self, attached: _Attached) -> None:
        """What is there already is told to the machine as if it had just come. A child of one that is not watched yet
        is found by the next look."""
        machine, session, source = self._machine, attached.session, self._listening
        for _ in range(_MOVE_PASSES):
            inside = list(self.backend.agent_pids(session.tenant.id, session.id))
            new = [p for p in found_processes(attached.attachment, inside) if not machine.knows(p.pid)]
            if not new:
                return
            for process in new:
                at = time.monotonic_ns()
                source.watch(process.pid)
                if machine.knows(process.parent):
                    self._handle(machine.feed(Forked(at, process.parent, process.pid, monotonic_of(process.start))))
                    if process.executed:
                        self._handle(machine.feed(executed(at, process.pid)))
                elif attached.attachment.container:
                    self._handle(machine.feed(executed(at, process.pid, session.id)))
                else:
                    machine.add_helper(session.id, process.pid)
                if procfs.read_stat(process.pid) is None:  # ended before it was watched: its end is told by nobody
                    source.unwatch(process.pid)
                    self._handle(machine.feed(Exited(time.monotonic_ns(), process.pid, None)))

    def _placed(self, pid: int) -> None:
        if self._source is not None:
            self._source.placed(pid)

    # --- detaching ---------------------------------------------------------------------------------------------------

    def detach(self, session_id: SessionId) -> None:
        if session_id not in self._attached:
            raise NotFound(
                f"session {session_id} is not attached", field="target", value=session_id, remedy="corral session list"
            )
        self._leave(session_id)

    def ended(self, session_id: SessionId) -> None:
        """The container has stopped. What still runs of its calls (in the host's pid namespace) is ended with it."""
        if session_id in self._attached:
            self._leave(session_id, grace=_CONTAINER_GRACE)

    def of_container(self, container: str) -> SessionId | None:
        return next((a.session.id for a in self._attached.values() if a.attachment.container == container), None)

    def containers(self) -> dict[SessionId, Attachment]:
        return {a.session.id: a.attachment for a in self._attached.values() if a.attachment.container and not a.leaving}

    def _leave(self, session_id: str, *, grace: float | None = None) -> None:
        attached = self._attached[session_id]
        if not attached.leaving:
            attached.leaving = True
            self._spawn(self._close(attached, grace))

    async def _close(self, attached: _Attached, grace: float | None) -> None:
        """When its calls have ended; those that run after ``grace`` seconds are ended."""
        session = attached.session
        deadline = time.monotonic() + (grace if grace is not None else float("inf"))
        while session.calls and not session.closing and time.monotonic() < deadline:
            ends = [asyncio.create_task(call.ended.wait()) for call in list(session.calls.values())]
            await asyncio.wait(ends, timeout=_LEAVE_RETRY, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
        if not session.closing:
            try:
                await self._host.close_session(session.id, kill=grace is not None)
            except ControllerError as err:
                log.warning("an attached session could not be closed", session=session.id, error=str(err))
        self._forget(session.id)

    def _forget(self, session_id: str) -> None:
        attached = self._attached.pop(session_id, None)
        if attached is not None:
            if self._source is not None:
                self._source.unwatch_group(session_id)
                for pid in self._machine.pids(session_id):
                    self._source.unwatch(pid)
            self._machine.drop_scope(session_id)
            self.placing.drop(attached.session)
        if not self._attached:
            self._deafen()

    def problems(self) -> tuple[str, ...]:
        """What of attached sessions is not known, in words for every screen."""
        found = []
        unseen = self._unseen + (self._source.unseen if self._source is not None else 0)
        if unseen:
            found.append(
                f"attached sessions: {unseen} processes ended before it was known what they were, calls may be among"
                " them; without the eBPF part lineage short ones are not seen"
            )
        if self._dropped:
            found.append(f"attached sessions: process events were lost {self._dropped} times, calls may be missing")
        return tuple(found)

    # --- events ------------------------------------------------------------------------------------------------------

    def knows(self, pid: int) -> bool:
        return self._machine.knows(pid)

    def asks_about(self, pid: int) -> bool:
        return self._machine.asks_about(pid)

    def scope_of(self, pid: int) -> str:
        groups = [(a.attachment.group, a.session.id) for a in self._attached.values() if a.attachment.group]
        if not groups:
            return ""
        path = group_of(pid)
        return next((scope for group, scope in groups if is_within(path, group)), "")

    def _listen(self) -> None:
        if self._source is not None:
            return
        try:
            self._source = self._open_source(self)
        except NetlinkError as err:
            raise CannotEnforce(f"no process events: {err}", remedy=err.remedy) from err
        self._lost = self._source.lost
        asyncio.get_running_loop().add_reader(self._source.fileno(), self._drain)

    @property
    def _listening(self) -> Source:
        if self._source is None:
            raise AssertionError("an attached session without a source of events")
        return self._source

    def _deafen(self) -> None:
        if self._source is not None:
            asyncio.get_running_loop().remove_reader(self._source.fileno())
            self._unseen += self._source.unseen
            self._source.close()
            self._source = None
        if self._look is not None:
            self._look.cancel()
            self._look = None

    async def stop(self) -> None:
        """Calls and agents go on; the next daemon takes them over."""
        self._deafen()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _drain(self) -> None:
        """All that waits is read before anything is done: a call that has ended meanwhile needs no leaf."""
        source = self._source
        if source is None:
            return
        steps: list[Step] = []
        for event in source.read(_ROUND):
            steps += self._machine.feed(event)
        self._handle(steps)
        if source.lost != self._lost:
            log.warning("process events were lost", times=source.lost - self._lost)
            self._dropped += source.lost - self._lost
            self._lost = source.lost
            if self._look is None:
                loop = asyncio.get_running_loop()
                self._look = loop.call_at(max(loop.time(), self._looked + _LOOK_EVERY), self._look_again)

    def _look_again(self) -> None:
        """After a loss: what is gone has ended, in a way that is not known; what is new is found."""
        self._look, self._looked = None, asyncio.get_running_loop().time()
        at = time.monotonic_ns()
        for attached in list(self._attached.values()):
            for pid in list(self._machine.pids(attached.session.id)):
                stat = procfs.read_stat(pid)
                if stat is None or not stat.alive:
                    self._handle(self._machine.feed(Exited(at, pid, None)))
            if attached.session.id in self._attached:  # its agent may be what is gone
                self._find(attached)

    def _handle(self, steps: list[Step]) -> None:
        over = {step.key for step in steps if isinstance(step, Emptied)}
        for step in steps:
            match step:
                case Begin():
                    attached = self._attached.get(step.scope)
                    if attached is None or attached.leaving or attached.session.closing:
                        continue
                    self.placing.begin(
                        step, attached.session, attached.attachment, attached.rules, over=step.key in over
                    )
                case Join():
                    attached = self._attached.get(self._machine.scope_name(step.pid))
                    if attached is not None:
                        self.placing.join(step, attached.attachment)
                case MainExited():
                    self.placing.main_exited(step)
                case Emptied():
                    self.placing.emptied(step)
                case RootExited():
                    attached = self._attached.get(step.scope)
                    if attached is not None and attached.attachment.container:
                        self.ended(attached.session.id)
                    elif attached is not None:
                        self._leave(step.scope)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _adopted(key: int, scope: str, main: int) -> Begin:
    return Begin(
        key=key,
        scope=scope,
        leader=main,
        members=(main,),
        verdict=Verdict(Kind.CALL, "adopted"),
        path="",
        argv=(),
        born=time.monotonic_ns(),
    )


def _name_of(pid: int) -> str:
    words = arguments(pid)
    base = os.path.basename(words[0] if words else program(pid))  # noqa: PTH119 - a word, not a path of ours
    return "".join(c if c.isprintable() else "?" for c in base)[:100] or f"pid-{pid}"
