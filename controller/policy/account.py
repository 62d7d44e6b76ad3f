"""Who has what of the host's memory while a round of decisions is made: what is given to one is no longer there for
the next. The one mutable thing in the policies; it lives for one round."""

from __future__ import annotations

from typing import Final

from controller.model import CallId
from controller.policy.settings import ControlConfig
from controller.state import CallFacts, Stage, State

_LEAST_GROWTH: Final = 8 * 1024 * 1024  # bytes
_FEW: Final = 4  # calls that might grow at the same moment, at the least
_MARGIN: Final = 16 * 1024 * 1024  # bytes: the overshoot of some processes with a huge page each


def margin(hard_limit: int) -> int:
    """Kept free below a hard limit, but no more than a share of a small one. Bytes."""
    return min(_MARGIN, hard_limit // 16)


def stock(threshold: int) -> int:
    """How far below its threshold a call that was stopped there may be found, though it freed nothing: the kernel
    charges ahead, 64 pages a CPU (MEMCG_CHARGE_BATCH), and may take that back while the call stands. A share of the
    threshold, as a small call is on few CPUs. Bytes."""
    return min(_MARGIN, max(_MARGIN // 16, threshold // 32), threshold // 8)


def unwatched_growth(free: int, watched: int) -> int:
    """How far one of ``watched`` calls without a threshold, or agents, may grow until somebody looks: so little that
    not even all of them together use up the ``free`` memory before. Bytes."""
    return max(_LEAST_GROWTH, max(0, free) // (2 * max(_FEW, watched + 1)))


class Account:
    """``reserved``: of each begun call, what it uses or may use without asking."""

    def __init__(self, state: State, config: ControlConfig) -> None:
        self.state = state
        self.config = config
        self.reserved: dict[CallId, int] = {c.id: c.reserved for c in state.calls if c.begun}
        self.free = state.free
        ceilings = {t.id: t.memory_max - t.agents for t in state.tenants.values() if t.memory_max is not None}
        for call in state.calls:
            if call.tenant_id in ceilings and call.begun:
                ceilings[call.tenant_id] -= call.reserved
        self._tenant_free = ceilings
        parked = sum(c.usage for c in state.calls if c.stage is Stage.PARKED)
        self._most = max(0, state.capacity - state.agents - state.agents_growth - parked)
        self._claims = {c.id: self.claim(c) for c in state.calls if c.stage is not Stage.PARKED}

    def room(self, call: CallFacts, reserve: int = 0) -> int:
        """What may be given to ``call`` beyond what it has: the tightest of host, tenant and its own hard limit.
        ``reserve``: bytes of the host's reserve that may be used for it; it loosens neither of the other two."""
        free = self.free + reserve
        room = min(free, self._tenant_free.get(call.tenant_id, free))
        if call.hard_limit is not None:
            room = min(room, call.hard_limit - self.reserved.get(call.id, 0))
        return max(0, room)

    def room_to_grow(self, call: CallFacts, reserve: int = 0) -> int:
        """As ``room``, for a call that was stopped: below its hard limit a margin stays free, so that its last stop is
        the brake's, which can explain, and not the OOM killer's."""
        room = self.room(call, reserve)
        if call.hard_limit is not None:
            room = min(room, call.hard_limit - margin(call.hard_limit) - self.reserved.get(call.id, 0))
        return max(0, room)

    def tenant_room(self, call: CallFacts) -> int | None:
        return self._tenant_free.get(call.tenant_id)

    def change(self, call: CallFacts, reserved: int) -> None:
        """From now on ``call`` has ``reserved``."""
        more = reserved - self.reserved.get(call.id, 0)
        self.reserved[call.id] = reserved
        self.free -= more
        if call.tenant_id in self._tenant_free:
            self._tenant_free[call.tenant_id] -= more

    def drop(self, call: CallFacts) -> None:
        """``call`` is being ended: its memory will be free, and is counted as such in this round."""
        self.change(call, 0)
        del self.reserved[call.id]

    def safe(self) -> bool:
        """Whether the begun calls can all end, one after the other, each getting what it claims: Dijkstra's banker
        (EWD 623) for one resource, where trying the smallest remaining claim first decides it. Claims are forecasts,
        so this avoids most deadlocks, not all; the ladder ends the others."""
        reserved, claims = self.reserved, self._claims
        work = self.free
        for more, held in sorted([(claims[i] - held, held) for i, held in reserved.items() if i in claims]):
            if more > work:
                return False
            work += held
        return True

    def claim(self, call: CallFacts) -> int:
        """What it must be able to get: never more than there could ever be, or a lone call would be unsafe."""
        claim = min(max(call.need.claim, call.usage), self._most)
        return min(claim, call.hard_limit) if call.hard_limit is not None else claim
