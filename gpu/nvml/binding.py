"""NVML's own Python bindings, with every failure turned into a value.

The bindings raise for each unsupported call; a host has many of those, at each sample. Here a call gives its result or
an ``Absent``, and one that this device can never answer is not made again.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from gpu.nvml.types import Absent, Availability, NvmlState, Why

# Values of nvmlReturn_t (nvml.h); they are part of its ABI.
SUCCESS: Final = 0
UNINITIALIZED: Final = 1
NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
NOT_FOUND: Final = 6
DRIVER_NOT_LOADED: Final = 9
TIMEOUT: Final = 10
LIBRARY_NOT_FOUND: Final = 12
FUNCTION_NOT_FOUND: Final = 13
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16
LIB_RM_VERSION_MISMATCH: Final = 18
NO_DATA: Final = 21
ARGUMENT_VERSION_MISMATCH: Final = 25
DEPRECATED: Final = 26
NOT_READY: Final = 27
GPU_NOT_FOUND: Final = 28

_WHY: Final = {
    NOT_SUPPORTED: Why.UNSUPPORTED,
    NO_PERMISSION: Why.NO_PERMISSION,
    TIMEOUT: Why.NO_DATA,
    FUNCTION_NOT_FOUND: Why.OLD_DRIVER,
    GPU_IS_LOST: Why.GPU_LOST,
    RESET_REQUIRED: Why.RESET_REQUIRED,
    NO_DATA: Why.NO_DATA,
    ARGUMENT_VERSION_MISMATCH: Why.OLD_DRIVER,
    DEPRECATED: Why.OLD_DRIVER,
    NOT_READY: Why.NO_DATA,
    GPU_NOT_FOUND: Why.GPU_LOST,
}

_STATES: Final = {
    LIBRARY_NOT_FOUND: (
        Availability.NO_LIBRARY,
        "libnvidia-ml.so.1 was not found",
        "install NVIDIA's driver, or pass its libraries into this container",
    ),
    DRIVER_NOT_LOADED: (
        Availability.NO_DRIVER,
        "NVIDIA's kernel module is not loaded",
        "load it (modprobe nvidia), or install the driver for this kernel",
    ),
    LIB_RM_VERSION_MISMATCH: (
        Availability.VERSION_MISMATCH,
        "NVIDIA's library and kernel module have different versions",
        "reboot, or reload the nvidia module: the driver was updated under a running kernel",
    ),
    NO_PERMISSION: (
        Availability.NO_PERMISSION,
        "access to /dev/nvidiactl was denied",
        "run as root, or add the user to the group that owns the device files",
    ),
    # What nvmlInit answers where the module is loaded and no device is attached to it.
    GPU_NOT_FOUND: (Availability.NO_GPU, "the driver finds no GPU", "check lspci and dmesg if there should be one"),
    FUNCTION_NOT_FOUND: (
        Availability.FAILED,
        "libnvidia-ml.so.1 is too old: it lacks a function that every driver since R418 has",
        "update NVIDIA's driver",
    ),
}

NO_GPU: Final = NvmlState(
    availability=Availability.NO_GPU,
    message="the driver finds no GPU",
    remedy="check lspci and dmesg if there should be one",
)
CLOSED: Final = NvmlState(availability=Availability.CLOSED, message="NVML is not open")


class Binding:
    """One initialised NVML library. ``read`` never raises for what a driver or device may say.

    :param module: the bindings (``pynvml``)
    """

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._error: type[Exception] = module.NVMLError
        self._never: dict[tuple[str, str], Absent] = {}

    def read(self, call: str, *arguments: Any, device: str = "") -> Any:
        """The result of ``call``, or an ``Absent``.

        :param device: a key of the device; where given, a call that it can never answer is made only once
        """
        known = self._never.get((device, call)) if device else None
        if known is not None:
            return known
        function: Callable[..., Any] | None = getattr(self._module, call, None)
        if function is None:
            return self._note(device, Absent(Why.OLD_BINDINGS, call))
        try:
            return function(*arguments)
        except self._error as error:
            code = int(getattr(error, "value", 0))
            return self._note(device, Absent(_WHY.get(code, Why.FAILED), call, code))
        except UnicodeDecodeError:  # a name that is not UTF-8, as a corrupted inforom gives
            return Absent(Why.FAILED, call)

    def _note(self, device: str, absent: Absent) -> Absent:
        if device and absent.forever:
            self._never[device, absent.call] = absent
        return absent

    def forget(self) -> None:
        """Ask everything anew: devices or the driver may have changed."""
        self._never.clear()

    def constant(self, name: str, default: int) -> int:
        return int(getattr(self._module, name, default))

    def structure(self, name: str) -> Any:
        """A ctypes structure of the bindings, or None where they are too old."""
        return getattr(self._module, name, None)


def state_of(code: int) -> NvmlState:
    """The state that NVML's return code of its initialisation means."""
    availability, message, remedy = _STATES.get(
        code, (Availability.FAILED, f"NVML failed with code {code}", "see dmesg and nvidia-smi")
    )
    return NvmlState(availability=availability, message=message, remedy=remedy, code=code)


def load() -> tuple[Binding | None, NvmlState]:
    """Load the bindings and initialise NVML. A binding comes with the state READY, and only then."""
    try:
        import pynvml
    except ImportError:
        return None, NvmlState(
            availability=Availability.NO_BINDINGS,
            message="the Python package nvidia-ml-py is not installed",
            remedy="install it into the daemon's environment",
        )
    binding = Binding(pynvml)
    begun = binding.read("nvmlInit")
    if isinstance(begun, Absent):
        return None, state_of(begun.code)
    return binding, NvmlState(availability=Availability.READY)
