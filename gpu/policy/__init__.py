"""Keep, offload or drop a session's KV while its tool runs. Pure: live and simulated runs share the code.

The rules here are the baselines that the coordinator's own is measured against.
"""

from gpu.policy.baselines import AlwaysDrop, AlwaysKeep, AlwaysOffload, LeastRecentlyUsed
from gpu.policy.continuum import Continuum, time_to_live
from gpu.policy.infercept import InferCept, Waste, waste
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
    evict,
)

__all__ = [
    "Admission",
    "AlwaysDrop",
    "AlwaysKeep",
    "AlwaysOffload",
    "Continuum",
    "Defaults",
    "HostHint",
    "InferCept",
    "KvAction",
    "KvDecision",
    "KvPolicy",
    "LeastRecentlyUsed",
    "Pause",
    "Place",
    "Restore",
    "Tier",
    "Waiting",
    "Waste",
    "evict",
    "time_to_live",
    "waste",
]
