"""What carries out the controller's decisions on the host at hand.

Two kinds: ``backends.enforce`` (cgroups, and eBPF where it loads) and ``backends.observe`` (process trees only: no
root, or no writable cgroup tree). The host's state machine is the same over both; tests put a recording one beneath it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from controller.model import (
    CallId,
    CallView,
    Decision,
    Grant,
    Intent,
    Limits,
    Reason,
    SessionId,
    SessionView,
    Squeeze,
    TenantId,
    TenantView,
    Tripwire,
    Usage,
)
from controller.recognise.attachment import Attachment


class CallRef(NamedTuple):
    """Where a call is in the tree."""

    tenant_id: TenantId
    session_id: SessionId
    call_id: CallId


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProof:
    """The kernel's own records about one leaf, since it was made. See ``controller.policy.outcome.Proof``."""

    oom_kills: int = 0
    oom_tenant_kills: int = 0
    oom_host_kills: int = 0
    oom_at_root: bool = False  # those were at a limit of the group that holds all of Corral, not the host's end
    pids_refused: int = 0
    connects_refused: int = 0
    no_space: int = 0  # writes that found no space
    full_disk: str = ""  # which file system that was, or (without such a write) which one has no room now, in words
    packets_held: int = 0  # turned back because of an egress rate


class Squeezed(NamedTuple):
    """What became of a squeeze: what is in force of it (None: nothing), and why the rest could not be had."""

    applied: Squeeze | None
    notes: tuple[str, ...] = ()


