"""One watcher for each engine of the configuration: what it is, how full, whether it is there at all.

An engine that is away is asked less and less often, up to every 30 s, and asked anew what it is once it is back. That
it began anew (its counters fell, its slots are empty) is told to the coordinator: nothing of its pool exists any more.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import structlog

from agentd.config import EngineSection, engine_config
from agentd.config.engines import bytes_per_token
from agentd.tier.view import CapabilityView, EngineView
from gpu.engines import (
    Capability,
    Engine,
    EngineInfo,
    EngineMetrics,
    KvEventStream,
    KvIndex,
    LlamaCpp,
    Restarted,
    Slot,
    detect,
    make_engine,
)
from gpu.errors import EngineError, GpuError, MissingPackage, NotSupported

_log: Final = structlog.get_logger("corral.engines")

_LONGEST_PAUSE: Final = 30.0  # seconds between two looks at an engine that is away
_INFO_SECONDS: Final = 300.0  # an engine that is there is asked again what it is and can do
_MAX_KEY: Final = 4096  # bytes of an API key's file
_COSTS: Final = 8  # rounds of which the median counts: what others did meanwhile is measured, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at an engine. ``slots``: llama.cpp's; empty elsewhere."""

    metrics: EngineMetrics | None
    slots: tuple[Slot, ...] = ()


