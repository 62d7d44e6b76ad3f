"""The tenants, sessions and calls that the daemon knows, as they are now. The event loop alone changes them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from controller.backend import CallRef, SessionRecord
from controller.budget.account import Account
from controller.budget.meter import CallMeter
from controller.forecast import Kept
from controller.model import (
    CallId,
    CallState,
    CallView,
    Decision,
    Grant,
    Intent,
    Limits,
    NotFound,
    Outcome,
    Reason,
    Recognition,
    SessionId,
    SessionView,
    Squeeze,
    TenantId,
    TenantView,
    Usage,
)
from controller.recognise.attachment import Attachment

_CURVE_STEP = 8  # a point of a call's curve is one part in so many above the one before,
_CURVE_POINTS = 128  # and these are as many as there may be: from a page to any size


@dataclass(slots=True, kw_only=True)
class Tenant:
    id: TenantId
    name: str
    uids: frozenset[int]
    limits: Limits
    priority: int
    max_calls: int | None
    max_sessions: int | None
    weight: float = 100.0
    sessions: dict[SessionId, Session] = field(default_factory=dict)
    running: int = 0  # calls that are begun and not ended, queued ones not counted
    memory_now: int | None = None
    cpu_usec: int = 0
    account: Account = field(default_factory=lambda: Account("tenant"))
    outstanding: int = 0  # bytes that its calls may yet come to use, as far as is known

    def view(self) -> TenantView:
        return TenantView(
            id=self.id,
            name=self.name,
            limits=self.limits,
            priority=self.priority,
            memory_now=self.memory_now,
            cpu_usec=self.cpu_usec,
            budgets=self.account.views(now()),
        )


@dataclass(slots=True, kw_only=True)
class Session:
    id: SessionId
    tenant: Tenant
    name: str
    uid: int
    opened_at: float
    labels: dict[str, str]
    token_hash: str
    token_expires: float
    managed: bool
    closed_at: float | None = None
    closing: bool = False
    attachment: Attachment | None = None
    idle_since: float | None = None  # of one that the daemon opened: when its last call ended
    urgency: float = 0.0  # points that its calls gain in the queue
    watched: int = 0  # bytes that its own processes may grow until the kernel tells, as of the last time it was armed
    calls: dict[CallId, Call] = field(default_factory=dict)
    account: Account = field(default_factory=lambda: Account("session"))

    def view(self) -> SessionView:
        return SessionView(
            id=self.id,
            tenant_id=self.tenant.id,
            name=self.name,
            uid=self.uid,
            opened_at=self.opened_at,
            closed_at=self.closed_at,
            labels=self.labels,
            budgets=self.account.views(now()),
            turns=self.account.turns,
            container=self.attachment.container if self.attachment is not None else "",
            rules=self.attachment.rules if self.attachment is not None else "",
        )

    def record(self) -> SessionRecord:
        """For its group. Budgets and turns are the ledger's to remember."""
        return SessionRecord(
            session=replace(self.view(), budgets=(), turns=None),
            token_hash=self.token_hash,
            token_expires=self.token_expires,
            managed=self.managed,
            attachment=self.attachment,
        )


