"""A host and a ledger that record what the API asks of them, values to answer with, and servers on real sockets."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentd.api.attached import Selector
from agentd.api.identity import OPERATOR, tenant_principal
from agentd.api.listen import Listener, UnixListener
from agentd.api.ports import HistoryPage, HistoryQuery, MomentPage
from agentd.api.server import ApiServer, ServerLimits
from agentd.trace import Tracer
from controller.backend import Whose
from controller.hub import Hub, Subscription
from controller.model import (
    Action,
    Band,
    Budget,
    BudgetRule,
    CallId,
    CallState,
    CallView,
    Decision,
    Grant,
    HostView,
    Intent,
    Limits,
    NotAllowed,
    NotFound,
    Outcome,
    Reason,
    Resource,
    SessionId,
    SessionView,
    Snapshot,
    TenantId,
    TenantView,
    Tripwire,
    Turn,
    Turns,
    Usage,
    new_call_id,
    new_session_id,
    new_tenant_id,
)

NOW = 1_800_000_000.0
STOCKS = (
    Budget(
        resource="cpu_seconds",
        scope="session",
        limit=100.0,
        used=95.0,
        remaining=5.0,
        period_seconds=86_400.0,
        refills_at=NOW + 60,
        band=Band.CRITICAL,
    ),
)


def make_outcome(call_id: CallId) -> Outcome:
    return Outcome(
        call_id=call_id,
        reason=Reason.BRAKED,
        ended_at=NOW + 3,
        wait_status=256,
        usage=Usage(cpu_usec=7, memory_peak=8),
        wall_seconds=3.0,
        held_seconds=1.0,
        decisions=(),
        summary="It was braked.",
        suggestions=("Declare a higher peak.",),
    )


def make_call(session: SessionView, *, state: CallState = CallState.RUNNING, command: str = "make -j") -> CallView:
    return CallView(
        id=new_call_id(),
        session_id=session.id,
        tenant_id=session.tenant_id,
        parent_id=None,
        command=command,
        intent=Intent(tool="make"),
        grant=Grant(
            limits=Limits(memory_max=1 << 30),
            tripwire=Tripwire(notify=1 << 20, brake=1 << 28),
            priority=50,
            enforced=True,
        ),
        state=state,
        begun_at=NOW,
        held_since=None,
        held_seconds=0.0,
        brakes=0,
        usage=Usage(),
        cgroup="corral/t/s/calls/c",
    )


def make_decision(call: CallView, reason: str = "it grew") -> Decision:
    return Decision(
        at=NOW,
        action=Action.BRAKE,
        policy="brake",
        reason=reason,
        tenant_id=call.tenant_id,
        session_id=call.session_id,
        call_id=call.id,
        evidence={"usage_bytes": 5.0},
    )


@dataclass(frozen=True)
class Feature:
    name: str
    found: bool
    detail: str
    cost: str
    remedy: str


class FakeAttach:
    """Attaches what it is told to, and says so to the host's ``asked``."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host

    def process(self, *, tenant: str, name: str, labels: Mapping[str, str], pid: int, rules: str) -> SessionView:
        self._host.asked.append(("attach", tenant, name, dict(labels), pid, rules))
        return self._host.add_session(tenant)[0]

    async def containers(
        self, *, tenant: str, name: str, labels: Mapping[str, str], selector: Selector, rules: str
    ) -> Sequence[SessionView]:
        self._host.asked.append(("attach", tenant, name, dict(labels), selector, rules))
        return [self._host.add_session(tenant)[0]]

    async def detach(self, target: str) -> Sequence[SessionId]:
        self._host.asked.append(("detach", target))
        return [SessionId("s-0000000000000001")]