class EngineWatch:
    """``start`` and ``stop`` on the event loop. ``on_reading`` after each look that it answered, ``on_restart`` before
    that where it began anew, ``on_events`` when its KV events changed the index."""

    def __init__(
        self,
        name: str,
        section: EngineSection,
        *,
        on_reading: Callable[[EngineWatch, Reading], None],
        on_restart: Callable[[EngineWatch], None],
        on_events: Callable[[EngineWatch], None],
        share: float,
    ) -> None:
        self.name: Final = name
        self.section: Final = section
        self.share = share  # of one core
        self.engine: Engine | None = None
        self.info: EngineInfo | None = None
        self.reading: Reading | None = None
        self.state = "unknown"
        self.detail = "not asked yet"
        self.index: KvIndex | None = None
        self.cost = 0.0  # seconds of CPU of a round
        self.rounds = 0
        self.changed = asyncio.Event()  # set and replaced at each round, for whoever waits
        self._on_reading = on_reading
        self._on_restart = on_restart
        self._on_events = on_events
        self._costs: deque[float] = deque(maxlen=_COSTS)
        self._tasks: list[asyncio.Task[None]] = []
        self._asked_info = 0.0
        self._pause = section.interval

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._tasks.append(asyncio.create_task(self._run(), name=f"engine {self.name}"))
        if self.section.events:
            self._tasks.append(asyncio.create_task(self._follow(), name=f"KV events of {self.name}"))

    async def stop(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._close()

    async def _close(self) -> None:
        engine, self.engine = self.engine, None
        self.info = None
        if engine is not None:
            await engine.close()

    async def _run(self) -> None:
        while True:
            started = time.process_time()
            try:
                await self._look()
            except GpuError as err:
                await self._away(err)
            except OSError as err:
                await self._away(
                    GpuError(f"{err.strerror}: {err.filename}", remedy=f"check engines.{self.name}.api_key_file")
                )
            except Exception as err:  # a defect in reading one engine must not end the watching of it
                _log.error("an engine could not be read", engine=self.name, exc_info=err)
                await self._away(GpuError(f"{type(err).__name__}: {err}", remedy="report this with agentd's log"))
            else:
                self._pause = self.section.interval
            self._costs.append(time.process_time() - started)
            self.cost = median(self._costs)
            self.rounds += 1
            self.changed.set()
            self.changed = asyncio.Event()
            await asyncio.sleep(max(self._pause, self.cost / self.share))

    # --- one round ---------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        engine = self.engine or await self._open()
        now = time.monotonic()
        if self.info is None or now - self._asked_info > _INFO_SECONDS:
            self.info = await engine.info(refresh=True)
            self._asked_info = now
        before, reading = self.reading, await self._read(engine)
        if before is not None and _began_anew(before, reading):
            _log.warning("an engine was restarted; the KV in its pool is gone", engine=self.name)
            self.info = await engine.info(refresh=True)
            self._on_restart(self)
        if self.state != "up":
            _log.info("an engine answers", engine=self.name, kind=str(self.info.kind), version=self.info.version)
        self.state, self.detail = "up", ""
        self.reading = reading
        self._on_reading(self, reading)

    async def _open(self) -> Engine:
        key = ""
        if self.section.api_key_file is not None:
            key = await asyncio.to_thread(_first_line, self.section.api_key_file)
        config = engine_config(self.name, self.section, api_key=key)
        self.engine = make_engine(config, config.kind or await detect(config))
        return self.engine

    async def _read(self, engine: Engine) -> Reading:
        try:
            metrics: EngineMetrics | None = await engine.metrics()
        except NotSupported as err:
            metrics = None
            self.detail = str(err)
        slots: tuple[Slot, ...] = ()
        if isinstance(engine, LlamaCpp):
            try:
                slots = tuple(await engine.slots())
            except NotSupported:
                slots = ()
        return Reading(metrics=metrics, slots=slots)

    async def _away(self, err: GpuError) -> None:
        if self.state != "down":
            _log.warning("an engine does not answer", engine=self.name, error=str(err))
        self.state, self.detail = "down", str(err)
        if not isinstance(err, EngineError):
            await self._close()
        self.info = None  # another version may come back
        if self.section.kind == "auto":
            await self._close()
        self._pause = min(max(2 * self._pause, self.section.interval), _LONGEST_PAUSE)

    # --- vLLM's KV events --------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        pause = 1.0
        while True:
            section = self.section
            try:
                stream = KvEventStream(section.events, engine=self.name, replay=section.replay, topic=section.topic)
                async with stream:
                    self.index = index = KvIndex()
                    pause = 1.0
                    async for update in stream:
                        index.feed(update)
                        if isinstance(update, Restarted):
                            self._on_restart(self)
                        self._on_events(self)
            except MissingPackage as err:
                _log.error("KV events cannot be followed", engine=self.name, error=str(err))
                return
            except GpuError as err:
                _log.warning("KV events stopped; they are asked for again", engine=self.name, error=str(err))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    # --- what is known -----------------------------------------------------------------------------------------------

    def can(self, capability: Capability) -> bool:
        """Whether the engine says that it can (or does not say that it cannot)."""
        return self.info is not None and bool(self.info.capabilities[capability])

    @property
    def bytes_per_token(self) -> int | None:
        """Of its KV cache, as it says or the configuration does; None: neither."""
        told = self.info.kv_bytes_per_token if self.info is not None else None
        return told or bytes_per_token(self.section)

    @property
    def acts(self) -> bool:
        """Whether Corral may act on it now."""
        return self.section.control and self.section.policy != "off" and self.state == "up" and self.engine is not None

    def view(self) -> EngineView:
        info, metrics = self.info, self.reading.metrics if self.reading is not None and self.state == "up" else None
        return EngineView(
            name=self.name,
            kind=str(info.kind) if info is not None else self.section.kind,
            version=info.version if info is not None else "",
            url=self.section.url,
            state=self.state,
            detail=self.detail,
            control=self.section.control,
            policy=self.section.policy if self.section.control else "",
            running=None if metrics is None else metrics.running,
            waiting=None if metrics is None else metrics.waiting,
            kv_used_share=None if metrics is None else metrics.kv_used,
            kv_capacity_tokens=_capacity(info, metrics),
            prefix_hit_share=_hits(metrics),
            preemptions=None if metrics is None else metrics.preemptions_total,
            prompt_tokens=None if metrics is None else metrics.prompt_tokens_total,
            generated_tokens=None if metrics is None else metrics.generated_tokens_total,
            capabilities=()
            if info is None
            else tuple(
                CapabilityView(name=str(one), answer=str(support.answer), note=support.note)
                for one, support in info.capabilities.items()
            ),
        )


def _capacity(info: EngineInfo | None, metrics: EngineMetrics | None) -> int | None:
    if metrics is not None and metrics.kv_total_tokens is not None:
        return metrics.kv_total_tokens
    return info.kv_tokens if info is not None else None


def _hits(metrics: EngineMetrics | None) -> float | None:
    if metrics is None:
        return None
    if metrics.prefix_hit_rate is not None:
        return metrics.prefix_hit_rate
    computed, cached = metrics.prompt_tokens_total, metrics.cached_tokens_total
    return cached / (computed + cached) if computed is not None and cached and computed + cached else None


def _began_anew(before: Reading, after: Reading) -> bool:
    """It says that it began later than it did; or its counters fell, which they never do while an engine runs."""
    if before.metrics is None or after.metrics is None:
        return False
    began, begins = before.metrics.started_at, after.metrics.started_at
    if began is not None and begins is not None and begins > began:
        return True
    return any(
        (new := getattr(after.metrics, name)) is not None
        and (old := getattr(before.metrics, name)) is not None
        and new < old
        for name in ("prompt_tokens_total", "generated_tokens_total", "preemptions_total")
    )


def _first_line(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_KEY).split(b"\n", 1)[0].strip().decode("utf-8", "replace")
