"""The inference engines of the configuration: what must fit together, and each in the terms of ``gpu.engines``."""

from __future__ import annotations

from typing import Final

from agentd.config.convert import Report
from agentd.config.model import Config, EngineSection
from gpu.engines import EngineConfig, EngineKind, kv_bytes_per_token
from gpu.errors import GpuError

_FACTS: Final = ("layers", "kv_heads", "head_dim")


def check_engines(config: Config, report: Report) -> None:
    urls: dict[str, str] = {}
    for name, engine in config.engines.items():
        path = ("engines", name)
        if not engine.url:
            report((*path, "url"), "missing", "give where it serves, e.g. http://127.0.0.1:8080", None)
            continue
        given = [fact for fact in _FACTS if getattr(engine, fact) is not None]
        if given and len(given) < len(_FACTS):
            missing = ", ".join(fact for fact in _FACTS if fact not in given)
            report(path, f"gives {', '.join(given)} without {missing}", "give all three, or bytes_per_token", None)
            continue
        try:
            engine_config(name, engine)
        except GpuError as err:
            report(path, err.message, err.remedy, None)
        other = urls.setdefault(engine.url.rstrip("/"), name)
        if other != name:
            report((*path, "url"), f"the same engine as {other!r}", "name each engine once", engine.url)
        if engine.events and engine.kind not in ("auto", "vllm"):
            report((*path, "events"), f"{engine.kind} publishes no KV events", "leave it out", engine.events)
        for key in ("offload_dir", "declared_slots"):
            if getattr(engine, key) and engine.kind not in ("auto", "llamacpp"):
                report((*path, key), f"{engine.kind} has no slots", "leave it out", None)


def bytes_per_token(engine: EngineSection) -> int | None:
    """As configured, or computed from the model's facts; None: the engine must tell."""
    if engine.bytes_per_token is not None:
        return engine.bytes_per_token
    if engine.layers is None or engine.kv_heads is None or engine.head_dim is None:
        return None
    return kv_bytes_per_token(
        layers=engine.layers,
        kv_heads=engine.kv_heads,
        head_dim=engine.head_dim,
        bytes_per_element=engine.bytes_per_element,
    )


def engine_config(name: str, engine: EngineSection, *, api_key: str = "") -> EngineConfig:
    """For ``gpu.engines``. ``api_key``: what ``api_key_file`` holds.

    :raises GpuError: a name, URL or endpoint that is none
    """
    return EngineConfig(
        name=name,
        url=engine.url,
        kind=None if engine.kind == "auto" else EngineKind(engine.kind),
        api_key=api_key,
        timeout=engine.timeout,
        priorities=engine.priorities,
        events=engine.events,
        replay=engine.replay,
        topic=engine.topic,
        bytes_per_token=bytes_per_token(engine),
    )