@dataclass(slots=True, kw_only=True)
class Call:
    """``held_by``: who holds it (brake, ladder, operator); the leaf is frozen while anyone does.

    ``promised``: the threshold that it has where there is room, bytes: what it declared, or an operator set (0: none).
    ``unbraked``: an operator took its threshold away. ``trimmed``: its threshold is lower than that for lack of memory.
    ``memory``: as last read, bytes; ``curve``: when it first used how much, (seconds of running, bytes), for forecasts.
    ``outstanding``: how much more it may come to use, as far as is known. ``eta``: when it typically begins, unix
    seconds.
    """

    ref: CallRef
    session: Session
    parent_id: CallId | None
    command: str
    intent: Intent
    grant: Grant
    begun_at: float  # until it begins: when it was asked for
    asked_at: float = 0.0
    begun: bool = False  # admitted: its processes may come
    queued: bool = False
    was_queued: bool = False
    promised: int = 0
    unbraked: bool = False
    trimmed: bool = False
    notice: int | None = None  # where an operator wants to be told of its growth
    advised: bool = False
    reclaimed: bool = False  # its page cache was asked for in this hold
    memory: int = 0
    curve: list[tuple[float, int]] = field(default_factory=list)
    outstanding: int = 0
    forecast: Kept | None = None
    eta: float | None = None
    waits_for: str = ""
    tell_queued: Callable[[float | None, str], None] | None = None  # its launcher: seconds, and what it waits for
    held_by: set[str] = field(default_factory=set)
    held_since: float | None = None
    held_seconds: float = 0.0
    brakes: int = 0
    squeeze: Squeeze | None = None  # what is in force of it
    squeezed_seconds: float = 0.0  # over earlier squeezes
    usage: Usage = field(default_factory=Usage)
    cgroup: str = ""
    main_pid: int = 0
    launcher: bool = False  # a corral-exec waits for it
    launcher_pid: int = 0
    populated: bool = False  # a process was placed in it
    stopped: set[int] = field(default_factory=set)  # processes that the brake stopped
    killed_as: Reason | None = None
    launcher_lost: bool = False
    wait_status: int | None = None
    ending: bool = False
    leftovers: int = 0  # processes that outlived the main one
    recognition: Recognition | None = None  # set where no launcher and no API call began it
    outcome: Outcome | None = None
    decisions: list[Decision] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    tell_acted: Callable[[], None] | None = None  # wakes the launcher: something was done to its call
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    meter: CallMeter | None = None  # what budgets have been charged of it

    @property
    def id(self) -> CallId:
        return self.ref.call_id

    @property
    def tenant(self) -> Tenant:
        return self.session.tenant

    @property
    def state(self) -> CallState:
        if self.outcome is not None:
            return CallState.ENDED
        if self.queued:
            return CallState.QUEUED
        if "operator" in self.held_by:
            return CallState.FROZEN
        if self.held_by:
            return CallState.BRAKED if "brake" in self.held_by else CallState.FROZEN
        return CallState.RUNNING if self.squeeze is None else CallState.THROTTLED

    def measured(self, usage: Usage) -> None:
        """A new reading of the kernel's counters. What was counted of GPUs stays: nothing in the kernel counts it."""
        old = self.usage
        if old.gpu_seconds is not None:
            usage = replace(
                usage,
                gpu_memory_bytes=old.gpu_memory_bytes,
                gpu_seconds=old.gpu_seconds,
                gpu_joules=old.gpu_joules,
            )
        self.usage = usage
        if usage.memory_now is not None:
            self.memory = usage.memory_now
            self._has_grown(usage.memory_now)

    def _has_grown(self, memory: int) -> None:
        highest = self.curve[-1][1] if self.curve else 0
        if memory * _CURVE_STEP > highest * (_CURVE_STEP + 1) and len(self.curve) < _CURVE_POINTS:
            at = now()
            self.curve.append((max(0.0, at - self.begun_at - self.held_now(at)), memory))

    def used_gpu(self, memory_bytes: int, seconds: float, joules: float) -> None:
        """Bytes that it holds now; seconds and joules since the last time."""
        self.usage = replace(
            self.usage,
            gpu_memory_bytes=memory_bytes,
            gpu_seconds=(self.usage.gpu_seconds or 0.0) + seconds,
            gpu_joules=(self.usage.gpu_joules or 0.0) + joules,
        )

    def held_now(self, now: float) -> float:
        """Seconds held so far, the present hold included."""
        return self.held_seconds + (now - self.held_since if self.held_since is not None else 0.0)

    def view(self) -> CallView:
        return CallView(
            id=self.id,
            session_id=self.session.id,
            tenant_id=self.ref.tenant_id,
            parent_id=self.parent_id,
            command=self.command,
            intent=self.intent,
            grant=self.grant,
            state=self.state,
            begun_at=self.begun_at,
            held_since=self.held_since,
            held_seconds=self.held_seconds,
            brakes=self.brakes,
            usage=self.usage,
            cgroup=self.cgroup,
            outcome=self.outcome,
            recognition=self.recognition,
            squeeze=self.squeeze,
            forecast=self.forecast.view() if self.forecast is not None else None,
            eta=self.eta,
            waits_for=self.waits_for,
        )

    def cancel_timers(self) -> None:
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()


