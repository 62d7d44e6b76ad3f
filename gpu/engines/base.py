"""The interface of an inference engine, as the coordinator sees it.

An adapter declares what its engine can do, in this version and set-up (``info().capabilities``), and refuses the rest
with ``NotSupported`` and the reason. It holds no state of sessions: that is the KV ledger's (gpu.ledger).
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from gpu.engines.http import HttpClient, json_of
from gpu.engines.prometheus import Metrics, NotMetrics, parse
from gpu.engines.types import Answer, Capability, EngineInfo, EngineKind, EngineMetrics, KvMoved, KvRef, Support, no
from gpu.errors import BadAnswer, EngineRefused, InvalidValue, NotSupported

# Priorities of the house are 0 (first to yield) to 100; each adapter turns them into its engine's own.
MAX_PRIORITY: Final = 100


class Engine(ABC):
    """One running engine.

    :param name: its name in the configuration
    :param client: speaks to it; closed by ``close``
    """

    kind: ClassVar[EngineKind]

    def __init__(self, name: str, client: HttpClient) -> None:
        self.name = name
        self._http = client
        self._info: EngineInfo | None = None

    # --- what every engine has ------------------------------------------------------------------------------------

    async def info(self, *, refresh: bool = False) -> EngineInfo:
        """Asked once; again with ``refresh`` (after the engine was restarted)."""
        if self._info is None or refresh:
            self._info = await self._probe()
        return self._info

    @abstractmethod
    async def _probe(self) -> EngineInfo: ...

    async def metrics(self) -> EngineMetrics:
        """One reading.

        :raises NotSupported: this engine was started without metrics
        """
        return self._read(await self.scrape(), time.monotonic_ns())

    @abstractmethod
    def _read(self, page: Metrics, at_nsec: int) -> EngineMetrics: ...

    async def scrape(self) -> Metrics:
        """The raw metrics page."""
        try:
            text = await self._http.get_text("/metrics")
        except EngineRefused as error:
            if error.status in (404, 501):
                raise self._unsupported(Capability.METRICS, "it serves no /metrics", self._metrics_remedy) from error
            raise
        try:
            # In a thread: a large page takes milliseconds, and a broker's answer must not wait for it.
            return await asyncio.to_thread(parse, text)
        except NotMetrics as error:
            raise BadAnswer(
                f"GET /metrics: {error}", engine=self.name, remedy="check that the URL is this engine's"
            ) from error

    _metrics_remedy: ClassVar[str] = "start it with its metrics enabled"

    async def close(self) -> None:
        await self._http.close()

    # --- controls: an adapter overrides those that its engine has --------------------------------------------------

    def request_fields(self, ref: KvRef, *, priority: int | None = None) -> Mapping[str, Any]:
        """Fields that a request of this session must carry in its JSON body.

        :param priority: 0 to 100, higher is served first; None: not given
        :raises NotSupported: priorities where the engine has none
        """
        raise self._refused(Capability.BIND)

    async def hold(self, ref: KvRef, seconds: float) -> KvMoved:
        """Keep this session's KV where it is, for so long."""
        raise self._refused(Capability.HOLD)

    async def offload(self, ref: KvRef) -> KvMoved:
        """Move this session's KV out of the pool, so that it can be restored."""
        raise self._refused(Capability.OFFLOAD)

    async def restore(self, ref: KvRef) -> KvMoved:
        """Bring offloaded KV back."""
        raise self._refused(Capability.RESTORE)

    async def drop(self, ref: KvRef) -> KvMoved:
        """Free this session's KV in the pool. It must be computed again."""
        raise self._refused(Capability.DROP)

    async def reset(self) -> None:
        """Free all KV that no running request uses."""
        raise self._refused(Capability.RESET)

    async def pause(self) -> None:
        """Stop generating, for all sessions."""
        raise self._refused(Capability.PAUSE)

    async def resume(self) -> None:
        """Go on after ``pause``."""
        raise self._refused(Capability.PAUSE)

    async def set_quota(self, ref: KvRef, size: int) -> None:
        """At most this many bytes of KV for this session."""
        raise self._refused(Capability.QUOTA)

    # --- for adapters -------------------------------------------------------------------------------------------------

    #: What this kind of engine can never do, and why.
    cannot: ClassVar[Mapping[Capability, str]] = {}

    def _capabilities(self, found: Mapping[Capability, Support]) -> Mapping[Capability, Support]:
        """Completes what a probe found: every capability has an answer."""
        return {one: found.get(one, no(self.cannot.get(one, f"{self.kind} has no such control"))) for one in Capability}

    def _refused(self, capability: Capability) -> NotSupported:
        return self._unsupported(capability, self.cannot.get(capability, f"{self.kind} has no such control"))

    def _unsupported(self, capability: Capability, why: str, remedy: str = "") -> NotSupported:
        return NotSupported(
            f"cannot {capability}: {why}",
            engine=self.name,
            capability=capability,
            remedy=remedy or "ask its info() for what it can do",
        )

    async def _description(self) -> Mapping[str, Any]:
        """A FastAPI engine's own description of its API; {} where it gives none."""
        return await self._optional("/openapi.json")

    async def _paths(self) -> frozenset[str] | None:
        return paths_of(await self._description())

    async def _optional(self, path: str) -> dict[str, Any]:
        """A JSON object that some versions do not serve; {} then."""
        response = await self._http.request("GET", path)
        answer = json_of(response) if response.status == 200 else None
        return answer if isinstance(answer, dict) else {}


def check_priority(priority: int) -> int:
    if not 0 <= priority <= MAX_PRIORITY:
        raise InvalidValue(f"priority {priority}", remedy=f"give 0 to {MAX_PRIORITY}")
    return priority


def paths_of(description: Mapping[str, Any]) -> frozenset[str] | None:
    """The paths that a FastAPI engine says it serves; None where it does not say."""
    paths = description.get("paths")
    return frozenset(paths) if isinstance(paths, dict) else None


def serves(paths: frozenset[str] | None, path: str, how: str, missing: str) -> Support:
    """Support for what hangs on one path of a FastAPI engine."""
    if paths is None:
        return Support(Answer.UNTRIED, f"{how}; the engine does not describe its paths")
    return Support(Answer.YES, how) if path in paths else Support(Answer.NO, missing)
