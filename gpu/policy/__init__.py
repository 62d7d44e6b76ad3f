"""Keep, offload or drop a session's KV while its tool runs. Pure: live and simulated runs share the code.

``ShadowPrice`` is Corral's own rule; the others are the baselines that it is measured against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from gpu.errors import InvalidValue
from gpu.policy.baselines import AlwaysDrop, AlwaysKeep, AlwaysOffload, LeastRecentlyUsed
from gpu.policy.continuum import Continuum, time_to_live
from gpu.policy.durations import Durations, learned
from gpu.policy.eviction import Rivals, evict
from gpu.policy.infercept import InferCept, Waste, waste
from gpu.policy.shadow import ShadowPrice
from gpu.policy.types import (
    Admission,
    Defaults,
    HostHint,
    KvAction,
    KvDecision,
    KvPolicy,
    Pause,
    Place,
    Restore,
    Tier,
    Waiting,
)

POLICIES: Final[Mapping[str, Callable[[], KvPolicy]]] = {
    "corral": ShadowPrice,
    "infercept": InferCept,
    "continuum": Continuum,
    "always-keep": AlwaysKeep,
    "always-offload": AlwaysOffload,
    "always-drop": AlwaysDrop,
    "lru": LeastRecentlyUsed,
}


def policy_named(name: str) -> KvPolicy:
    """With its defaults. InvalidValue where there is none of this name."""
    made = POLICIES.get(name)
    if made is None:
        raise InvalidValue(f"KV policy {name!r} is not known", remedy=f"one of {', '.join(sorted(POLICIES))}")
    return made()


__all__ = [
    "POLICIES",
    "Admission",
    "AlwaysDrop",
    "AlwaysKeep",
    "AlwaysOffload",
    "Continuum",
    "Defaults",
    "Durations",
    "HostHint",
    "InferCept",
    "KvAction",
    "KvDecision",
    "KvPolicy",
    "LeastRecentlyUsed",
    "Pause",
    "Place",
    "Restore",
    "Rivals",
    "ShadowPrice",
    "Tier",
    "Waiting",
    "Waste",
    "evict",
    "learned",
    "policy_named",
    "time_to_live",
    "waste",
]
