"""Sees and brakes: the eBPF programs, their loader, and the probe of what a kernel allows.

Imports none of the other packages. See bpf.kernel for the object that the daemon holds.
"""

from bpf.errors import (
    AttachFailed,
    BpfError,
    InvalidPolicy,
    LoadFailed,
    MapError,
    NotRegistered,
    PinError,
    PinsInUse,
    TooManyCalls,
    Unavailable,
    VerifierRejected,
)
from bpf.kernel import KernelSide
from bpf.pins import PinDir
from bpf.types import (
    BrakeEvent,
    Counters,
    DeniedEvent,
    DeniedWhat,
    Event,
    ExecEvent,
    Feature,
    NetworkMode,
    NetworkPolicy,
    NetworkRule,
    NotifyEvent,
    OomEvent,
)

__all__ = [
    "AttachFailed",
    "BpfError",
    "BrakeEvent",
    "Counters",
    "DeniedEvent",
    "DeniedWhat",
    "Event",
    "ExecEvent",
    "Feature",
    "InvalidPolicy",
    "KernelSide",
    "LoadFailed",
    "MapError",
    "NetworkMode",
    "NetworkPolicy",
    "NetworkRule",
    "NotRegistered",
    "NotifyEvent",
    "OomEvent",
    "PinDir",
    "PinError",
    "PinsInUse",
    "TooManyCalls",
    "Unavailable",
    "VerifierRejected",
]
