"""What ``Slots`` keeps of each session, and what it needs of an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gpu.engines import KvMoved, KvRef
from gpu.policy import Place


class SlotEngine(Protocol):
    """gpu.engines.LlamaCpp. All raise gpu.errors.EngineError."""

    async def offload(self, ref: KvRef) -> KvMoved: ...
    async def restore(self, ref: KvRef) -> KvMoved: ...
    async def drop(self, ref: KvRef) -> KvMoved: ...


@dataclass(slots=True)
class Entry:
    """One session. ``slot``: where its KV is or is being brought to. ``moving``: a move of it is under way."""

    session: str
    slot: int | None = None
    tokens: int = 0
    where: Place = Place.DROPPED
    busy: bool = False
    moving: bool = False
    waiters: list[Waiter] = field(default_factory=list)
    paused_at: float | None = None
    expected: float | None = None
    durations: Sequence[float] = ()
    last_used: float = 0.0
    waited: float = 0.0
    stored: int = 0  # bytes outside
    timer: asyncio.TimerHandle | None = None
    held_from: float = 0.0  # of the byte-seconds below
    held: float = 0.0  # byte-seconds of its pauses

    @property
    def idle(self) -> bool:
        return self.slot is not None and not (self.busy or self.moving or self.waiters)


@dataclass(slots=True)
class Waiter:
    since: float
    granted: asyncio.Future[int]


@dataclass(slots=True)
class SlotTotals:
    """Since the beginning. Byte-seconds are those of sessions whose tool ran."""

    offloads: int = 0
    restores: int = 0
    drops: int = 0
    failures: int = 0
    moved_bytes: int = 0
    moving_seconds: float = 0.0
    held_byte_seconds: float = 0.0
