"""What a KV policy sees and what it says. Pure values: tokens, bytes, seconds.

A policy is asked when a tool call begins (``at_pause``), when a time to live has passed (``expired``), when the KV
pool must give room (``under_pressure``), when KV has been offloaded (``before_return``: fetch it ahead of the call's
end?), when turns wait (``order``), when a session is new (``admit``), and for what the host should know (``hints``).
It answers with decisions, each with the numbers that justified it. ``Defaults`` answers what a policy has no rule for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from gpu.cost import ForwardModel, SwapModel
from gpu.errors import InvalidValue


class KvAction(StrEnum):
    KEEP = "keep"
    OFFLOAD = "offload"
    DROP = "drop"


class Place(StrEnum):
    """Where a session's KV is."""

    RESIDENT = "resident"  # in the engine's pool
    OFFLOADED = "offloaded"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A session whose model waits for a tool.

    ``expected``: seconds that the call will take from its begin, as declared or learned; None: unknown.
    ``durations``: what earlier calls of its class took, unsorted. ``elapsed``: seconds since the call began.
    ``waited``: seconds that this session's turns have waited for KV that had been put out, for fairness.
    ``tokens``: of its KV, at ``where``. ``outside``: tokens offloaded besides, that follow those in the pool.
    """

    session: str
    tokens: int
    elapsed: float = 0.0
    expected: float | None = None
    durations: Sequence[float] = ()
    last_used: float = 0.0  # a clock's seconds: for least recent use
    where: Place = Place.RESIDENT
    waited: float = 0.0
    outside: int = 0

    def __post_init__(self) -> None:
        if min(self.tokens, self.outside, self.elapsed, self.waited) < 0 or (
            self.expected is not None and self.expected < 0
        ):
            raise InvalidValue(
                f"session {self.session}: pause of {self.tokens} tokens, {self.elapsed} s, expected {self.expected} s",
                remedy="counts and times are not negative",
            )

    @property
    def resident(self) -> int:
        """Tokens in the pool."""
        return self.tokens if self.where is Place.RESIDENT else 0

    @property
    def away(self) -> int:
        """Tokens that are offloaded."""
        return self.outside + (self.tokens if self.where is Place.OFFLOADED else 0)

    def remaining(self, unknown: float) -> float:
        """Seconds until it ends; ``unknown`` where nothing is known.

        Without an expectation: the mean of those earlier durations that are longer than what has passed already.
        """
        if self.expected is not None:
            # Past its expected end, a call is as likely as not to take as long again: what has passed is the guess.
            return self.expected - self.elapsed if self.expected > self.elapsed else self.elapsed
        longer = [one for one in self.durations if one > self.elapsed]
        return sum(longer) / len(longer) - self.elapsed if longer else max(unknown, self.elapsed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """The engine, as the policy sees it.

    ``running_tokens``: of the requests that run now and would wait for a recomputation (InferCept's C_other, C_batch).
    ``offload_free``: bytes; 0: the engine cannot offload. ``queueing``: mean wait of recent requests (seconds).
    ``waiting_tokens``: that turns in the queue need and do not have. ``paused``: all sessions whose tool runs, from
    whom the price of the pool can be told; empty: not known. ``partial``: whether the end of a session's KV can be put
    out without the rest (engines that keep it in blocks).
    """

    bytes_per_token: int
    capacity: int  # tokens of the KV pool
    used: int  # tokens
    running_tokens: int
    forward: ForwardModel
    swap: SwapModel | None = None
    offload_free: int = 0
    queueing: float = 0.0
    waiting_tokens: int = 0
    paused: Sequence[Pause] = ()
    partial: bool = False

    def __post_init__(self) -> None:
        sizes = (self.capacity, self.used, self.running_tokens, self.offload_free, self.waiting_tokens)
        if self.bytes_per_token <= 0 or min(sizes) < 0:
            raise InvalidValue("a tier with negative sizes", remedy="take them from the engine's metrics")

    def can_offload(self, tokens: int) -> bool:
        return self.swap is not None and tokens * self.bytes_per_token <= self.offload_free


@dataclass(frozen=True, slots=True, kw_only=True)
class KvDecision:
    """``ttl``: of a KEEP, seconds after which ``expired`` is asked; None: until pressure. ``evidence``: the numbers.

    ``tokens``: of an OFFLOAD or DROP, only so many, from the end of the context (None: all); only where the tier is
    ``partial``. An OFFLOAD takes the last ones in the pool, a DROP those outside first.
    """

    session: str
    action: KvAction
    why: str
    ttl: float | None = None
    tokens: int | None = None
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Fetch a session's offloaded KV ``after`` seconds from now (0: at once), if its call still runs then."""

    session: str
    after: float
    why: str
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A turn that waits to run. ``tokens``: of KV that it needs in the pool, those that it has there included.

    ``waited``: seconds in the queue. ``priority``: 0 to 100, higher first.
    """

    session: str
    tokens: int
    waited: float = 0.0
    priority: int = 50
    where: Place = Place.DROPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Whether a new session may begin now. Where it may not: ask again when a turn or a session has ended."""

    admitted: bool
    why: str
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostHint:
    """What the host should know of a session's tool call.

    ``urgency``: -1 to 1; above 0: run it first, its KV holds up others; below 0: it can yield, its turn would
    queue anyway.
    ``slack``: seconds that it can lose without delaying its session.
    """

    session: str
    urgency: float
    slack: float
    why: str
    evidence: Mapping[str, float] = field(default_factory=dict)


class KvPolicy(Protocol):
    """Keeps no state: the same view gives the same decision, live and in the simulator."""

    @property
    def name(self) -> str: ...

    def at_pause(self, pause: Pause, tier: Tier) -> KvDecision:
        """A tool call begins."""
        ...

    def expired(self, pause: Pause, tier: Tier) -> KvDecision:
        """The time to live of a kept session has passed, and its call still runs."""
        ...

    def under_pressure(self, pauses: Sequence[Pause], tier: Tier, need: int) -> tuple[KvDecision, ...]:
        """Make room for ``need`` tokens: whom to put out, in order, until it is enough. Kept ones are not named.

        ``pauses`` may hold offloaded ones, too: to drop one of those makes room for what is offloaded after it, and
        counts nothing towards ``need``.
        """
        ...

    def before_return(self, pause: Pause, tier: Tier) -> Restore | None:
        """A paused session's KV lies outside of the pool: when to fetch it. None: when its call has ended."""
        ...

    def order(self, waiting: Sequence[Waiting], tier: Tier) -> tuple[str, ...]:
        """All sessions of ``waiting``, in the order in which their turns should run."""
        ...

    def admit(self, need: int, tier: Tier) -> Admission:
        """A new session, whose first turn needs ``need`` tokens of KV."""
        ...

    def hints(self, pauses: Sequence[Pause], tier: Tier) -> tuple[HostHint, ...]:
        """Those tool calls that the host should run earlier or later than it would. Others are not named."""
        ...


class Defaults:
    """First come, first served; everyone is admitted; KV comes back when it is needed; the host is told nothing."""

    __slots__ = ()

    def before_return(self, pause: Pause, tier: Tier) -> Restore | None:
        return None

    def order(self, waiting: Sequence[Waiting], tier: Tier) -> tuple[str, ...]:
        return tuple(one.session for one in sorted(waiting, key=lambda one: (-one.waited, one.session)))

    def admit(self, need: int, tier: Tier) -> Admission:
        return Admission(admitted=True, why="this policy admits all")

    def hints(self, pauses: Sequence[Pause], tier: Tier) -> tuple[HostHint, ...]:
        return ()
