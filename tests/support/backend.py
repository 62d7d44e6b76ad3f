"""A backend without a kernel: it records what it is told, and the test says what the kernel would say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from controller.backend import (
    CallRecord,
    CallRef,
    Found,
    KernelProof,
    Listener,
    Sampled,
    SessionRecord,
    Squeezed,
    Whose,
)
from controller.model import (
    BudgetChange,
    CallId,
    CallView,
    CgroupError,
    Decision,
    Grant,
    Intent,
    Limits,
    SessionId,
    SessionView,
    Squeeze,
    TenantId,
    TenantView,
    Tripwire,
    Usage,
)


@dataclass
class FakeLeaf:
    grant: Grant
    pids: set[int] = field(default_factory=set)
    frozen: bool = False
    squeeze: Squeeze | None = None
    killed: bool = False
    memory: int = 0
    page_cache: int = 0
    usage: Usage = field(default_factory=Usage)
    proof: KernelProof = field(default_factory=KernelProof)
    continued: list[int] = field(default_factory=list)
    record: CallRecord | None = None


class RecordingBackend:
    """``enforcing`` False: as on a host that only observes."""

    def __init__(self, *, enforcing: bool = True) -> None:
        self.enforces = enforcing
        self.mode = "hybrid" if enforcing else "observe"
        self.can_brake = enforcing
        self.can_gate_network = enforcing
        self.controllers = frozenset({"memory", "cpu", "pids", "io"}) if enforcing else frozenset()
        self.missing: tuple[str, ...] = ()
        self.leaves: dict[CallId, FakeLeaf] = {}
        self.removed: list[CallId] = []
        self.tenants: dict[TenantId, TenantView] = {}
        self.tenant_use: dict[TenantId, int] = {}
        self.tenant_file_cache: dict[TenantId, int] = {}
        self.sessions: dict[SessionId, SessionRecord] = {}
        self.watched: dict[SessionId, int] = {}
        self.sheltered: dict[TenantId, tuple[tuple[SessionId, ...], bool]] = {}
        self.entered: list[tuple[SessionId, int]] = []
        self.waiting: list[int] = []
        self.left: list[int] = []
        self.found = Found()
        self.fail_place: CgroupError | None = None
        self.cannot_squeeze = ""  # why
        self.listener: Listener | None = None

    def start(self, listener: Listener) -> Found:
        self.listener = listener
        return self.found

    def stop(self) -> None:
        self.listener = None

    def add_tenant(self, tenant: TenantView) -> tuple[str, ...]:
        self.tenants[tenant.id] = tenant
        return ()

    def tenant_memory(self, tenant_id: TenantId) -> int | None:
        return self.tenant_use.get(tenant_id, 0)

    def tenant_cache(self, tenant_id: TenantId) -> int:
        return self.tenant_file_cache.get(tenant_id, 0)

    def tenant_cpu_usec(self, tenant_id: TenantId) -> int:
        return 0

    def shelter_agents(self, tenant_id: TenantId, sessions: Iterable[SessionId], tenant: bool) -> None:
        self.sheltered[tenant_id] = (tuple(sessions), tenant)

    def remove_tenant(self, tenant_id: TenantId) -> None:
        del self.tenants[tenant_id]

    def add_session(self, record: SessionRecord) -> None:
        self.sessions[record.session.id] = record

    def update_session(self, record: SessionRecord) -> None:
        self.sessions[record.session.id] = record

    def limit_session(self, tenant_id: TenantId, session_id: SessionId, limits: Limits) -> tuple[str, ...]:
        return ()

    def enter_session(self, tenant_id: TenantId, session_id: SessionId, pid: int) -> None:
        self.entered.append((session_id, pid))

    def watch_agent(self, tenant_id: TenantId, session_id: SessionId, within: int) -> None:
        self.watched[session_id] = within

    def keep_device_filter(self, tenant_id: TenantId, session_id: SessionId, group: str) -> None:
        pass

    def hold_process(self, tenant_id: TenantId, session_id: SessionId, pid: int) -> bool:
        self.waiting.append(pid)
        return self.enforces

    def held_processes(self, tenant_id: TenantId, session_id: SessionId) -> Sequence[int]:
        return tuple(self.waiting)

    def agent_pids(self, tenant_id: TenantId, session_id: SessionId) -> Sequence[int]:
        return [pid for session, pid in self.entered if session == session_id]

    def session_pids(self, tenant_id: TenantId, session_id: SessionId) -> int:
        return len(self.left)

    def kill_session(self, tenant_id: TenantId, session_id: SessionId) -> None:
        self.left.clear()

    def remove_session(self, tenant_id: TenantId, session_id: SessionId) -> bool:
        self.sessions.pop(session_id, None)
        return True

    def add_call(self, ref: CallRef, intent: Intent, grant: Grant) -> str:
        self.leaves[ref.call_id] = FakeLeaf(grant=grant)
        return "/".join(ref)

    def remember(self, ref: CallRef, record: CallRecord) -> None:
        self.leaves[ref.call_id].record = record

    def adopt_call(self, ref: CallRef, record: CallRecord) -> None:
        self.leaves.setdefault(ref.call_id, FakeLeaf(grant=record.call.grant, pids={record.main_pid}))

    def place(self, ref: CallRef, pid: int, pidfd: int | None = None) -> None:
        if self.fail_place is not None:
            raise self.fail_place
        self.leaves[ref.call_id].pids.add(pid)

    def limit_call(self, ref: CallRef, grant: Grant, intent: Intent) -> tuple[str, ...]:
        self.leaves[ref.call_id].grant = grant
        return ()

    def arm(self, ref: CallRef, tripwire: Tripwire) -> None:
        leaf = self.leaves[ref.call_id]
        leaf.grant = replace(leaf.grant, tripwire=tripwire)

    def squeeze(self, ref: CallRef, squeeze: Squeeze | None) -> Squeezed:
        if self.cannot_squeeze:
            return Squeezed(None, (self.cannot_squeeze,))
        self.leaves[ref.call_id].squeeze = squeeze
        return Squeezed(squeeze)

    def freeze(self, ref: CallRef) -> None:
        self.leaves[ref.call_id].frozen = True

    def thaw(self, ref: CallRef, stopped: Iterable[int]) -> None:
        leaf = self.leaves[ref.call_id]
        leaf.continued += sorted(stopped)
        leaf.frozen = False

    def resume(self, ref: CallRef, pid: int) -> None:
        self.leaves[ref.call_id].continued.append(pid)

    def kill(self, ref: CallRef) -> None:
        leaf = self.leaves[ref.call_id]
        leaf.killed = True
        leaf.pids.clear()

    def pids(self, ref: CallRef) -> Sequence[int]:
        leaf = self.leaves.get(ref.call_id)
        return sorted(leaf.pids) if leaf is not None else ()

    def occupied(self, ref: CallRef) -> bool:
        return bool(self.pids(ref))

    def usage(self, ref: CallRef, *, empty: bool = False) -> Usage:
        return self.leaves[ref.call_id].usage

    def ended(self, ref: CallRef) -> None:
        pass

    def memory(self, ref: CallRef) -> int:
        return self.leaves[ref.call_id].memory

    def page_cache(self, ref: CallRef) -> int:
        return self.leaves[ref.call_id].page_cache

    def reclaim(self, ref: CallRef, nbytes: int) -> None:
        leaf = self.leaves[ref.call_id]
        leaf.memory -= nbytes
        leaf.page_cache -= nbytes

    def begin_round(self) -> None:
        pass

    def sample(self, refs: Sequence[CallRef], *, full: bool) -> Sampled:
        return Sampled({r.call_id: self.leaves[r.call_id].usage for r in refs if r.call_id in self.leaves})

    def proof(self, ref: CallRef, *, measured: bool = False) -> KernelProof:
        return self.leaves[ref.call_id].proof

    def adopt_leftovers(self, ref: CallRef) -> int:
        leaf = self.leaves[ref.call_id]
        count = len(leaf.pids)
        self.left += leaf.pids
        leaf.pids.clear()
        return count

    def remove_call(self, ref: CallRef) -> bool:
        if self.leaves[ref.call_id].pids:
            return False
        del self.leaves[ref.call_id]
        self.removed.append(ref.call_id)
        return True

    def whose(self, pid: int) -> Whose:
        return Whose()


class RecordingJournal:
    """Keeps everything; commits ends only when told to, where ``hold_commits``."""

    def __init__(self) -> None:
        self.tenants: list[TenantView] = []
        self.opened: list[SessionView] = []
        self.closed: list[SessionId] = []
        self.begun: list[CallView] = []
        self.ended: list[CallView] = []
        self.decisions: list[Decision] = []
        self.samples = 0
        self.budget_changes: list[BudgetChange] = []
        self.hold_commits = False
        self._held: list[object] = []

    def tenant_set(self, tenant: TenantView, /) -> None:
        self.tenants.append(tenant)

    def session_opened(self, session: SessionView, /) -> None:
        self.opened.append(session)

    def session_closed(self, session_id: SessionId, at: float, /) -> None:
        self.closed.append(session_id)

    def call_begun(self, call: CallView, /) -> None:
        self.begun.append(call)

    def call_ended(self, call: CallView, committed: object, /) -> None:
        self.ended.append(call)
        if self.hold_commits:
            self._held.append(committed)
        elif callable(committed):
            committed()

    def commit(self) -> None:
        held, self._held = self._held, []
        for committed in held:
            if callable(committed):
                committed()

    def decision(self, decision: Decision, /) -> None:
        self.decisions.append(decision)

    def budgets_changed(self, change: BudgetChange, /) -> None:
        self.budget_changes.append(change)

    def sample(self, *_: object) -> None:
        self.samples += 1


class FixedReader:
    """A host of 8 GiB, half of it free."""

    kernel = "test"
    cpus = 4

    def __init__(self) -> None:
        self.total = 8 << 30
        self.available = 4 << 30

    def memory(self) -> tuple[int, int]:
        return self.total, self.available

    def pressure(self, resource: str, /) -> float | None:
        return None
