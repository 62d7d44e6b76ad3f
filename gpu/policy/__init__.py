"""Keep, offload or drop a session's KV while its tool runs. Pure: live and simulated runs share the code.

The rules here are the baselines that the coordinator's own is measured against.
"""

from gpu.policy.baselines import AlwaysDrop, AlwaysKeep, AlwaysOffload, LeastRecentlyUsed
from gpu.policy.continuum import Continuum, time_to_live
from gpu.policy.infercept import InferCept, Waste, waste
from gpu.policy.types import KvAction, KvDecision, KvPolicy, Pause, Tier, evict

__all__ = [
    "AlwaysDrop",
    "AlwaysKeep",
    "AlwaysOffload",
    "Continuum",
    "InferCept",
    "KvAction",
    "KvDecision",
    "KvPolicy",
    "LeastRecentlyUsed",
    "Pause",
    "Tier",
    "Waste",
    "evict",
    "time_to_live",
    "waste",
]
