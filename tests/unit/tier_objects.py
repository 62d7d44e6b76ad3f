"""Pictures of a tier for tests: one with something of everything."""

from __future__ import annotations

from agentd.ledger import Switch
from agentd.tier.coordinator import PauseTotals
from agentd.tier.metrics import TierCollector
from agentd.tier.view import (
    CapabilityView,
    DeviceView,
    EngineView,
    GpuTotals,
    KvView,
    Owner,
    ProcessView,
    TierView,
)
from controller.model import new_session_id, new_tenant_id

TENANT = new_tenant_id()
SESSION = new_session_id()


def full_view() -> TierView:
    owner = Owner(tenant_id=TENANT, session_id=SESSION, call_id="c-00000000000000a0")
    device = DeviceView(
        index=0,
        uuid="GPU-1",
        name="Fake GPU",
        state="ok",
        memory_total=80 << 30,
        memory_used=1 << 30,
        sm_utilisation=0.4,
        memory_utilisation=0.25,
        power_watts=350.0,
        energy_joules=1234.0,
        temperature=51.0,
        switches_per_second=60.0,
        processes=(
            ProcessView(pid=42, command="python", owner=owner, memory_bytes=1 << 29, sm_share=0.3),
            ProcessView(pid=43, command="stranger", owner=None),
        ),
        faults=("XID 79: GPU has fallen off the bus",),
    )
    slice_ = DeviceView(index=0, uuid="MIG-1", name="MIG 1/0", state="ok", memory_total=1 << 30, parent_uuid="GPU-1")
    engine = EngineView(
        name="local",
        kind="llamacpp",
        version="b1",
        url="http://127.0.0.1:8080",
        state="up",
        control=True,
        policy="corral",
        running=1,
        waiting=2,
        kv_used_share=0.5,
        kv_capacity_tokens=4096,
        prefix_hit_share=0.75,
        preemptions=3,
        prompt_tokens=1000,
        generated_tokens=100,
        capabilities=(CapabilityView(name="offload", answer="yes", note="POST /slots"),),
    )
    session = KvView(
        session_id=SESSION,
        tenant_id=TENANT,
        engine="local",
        conversation="slot:1",
        residency="offloaded",
        since=1.0,
        why="its tool takes 9 s",
        tokens=3001,
        bytes=6_200_000,
        recomputed_tokens=7,
        switches=2,
        prefill_equivalents=3050.5,
        resident_byte_seconds=1e9,
        offloaded_byte_seconds=2e9,
        call_id="c-00000000000000a0",
        keep_until=9.0,
    )
    switch = Switch(
        at=5.0,
        tenant_id=TENANT,
        session_id=SESSION,
        engine="local",
        conversation="slot:1",
        kind="offloaded",
        why="its tool takes 9 s",
        tokens=3001,
        bytes=6_200_000,
        seconds=0.0029,
    )
    return TierView(
        at=10.0,
        nvml="ready",
        nvml_detail="",
        devices=(device, slice_),
        engines=(engine,),
        sessions=(session,),
        switches=(switch,),
        policy="corral",
        hints=("set something",),
        tenants=((TENANT, GpuTotals(memory_bytes=1 << 29, seconds=5.0, joules=60.0)),),
        sampling_share=0.004,
    )


def full_collector(view: TierView | None = None) -> TierCollector:
    return TierCollector(
        view or full_view(),
        lambda tenant_id: "acme",
        switches={("local", "offloaded"): 4},
        moved={("local", "offloaded"): 100},
        pauses={"local": PauseTotals(3, 9.0, 1e9, 2e9)},
        failures=1,
    )
