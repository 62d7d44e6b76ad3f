"""NVML as the daemon holds it: opened lazily, sampled on a beat, surviving whatever the driver does.

    nvml = Nvml()
    sample = await nvml.sample()       # opens NVML at first use; never raises for a missing or broken GPU
    sample.state, sample.devices

NVML's calls may block for milliseconds (for seconds on a dying GPU), so ``sample`` runs in a thread; ``sample_now`` is
the same for callers that have a thread of their own. One sample at a time: a second one waits.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from gpu.nvml.binding import CLOSED, NO_GPU, UNINITIALIZED, Binding, load
from gpu.nvml.devices import GONE, Device, open_device, read_memory, read_mig, read_processes, read_shares
from gpu.nvml.gpm import ContextSwitchReader
from gpu.nvml.types import (
    Absent,
    Availability,
    ContextSwitches,
    DeviceInfo,
    DeviceSample,
    DeviceState,
    MigInstance,
    NvmlSample,
    NvmlState,
    Why,
)

# A driver that is absent, or a device that is lost, is looked for again at this distance (seconds).
RESCAN_SECONDS: Final = 30.0
_TEMPERATURE_GPU: Final = 0  # nvmlTemperatureSensors_t


class Nvml:
    """All GPUs of the host.

    :param rescan_seconds: how often to look again for what is not there
    :param clock: monotonic nanoseconds

    ``events_guard`` is held by whoever waits for NVML's events: NVML must not be shut down under a waiter. ``shutting``
    asks waiters to let go of it.
    """

    def __init__(self, *, rescan_seconds: float = RESCAN_SECONDS, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._rescan_nsec = int(rescan_seconds * 1e9)
        self._clock = clock
        self._lock = threading.Lock()
        self._binding: Binding | None = None
        self._state = CLOSED
        self._devices: list[Device] = []
        self._switches: ContextSwitchReader | None = None
        self._looked_at: int | None = None
        self.events_guard = threading.Lock()
        self.shutting = threading.Event()

    @property
    def state(self) -> NvmlState:
        return self._state

    @property
    def devices(self) -> tuple[DeviceInfo, ...]:
        return tuple(device.info for device in self._devices)

    @property
    def binding(self) -> Binding | None:
        """For the event watcher (gpu.nvml.events); None unless ready."""
        return self._binding

    def handles(self) -> tuple[tuple[DeviceInfo, Any], ...]:
        """Every device that could be opened, with NVML's handle; for the event watcher."""
        return tuple((device.info, device.handle) for device in self._devices if device.handle is not None)

    async def sample(self) -> NvmlSample:
        return await asyncio.to_thread(self.sample_now)

    def sample_now(self) -> NvmlSample:
        """One sample of every device. Blocks; thread safe."""
        with self._lock:
            now = self._clock()
            if self._needs_look(now):
                self._look(now)
            if self._binding is None or not self._state.ready:
                return NvmlSample(state=self._state, at_nsec=now)
            samples = tuple(self._sample(device) for device in self._devices)
            if samples and all(_uninitialised(sample) for sample in samples):
                self._shut()  # somebody in this process shut NVML down: open it anew at the next sample
            return NvmlSample(state=self._state, at_nsec=now, devices=samples)

    def rescan(self) -> NvmlState:
        """Look for the driver and its devices now."""
        with self._lock:
            self._look(self._clock())
            return self._state

    def close(self) -> None:
        with self._lock:
            self._shut()
            self._looked_at = None

    def _needs_look(self, now: int) -> bool:
        if self._looked_at is None:
            return True
        well = self._state.ready and all(device.info.state is DeviceState.OK for device in self._devices)
        return not well and now - self._looked_at >= self._rescan_nsec

    def _look(self, now: int) -> None:
        self._looked_at = now
        well = self._state.ready and all(device.info.state is DeviceState.OK for device in self._devices)
        if self._binding is not None and not well:
            # A handle to a device that was lost never recovers; NVML finds it again only after a new initialisation.
            self._shut()
        if self._binding is None:
            self._binding, self._state = load()
            if self._binding is None:
                self._devices = []
                return
            self._switches = ContextSwitchReader(self._binding)
        self._binding.forget()
        count = self._binding.read("nvmlDeviceGetCount")
        if isinstance(count, Absent):
            self._devices = []
            self._state = NvmlState(
                availability=Availability.FAILED,
                message=f"NVML cannot count the GPUs (code {count.code})",
                remedy="see dmesg and nvidia-smi",
                code=count.code,
            )
            return
        self._devices = self._open_all(self._binding, count)
        self._state = NvmlState(availability=Availability.READY) if count else NO_GPU

    def _open_all(self, binding: Binding, count: int) -> list[Device]:
        """Devices by index; process samples already seen are not seen again after a new look."""
        seen = {device.info.uuid: device.last_seen for device in self._devices if device.info.uuid}
        opened = [open_device(binding, index) for index in range(count)]
        for device in opened:
            device.last_seen = seen.get(device.info.uuid, 0)
        return opened

    def _shut(self) -> None:
        if self._binding is None:
            return
        if self._switches is not None:
            self._switches.close()
            self._switches = None
        self.shutting.set()
        try:
            with self.events_guard:
                self._binding.read("nvmlShutdown")
                self._binding = None
                for device in self._devices:
                    device.handle = None  # a handle of an earlier initialisation must not reach the library again
        finally:
            self.shutting.clear()
        self._state = CLOSED

    def _sample(self, device: Device) -> DeviceSample:
        binding, switches = self._binding, self._switches
        if binding is None or switches is None:  # not reached: sample_now asked
            raise RuntimeError("NVML is not open")
        at = self._clock()
        if device.handle is None:
            return _empty(device.info, at, _why(device.info))
        key, handle = device.key, device.handle
        memory = read_memory(binding, handle, key)
        if isinstance(memory, Absent) and memory.why in GONE:
            return self._lost(device, at, memory)
        rates = binding.read("nvmlDeviceGetUtilizationRates", handle, device=key)
        power = binding.read("nvmlDeviceGetPowerUsage", handle, device=key)
        energy = binding.read("nvmlDeviceGetTotalEnergyConsumption", handle, device=key)
        mig = read_mig(binding, device)
        sample = DeviceSample(
            index=device.info.index,
            uuid=device.info.uuid,
            at_nsec=at,
            state=DeviceState.OK,
            memory_total=memory if isinstance(memory, Absent) else memory.total,
            memory_used=memory if isinstance(memory, Absent) else memory.used,
            sm_utilisation=rates if isinstance(rates, Absent) else rates.gpu / 100.0,
            memory_utilisation=rates if isinstance(rates, Absent) else rates.memory / 100.0,
            power=power if isinstance(power, Absent) else power / 1000.0,  # milliwatts
            energy=energy if isinstance(energy, Absent) else energy / 1000.0,  # millijoules
            temperature=binding.read("nvmlDeviceGetTemperature", handle, _TEMPERATURE_GPU, device=key),
            processes=read_processes(binding, handle, key),
            shares=read_shares(binding, device),
            context_switches=self._context_switches(switches, device, mig),
            mig=mig,
        )
        # Removed in the middle: what was read before that moment is not worth a half-true record.
        for reading in (sample.power, sample.energy, sample.processes, sample.temperature, sample.sm_utilisation):
            if isinstance(reading, Absent) and reading.why in GONE:
                return self._lost(device, at, reading)
        return sample

    def _context_switches(
        self, switches: ContextSwitchReader, device: Device, mig: tuple[MigInstance, ...] | Absent
    ) -> tuple[ContextSwitches, ...] | Absent:
        supported = device.info.gpm_supported
        if isinstance(supported, Absent):
            return supported
        if not supported:
            return Absent(Why.UNSUPPORTED, "nvmlGpmQueryDeviceSupport")
        # With MIG on, the counters are those of each GPU instance.
        instances = () if isinstance(mig, Absent) else tuple(sorted({one.gpu_instance_id for one in mig}))
        return switches.read(device.key, device.handle, instances)

    def _lost(self, device: Device, at: int, absent: Absent) -> DeviceSample:
        device.info = replace(device.info, state=GONE[absent.why])
        device.handle = None
        if self._switches is not None:
            self._switches.drop(device.key)
        return _empty(device.info, at, absent)


def _uninitialised(sample: DeviceSample) -> bool:
    return isinstance(sample.memory_used, Absent) and sample.memory_used.code == UNINITIALIZED


def _why(info: DeviceInfo) -> Absent:
    if isinstance(info.name, Absent):
        return info.name
    why = Why.RESET_REQUIRED if info.state is DeviceState.RESET_REQUIRED else Why.GPU_LOST
    return Absent(why, "nvmlDeviceGetMemoryInfo")


def _empty(info: DeviceInfo, at: int, absent: Absent) -> DeviceSample:
    return DeviceSample(
        index=info.index,
        uuid=info.uuid,
        at_nsec=at,
        state=info.state,
        memory_total=absent,
        memory_used=absent,
        sm_utilisation=absent,
        memory_utilisation=absent,
        power=absent,
        energy=absent,
        temperature=absent,
        processes=absent,
        shares=absent,
        context_switches=absent,
        mig=absent,
    )
