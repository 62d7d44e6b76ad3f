"""What a simulated run comes to."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Report:
    """Of one run. Seconds are virtual, bytes are bytes. ``slow_downs``: of each agent, the time it took over the time
    that was recorded for what it got done."""

    policy: str
    agents: int
    memory: int
    seconds: float = 0.0
    real_seconds: float = 0.0
    slow_downs: list[float] = field(default_factory=list)
    traces_ended: int = 0
    calls_ended: int = 0
    agents_lost: int = 0  # its own process was killed for want of memory
    calls_oom_killed: int = 0  # by the kernel: the host was full
    calls_killed: dict[str, int] = field(default_factory=dict)  # by the policy: code → number
    calls_given_up: int = 0  # killed so often that the agent went on without
    lost_seconds: float = 0.0  # of work of calls that were killed
    brakes: int = 0
    calls_braked: int = 0
    held_seconds: list[float] = field(default_factory=list)  # each hold
    waited_seconds: list[float] = field(default_factory=list)  # each wait to begin that was not nothing
    frozen: int = 0
    rounds: int = 0
    memory_mean: float = 0.0
    memory_peak: int = 0

    @property
    def mean_slow_down(self) -> float:
        """1.0 = as recorded. Infinite where an agent got nothing done."""
        return sum(self.slow_downs) / len(self.slow_downs) if self.slow_downs else 1.0

    @property
    def lost_nothing(self) -> bool:
        """No agent lost, and no call killed by the kernel or by the policy."""
        return not (self.agents_lost or self.calls_oom_killed or any(self.calls_killed.values()))

    @property
    def times_faster(self) -> float:
        return self.seconds / self.real_seconds if self.real_seconds else 0.0
