"""The host: tenants, sessions and calls over a backend. The one object that the daemon's servers talk to.

Everything happens on one event loop; nothing here blocks it. The parts: ``sessions`` (who), ``queueing`` (when),
``holds`` (brake and freezer), ``endings`` (how it ends), ``sampler`` (what it uses), ``recovery`` (after a restart).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from controller.backend import Backend, CallRef, Whose
from controller.budget.keeper import Budgets
from controller.budgets import BudgetMethods
from controller.config import HostConfig
from controller.control import Control
from controller.effects import Journal, Meter, NoPast, NullMeter, Past
from controller.endings import Endings
from controller.events import KernelEvents
from controller.facts import Facts
from controller.foresight import Foresight
from controller.holds import Holds
from controller.hub import Hub, Subscription
from controller.live import Live
from controller.model import (
    AlreadyExists,
    CallId,
    CallView,
    ControllerError,
    Grant,
    Intent,
    InvalidRequest,
    Limits,
    Outcome,
    SavedBudgets,
    SessionId,
    SessionView,
    Snapshot,
    TenantId,
    TenantView,
    Tripwire,
    WrongState,
    command_text,
    new_call_id,
)
from controller.plenty import Plenty
from controller.policy.done import LONG_WAIT
from controller.queueing import Queue, Wait
from controller.recovery import Recovery
from controller.registry import Call, Registry, now
from controller.sampler import Sampler
from controller.sessions import Sessions
from controller.shared import HostMemory, Shared
from controller.snapshot import HostReader, snapshot
from controller.starts import Starts

log = structlog.get_logger("corral.host")


class Host(BudgetMethods):
    """``known_tenants``: ids that names had in the ledger, so that a tenant stays itself across reboots. ``problems``:
    what else is wrong on this host at the moment, for everybody to see beside what the backend cannot do. ``past``:
    what is on record of calls that an earlier daemon left in the tree; asked by ``start`` only. ``saved_budgets``: what
    the ledger has of budgets."""

    def __init__(
        self,
        config: HostConfig,
        backend: Backend,
        journal: Journal,
        reader: HostReader,
        *,
        known_tenants: Mapping[str, TenantId] | None = None,
        meter: Meter | None = None,
        problems: Callable[[], Sequence[str]] = tuple,
        past: Past | None = None,
        saved_budgets: SavedBudgets | None = None,
    ) -> None:
        self._problems = problems
        self._known_tenants = dict(known_tenants or {})
        self._reader = reader
        self.registry = Registry(keep_ended=config.keep_ended)
        self.foresight = Foresight()
        self.hub = Hub()
        self.shared = Shared(
            config=config,
            registry=self.registry,
            backend=backend,
            journal=journal,
            hub=self.hub,
            memory=self._memory,
            meter=meter or NullMeter(),
        )
        self.keeper = Budgets(self.shared, saved_budgets)
        self.endings = Endings(self.shared)
        self.holds = Holds(self.shared)
        self.sessions = Sessions(self.shared, self.endings)
        self.queue = Queue(self.shared)
        self.sampler = Sampler(self.shared)
        self.facts = Facts(self.shared, self.foresight, reader)
        self.plenty = Plenty(self.shared, self.facts, self.foresight)
        self.starts = Starts(self.shared, self.endings, self.keeper)
        self.live = Live(
            self.shared,
            self.facts,
            self.plenty,
            holds=self.holds,
            endings=self.endings,
            starts=self.starts,
            queue=self.queue,
        )
        self.control = Control(
            self.shared,
            holds=self.holds,
            endings=self.endings,
            sessions=self.sessions,
            live=self.live,
            plenty=self.plenty,
        )
        self.recovery = Recovery(self.shared, self.sessions, self.holds, self.endings, past or NoPast())
        self.events = KernelEvents(self.shared, self.holds, self.endings, self.live)
        self.holds.on_change = self.live.soon
        self.endings.on_forget = self.holds.forget
        self.endings.unused = lambda: self.plenty.unused
        self.endings.on_settled = self._settled
        self.endings.expected = self.foresight.expected
        self.sessions.on_closing = self.queue.drop
        self.sampler.on_round = self._round
        self.sampler.on_sampled = self.keeper.sampled
        self.endings.on_measured = self.keeper.ended
        self.keeper.end = self.endings.kill
        self.registry.on_tenant = self.keeper.open_tenant
        self.registry.on_session = self.keeper.open_session
        self._tasks: list[asyncio.Task[None]] = []

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Prepares the tree, takes over what an earlier daemon left, and begins to sample."""
        found = self.shared.backend.start(self.events)
        self.recovery.take_over_tenants(found)
        self.sessions.configure(self.shared.config.tenants, self._known_tenants)
        self.recovery.take_over(found)
        self.plenty.refresh(now())
        self.live.growth.watch_all()
        self.live.soon()
        self._tasks.append(asyncio.create_task(self.sampler.run(), name="sampler"))

    async def stop(self) -> None:
        """Calls go on running; their limits and thresholds stay in force."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self.keeper.flush()
        self.live.stop()
        for call in self.registry.live_calls():
            call.cancel_timers()
        self.hub.close()
        self.shared.backend.stop()

    def reconfigure(self, config: HostConfig) -> None:
        """Takes a new configuration while calls run. Tenants that are no longer named stay until they are empty."""
        self.shared.config = config
        self.sessions.configure(config.tenants, {})
        self.keeper.configure()
        self.live.soon()

    # --- sessions ----------------------------------------------------------------------------------------------------

    def open_session(
        self, *, tenant: str, name: str, uid: int, labels: Mapping[str, str], managed: bool = True
    ) -> tuple[SessionView, str]:
        session, token = self.sessions.open(tenant_name=tenant, name=name, uid=uid, labels=labels, managed=managed)
        return session.view(), token

    async def close_session(self, session_id: SessionId, *, kill: bool) -> None:
        await self.sessions.close(self.registry.session(session_id), kill=kill)

    def authenticate(self, token: str) -> SessionView:
        return self.sessions.authenticate(token).view()

    def session(self, session_id: SessionId) -> SessionView:
        return self.registry.session(session_id).view()

    def whose(self, pid: int) -> Whose:
        """Session and call of a process, by the cgroup that the kernel says it is in."""
        return self.shared.backend.whose(pid)

    def enter_session(self, session_id: SessionId, pid: int) -> None:
        """Makes ``pid`` an agent process of the session: the ladder never ends those."""
        session = self.registry.session(session_id)
        self.shared.backend.enter_session(session.tenant.id, session.id, pid)
        self.live.growth.watch(session)

    # --- the path of a call ------------------------------------------------------------------------------------------

    def prepare(
        self, session_id: SessionId, *, intent: Intent, argv: Sequence[str], parent_id: CallId | None = None
    ) -> Call:
        """A call that has not begun. Raises what is wrong with the request."""
        session = self.registry.session(session_id)
        if session.closing:
            raise WrongState(f"session {session.id} is being closed", field="session_id", remedy="open a new session")
        if parent_id is not None and parent_id not in session.calls:
            raise InvalidRequest(
                f"no live call {parent_id[:40]!r} in this session",
                field="parent_id",
                value=parent_id,
                remedy="leave it out",
            )
        ref = CallRef(session.tenant.id, session.id, new_call_id())
        at = now()
        return Call(
            ref=ref,
            session=session,
            parent_id=parent_id,
            command=command_text(argv),
            intent=intent,
            grant=Grant(
                limits=Limits(),
                tripwire=Tripwire(),
                priority=session.tenant.priority if intent.priority is None else intent.priority,
                enforced=self.shared.backend.enforces,
            ),
            begun_at=at,
            asked_at=at,
        )

    def begin_now(self, call: Call) -> Wait | None:
        """Begins a prepared call if it may begin at once. Otherwise says what it must wait for (see ``wait_turn``)."""
        return self.live.ask(call)

    def learn(self, past: Sequence[CallView]) -> None:
        """How calls went that ended under an earlier daemon, the oldest first."""
        for call in past:
            self.foresight.learn(call)

    def eta(self, call: Call) -> float | None:
        """Seconds until a prepared call that must wait will typically begin; None: not known."""
        return self.live.estimate(call)

    async def wait_turn(self, call: Call, wait: Wait) -> None:
        self.registry.add_call(call)
        try:
            await self.queue.turn(call, wait)
        except BaseException:
            if call.begun:  # in the very moment in which its caller gave up
                self.endings.main_exited(call, None)
            else:
                self.registry.drop(call)
                self.sessions.close_if_idle(call.session)
            raise

    async def begin(
        self, session_id: SessionId, *, intent: Intent, argv: Sequence[str], parent_id: CallId | None = None
    ) -> CallView:
        """Begins a call without a launcher: its processes come with ``attach``, its end with ``end``."""
        call = self.prepare(session_id, intent=intent, argv=argv, parent_id=parent_id)
        wait = self.begin_now(call)
        if wait is not None:
            await self.wait_turn(call, wait)
        self.shared.remember(call)
        return call.view()

    def place(
        self,
        call: Call,
        pid: int,
        launcher_pid: int,
        tell_acted: Callable[[], None],
        *,
        pidfd: int | None = None,
    ) -> None:
        """Moves a launcher's child, which waits, into the leaf. On an error the call is undone. With ``pidfd`` it is
        made sure that no other process, of the same number, was moved in its place."""
        call.launcher = True
        call.main_pid = pid
        call.launcher_pid = launcher_pid
        call.tell_acted = tell_acted
        try:
            self.shared.backend.place(call.ref, pid, pidfd)
        except ControllerError:
            self.endings.main_exited(call, None)
            raise
        call.populated = True
        self.shared.remember(call)
        if call.was_queued and call.begun_at - call.asked_at >= LONG_WAIT:
            tell_acted()  # its outcome will say so, also where all else went well

    def attach(self, call_id: CallId, pid: int) -> None:
        call = self.registry.call(call_id)
        if call.queued or call.ending:
            raise WrongState(
                f"call {call.id} is {call.state.value}", field="call_id", remedy="attach to a running call"
            )
        self.shared.backend.place(call.ref, pid)
        call.populated = True
        call.main_pid = call.main_pid or pid
        self.shared.remember(call)

    def update_intent(self, call_id: CallId, intent: Intent) -> CallView:
        return self.control.update_intent(self.registry.call(call_id), intent)

    async def end(self, call_id: CallId, wait_status: int | None) -> Outcome:
        """The main process has ended. Returns when the outcome is known; again for a call that has just ended."""
        ended = self.registry.ended(call_id)
        if ended is not None and ended.outcome is not None:
            return ended.outcome
        call = self.registry.call(call_id)
        if call.queued:
            raise WrongState(f"call {call.id} has not begun", field="call_id", remedy="cancel its BeginCall")
        self.endings.main_exited(call, wait_status)
        await call.ended.wait()
        if call.outcome is None:
            raise AlreadyExists(f"call {call.id} ended without an outcome", remedy="see the daemon's log")
        return call.outcome

    def hung_up(self, call_id: CallId) -> None:
        """The launcher went away without saying how its child ended."""
        call = self.registry.calls.get(call_id)
        if call is not None:
            call.tell_acted = None
            self.endings.launcher_lost(call)

    # --- questions ---------------------------------------------------------------------------------------------------

    def peek(self, call_id: CallId) -> CallView:
        """Live or recently ended, with its use as of the last sample."""
        return self.registry.ended(call_id) or self.registry.call(call_id).view()

    def call(self, call_id: CallId) -> CallView:
        """Live or recently ended, with its use read now."""
        ended = self.registry.ended(call_id)
        if ended is not None:
            return ended
        call = self.registry.call(call_id)
        if not call.queued:
            call.measured(self.shared.backend.usage(call.ref))
        return call.view()

    def processes(self, call_id: CallId) -> Sequence[int]:
        call = self.registry.calls.get(call_id)
        return self.shared.backend.pids(call.ref) if call is not None and not call.queued else ()

    def snapshot(self, *, with_ended: bool = False) -> Snapshot:
        return snapshot(
            self.registry,
            self.shared.backend,
            self._reader,
            with_ended=with_ended,
            problems=(*self._problems(), *self.keeper.problems()),
        )

    def subscribe(self, *, session_id: SessionId | None = None) -> Subscription:
        return self.hub.subscribe(session_id)

    # --- operators (see control) -------------------------------------------------------------------------------------

    def set_tenant(self, name: str, *, limits: Limits | None, priority: int | None) -> TenantView:
        view = self.sessions.change_tenant(name, limits=limits, priority=priority)
        self.live.soon()
        return view

    def set_limits(self, target: str, *, limits: Limits, tripwire: Tripwire | None) -> None:
        self.control.set_limits(target, limits=limits, tripwire=tripwire)
        self.live.soon()

    def set_priority(self, target: str, priority: int) -> None:
        self.control.set_priority(target, priority)
        self.live.soon()

    def set_urgency(self, session_id: SessionId, urgency: float) -> None:
        """Points that the session's calls gain in the queue from now on, on the scale of priorities (0 to 100): for
        one whose KV cache is held on a GPU meanwhile, say. 0 takes them back."""
        self.registry.session(session_id).urgency = urgency
        self.live.soon()

    async def freeze(self, target: str, *, by: str) -> list[CallId]:
        return self.control.freeze(target, by)

    async def thaw(self, target: str, *, by: str) -> list[CallId]:
        return self.control.thaw(target, by)

    async def kill(self, target: str, *, by: str) -> list[CallId]:
        return await self.control.kill(target, by)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _memory(self) -> HostMemory:
        total, available = self._reader.memory()
        return HostMemory(total=total, available=available)

    def _settled(self, call: Call) -> None:
        self.foresight.learn(call.view(), call.curve)
        self.live.something_ended(call)
        self.sessions.close_if_idle(call.session)

    def _round(self) -> None:
        self.keeper.flush()
        self.live.tick()
        self.sessions.sweep()
