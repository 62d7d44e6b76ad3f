"""LMCache: a KV store beside an engine; finds KV by its tokens.

Two services, either of which may be absent:
- the controller (``/lookup``, ``/pin``, ``/move``, ``/clear``), which knows instances and their places;
- the server or coordinator (``/cache/prefetches``, ``/quota/SALT``), which knows the cache salt of each session.

The salt is the session's id: requests must carry it (``cache_salt``) for quotas to mean anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from urllib.parse import quote

import msgspec

from gpu.engines.base import Engine
from gpu.engines.http import HttpClient
from gpu.engines.prometheus import Metrics
from gpu.engines.types import Capability, EngineInfo, EngineKind, EngineMetrics, KvMoved, KvRef, Support, no, yes
from gpu.errors import InvalidValue

_GIB: Final = 1 << 30
_NO_CONTROLLER: Final = "no controller is configured: set lmcache.instance, and the URL of its controller"
_NO_SERVER: Final = "no LMCache server is configured: set lmcache.server"


class _Done(msgspec.Struct):
    num_tokens: int
    event_id: str = ""


class _Found(msgspec.Struct):
    # instance -> (place, tokens)
    layout_info: dict[str, tuple[str, int]]


class _Prefetch(msgspec.Struct):
    request_id: str = ""
    status: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LmCacheConfig:
    """``fast`` and ``slow`` are LMCache's names of its places; ``server``: the URL of the server or coordinator."""

    instance: str = ""
    fast: str = "LocalCPUBackend"
    slow: str = "LocalDiskBackend"
    server: str = ""
    model: str = ""
    world_size: int = 1


