"""vLLM: metrics, priorities, and (where it was started in development mode) the reset of its prefix cache.

vLLM decides alone what it keeps: it has no control over one session's KV in a release. What can be known of a session
comes from its KV events (gpu.engines.vllm_events). Preemption in vLLM V1 means recomputation, not a swap.

Proven against the real server, version 0.32.0 on the CPU (tests/host/test_vllm_*.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from gpu.engines.base import MAX_PRIORITY, Engine, check_priority, paths_of, serves
from gpu.engines.http import HttpClient, Response, json_of
from gpu.engines.prometheus import Metrics
from gpu.engines.types import Capability, EngineInfo, EngineKind, EngineMetrics, KvRef, Support, no, untried, yes
from gpu.errors import EngineRefused

_DEV: Final = "start it with VLLM_SERVER_DEV_MODE=1"
_EVENTS: Final = "start it with --kv-events-config and name its endpoint in Corral's configuration"
_BIND: Final = "vLLM finds KV by content: a request needs no place"
# In-flight requests are frozen and go on; the default, "abort", would end them and clear the cache.
_PAUSE: Final = "/pause?mode=keep"
_PRIORITY: Final = "start it with --scheduling-policy priority and say so in Corral's configuration"


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class Vllm(Engine):
    """
    :param priorities: whether it was started with ``--scheduling-policy priority``; it does not tell, and refuses a
        request that carries a priority otherwise
    :param events: whether its KV events are subscribed to
    :param bytes_per_token: of the KV cache, from the model's configuration
    """

    kind: ClassVar[EngineKind] = EngineKind.VLLM
    _metrics_remedy: ClassVar[str] = "start it without --disable-log-stats"

    cannot: ClassVar[Mapping[Capability, str]] = {
        Capability.BIND: _BIND,
        Capability.HOLD: "no release of vLLM can pin a session's KV (RFC 37003, pull request 52113)",
        Capability.OFFLOAD: "vLLM offloads by its own rule, not by session",
        Capability.RESTORE: "vLLM loads offloaded KV when the session's next request comes",
        Capability.DROP: "vLLM frees KV by least recent use; only all of it can be reset",
        Capability.QUOTA: "vLLM has no ceiling per session",
    }

    def __init__(
        self,
        name: str,
        client: HttpClient,
        *,
        priorities: bool = False,
        events: bool = False,
        bytes_per_token: int | None = None,
    ) -> None:
        super().__init__(name, client)
        self._priorities = priorities
        self._events = events
        self._bytes_per_token = bytes_per_token

    async def _probe(self) -> EngineInfo:
        version = await self._optional("/version")
        models = await self._http.get("/v1/models", _Models)
        description = await self._description()
        paths = paths_of(description)
        page = await self.scrape()
        events = await self._event_support()
        return EngineInfo(
            name=self.name,
            kind=self.kind,
            url=self._http.url,
            version=str(version.get("version") or ""),
            model=models.data[0].id if models.data else "",
            capabilities=self._capabilities(
                {
                    Capability.METRICS: yes("GET /metrics"),
                    Capability.KV_USE: yes("vllm:kv_cache_usage_perc"),
                    Capability.KV_EVENTS: events,
                    Capability.SESSION_KV: self._session_support(description) if events else events,
                    Capability.BIND: yes("session_id in the request, which its KV events name")
                    if self._events
                    else no(_BIND),
                    Capability.PRIORITY: yes("priority in the request, lower first")
                    if self._priorities
                    else no(_PRIORITY),
                    Capability.RESET: serves(paths, "/reset_prefix_cache", "POST /reset_prefix_cache", _DEV),
                    Capability.PAUSE: serves(paths, "/pause", f"POST {_PAUSE}, /resume", _DEV),
                }
            ),
            context_tokens=models.data[0].max_model_len if models.data else None,
            kv_tokens=_pool(page),
            kv_bytes_per_token=self._bytes_per_token,
        )

    async def _event_support(self) -> Support:
        """What it says of its own publishers (from 0.32 on) against what is configured."""
        told = json_of(await self._http.request("GET", "/kv_event_sources"))
        sources = [one for one in told.values() if isinstance(one, dict)] if isinstance(told, dict) else []
        said = ", ".join(str(one["endpoint"]) for one in sources if one.get("endpoint"))
        if not self._events:
            return no(
                f"it publishes them at {said}: name that as events in Corral's configuration" if said else _EVENTS
            )
        if len(sources) > 1:
            return yes(f"blocks stored and removed, of the one rank that is followed; it publishes at {said}")
        return yes("blocks stored and removed")

    @staticmethod
    def _session_support(description: Mapping[str, Any]) -> Support:
        """Whether a request may name its session, from the engine's own description of its API."""
        schemas = description.get("components", {}).get("schemas", {})
        request = schemas.get("CompletionRequest") if isinstance(schemas, dict) else None
        if not isinstance(request, dict) or not isinstance(request.get("properties"), dict):
            return untried("by KV events, where this version names sessions in them")
        if "session_id" in request["properties"]:
            return yes("KV events name the session that a request carries as session_id")
        return no("this version's requests carry no session_id: its KV events name no session; 0.32 does")

    def _read(self, page: Metrics, at_nsec: int) -> EngineMetrics:
        used = page.mean("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")  # the second: before 0.10
        total = _pool(page)
        hits = page.whole("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")
        queries = page.whole("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
        prompts = page.whole("vllm:prompt_tokens_total")
        cached = page.whole("vllm:prompt_tokens_cached_total")  # with what an outer store gave back, too
        if cached is None:
            cached = hits
        computed = page.labelled("vllm:prompt_tokens_by_source_total", "source", "local_compute")
        if computed is None and prompts is not None:
            computed = max(0, prompts - (cached or 0))  # the prompt counter includes what was found in the cache
        return EngineMetrics(
            at_nsec=at_nsec,
            kv_used=used,
            kv_used_tokens=None if used is None or total is None else round(used * total),
            kv_total_tokens=total,
            running=page.whole("vllm:num_requests_running"),
            waiting=page.whole("vllm:num_requests_waiting"),
            prompt_tokens_total=None if computed is None else round(computed),
            cached_tokens_total=cached,
            generated_tokens_total=page.whole("vllm:generation_tokens_total"),
            prefix_hit_rate=hits / queries if hits is not None and queries else None,
            preemptions_total=page.whole("vllm:num_preemptions_total"),
            offloaded_bytes_total=page.whole("vllm:kv_offload_store_bytes_total", "vllm:kv_offload_store_bytes"),
            loaded_bytes_total=page.whole("vllm:kv_offload_load_bytes_total", "vllm:kv_offload_load_bytes"),
            started_at=page.total("process_start_time_seconds"),
        )

    def request_fields(self, ref: KvRef, *, priority: int | None = None) -> Mapping[str, Any]:
        """A priority of ours (higher first) in vLLM's terms (lower first).

        Where its KV events are followed, also the session that they are to name (0.32 does); versions before it ignore
        a field that they do not know.
        """
        fields: dict[str, Any] = {"session_id": ref.session} if self._events else {}
        if priority is None:
            return fields
        if not self._priorities:
            raise self._unsupported(Capability.PRIORITY, "it schedules first come, first served", _PRIORITY)
        return {**fields, "priority": MAX_PRIORITY - check_priority(priority)}

    async def reset(self) -> None:
        """KV events tell of it only when the next request runs.

        :raises EngineRefused: requests are running: vLLM resets only a pool that nobody uses
        """
        response = await self._development("/reset_prefix_cache", Capability.RESET)
        answer = json_of(response)
        if isinstance(answer, dict) and answer.get("success") is False:
            raise EngineRefused(
                "POST /reset_prefix_cache was refused: running requests hold blocks of the pool",
                engine=self.name,
                status=response.status,
                remedy="ask again when no request runs",
            )

    async def pause(self) -> None:
        """Requests that run are kept, and go on after ``resume``. While paused vLLM queues new ones."""
        await self._development(_PAUSE, Capability.PAUSE)

    async def resume(self) -> None:
        await self._development("/resume", Capability.PAUSE)

    async def _development(self, path: str, capability: Capability) -> Response:
        try:
            return await self._http.ask("POST", path)
        except EngineRefused as error:
            if error.status in (404, 405):
                raise self._unsupported(capability, f"it does not serve {path}", _DEV) from error
            raise


def _pool(page: Metrics) -> int | None:
    """Tokens of the KV pool, summed over ranks: blocks times their size, both told as labels of an info metric."""
    total = 0
    for sample in page.samples("vllm:cache_config_info"):
        blocks, size = sample.labels.get("num_gpu_blocks", ""), sample.labels.get("block_size", "")
        if not blocks.isdecimal() or not size.isdecimal():
            return None  # "None" until the engine has profiled its memory
        total += int(blocks) * int(size)
    return total or None