class FakeHost:
    """``asked`` lists every effect that was asked for; ``fail`` is raised by the next one."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.tenants: dict[str, TenantView] = {}
        self.sessions: dict[SessionId, SessionView] = {}
        self.calls: dict[CallId, CallView] = {}
        self.tokens: dict[str, SessionId] = {}
        self.processes: dict[int, Whose] = {}
        self.on_attach: Callable[[], None] | None = None
        self.asked: list[Any] = []
        self.fail: BaseException | None = None
        self.queued = asyncio.Semaphore(0)  # released by each begin that waits
        self.admit: asyncio.Event | None = None  # a begin waits for it
        self.begin_cancelled = asyncio.Event()
        self.begins_nevertheless = False  # the cancellation comes too late
        self.ended = asyncio.Event()
        self.subscriptions: list[Subscription] = []

    def _record(self, *what: Any) -> None:
        self.asked.append(what)
        if self.fail is not None:
            err, self.fail = self.fail, None
            raise err

    def add_tenant(self, name: str) -> TenantView:
        tenant = TenantView(id=new_tenant_id(), name=name, limits=Limits(), priority=50)
        self.tenants[name] = tenant
        return tenant

    def add_session(self, tenant: str, *, uid: int = 1000) -> tuple[SessionView, str]:
        of = self.tenants.get(tenant) or self.add_tenant(tenant)
        session = SessionView(id=new_session_id(), tenant_id=of.id, name="run", uid=uid, opened_at=NOW, labels={})
        token = secrets.token_urlsafe(24)
        self.sessions[session.id] = session
        self.tokens[token] = session.id
        return session, token

    def add_call(self, session: SessionView, **options: Any) -> CallView:
        call = make_call(session, **options)
        self.calls[call.id] = call
        return call

    # HostPort

    def open_session(self, *, tenant: str, name: str, uid: int, labels: Mapping[str, str]) -> tuple[SessionView, str]:
        self._record("open_session", tenant, name, uid, dict(labels))
        session, token = self.add_session(tenant, uid=uid)
        self.sessions[session.id] = session = replace(session, name=name, labels=dict(labels))
        return session, token

    async def close_session(self, session_id: SessionId, *, kill: bool) -> None:
        self._record("close_session", session_id, kill)

    async def begin(
        self, session_id: SessionId, *, intent: Intent, argv: Sequence[str], parent_id: CallId | None = None
    ) -> CallView:
        self._record("begin", session_id, intent, list(argv), parent_id)
        if self.admit is not None:
            self.queued.release()
            try:
                await self.admit.wait()
            except asyncio.CancelledError:
                self.begin_cancelled.set()
                if not self.begins_nevertheless:
                    raise
        return self.add_call(self.sessions[session_id], command=" ".join(argv))

    def attach(self, call_id: CallId, pid: int) -> None:
        self._record("attach", call_id, pid)
        if self.on_attach is not None:
            self.on_attach()

    def whose(self, pid: int) -> Whose:
        return self.processes.get(pid, Whose())

    def update_intent(self, call_id: CallId, intent: Intent) -> CallView:
        self._record("update_intent", call_id, intent)
        return replace(self.calls[call_id], intent=intent)

    async def end(self, call_id: CallId, wait_status: int | None) -> Outcome:
        self._record("end", call_id, wait_status)
        self.ended.set()
        return make_outcome(call_id)

    def call(self, call_id: CallId) -> CallView:
        if call_id not in self.calls:
            raise NotFound("the host knows no such call", field="call_id", value=call_id)
        return self.calls[call_id]

    def peek(self, call_id: CallId) -> CallView:
        return self.call(call_id)

    def session(self, session_id: SessionId) -> SessionView:
        if session_id not in self.sessions:
            raise NotFound("the host knows no such session", field="session_id", value=session_id)
        return self.sessions[session_id]

    def budgets(self, session_id: SessionId) -> list[Budget]:
        self._record("budgets", session_id)
        return [Budget(resource="pids", scope="tenant", limit=10.0, used=4.0, remaining=6.0)]

    def stocks(self, session_id: SessionId) -> list[Budget]:
        return list(STOCKS)

    def report_turn(self, session_id: SessionId, turn: Turn) -> Turns:
        self._record("report_turn", session_id, turn)
        return Turns(turns=3, prompt_tokens=turn.prompt_tokens)

    def set_budget(self, target: str, rule: BudgetRule) -> Sequence[Budget]:
        self._record("set_budget", target, rule)
        return STOCKS

    def remove_budget(self, target: str, resource: Resource) -> Sequence[Budget]:
        self._record("remove_budget", target, resource)
        return ()

    def authenticate(self, token: str) -> SessionView:
        if token not in self.tokens:
            raise NotAllowed("unknown token", field="token")
        return self.sessions[self.tokens[token]]

    def snapshot(self, *, with_ended: bool = False) -> Snapshot:
        calls = tuple(call for call in self.calls.values() if with_ended or call.state is not CallState.ENDED)
        host = HostView(
            kernel="6.18.0",
            mode="hybrid",
            cpus=2,
            memory_total=1 << 33,
            memory_available=1 << 32,
            cpu_pressure=1.5,
            memory_pressure=None,
            io_pressure=0.0,
            missing=("sched_ext",),
        )
        return Snapshot(
            at=NOW, host=host, tenants=(*self.tenants.values(),), sessions=(*self.sessions.values(),), calls=calls
        )

    def subscribe(self, *, session_id: SessionId | None = None) -> Subscription:
        subscription = self.hub.subscribe(session_id)
        self.subscriptions.append(subscription)
        return subscription

    def set_tenant(self, name: str, *, limits: Limits | None, priority: int | None) -> TenantView:
        self._record("set_tenant", name, limits, priority)
        return TenantView(id=TenantId("t-0123456789abcdef"), name=name, limits=limits or Limits(), priority=50)

    def set_limits(self, target: str, *, limits: Limits, tripwire: Tripwire | None) -> None:
        self._record("set_limits", target, limits, tripwire)

    def set_priority(self, target: str, priority: int) -> None:
        self._record("set_priority", target, priority)

    async def freeze(self, target: str, *, by: str) -> list[CallId]:
        self._record("freeze", target, by)
        return list(self.calls)

    async def thaw(self, target: str, *, by: str) -> list[CallId]:
        self._record("thaw", target, by)
        return list(self.calls)

    async def kill(self, target: str, *, by: str) -> list[CallId]:
        self._record("kill", target, by)
        return list(self.calls)


def features() -> list[Feature]:
    return [Feature("tripwire", False, "no BTF", "no brake in the kernel", "boot a kernel with BTF")]


class FakeHistory:
    def __init__(self) -> None:
        self.queries: list[HistoryQuery] = []
        self.page = HistoryPage()
        self.moments: list[float | None] = []
        self.moment_page = MomentPage(at=NOW)

    async def history(self, query: HistoryQuery) -> HistoryPage:
        self.queries.append(query)
        return self.page

    async def moment(self, at: float | None) -> MomentPage:
        self.moments.append(at)
        return replace(self.moment_page, at=self.moment_page.at if at is None else at)


@dataclass
class Served:
    """Four sockets: operators', two tenants', and one on which only tokens count."""

    host: FakeHost
    history: FakeHistory
    server: ApiServer
    operator: str
    acme: str
    umbrella: str
    anyone: str
    uids: dict[str, frozenset[int]]


@asynccontextmanager
async def serve(
    directory: Path,
    *,
    limits: ServerLimits | None = None,
    more: Sequence[Listener] = (),
    traced: Tracer | None = None,
) -> AsyncIterator[Served]:
    host, history = FakeHost(), FakeHistory()
    host.add_tenant("acme")
    host.add_tenant("umbrella")
    uids = {"acme": frozenset({1000}), "umbrella": frozenset({2000, 2001})}
    server = ApiServer(
        host,
        history,
        features=features,
        tenant_uids=lambda tenant: uids.get(tenant, frozenset()),
        attach=FakeAttach(host),
        version="1.2.3",
        limits=limits,
        tracer=traced,
    )
    paths = {name: directory / f"{name}.sock" for name in ("operator", "acme", "umbrella", "anyone")}
    await server.start(
        [
            UnixListener(path=paths["operator"], principal=OPERATOR),
            UnixListener(path=paths["acme"], principal=tenant_principal("acme")),
            UnixListener(path=paths["umbrella"], principal=tenant_principal("umbrella")),
            UnixListener(path=paths["anyone"], principal=None, mode=0o666),
            *more,
        ]
    )
    try:
        yield Served(host, history, server, **{name: str(path) for name, path in paths.items()}, uids=uids)
    finally:
        await server.stop(grace=0.0)