class LmCache(Engine):
    """
    :param client: of the controller
    :param server: of the server or coordinator; None: there is none
    """

    kind: ClassVar[EngineKind] = EngineKind.LMCACHE

    cannot: ClassVar[Mapping[Capability, str]] = {
        Capability.KV_EVENTS: "LMCache's events are not read by this adapter",
        Capability.PRIORITY: "LMCache schedules no requests; the engine beside it does",
        Capability.DROP: "LMCache clears a whole place, not one session",
        Capability.PAUSE: "LMCache generates nothing; the engine beside it does",
    }

    def __init__(
        self, name: str, client: HttpClient, config: LmCacheConfig, *, server: HttpClient | None = None
    ) -> None:
        super().__init__(name, client)
        self._config = config
        self._server = server

    async def _probe(self) -> EngineInfo:
        page = await self._http.request("GET", "/metrics")
        controller = await self._controller()
        server = yes("by cache salt") if self._server is not None else no(_NO_SERVER)
        served = page.status == 200
        return EngineInfo(
            name=self.name,
            kind=self.kind,
            url=self._http.url,
            version="",
            model=self._config.model,
            capabilities=self._capabilities(
                {
                    Capability.METRICS: yes("GET /metrics") if served else no("it serves no /metrics at this URL"),
                    Capability.KV_USE: yes("lmcache:local_cache_usage") if served else no("it serves no /metrics"),
                    Capability.SESSION_KV: controller,
                    Capability.BIND: yes("cache_salt in the request"),
                    Capability.HOLD: _with(controller, "POST /pin; LMCache lets go of a pin after its own time-out"),
                    Capability.OFFLOAD: _with(controller, f"POST /move to {self._config.slow}"),
                    Capability.RESTORE: server if self._server is not None else controller,
                    Capability.RESET: controller,
                    Capability.QUOTA: server,
                }
            ),
        )

    async def _controller(self) -> Support:
        if not self._config.instance:
            return no(_NO_CONTROLLER)
        return yes("LMCache's controller")

    def _read(self, page: Metrics, at_nsec: int) -> EngineMetrics:
        # It does not export the size of its cache, so there is no share of it.
        return EngineMetrics(
            at_nsec=at_nsec,
            prefix_hit_rate=page.mean("lmcache:retrieve_hit_rate"),
            cache_bytes=page.whole("lmcache:local_cache_usage"),
            evictions_total=page.whole("lmcache:local_cpu_evict_count_total", "lmcache:local_cpu_evict_count"),
        )

    def request_fields(self, ref: KvRef, *, priority: int | None = None) -> Mapping[str, Any]:
        if priority is not None:
            raise self._refused(Capability.PRIORITY)
        return {"cache_salt": ref.session}

    async def lookup(self, ref: KvRef) -> Mapping[str, tuple[str, int]]:
        """Where this session's KV is: instance to (place, tokens of its prefix)."""
        self._need_controller(Capability.SESSION_KV)
        found = await self._http.send("POST", "/lookup", _Found, body={"tokens": self._tokens(ref)})
        return found.layout_info

    async def hold(self, ref: KvRef, seconds: float) -> KvMoved:
        """Pin. LMCache lets go after a time-out of its own, which may be shorter than ``seconds``: pin again before."""
        self._need_controller(Capability.HOLD)
        body = {"instance_id": self._config.instance, "location": self._config.fast, "tokens": self._tokens(ref)}
        return await self._move("/pin", body)

    async def offload(self, ref: KvRef) -> KvMoved:
        self._need_controller(Capability.OFFLOAD)
        return await self._between(ref, self._config.fast, self._config.slow)

    async def restore(self, ref: KvRef) -> KvMoved:
        """Prefetch into the fast place. Through the server it goes on in the background: no token count yet."""
        if self._server is None:
            self._need_controller(Capability.RESTORE)
            return await self._between(ref, self._config.slow, self._config.fast)
        begun = time.monotonic()
        body = {
            "model_name": self._config.model,
            "world_size": self._config.world_size,
            "token_ids": self._tokens(ref),
            "cache_salt": ref.session,
            # The coordinator wants to know which server; the server itself ignores it.
            **({"instance_id": self._config.instance} if self._config.instance else {}),
        }
        await self._server.send("POST", "/cache/prefetches", _Prefetch, body=body)
        return KvMoved(seconds=time.monotonic() - begun)

    async def reset(self) -> None:
        """Clear the fast place of this instance, of all sessions."""
        self._need_controller(Capability.RESET)
        await self._move("/clear", {"instance_id": self._config.instance, "location": self._config.fast})

    async def set_quota(self, ref: KvRef, size: int) -> None:
        """0 lets everything of the session be evicted at the next cycle."""
        if self._server is None:
            raise self._unsupported(Capability.QUOTA, _NO_SERVER)
        if size < 0:
            raise InvalidValue(f"engine {self.name}: quota of {size} bytes", remedy="give 0 or more")
        path = f"/quota/{quote(ref.session, safe='')}"
        await self._server.send("PUT", path, type(None), body={"limit_gb": size / _GIB})

    async def close(self) -> None:
        await super().close()
        if self._server is not None:
            await self._server.close()

    async def _between(self, ref: KvRef, old: str, new: str) -> KvMoved:
        body = {
            "old_position": [self._config.instance, old],
            "new_position": [self._config.instance, new],
            "tokens": self._tokens(ref),
            "copy": False,
        }
        return await self._move("/move", body)

    async def _move(self, path: str, body: Mapping[str, Any]) -> KvMoved:
        begun = time.monotonic()
        done = await self._http.send("POST", path, _Done, body=body)
        return KvMoved(tokens=done.num_tokens, seconds=time.monotonic() - begun)

    def _need_controller(self, capability: Capability) -> None:
        if not self._config.instance:
            raise self._unsupported(capability, _NO_CONTROLLER)

    def _tokens(self, ref: KvRef) -> list[int]:
        if not ref.tokens:
            raise InvalidValue(
                f"engine {self.name}: session {ref.session} comes without tokens",
                remedy="give KvRef.tokens: LMCache finds KV by content",
            )
        return list(ref.tokens)


def _with(support: Support, note: str) -> Support:
    return Support(support.answer, note) if support else support
