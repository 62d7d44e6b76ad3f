"""What the ledger gives back beyond the controller's own types."""

from __future__ import annotations

from dataclasses import dataclass

from controller.model import CallId, CallState, CallView, SessionId, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One call, with the names of whom it belongs to (empty where the ledger does not know them).

    ``call.outcome`` is None while the call is open; then ``call.usage`` is that of its begin (the samples know more).
    """

    call: CallView
    tenant_name: str
    session_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One call at one time, or the maximum of each field over an interval where samples were thinned out (all but
    ``memory_now`` and ``pids_now`` only grow). Units as in controller.model.Usage."""

    call_id: CallId
    at: float
    state: CallState
    cpu_usec: int
    memory_now: int | None
    pids_now: int | None
    faults: int | None
    major_faults: int | None
    read_bytes: int | None
    written_bytes: int | None
    disk_read_bytes: int | None
    disk_written_bytes: int | None
    net_rx_bytes: int | None
    net_tx_bytes: int | None
    run_wait_usec: int | None
    memory_stall_usec: int | None
    cpu_stall_usec: int | None
    io_stall_usec: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Sums over the calls of one tenant, session or class. ``key`` is its id (of a class: its name), ``None`` as in
    Usage: no call of the group could say. Usage of open calls counts only as far as it was known at their begin."""

    key: str
    name: str
    calls: int
    open_calls: int
    wall_seconds: float
    held_seconds: float
    brakes: int
    cpu_usec: int
    memory_peak: int | None  # the largest of any one call
    faults: int | None
    read_bytes: int | None
    written_bytes: int | None
    disk_read_bytes: int | None
    disk_written_bytes: int | None
    net_rx_bytes: int | None
    net_tx_bytes: int | None
    forks: int | None
    run_wait_usec: int | None
    memory_stall_usec: int | None
    oom_kills: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A context switch of one session's KV cache (docs/gpu.md): what moved, when (unix seconds), why, and how long the
    move took. ``kind`` is preempted, offloaded, restored, dropped or recomputed; ``bytes`` 0: not known."""

    at: float
    tenant_id: TenantId
    session_id: SessionId
    engine: str
    conversation: str
    kind: str
    why: str
    tokens: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the writer is. ``ok`` False: since ``failing_since`` (unix seconds) no transaction went through, ``error``
    says why; records wait in memory and are tried again.

    ``full``: as many records wait as may; none is dropped, so whoever begins calls should stop until it is False again.
    ``dropped_samples`` had no room or no call, ``rejected`` records could not be encoded; both since the start.
    """

    ok: bool
    failing_since: float | None
    error: str
    backlog: int
    backlog_samples: int
    full: bool
    dropped_samples: int
    rejected: int
