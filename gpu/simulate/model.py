"""An engine's sizes and speeds, and what a run of it gave."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpu.cost import ForwardModel, SwapModel
from gpu.simulate.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel:
    """``pool``: tokens; ``host_bytes``: room for offloaded KV; times in seconds."""

    pool: int
    bytes_per_token: int
    host_bytes: int
    forward: ForwardModel
    swap: SwapModel | None
    decode_base: float = 0.012
    decode_each: float = 0.0004
    replicas: int = 1
    most_running: int = 256
    partial: bool = True


@dataclass(slots=True)
class Outcome:
    """Seconds. ``first_token``: of each turn, from its call's end. ``moves``: copies both ways, seconds of the link.

    ``held``: token-seconds of the pool by paused sessions. ``wall``: of all sessions, in virtual time.
    """

    policy: str
    timeline: Timeline
    first_token: list[float] = field(default_factory=list)
    session_seconds: list[float] = field(default_factory=list)
    turns: int = 0
    computed_tokens: int = 0
    recomputed_tokens: int = 0
    recomputed: float = 0.0
    moves: float = 0.0
    offloads: int = 0
    drops: int = 0
    restores: int = 0
    held: float = 0.0
    wall: float = 0.0
    most_used: int = 0
    most_outside: int = 0  # bytes

    @property
    def avoidable(self) -> float:
        return self.recomputed + self.moves

    @property
    def cost(self) -> float:
        """Seconds of prefill, with what is unavoidable, and of copying."""
        return self.timeline.unavoidable + self.avoidable
