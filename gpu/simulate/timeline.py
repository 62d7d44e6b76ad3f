"""What happened in a run, as far as the offline optimum must know it: when KV lay idle, and what room there was."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class IdleKv:
    """A session's KV between two turns: from one's end until the next one was admitted.

    ``computed``: seconds to compute it again. ``moved``: seconds to copy it out and in; infinite: it cannot be.
    """

    begin: float
    end: float
    tokens: int
    computed: float
    moved: float


@dataclass(slots=True)
class Timeline:
    """``room``: (time, tokens of the pool that no running turn held), at each admission.

    ``unavoidable``: seconds of prefill for what no cache can hold: each token of a prompt once.
    """

    capacity: int
    host_tokens: float  # room for offloaded KV
    room: list[tuple[float, int]] = field(default_factory=list)
    idle: list[IdleKv] = field(default_factory=list)
    unavoidable: float = 0.0
