"""What decisions do: to an engine's KV, and to the record. Small interfaces, each with a real and a recording side.

The recording ones serve tests, and show what would be done; nothing else of the coordinator knows the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import structlog

from agentd.ledger import Switch
from agentd.tier.worker import Worker
from controller.model import Decision
from gpu.engines import Engine, KvMoved, KvRef, LlamaCpp, Slot
from gpu.engines.llamacpp import file_name
from gpu.errors import EngineUnreachable

_log: Final = structlog.get_logger("corral.kv")


class KvEffects(Protocol):
    """Moves of one session's KV at one engine. All raise gpu.errors.EngineError."""

    async def offload(self, engine: str, ref: KvRef, /) -> KvMoved: ...
    async def restore(self, engine: str, ref: KvRef, /) -> KvMoved: ...
    async def drop(self, engine: str, ref: KvRef, /) -> KvMoved: ...
    async def slot(self, engine: str, ref: KvRef, /) -> Slot | None:
        """llama.cpp: the reference's slot as it is now. None elsewhere."""

    def forget_copy(self, directory: Path, ref: KvRef, /) -> None:
        """Removes the file of an offloaded copy that nobody needs any more. At some time, and only if it is there."""


class Record(Protocol):
    """Where acts are put on record. Must not block."""

    def decided(self, decision: Decision, /) -> None: ...
    def switched(self, switch: Switch, /) -> None: ...


class EngineEffects:
    """On the engines themselves. ``engine_of``: the adapter of a name, None while the engine is away."""

    def __init__(self, engine_of: Callable[[str], Engine | None]) -> None:
        self._engine_of = engine_of
        self._files = Worker("corral-kv-files")  # unlink may wait for a slow disk

    def _engine(self, name: str) -> Engine:
        engine = self._engine_of(name)
        if engine is None:
            raise EngineUnreachable("it does not answer", engine=name, remedy="see corral tier")
        return engine

    async def offload(self, engine: str, ref: KvRef) -> KvMoved:
        return await self._engine(engine).offload(ref)

    async def restore(self, engine: str, ref: KvRef) -> KvMoved:
        return await self._engine(engine).restore(ref)

    async def drop(self, engine: str, ref: KvRef) -> KvMoved:
        return await self._engine(engine).drop(ref)

    async def slot(self, engine: str, ref: KvRef) -> Slot | None:
        adapter = self._engine(engine)
        if not isinstance(adapter, LlamaCpp):
            return None
        return next((one for one in await adapter.slots() if one.id == ref.slot), None)

    def forget_copy(self, directory: Path, ref: KvRef) -> None:
        # a hash of a daemon-made id: no agent's text reaches the path
        self._files.post(lambda: _remove(directory / file_name(ref.session)))

    def close(self) -> None:
        self._files.close()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as err:
        _log.warning("an offloaded KV's file stays", path=str(path), error=err.strerror)


@dataclass(slots=True)
class RecordingEffects:
    """Does nothing and remembers what it was asked for. ``fail``: raised by the next act of that name, once."""

    moved: KvMoved = field(default_factory=KvMoved)
    acts: list[tuple[str, str, KvRef]] = field(default_factory=list)
    fail: dict[str, Exception] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    slots: dict[int, Slot] = field(default_factory=dict)

    async def _act(self, what: str, engine: str, ref: KvRef) -> KvMoved:
        self.acts.append((what, engine, ref))
        if what in self.fail:
            raise self.fail.pop(what)
        return self.moved

    async def offload(self, engine: str, ref: KvRef) -> KvMoved:
        return await self._act("offload", engine, ref)

    async def restore(self, engine: str, ref: KvRef) -> KvMoved:
        return await self._act("restore", engine, ref)

    async def drop(self, engine: str, ref: KvRef) -> KvMoved:
        return await self._act("drop", engine, ref)

    async def slot(self, engine: str, ref: KvRef) -> Slot | None:
        return None if ref.slot is None else self.slots.get(ref.slot)

    def forget_copy(self, directory: Path, ref: KvRef) -> None:
        self.forgotten.append(ref.session)