class Registry:
    """Look-ups by id and by token. Ended calls stay for a while (``keep_ended`` of them), the rest is in the ledger."""

    def __init__(self, *, keep_ended: int) -> None:
        self.tenants: dict[TenantId, Tenant] = {}
        self.sessions: dict[SessionId, Session] = {}
        self.calls: dict[CallId, Call] = {}
        self.by_name: dict[str, Tenant] = {}
        self.by_token: dict[str, Session] = {}
        self._ended: OrderedDict[CallId, CallView] = OrderedDict()
        self._closed: OrderedDict[SessionId, SessionView] = OrderedDict()
        self._keep_ended = keep_ended
        self.on_tenant: Callable[[Tenant], None] = _nothing  # the owner's: who has budgets
        self.on_session: Callable[[Session], None] = _nothing

    def add_tenant(self, tenant: Tenant) -> None:
        """New, or changed."""
        new = tenant.id not in self.tenants
        self.tenants[tenant.id] = tenant
        self.by_name[tenant.name] = tenant
        if new:
            self.on_tenant(tenant)

    def add_session(self, session: Session) -> None:
        self.sessions[session.id] = session
        session.tenant.sessions[session.id] = session
        if session.token_hash:
            self.by_token[session.token_hash] = session
        self.on_session(session)

    def remove_session(self, session: Session) -> None:
        self.sessions.pop(session.id, None)
        session.tenant.sessions.pop(session.id, None)
        self.by_token.pop(session.token_hash, None)
        self._closed[session.id] = session.view()
        while len(self._closed) > self._keep_ended:
            self._closed.popitem(last=False)

    def add_call(self, call: Call) -> None:
        self.calls[call.id] = call
        call.session.calls[call.id] = call

    def retire(self, call: Call) -> None:
        """The call has ended: out of the live ones, its last view is kept for a while."""
        self.calls.pop(call.id, None)
        call.session.calls.pop(call.id, None)
        self._ended[call.id] = call.view()
        while len(self._ended) > self._keep_ended:
            self._ended.popitem(last=False)

    def drop(self, call: Call) -> None:
        """The call never began."""
        self.calls.pop(call.id, None)
        call.session.calls.pop(call.id, None)

    def tenant(self, name: str) -> Tenant:
        try:
            return self.by_name[name]
        except KeyError:
            known = ", ".join(sorted(self.by_name)[:8]) or "none"
            raise NotFound(
                f"no tenant {name[:80]!r}", field="tenant", value=name, remedy=f"use one of: {known}; or set one up"
            ) from None

    def session(self, session_id: str) -> Session:
        try:
            return self.sessions[SessionId(session_id)]
        except KeyError:
            raise NotFound(
                f"no open session {session_id[:40]!r}",
                field="session_id",
                value=session_id,
                remedy="open one (corral session open)",
            ) from None

    def call(self, call_id: str) -> Call:
        try:
            return self.calls[CallId(call_id)]
        except KeyError:
            raise NotFound(
                f"no live call {call_id[:40]!r}",
                field="call_id",
                value=call_id,
                remedy="corral ps lists the live ones, corral history the ended ones",
            ) from None

    def ended(self, call_id: str) -> CallView | None:
        return self._ended.get(CallId(call_id))

    def recently_ended(self) -> tuple[CallView, ...]:
        return tuple(self._ended.values())

    def recently_closed(self) -> tuple[SessionView, ...]:
        return tuple(self._closed.values())

    def live_calls(self) -> Iterator[Call]:
        return iter(list(self.calls.values()))

    def begun_calls(self) -> list[Call]:
        """Those that have a leaf: neither queued nor settled."""
        return [c for c in self.calls.values() if not c.queued and c.outcome is None]


def now() -> float:
    """Unix seconds."""
    return time.time()


def _nothing(_: object) -> None:
    pass
