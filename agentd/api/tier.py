"""The inference tier over the API: the picture of ``agentd.tier`` as messages."""

from __future__ import annotations

from agentd.api.errors import Context, answering
from agentd.api.identity import Access
from agentd.api.ports import TierPort
from agentd.ledger import Switch
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.corral.v1 import corral_pb2_grpc
from agentd.tier.view import DeviceView, EngineView, KvView, ProcessView, TierView


class TierMethods(corral_pb2_grpc.OperatorServiceServicer):
    _access: Access
    _tier: TierPort

    async def Tier(self, request: pb.TierRequest, context: Context) -> pb.TierResponse:
        async with answering(context, "Tier"):
            self._access.operator(context)
            return pb.TierResponse(tier=tier_to_proto(self._tier.view()))


def tier_to_proto(view: TierView) -> pb.TierStatus:
    return pb.TierStatus(
        at=view.at,
        nvml=view.nvml,
        nvml_detail=view.nvml_detail,
        devices=[_device(device) for device in view.devices],
        engines=[_engine(engine) for engine in view.engines],
        sessions=[_session(session) for session in view.sessions],
        switches=[switch_to_proto(switch) for switch in view.switches],
        policy=view.policy,
        hints=view.hints,
        tenants=[
            pb.GpuTotals(tenant_id=tenant, memory_bytes=used.memory_bytes, gpu_seconds=used.seconds, joules=used.joules)
            for tenant, used in view.tenants
        ],
        sampling_share=view.sampling_share,
    )


def _device(device: DeviceView) -> pb.GpuDevice:
    return pb.GpuDevice(
        index=device.index,
        uuid=device.uuid,
        name=device.name,
        state=device.state,
        detail=device.detail,
        memory_total_bytes=device.memory_total,
        memory_used_bytes=device.memory_used,
        sm_utilization=device.sm_utilisation,
        memory_utilization=device.memory_utilisation,
        power_watts=device.power_watts,
        energy_joules=device.energy_joules,
        temperature_celsius=device.temperature,
        context_switches_per_second=device.switches_per_second,
        processes=[_process(process) for process in device.processes],
        parent_uuid=device.parent_uuid,
        faults=device.faults,
    )


def _process(process: ProcessView) -> pb.GpuProcess:
    owner = process.owner
    return pb.GpuProcess(
        pid=process.pid,
        memory_bytes=process.memory_bytes,
        sm_share=process.sm_share,
        tenant_id=owner.tenant_id if owner is not None else "",
        session_id=owner.session_id if owner is not None else "",
        call_id=owner.call_id if owner is not None else "",
        command=process.command,
    )


def _engine(engine: EngineView) -> pb.InferenceEngine:
    return pb.InferenceEngine(
        name=engine.name,
        kind=engine.kind,
        version=engine.version,
        url=engine.url,
        state=engine.state,
        detail=engine.detail,
        running=engine.running,
        waiting=engine.waiting,
        kv_used_share=engine.kv_used_share,
        kv_capacity_tokens=engine.kv_capacity_tokens,
        prefix_hit_share=engine.prefix_hit_share,
        preemptions=engine.preemptions,
        prompt_tokens=engine.prompt_tokens,
        generated_tokens=engine.generated_tokens,
        capabilities=[
            pb.EngineCapability(name=one.name, answer=one.answer, note=one.note) for one in engine.capabilities
        ],
        control=engine.control,
        policy=engine.policy,
    )


def _session(session: KvView) -> pb.KvSession:
    return pb.KvSession(
        session_id=session.session_id,
        tenant_id=session.tenant_id,
        engine=session.engine,
        conversation=session.conversation,
        # "none" is the API's word for what was never computed
        residency="none" if session.residency == "absent" else session.residency,
        since=session.since,
        why=session.why,
        tokens=session.tokens,
        bytes=session.bytes,
        recomputed_tokens=session.recomputed_tokens,
        switches=session.switches,
        prefill_equivalents=session.prefill_equivalents,
        resident_byte_seconds=session.resident_byte_seconds,
        offloaded_byte_seconds=session.offloaded_byte_seconds,
        call_id=session.call_id,
        keep_until=session.keep_until,
    )


def switch_to_proto(switch: Switch) -> pb.ContextSwitch:
    return pb.ContextSwitch(
        at=switch.at,
        session_id=switch.session_id,
        engine=switch.engine,
        kind=switch.kind,
        why=switch.why,
        tokens=switch.tokens,
        bytes=switch.bytes,
        seconds=switch.seconds,
    )
