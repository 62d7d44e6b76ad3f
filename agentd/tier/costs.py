"""What is learned of engines and tools while the daemon runs: how fast KV is computed and moved, how long tools take.

Until something was measured, the rates of the configuration are believed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from agentd.config import EngineSection
from controller.model import CallView, Intent, Reason
from gpu.cost import ForwardModel, SwapModel, fit_forward
from gpu.engines import KvMoved

_TURNS: Final = 64  # prefills that the forward model is fitted to
_LEAST_TURNS: Final = 4
_REFIT: Final = 8  # turns between two fits
_MOVES: Final = 32
_WAITS: Final = 100  # as Continuum's mean queueing delay
_MOVE_LATENCY: Final = 0.002  # seconds, until moves tell

_ENDED_BY_ITSELF: Final = frozenset(
    {Reason.EXITED, Reason.FAILED, Reason.BRAKED, Reason.PIDS_LIMIT, Reason.NETWORK_DENIED}
)
_KEPT: Final = 128  # durations of each kind
_ENOUGH: Final = 8  # for a kind to be believed
_MOST_KINDS: Final = 4096  # agents choose the names of their tools


class EngineCosts:
    """Of one engine."""

    def __init__(self, section: EngineSection) -> None:
        self._guess = ForwardModel(b=1.0 / section.prefill_rate)
        self._swap_guess = SwapModel(bytes_per_second=section.move_rate, latency=_MOVE_LATENCY)
        self._prefills: deque[tuple[float, float]] = deque(maxlen=_TURNS)
        self._moves: deque[tuple[int, float]] = deque(maxlen=_MOVES)
        self._waits: deque[float] = deque(maxlen=_WAITS)
        self._fitted: ForwardModel | None = None
        self._since_fit = 0

    def prefilled(self, tokens: int, seconds: float) -> None:
        if tokens <= 0 or seconds <= 0:
            return
        self._prefills.append((float(tokens), seconds))
        self._since_fit += 1
        if len(self._prefills) >= _LEAST_TURNS and (self._fitted is None or self._since_fit >= _REFIT):
            self._since_fit = 0
            self._fitted = fit_forward(tuple(self._prefills)) or self._fitted

    def waited(self, seconds: float) -> None:
        self._waits.append(max(0.0, seconds))

    def moved(self, moved: KvMoved) -> None:
        if moved.bytes and moved.seconds > 0:
            self._moves.append((moved.bytes, moved.seconds))

    @property
    def forward(self) -> ForwardModel:
        return self._fitted or self._guess

    @property
    def swap(self) -> SwapModel:
        """One way, by the lower quartile of the moves; their fixed part is in it, in proportion to the bytes.

        Some had to wait for a busy engine. With the mean, a few of those would make copies look dearer than computing
        anew; as none would be made then, nothing would ever correct that.
        """
        if not self._moves:
            return self._swap_guess
        rates = sorted(seconds / size for size, seconds in self._moves)
        return SwapModel(bytes_per_second=1 / rates[len(rates) // 4])

    @property
    def queueing(self) -> float:
        return sum(self._waits) / len(self._waits) if self._waits else 0.0


class Durations:
    """How long calls took that ended by themselves, by tenant, tool and class, then wider."""

    def __init__(self) -> None:
        self._by_kind: dict[tuple[str, ...], deque[float]] = {}

    def learn(self, call: CallView) -> None:
        outcome = call.outcome
        if outcome is None or outcome.reason not in _ENDED_BY_ITSELF:
            return
        seconds = max(0.0, outcome.wall_seconds)  # with holds: the model waits for those, too
        for kind in _kinds(call.tenant_id, call.intent):
            kept = self._by_kind.pop(kind, None)
            if kept is None:
                kept = deque(maxlen=_KEPT)
                if len(self._by_kind) >= _MOST_KINDS:
                    self._by_kind.pop(next(iter(self._by_kind)))
            kept.append(seconds)
            self._by_kind[kind] = kept  # the last: what was used last goes last

    def of(self, tenant_id: str, intent: Intent) -> tuple[float, ...]:
        for kind in _kinds(tenant_id, intent):
            kept = self._by_kind.get(kind)
            if kept is not None and len(kept) >= _ENOUGH:
                return tuple(kept)
        return ()


def _kinds(tenant_id: str, intent: Intent) -> Iterable[tuple[str, ...]]:
    yield ("tenant", tenant_id, intent.tool, intent.call_class)
    yield ("tool", intent.tool, intent.call_class)
    yield ("class", intent.call_class)
