"""The inference tier in virtual time: recorded agents, an engine, any KV policy, and what could have been done at best.

Pure and deterministic: the same scripts, seed and policy give the same result.
"""

from gpu.simulate.engine import simulate
from gpu.simulate.knowledge import Clairvoyant
from gpu.simulate.model import EngineModel, Outcome
from gpu.simulate.offline import Bound, lower_bound
from gpu.simulate.timeline import IdleKv, Timeline
from gpu.simulate.workload import Call, Script, Step, TokenModel, script

__all__ = [
    "Bound",
    "Call",
    "Clairvoyant",
    "EngineModel",
    "IdleKv",
    "Outcome",
    "Script",
    "Step",
    "Timeline",
    "TokenModel",
    "lower_bound",
    "script",
    "simulate",
]
