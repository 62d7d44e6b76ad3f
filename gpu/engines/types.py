"""The words of the engine adapters.

Tokens, bytes, seconds; shares are 0.0 to 1.0; counters count since the engine started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from gpu.errors import InvalidValue

MAX_SESSION_ID: Final = 128


class EngineKind(StrEnum):
    LLAMACPP = "llamacpp"
    VLLM = "vllm"
    SGLANG = "sglang"
    LMCACHE = "lmcache"


class Capability(StrEnum):
    """What an outside controller may want of an engine."""

    METRICS = "metrics"
    KV_USE = "kv_use"  # how full the KV pool is
    SESSION_KV = "session_kv"  # how much of it one session has
    KV_EVENTS = "kv_events"  # a stream of what is stored and evicted
    BIND = "bind"  # a request can say which session (slot) it belongs to
    PRIORITY = "priority"  # a request can be put before others
    HOLD = "hold"  # keep one session's KV while its tool runs
    OFFLOAD = "offload"  # move one session's KV out of the pool
    RESTORE = "restore"  # and back
    DROP = "drop"  # free one session's KV
    RESET = "reset"  # free all KV that no running request uses
    PAUSE = "pause"  # stop generating, and go on
    QUOTA = "quota"  # a ceiling for one session's KV


class Answer(StrEnum):
    YES = "yes"
    NO = "no"
    UNTRIED = "untried"  # the engine does not say; it is found out when it is asked for


@dataclass(frozen=True, slots=True)
class Support:
    """``note``: how it is done; or why it cannot be, and what would make it possible."""

    answer: Answer
    note: str = ""

    def __bool__(self) -> bool:
        return self.answer is not Answer.NO


def yes(note: str = "") -> Support:
    return Support(Answer.YES, note)


def no(note: str) -> Support:
    return Support(Answer.NO, note)


def untried(note: str) -> Support:
    return Support(Answer.UNTRIED, note)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine is, as it was when it was last asked. ``capabilities`` has an entry for every Capability."""

    name: str
    kind: EngineKind
    url: str
    version: str  # "" where the engine does not tell
    model: str
    capabilities: Mapping[Capability, Support]
    context_tokens: int | None = None  # of one session
    slots: int | None = None  # llama.cpp: sessions that can be resident at once
    kv_tokens: int | None = None  # size of the KV pool
    kv_bytes_per_token: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """One reading. None: this engine has no such metric."""

    at_nsec: int
    kv_used: float | None = None
    kv_used_tokens: int | None = None
    kv_total_tokens: int | None = None
    running: int | None = None
    waiting: int | None = None
    prompt_tokens_total: int | None = None  # computed, not those found in a cache
    cached_tokens_total: int | None = None  # found in a cache
    generated_tokens_total: int | None = None
    prefix_hit_rate: float | None = None  # as the engine averages it
    preemptions_total: int | None = None  # sessions put out of the pool by the engine itself
    offloaded_bytes_total: int | None = None
    loaded_bytes_total: int | None = None
    cache_bytes: int | None = None  # held in a store beside the pool
    evictions_total: int | None = None  # entries that store gave up for others
    started_at: float | None = None  # wall clock, seconds: when its process began


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRef:
    """One session's KV, in the terms that engines use. What is needed depends on the engine.

    ``session`` is a daemon-made id; ``slot`` is llama.cpp's; ``tokens`` are the session's token ids (LMCache finds
    KV by content).
    """

    session: str
    slot: int | None = None
    tokens: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.session or len(self.session) > MAX_SESSION_ID or not self.session.isprintable():
            raise InvalidValue(
                f"session id of {len(self.session)} characters",
                remedy=f"give 1 to {MAX_SESSION_ID} printable characters",
            )
        if self.slot is not None and self.slot < 0:
            raise InvalidValue(f"slot {self.slot} of session {self.session}", remedy="slots count from 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvMoved:
    """What a control did. ``tokens`` and ``bytes`` are None where the engine does not tell; ``seconds`` is our wait."""

    tokens: int | None = None
    bytes: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """llama.cpp: one place for a session's KV.

    ``tokens`` is what the last request left there; the server does not tell what a restore brought in until the next
    request has run.
    """

    id: int
    context_tokens: int
    busy: bool
    tokens: int


def kv_bytes_per_token(*, layers: int, kv_heads: int, head_dim: int, bytes_per_element: float = 2.0) -> int:
    """Keys and values of one token in all layers: 2 x layers x kv_heads x head_dim x bytes_per_element."""
    if min(layers, kv_heads, head_dim) < 1 or bytes_per_element <= 0:
        raise InvalidValue(
            f"a model with {layers} layers, {kv_heads} KV heads of {head_dim}, {bytes_per_element} bytes each",
            remedy="take them from the model's own configuration",
        )
    return int(2 * layers * kv_heads * head_dim * bytes_per_element)
