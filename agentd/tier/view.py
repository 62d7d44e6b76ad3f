"""The tier as the API, the metrics and the command line show it: frozen values, made from the last samples.

Bytes, joules, watts, unix seconds, shares 0 to 1. None: nothing can tell.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentd.ledger import Switch


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose a GPU process is. ``call_id`` "": the session's own processes."""

    tenant_id: str
    session_id: str
    call_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessView:
    pid: int
    command: str
    owner: Owner | None
    memory_bytes: int | None = None
    sm_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """``energy_joules`` since the daemon first saw it. A MIG instance has ``parent_uuid``, and only sizes."""

    index: int
    uuid: str
    name: str
    state: str
    detail: str = ""
    memory_total: int | None = None
    memory_used: int | None = None
    sm_utilisation: float | None = None
    memory_utilisation: float | None = None
    power_watts: float | None = None
    energy_joules: float | None = None
    temperature: float | None = None
    switches_per_second: float | None = None
    processes: tuple[ProcessView, ...] = ()
    parent_uuid: str = ""
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityView:
    name: str
    answer: str  # yes, no, untried
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """``state``: up, down, unknown. ``control``: whether Corral may act on it; ``policy`` then says by which rule."""

    name: str
    kind: str
    version: str
    url: str
    state: str
    detail: str = ""
    control: bool = False
    policy: str = ""
    running: int | None = None
    waiting: int | None = None
    kv_used_share: float | None = None
    kv_capacity_tokens: int | None = None
    prefix_hit_share: float | None = None
    preemptions: int | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    capabilities: tuple[CapabilityView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KvView:
    """One conversation's KV at one engine. ``residency``: absent, resident, offloaded, dropped."""

    session_id: str
    tenant_id: str
    engine: str
    conversation: str
    residency: str
    since: float
    why: str
    tokens: int
    bytes: int
    recomputed_tokens: int
    switches: int
    prefill_equivalents: float
    resident_byte_seconds: float
    offloaded_byte_seconds: float
    call_id: str = ""
    keep_until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTotals:
    """What one tenant used of GPUs since the daemon's start; ``memory_bytes`` now."""

    memory_bytes: int = 0
    seconds: float = 0.0
    joules: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TierView:
    """``nvml``: gpu.nvml.Availability, or "" where it is switched off."""

    at: float
    nvml: str
    nvml_detail: str
    devices: tuple[DeviceView, ...] = ()
    engines: tuple[EngineView, ...] = ()
    sessions: tuple[KvView, ...] = ()
    switches: tuple[Switch, ...] = ()
    policy: str = ""
    hints: tuple[str, ...] = ()
    tenants: tuple[tuple[str, GpuTotals], ...] = ()  # by id
    sampling_share: float = 0.0  # of one core, over the last rounds
