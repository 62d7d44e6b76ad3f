"""One immutable picture of the host, from what is in memory: the last samples, not new readings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from controller.backend import Backend
from controller.model import HostView, Snapshot
from controller.registry import Registry, now


class HostReader(Protocol):
    """The host as a whole: /proc/meminfo, /proc/pressure. Cheap enough to be asked at every snapshot."""

    @property
    def kernel(self) -> str: ...
    @property
    def cpus(self) -> int: ...

    def memory(self) -> tuple[int, int]:
        """Total and available, in bytes."""

    def pressure(self, resource: str, /) -> float | None:
        """PSI "some" avg10 of cpu, memory or io, in percent; None where PSI is off."""


def snapshot(
    registry: Registry, backend: Backend, reader: HostReader, *, with_ended: bool, problems: Sequence[str] = ()
) -> Snapshot:
    """``problems``: what is missing on this host beside what the backend lacks."""
    total, available = reader.memory()
    live = tuple(c.view() for c in registry.calls.values() if c.outcome is None)
    ended = registry.recently_ended() if with_ended else ()
    closed = registry.recently_closed() if with_ended else ()
    return Snapshot(
        at=now(),
        host=HostView(
            kernel=reader.kernel,
            mode=backend.mode,
            cpus=reader.cpus,
            memory_total=total,
            memory_available=available,
            cpu_pressure=reader.pressure("cpu"),
            memory_pressure=reader.pressure("memory"),
            io_pressure=reader.pressure("io"),
            missing=(*backend.missing, *problems),
        ),
        tenants=tuple(t.view() for t in registry.tenants.values()),
        sessions=(*(s.view() for s in registry.sessions.values()), *closed),
        calls=(*live, *ended),
    )
