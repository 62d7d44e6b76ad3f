"""SGLang: sessions that hold their KV until they are closed or time out, priorities, flush and pause.

A streaming session (``/open_session`` with ``streaming`` and ``timeout``) keeps its KV out of the radix cache's
eviction. Its requests carry ``session_params``. It is opened before the session's first turn; holding over a tool call
is then its time-out.

Read against the real 0.5.23 on a CPU (its server, scheduler and metrics; torch in the place of its compiled kernels):
tests/data/engines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from gpu.engines.base import Engine, check_priority, serves
from gpu.engines.http import HttpClient
from gpu.engines.prometheus import Metrics
from gpu.engines.types import (
    Answer,
    Capability,
    EngineInfo,
    EngineKind,
    EngineMetrics,
    KvMoved,
    KvRef,
    Support,
    no,
    untried,
    yes,
)
from gpu.errors import BadAnswer, EngineRefused, InvalidValue

_METRICS: Final = "start it with --enable-metrics"
_PRIORITY: Final = "start it with --enable-priority-scheduling and say so in Corral's configuration"
# The version in which streaming sessions were read; an older one is tried, and refuses in its own words.
_STREAMING: Final = (0, 5, 23)
_DEFAULT_CAPACITY: Final = 1 << 20  # characters; older versions want it, none enforces it on streaming sessions


class SgLang(Engine):
    """
    :param priorities: whether it was started with ``--enable-priority-scheduling``
    :param bytes_per_token: of the KV cache, from the model's configuration
    """

    kind: ClassVar[EngineKind] = EngineKind.SGLANG
    _metrics_remedy: ClassVar[str] = _METRICS

    cannot: ClassVar[Mapping[Capability, str]] = {
        Capability.KV_EVENTS: "SGLang's KV events are not read by this adapter",
        Capability.SESSION_KV: "SGLang tells its KV use as a whole, not by session",
        Capability.OFFLOAD: "SGLang's hierarchical cache moves KV by its own rule, not by session",
        Capability.RESTORE: "SGLang loads back from its hierarchical cache when the session's next request comes",
        Capability.QUOTA: "SGLang has no ceiling per session",
    }

    def __init__(
        self, name: str, client: HttpClient, *, priorities: bool = False, bytes_per_token: int | None = None
    ) -> None:
        super().__init__(name, client)
        self._priorities = priorities
        self._bytes_per_token = bytes_per_token

    async def _probe(self) -> EngineInfo:
        server = await self._optional("/server_info") or await self._optional("/get_server_info")
        model = await self._optional("/model_info") or await self._optional("/get_model_info")
        version = str(server.get("version") or "")
        paths = await self._paths()
        metrics = await self._http.request("GET", "/metrics")
        page = await self.scrape() if metrics.status == 200 else None
        session = serves(paths, "/open_session", "POST /open_session", "this version has no sessions")
        return EngineInfo(
            name=self.name,
            kind=self.kind,
            url=self._http.url,
            version=version,
            model=str(model.get("model_path") or server.get("model_path") or ""),
            capabilities=self._capabilities(
                {
                    Capability.METRICS: yes("GET /metrics")
                    if metrics.status == 200
                    else no(f"no /metrics: {_METRICS}"),
                    Capability.KV_USE: yes("sglang:token_usage") if metrics.status == 200 else no(_METRICS),
                    Capability.BIND: session,
                    Capability.HOLD: _holding(session, version),
                    Capability.DROP: serves(paths, "/close_session", "POST /close_session", "no sessions"),
                    Capability.RESET: serves(paths, "/flush_cache", "POST /flush_cache", "this version cannot flush"),
                    Capability.PAUSE: serves(
                        paths, "/pause_generation", "POST /pause_generation", "this version cannot pause"
                    ),
                    Capability.PRIORITY: self._priority_support(server.get("enable_priority_scheduling")),
                }
            ),
            # null where it was not given at the start: the model's own is in the metrics alone
            context_tokens=_whole(server.get("context_length")) or (page.whole("sglang:context_len") if page else None),
            kv_tokens=_whole(server.get("max_total_num_tokens")),
            kv_bytes_per_token=self._bytes_per_token,
        )

    def _priority_support(self, told: object) -> Support:
        if told is False or (told is None and not self._priorities):
            return no(_PRIORITY)
        if not self._priorities:
            return no("it schedules by priority: set priorities in Corral's configuration")
        return yes("priority in the request, higher first")

    def _read(self, page: Metrics, at_nsec: int) -> EngineMetrics:
        used = page.whole("sglang:kv_used_tokens", "sglang:num_used_tokens")
        free = [page.whole("sglang:kv_available_tokens"), page.whole("sglang:kv_evictable_tokens")]
        told = [tokens for tokens in free if tokens is not None]
        total = used + sum(told) if used is not None and told else page.whole("sglang:max_total_num_tokens")
        prompts, cached = page.whole("sglang:prompt_tokens_total"), page.whole("sglang:cached_tokens_total")
        return EngineMetrics(
            at_nsec=at_nsec,
            kv_used=page.mean("sglang:token_usage"),
            kv_used_tokens=used,
            kv_total_tokens=total,
            running=page.whole("sglang:num_running_reqs"),
            waiting=page.whole("sglang:num_queue_reqs"),
            # Its prompt counter includes what was found in the cache.
            prompt_tokens_total=None if prompts is None else max(0, prompts - (cached or 0)),
            # these two counters appear with the first event that they count
            cached_tokens_total=cached if cached is not None or prompts is None else 0,
            generated_tokens_total=page.whole("sglang:generation_tokens_total"),
            prefix_hit_rate=page.mean("sglang:cache_hit_rate"),
            preemptions_total=page.whole("sglang:num_retracted_requests_total")
            or (0 if "sglang:num_retracted_reqs" in page else None),
        )

    def request_fields(self, ref: KvRef, *, priority: int | None = None) -> Mapping[str, Any]:
        fields: dict[str, Any] = {"session_params": {"id": ref.session}}
        if priority is not None:
            if not self._priorities:
                raise self._unsupported(Capability.PRIORITY, "it schedules without priorities", _PRIORITY)
            fields["priority"] = check_priority(priority)
        return fields

    async def hold(self, ref: KvRef, seconds: float) -> KvMoved:
        """Open the session: its KV stays until ``drop``, or until it was idle for so long.

        :raises EngineRefused: a session of this id is open already
        """
        if not seconds > 0:
            raise InvalidValue(f"engine {self.name}: hold for {seconds} s", remedy="give more than 0 seconds")
        begun = time.monotonic()
        body = {
            "capacity_of_str_len": _DEFAULT_CAPACITY,
            "session_id": ref.session,
            "streaming": True,
            "timeout": seconds,
        }
        opened = await self._http.send("POST", "/open_session", str, body=body)
        if opened != ref.session:
            raise BadAnswer(
                f"POST /open_session opened {opened!r}, not {ref.session!r}",
                engine=self.name,
                remedy="this version picks its own session ids: update SGLang",
            )
        return KvMoved(seconds=time.monotonic() - begun)

    async def drop(self, ref: KvRef) -> KvMoved:
        begun = time.monotonic()
        await self._http.send("POST", "/close_session", type(None), body={"session_id": ref.session})
        return KvMoved(seconds=time.monotonic() - begun)

    async def reset(self) -> None:
        """
        :raises EngineRefused: requests are running: SGLang flushes only when it is idle
        """
        await self._control("/flush_cache", Capability.RESET)

    async def pause(self) -> None:
        """Requests that run stay as they are, with their KV; SGLang's default would end them."""
        await self._control("/pause_generation", Capability.PAUSE, {"mode": "in_place"})

    async def resume(self) -> None:
        await self._control("/continue_generation", Capability.PAUSE)

    async def _control(self, path: str, capability: Capability, body: Mapping[str, Any] | None = None) -> None:
        try:
            await self._http.send("POST", path, type(None), body=body or {})
        except EngineRefused as error:
            if error.status in (404, 405):
                raise self._unsupported(capability, f"it does not serve {path}", "update SGLang") from error
            raise


def _holding(session: Support, version: str) -> Support:
    if session.answer is not Answer.YES:
        return session
    parts = version.split(".")[:3]
    if len(parts) == 3 and all(part.isdecimal() for part in parts) and tuple(map(int, parts)) >= _STREAMING:
        return yes("a streaming session, until it is closed or its time-out passes")
    return untried(f"streaming sessions were seen in {'.'.join(map(str, _STREAMING))}; this is {version or 'unknown'}")


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
