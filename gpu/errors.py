"""The exceptions of the inference tier.

GpuError
 ├─ EngineError            one engine, named
 │   ├─ EngineUnreachable     no connection, or no answer in time
 │   ├─ EngineRefused         it answered with an HTTP error: carries the status
 │   ├─ BadAnswer             what it answered cannot be read, or is too large
 │   └─ NotSupported          this engine, version or set-up cannot do it: carries the capability
 ├─ MissingPackage         an optional package is not installed
 ├─ InvalidValue           a value given by the caller or the configuration is out of range
 └─ LedgerError            an event that cannot follow the session's present state

NVML raises none of these: a GPU that is absent, lost or old is a state (gpu.nvml.types), not an exception.
Every message has the object, the cause and the remedy, in that order.
"""

from __future__ import annotations


class GpuError(Exception):
    """Base of all. ``remedy`` is what to do about it."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}; {remedy}" if remedy else message)


class EngineError(GpuError):
    """``engine`` is the name that the configuration gave it."""

    def __init__(self, message: str, *, engine: str, remedy: str = "") -> None:
        self.engine = engine
        super().__init__(f"engine {engine}: {message}", remedy=remedy)


class EngineUnreachable(EngineError):
    pass


class EngineRefused(EngineError):
    """``status`` is the HTTP status of the answer."""

    def __init__(self, message: str, *, engine: str, status: int, remedy: str = "") -> None:
        self.status = status
        super().__init__(message, engine=engine, remedy=remedy)


class BadAnswer(EngineError):
    pass


class NotSupported(EngineError):
    """``capability`` is the word of gpu.engines.types.Capability."""

    def __init__(self, message: str, *, engine: str, capability: str, remedy: str = "") -> None:
        self.capability = capability
        super().__init__(message, engine=engine, remedy=remedy)


class MissingPackage(GpuError):
    pass


class InvalidValue(GpuError):
    pass


class LedgerError(GpuError):
    pass
