"""Readings of one device: who it is, what it holds, who uses it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

from gpu.nvml.binding import NOT_FOUND, SUCCESS, Binding
from gpu.nvml.types import Absent, DeviceInfo, DeviceState, MigInstance, ProcessMemory, ProcessShare, Why

_NO_INSTANCE: Final = 0xFFFFFFFF  # what the driver reports where MIG is off
_NO_BYTES: Final = 0xFFFFFFFFFFFFFFFF

# Reasons for which nothing else of this device is asked at this sample.
GONE: Final = {Why.GPU_LOST: DeviceState.LOST, Why.RESET_REQUIRED: DeviceState.RESET_REQUIRED}


@dataclass(slots=True)
class Device:
    """A device and its handle. ``last_seen`` is the driver's time (microseconds) of the newest process sample read."""

    info: DeviceInfo
    handle: Any
    last_seen: int = 0

    @property
    def key(self) -> str:
        return self.info.uuid or f"index {self.info.index}"


@dataclass(frozen=True, slots=True)
class Memory:
    total: int
    used: int


def state_after(absent: Absent) -> DeviceState:
    return GONE.get(absent.why, DeviceState.FAILED)


def broken(index: int, absent: Absent, *, uuid: str = "") -> DeviceInfo:
    """A device of which there is no more than its index, and why."""
    return DeviceInfo(
        index=index,
        uuid=uuid,
        state=state_after(absent),
        name=absent,
        bus_id=absent,
        memory_total=absent,
        compute_capability=absent,
        power_limit=absent,
        mig_enabled=absent,
        gpm_supported=absent,
    )


def open_device(binding: Binding, index: int) -> Device:
    """By index. A device that cannot be opened comes with a handle of None and a state that says so."""
    handle = binding.read("nvmlDeviceGetHandleByIndex", index)
    if isinstance(handle, Absent):
        return Device(broken(index, handle), None)
    uuid = binding.read("nvmlDeviceGetUUID", handle)
    if isinstance(uuid, Absent):
        return Device(broken(index, uuid), None)
    memory = read_memory(binding, handle, uuid)
    bus = binding.read("nvmlDeviceGetPciInfo_v3", handle, device=uuid)
    limit = binding.read("nvmlDeviceGetEnforcedPowerLimit", handle, device=uuid)
    mig = binding.read("nvmlDeviceGetMigMode", handle, device=uuid)
    gpm = binding.read("nvmlGpmQueryDeviceSupport", handle, device=uuid)
    return Device(
        DeviceInfo(
            index=index,
            uuid=uuid,
            state=DeviceState.OK,
            name=binding.read("nvmlDeviceGetName", handle, device=uuid),
            bus_id=bus if isinstance(bus, Absent) else _text(bus.busId),
            memory_total=memory if isinstance(memory, Absent) else memory.total,
            compute_capability=binding.read("nvmlDeviceGetCudaComputeCapability", handle, device=uuid),
            power_limit=limit if isinstance(limit, Absent) else limit / 1000.0,  # milliwatts
            mig_enabled=mig if isinstance(mig, Absent) else bool(mig[0]),
            gpm_supported=gpm if isinstance(gpm, Absent) else bool(gpm.isSupportedDevice),
        ),
        handle,
    )


def _text(value: bytes | str) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def read_memory(binding: Binding, handle: Any, key: str) -> Memory | Absent:
    memory = binding.read("nvmlDeviceGetMemoryInfo", handle, device=key)
    return memory if isinstance(memory, Absent) else Memory(int(memory.total), int(memory.used))


def read_processes(binding: Binding, handle: Any, key: str) -> tuple[ProcessMemory, ...] | Absent:
    """Compute and graphics processes. One that has both kinds of context is in the list twice, as the driver has it."""
    compute = binding.read("nvmlDeviceGetComputeRunningProcesses_v3", handle, device=key)
    if isinstance(compute, Absent):
        return compute
    graphics = binding.read("nvmlDeviceGetGraphicsRunningProcesses_v3", handle, device=key)
    found = [_process(one, graphics=False) for one in compute]
    if not isinstance(graphics, Absent):  # a compute-only device has no such list, and that is no loss
        found += [_process(one, graphics=True) for one in graphics]
    return tuple(found)