class Listener(Protocol):
    """Told by the backend, on the event loop."""

    def on_empty(self, call_id: CallId, /) -> None: ...
    def on_braked(self, call_id: CallId, pid: int, usage: int, threshold: int, latency: float, /) -> None:
        """``pid`` was stopped in the kernel ``latency`` seconds ago, when the leaf used ``usage`` bytes."""

    def on_notice(self, call_id: CallId, usage: int, threshold: int, /) -> None: ...
    def on_oom(self, call_id: CallId, kills: int, /) -> None: ...
    def on_pids_refused(self, call_id: CallId, refusals: int, /) -> None: ...
    def on_connect_refused(self, call_id: CallId, destination: str, /) -> None: ...
    def on_agent_grew(self, session_id: SessionId, /) -> None:
        """The session's own processes have grown past their notice (``watch_agent``)."""

    def on_pressure(self) -> None:
        """Tasks of the host stood still for want of memory."""

    def on_exec(self, call_id: CallId, pid: int, parent: int, filename: str, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """What a session's directory remembers, so that a restarted daemon knows it. The token itself is kept nowhere."""

    session: SessionView
    token_hash: str  # sha256, hex
    token_expires: float  # unix seconds
    attachment: Attachment | None = None
    managed: bool = True  # False: opened by the daemon itself for an unknown caller, closed when its last call ends


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """What a leaf remembers. ``held`` by whom (brake, operator); ``launcher`` whether a corral-exec waits for it.
    Fields that came later have a default: a record of an earlier version must decode."""

    call: CallView
    launcher: bool
    main_pid: int
    launcher_pid: int
    held: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()  # the latest; the ledger may not have them yet
    killed_as: Reason | None = None  # it is being ended, for this reason
    squeezed_seconds: float = 0.0  # over earlier squeezes
    promised: int | None = None  # see controller.registry.Call; None: of an earlier version
    unbraked: bool = False
    trimmed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was in the tree at start. Groups whose record cannot be read are named in ``strange`` and left alone."""

    tenants: tuple[TenantView, ...] = ()
    sessions: tuple[SessionRecord, ...] = ()
    calls: tuple[CallRecord, ...] = ()
    strange: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Whose:
    """To which session (and call) a process belongs by its cgroup."""

    session_id: SessionId | None = None
    call_id: CallId | None = None


@dataclass(slots=True)
class Sampled:
    """One round of cheap readings. Calls that vanished meanwhile are absent."""

    usage: dict[CallId, Usage] = field(default_factory=dict)


class Backend(Protocol):
    @property
    def mode(self) -> str: ...  # unified, hybrid, observe
    @property
    def enforces(self) -> bool: ...
    @property
    def can_brake(self) -> bool: ...
    @property
    def can_gate_network(self) -> bool: ...
    @property
    def controllers(self) -> frozenset[str]:
        """Of memory, cpu, pids, io and egress (eBPF) those whose limits can be set. Nothing of the others is ever
        handed down."""

    @property
    def missing(self) -> tuple[str, ...]: ...

    def start(self, listener: Listener, /) -> Found:
        """Prepares the tree, hooks into the running event loop, and reports what an earlier daemon left."""

    def stop(self) -> None:
        """Lets go of the event loop. Groups, limits and armed thresholds stay."""

    def add_tenant(self, tenant: TenantView, /) -> tuple[str, ...]:
        """Makes the tenant's group or updates its limits. Returns notes on what this host cannot set."""

    def tenant_memory(self, tenant_id: TenantId, /) -> int | None: ...
    def tenant_cache(self, tenant_id: TenantId, /) -> int:
        """Of its memory, the page cache that the kernel would give back before anything else. Bytes."""

    def tenant_cpu_usec(self, tenant_id: TenantId, /) -> int: ...
    def shelter_agents(self, tenant_id: TenantId, sessions: Iterable[SessionId], tenant: bool, /) -> None:
        """Reclaim shall take from calls before it takes from what agents use now. ``tenant`` False: the tenant's own
        memory.low is the operator's. Nothing where the host has no memory.low."""

    def remove_tenant(self, tenant_id: TenantId, /) -> None: ...
    def add_session(self, record: SessionRecord, /) -> None: ...
    def update_session(self, record: SessionRecord, /) -> None: ...
    def limit_session(self, tenant_id: TenantId, session_id: SessionId, limits: Limits, /) -> tuple[str, ...]: ...
    def enter_session(self, tenant_id: TenantId, session_id: SessionId, pid: int, /) -> None: ...
    def watch_agent(self, tenant_id: TenantId, session_id: SessionId, within: int, /) -> None:
        """Has ``on_agent_grew`` told once the session's own processes use ``within`` bytes more than now; in place of
        an earlier notice. Nothing where the host has no tripwire."""

    def keep_device_filter(self, tenant_id: TenantId, session_id: SessionId, group: str, /) -> None:
        """What leaves ``group`` (of a container or a service, as /proc/PID/cgroup has it) for the session may open no
        device that it could not open before. Raises CannotEnforce."""

    def hold_process(self, tenant_id: TenantId, session_id: SessionId, pid: int, /) -> bool:
        """Stops a process of the session, frozen in a group of its own, until ``place`` or ``enter_session`` moves it
        out. False where this host cannot."""

    def held_processes(self, tenant_id: TenantId, session_id: SessionId, /) -> Sequence[int]: ...
    def agent_pids(self, tenant_id: TenantId, session_id: SessionId, /) -> Sequence[int]: ...
    def session_pids(self, tenant_id: TenantId, session_id: SessionId, /) -> int: ...
    def kill_session(self, tenant_id: TenantId, session_id: SessionId, /) -> None: ...
    def remove_session(self, tenant_id: TenantId, session_id: SessionId, /) -> bool:
        """Removes the session's groups. False while a process or a leaf is still in them (leaves go one by one)."""

    def add_call(self, ref: CallRef, intent: Intent, grant: Grant, /) -> str:
        """Makes the leaf with its limits in force and returns its path. On an error nothing is left."""

    def remember(self, ref: CallRef, record: CallRecord, /) -> None: ...
    def adopt_call(self, ref: CallRef, record: CallRecord, /) -> None: ...
    def place(self, ref: CallRef, pid: int, pidfd: int | None = None, /) -> None:
        """Moves a process into the leaf. ``pidfd`` of it: a process that took over its number meanwhile is put back."""

    def limit_call(self, ref: CallRef, grant: Grant, intent: Intent, /) -> tuple[str, ...]: ...
    def arm(self, ref: CallRef, tripwire: Tripwire, /) -> None:
        """New thresholds alone; a notice that was sent is armed again."""

    def squeeze(self, ref: CallRef, squeeze: Squeeze | None, /) -> Squeezed:
        """Slows a running call as far as this host can; None puts back what its grant says. It replaces an earlier
        squeeze. What cannot be had never fails the call: it is said. Raises NoSuchGroup for a call that is gone."""

    def freeze(self, ref: CallRef, /) -> None: ...
    def thaw(self, ref: CallRef, stopped: Iterable[int], /) -> None:
        """Resumes the processes of ``stopped`` that are still in the leaf (SIGCONT), then thaws it."""

    def resume(self, ref: CallRef, pid: int, /) -> None:
        """SIGCONT for one process of the leaf that the brake stopped under a threshold that no longer holds."""

    def kill(self, ref: CallRef, /) -> None: ...
    def pids(self, ref: CallRef, /) -> Sequence[int]: ...
    def occupied(self, ref: CallRef, /) -> bool:
        """Whether a process of the call is there, one that is dying included: what that used is not all counted yet."""

    def usage(self, ref: CallRef, /, *, empty: bool = False) -> Usage:
        """Everything, exactly, now. At the end of a call, and on demand for one. ``empty``: no process is there any
        more, as ``occupied`` has just said."""

    def ended(self, ref: CallRef, /) -> None:
        """Its outcome is known: nothing more need be told of it."""

    def memory(self, ref: CallRef, /) -> int: ...
    def page_cache(self, ref: CallRef, /) -> int:
        """Of its memory, what the kernel would give back before anything else. Bytes."""

    def reclaim(self, ref: CallRef, nbytes: int, /) -> None:
        """Has the kernel take that back. Called in a thread: it may block."""

    def begin_round(self) -> None:
        """A round of samples begins: what is read once for all calls is read now."""

    def sample(self, refs: Sequence[CallRef], /, *, full: bool) -> Sampled:
        """``full`` False: CPU, memory and counters alone; what that leaves out is None and keeps its last value."""

    def proof(self, ref: CallRef, /, *, measured: bool = False) -> KernelProof:
        """``measured``: ``usage`` has just been called, and what it read serves."""

    def adopt_leftovers(self, ref: CallRef, /) -> int:
        """Moves what still runs in the leaf to the session's ``left`` group. Returns how many processes."""

    def remove_call(self, ref: CallRef, /) -> bool:
        """Forgets the counters and removes the leaf. False when it is not empty yet."""

    def whose(self, pid: int, /) -> Whose: ...
