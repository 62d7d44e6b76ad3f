"""Inference engines behind one interface: what each can do is declared, what it cannot is refused with the reason.

``discover`` asks all engines of the configuration; ``Engine`` is what the coordinator holds of each.
"""

from gpu.engines.base import Engine
from gpu.engines.config import Discovered, EngineConfig, detect, discover, make_engine
from gpu.engines.llamacpp import LlamaCpp
from gpu.engines.lmcache import LmCache, LmCacheConfig
from gpu.engines.sglang import SgLang
from gpu.engines.types import (
    Answer,
    Capability,
    EngineInfo,
    EngineKind,
    EngineMetrics,
    KvMoved,
    KvRef,
    Slot,
    Support,
    kv_bytes_per_token,
)
from gpu.engines.vllm import Vllm
from gpu.engines.vllm_events import Batch, Cleared, Gap, KvIndex, KvUpdate, Removed, Restarted, Stored
from gpu.engines.vllm_stream import KvEventStream

__all__ = [
    "Answer",
    "Batch",
    "Capability",
    "Cleared",
    "Discovered",
    "Engine",
    "EngineConfig",
    "EngineInfo",
    "EngineKind",
    "EngineMetrics",
    "Gap",
    "KvEventStream",
    "KvIndex",
    "KvMoved",
    "KvRef",
    "KvUpdate",
    "LlamaCpp",
    "LmCache",
    "LmCacheConfig",
    "Removed",
    "Restarted",
    "SgLang",
    "Slot",
    "Stored",
    "Support",
    "Vllm",
    "detect",
    "discover",
    "kv_bytes_per_token",
    "make_engine",
]