def _process(raw: Any, *, graphics: bool) -> ProcessMemory:
    used = raw.usedGpuMemory
    return ProcessMemory(
        pid=int(raw.pid),
        bytes=None if used is None or used == _NO_BYTES else int(used),
        graphics=graphics,
        gpu_instance_id=_instance(raw.gpuInstanceId),
        compute_instance_id=_instance(raw.computeInstanceId),
    )


def _instance(raw: int | None) -> int | None:
    return None if raw is None or raw == _NO_INSTANCE else int(raw)


def read_shares(binding: Binding, device: Device) -> tuple[ProcessShare, ...] | Absent:
    """Per process, averaged over what the driver sampled since the last call. Idle processes are not in it."""
    raw = binding.read("nvmlDeviceGetProcessesUtilizationInfo", device.handle, device.last_seen, device=device.key)
    if isinstance(raw, Absent) and raw.why in (Why.OLD_DRIVER, Why.OLD_BINDINGS, Why.UNSUPPORTED):
        raw = binding.read("nvmlDeviceGetProcessUtilization", device.handle, device.last_seen, device=device.key)
    if isinstance(raw, Absent):
        # NOT_FOUND: no process was busy. SUCCESS: the bindings raise it for an empty list.
        return () if raw.code in (NOT_FOUND, SUCCESS) and raw.why is Why.FAILED else raw
    sums: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
    newest = device.last_seen
    for sample in raw:
        at = int(sample.timeStamp)
        # The driver may hand out slots that it never filled (time 0) or percentages beyond 100 from a wrapped counter.
        if at <= device.last_seen or sample.smUtil > 100 or sample.memUtil > 100:
            continue
        newest = max(newest, at)
        entry = sums[int(sample.pid)]
        entry[0] += sample.smUtil / 100.0
        entry[1] += sample.memUtil / 100.0
        entry[2] += 1
    device.last_seen = newest
    return tuple(
        ProcessShare(pid=pid, sm=sm / count, memory=memory / count, samples=int(count))
        for pid, (sm, memory, count) in sorted(sums.items())
    )


def read_mig(binding: Binding, device: Device) -> tuple[MigInstance, ...] | Absent:
    """The MIG instances of a device; empty where MIG is off or no instance was made."""
    if device.info.mig_enabled is not True:
        return device.info.mig_enabled if isinstance(device.info.mig_enabled, Absent) else ()
    count = binding.read("nvmlDeviceGetMaxMigDeviceCount", device.handle, device=device.key)
    if isinstance(count, Absent):
        return count
    found: list[MigInstance] = []
    for index in range(count):
        handle = binding.read("nvmlDeviceGetMigDeviceHandleByIndex", device.handle, index)
        if isinstance(handle, Absent):
            if handle.why in GONE:
                return handle
            continue  # NOT_FOUND: this place is not taken
        uuid = binding.read("nvmlDeviceGetUUID", handle)
        gpu_instance = binding.read("nvmlDeviceGetGpuInstanceId", handle)
        compute_instance = binding.read("nvmlDeviceGetComputeInstanceId", handle)
        if isinstance(uuid, Absent) or isinstance(gpu_instance, Absent) or isinstance(compute_instance, Absent):
            continue  # taken away between the two calls
        attributes = binding.read("nvmlDeviceGetAttributes_v2", handle, device=uuid)
        memory = read_memory(binding, handle, uuid)
        found.append(
            MigInstance(
                uuid=uuid,
                index=index,
                gpu_instance_id=int(gpu_instance),
                compute_instance_id=int(compute_instance),
                multiprocessors=attributes if isinstance(attributes, Absent) else int(attributes.multiprocessorCount),
                memory_total=memory if isinstance(memory, Absent) else memory.total,
                memory_used=memory if isinstance(memory, Absent) else memory.used,
            )
        )
    return tuple(found)
