"""GPUs through NVML: devices, processes, energy, events. A missing, old or lost GPU is a state, never an exception.

``Nvml`` and ``EventWatcher`` are what the daemon holds; ``charge`` says who used what between two samples.
"""

from gpu.nvml.events import EventWatcher
from gpu.nvml.rates import DeviceRates, Usage, charge, charge_all, memory_by_owner, rates
from gpu.nvml.sampler import Nvml
from gpu.nvml.types import (
    Absent,
    Availability,
    ContextSwitches,
    DeviceInfo,
    DeviceSample,
    DeviceState,
    GpuEvent,
    GpuEventKind,
    MigInstance,
    NvmlSample,
    NvmlState,
    ProcessMemory,
    ProcessShare,
    Why,
    present,
)

__all__ = [
    "Absent",
    "Availability",
    "ContextSwitches",
    "DeviceInfo",
    "DeviceRates",
    "DeviceSample",
    "DeviceState",
    "EventWatcher",
    "GpuEvent",
    "GpuEventKind",
    "MigInstance",
    "Nvml",
    "NvmlSample",
    "NvmlState",
    "ProcessMemory",
    "ProcessShare",
    "Usage",
    "Why",
    "charge",
    "charge_all",
    "memory_by_owner",
    "present",
    "rates",
]
