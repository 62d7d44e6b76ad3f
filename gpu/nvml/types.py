"""What NVML tells, as frozen values.

Units: bytes, watts, joules, degrees Celsius, nanoseconds of CLOCK_MONOTONIC; shares and utilisations are 0.0 to 1.0.
A reading that could not be had is an ``Absent`` that says why, never a zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar


class Availability(StrEnum):
    """Whether NVML as a whole can be used."""

    READY = "ready"
    CLOSED = "closed"  # not opened yet, or closed by us
    NO_BINDINGS = "no_bindings"  # the Python package is missing
    NO_LIBRARY = "no_library"  # libnvidia-ml.so.1 is missing: no driver installed, or not passed into the container
    NO_DRIVER = "no_driver"  # the library is there, the kernel module is not loaded
    NO_GPU = "no_gpu"
    VERSION_MISMATCH = "version_mismatch"  # library and kernel module of different versions: updated without a reboot
    NO_PERMISSION = "no_permission"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlState:
    """``message`` and ``remedy`` are for people; ``code`` is NVML's number (0: none)."""

    availability: Availability
    message: str = ""
    remedy: str = ""
    code: int = 0

    @property
    def ready(self) -> bool:
        return self.availability is Availability.READY


class Why(StrEnum):
    """Why one reading is absent."""

    UNSUPPORTED = "unsupported"  # this device cannot do it
    OLD_DRIVER = "old_driver"  # the driver is older than the call
    OLD_BINDINGS = "old_bindings"  # the Python package is older than the call
    NO_PERMISSION = "no_permission"
    NO_DATA = "no_data"  # nothing yet: ask again later
    GPU_LOST = "gpu_lost"  # fell off the bus, or was removed
    RESET_REQUIRED = "reset_required"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Absent:
    """A reading that could not be had. ``code`` is NVML's number (0: none)."""

    why: Why
    call: str
    code: int = 0

    @property
    def forever(self) -> bool:
        """Whether asking again is of no use as long as driver and device stay what they are."""
        return self.why in (Why.UNSUPPORTED, Why.OLD_DRIVER, Why.OLD_BINDINGS)


_T = TypeVar("_T")


def present(reading: _T | Absent) -> _T | None:
    """The reading, or None where it is absent."""
    return None if isinstance(reading, Absent) else reading


class DeviceState(StrEnum):
    OK = "ok"
    LOST = "lost"  # the driver no longer reaches it
    RESET_REQUIRED = "reset_required"
    FAILED = "failed"  # it cannot even be opened


@dataclass(frozen=True, slots=True, kw_only=True)
class MigInstance:
    """A slice of a GPU that looks like a device of its own."""

    uuid: str
    index: int
    gpu_instance_id: int
    compute_instance_id: int
    multiprocessors: int | Absent
    memory_total: int | Absent
    memory_used: int | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """What does not change while the driver is loaded. ``uuid`` is "" for a device that cannot be opened."""

    index: int
    uuid: str
    state: DeviceState
    name: str | Absent
    bus_id: str | Absent  # PCI, domain:bus:device.function
    memory_total: int | Absent
    compute_capability: tuple[int, int] | Absent
    power_limit: float | Absent  # watts, enforced
    mig_enabled: bool | Absent
    gpm_supported: bool | Absent  # Hopper and newer


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Memory that one process holds. An inference engine reserves its pool at start: this says nothing of KV use."""

    pid: int  # as the driver sees it: in the host's pid namespace
    bytes: int | None  # None: the driver does not tell
    graphics: bool = False  # a graphics context, not a compute one
    gpu_instance_id: int | None = None  # where MIG is on
    compute_instance_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessShare:
    """What part of the device one process used, averaged over the driver's samples since the last time we asked."""

    pid: int
    sm: float
    memory: float  # share of time in which device memory was read or written
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSwitches:
    """Of one graphics/compute engine of the device, between two samples: its time-slicing between processes.

    Not per process: the hardware does not tell. A field is None where the device has no such counter.
    """

    engine: int
    requests: float | None = None
    cycles_elapsed: float | None = None
    cycles_active: float | None = None
    cycles_per_request: float | None = None
    active: float | None = None  # share of time spent switching
    gpu_instance_id: int | None = None  # where MIG is on


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """One device at one moment."""

    index: int
    uuid: str
    at_nsec: int
    state: DeviceState
    memory_total: int | Absent
    memory_used: int | Absent
    sm_utilisation: float | Absent  # share of time in which a kernel ran, over the driver's last sample period
    memory_utilisation: float | Absent
    power: float | Absent  # watts
    energy: float | Absent  # joules since the driver was loaded
    temperature: int | Absent
    processes: tuple[ProcessMemory, ...] | Absent
    shares: tuple[ProcessShare, ...] | Absent
    context_switches: tuple[ContextSwitches, ...] | Absent
    mig: tuple[MigInstance, ...] | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlSample:
    state: NvmlState
    at_nsec: int
    devices: tuple[DeviceSample, ...] = ()


class GpuEventKind(StrEnum):
    XID = "xid"  # the driver reported an error
    LOST = "lost"  # the event source says that a GPU is gone; which one, NVML does not tell


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEvent:
    """``index`` and ``uuid`` are None where the device cannot be told; ``xid`` is 0 for other kinds than XID."""

    kind: GpuEventKind
    at_nsec: int
    index: int | None
    uuid: str | None
    xid: int = 0
    meaning: str = ""
    gpu_instance_id: int | None = None
    compute_instance_id: int | None = None
