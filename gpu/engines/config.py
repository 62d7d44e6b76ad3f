"""Which engines there are: from the configuration, with the kind found out where it is not given."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from gpu.engines.base import Engine
from gpu.engines.http import DEFAULT_TIMEOUT, HttpClient, json_of
from gpu.engines.llamacpp import LlamaCpp
from gpu.engines.lmcache import LmCache, LmCacheConfig
from gpu.engines.prometheus import NotMetrics, parse
from gpu.engines.sglang import SgLang
from gpu.engines.types import EngineInfo, EngineKind
from gpu.engines.vllm import Vllm
from gpu.errors import EngineError, InvalidValue

MAX_NAME: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine of the configuration.

    ``kind`` None: found out from its metrics. ``priorities``: it was started with priority scheduling.
    ``events`` and ``replay`` are ZeroMQ endpoints of vLLM's KV events. ``bytes_per_token``: see kv_bytes_per_token().
    ``api_key`` is never shown.
    """

    name: str
    url: str
    kind: EngineKind | None = None
    api_key: str = field(default="", repr=False)
    timeout: float = DEFAULT_TIMEOUT  # seconds
    priorities: bool = False
    events: str = ""
    replay: str = ""
    topic: str = ""
    bytes_per_token: int | None = None
    lmcache: LmCacheConfig = field(default_factory=LmCacheConfig)

    def __post_init__(self) -> None:
        bare = self.name.replace("-", "").replace("_", "")
        if not 0 < len(self.name) <= MAX_NAME or not bare.isascii() or not bare.isalnum():
            raise InvalidValue(
                f"engine name {self.name[:MAX_NAME]!r}",
                remedy=f"give 1 to {MAX_NAME} letters, digits, '-' or '_'",
            )
        self.client()  # refuses a URL that is none
        if self.replay and not self.events:
            raise InvalidValue(
                f"engine {self.name}: a replay endpoint without an event endpoint", remedy="set events as well"
            )
        if self.bytes_per_token is not None and self.bytes_per_token <= 0:
            raise InvalidValue(
                f"engine {self.name}: bytes_per_token of {self.bytes_per_token}", remedy="leave it out if it is unknown"
            )

    def client(self, url: str = "") -> HttpClient:
        return HttpClient(url or self.url, engine=self.name, api_key=self.api_key, timeout=self.timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovered:
    """One configured engine: what it is, or why it could not be asked. ``engine`` is None while its kind is unknown."""

    config: EngineConfig
    engine: Engine | None
    info: EngineInfo | None
    problem: str = ""


def make_engine(config: EngineConfig, kind: EngineKind) -> Engine:
    """The adapter; asks nothing of the engine."""
    client = config.client()
    match kind:
        case EngineKind.LLAMACPP:
            return LlamaCpp(config.name, client, bytes_per_token=config.bytes_per_token)
        case EngineKind.VLLM:
            return Vllm(
                config.name,
                client,
                priorities=config.priorities,
                events=bool(config.events),
                bytes_per_token=config.bytes_per_token,
            )
        case EngineKind.SGLANG:
            return SgLang(config.name, client, priorities=config.priorities, bytes_per_token=config.bytes_per_token)
        case EngineKind.LMCACHE:
            server = config.client(config.lmcache.server) if config.lmcache.server else None
            return LmCache(config.name, client, config.lmcache, server=server)


async def detect(config: EngineConfig) -> EngineKind:
    """What answers at the URL, from the names of its metrics; llama.cpp may have none, and is known by its slots.

    :raises EngineError: nothing answers there, or nothing that is known
    """
    client = config.client()
    try:
        response = await client.request("GET", "/metrics")
        if response.status == 200:
            try:
                page = await asyncio.to_thread(parse, response.body.decode("utf-8", "replace"))
            except NotMetrics:
                page = None
            for kind in (EngineKind.LLAMACPP, EngineKind.VLLM, EngineKind.SGLANG, EngineKind.LMCACHE):
                # vLLM with LMCache inside serves both names, and is asked as vLLM.
                if page is not None and page.has_prefix(f"{kind}:"):
                    return kind
        response = await client.request("GET", "/props")
        props = json_of(response) if response.status == 200 else None
        if isinstance(props, dict) and "total_slots" in props:
            return EngineKind.LLAMACPP
    finally:
        await client.close()
    raise EngineError(
        "what answers at this URL is no engine that is known by its metrics",
        engine=config.name,
        remedy=f"set kind to one of {', '.join(EngineKind)}, or enable its metrics",
    )


async def discover(configs: Iterable[EngineConfig]) -> tuple[Discovered, ...]:
    """Asks all at once. One that does not answer is in the result with the reason, and can be asked again later.

    :raises InvalidValue: two engines of one name
    """
    wanted = tuple(configs)
    names = [config.name for config in wanted]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidValue(f"more than one engine is named {', '.join(twice)}", remedy="give each a name of its own")
    return tuple(await asyncio.gather(*(_discover(config) for config in wanted)))


async def _discover(config: EngineConfig) -> Discovered:
    engine: Engine | None = None
    try:
        engine = make_engine(config, config.kind or await detect(config))
        return Discovered(config=config, engine=engine, info=await engine.info())
    except EngineError as error:
        return Discovered(config=config, engine=engine, info=None, problem=str(error))
