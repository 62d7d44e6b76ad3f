"""One round of control: the ladder for what has begun, then admission for what waits. Pure, and the same function live
and in the simulator."""

from __future__ import annotations

from dataclasses import replace

from controller.policy.account import Account
from controller.policy.admission import admit
from controller.policy.ladder import climb
from controller.policy.settings import ControlConfig
from controller.state import Stage, State, Step


def decide(state: State, config: ControlConfig) -> list[Step]:
    """What is to be done now, in order. The same state and settings give the same steps, whatever the order of the
    calls in the state."""
    ordered = state if _is_ordered(state) else _ordered(state)
    account = Account(ordered, config)
    steps = climb(ordered, config, account)
    if any(c.stage is Stage.WAITING for c in ordered.calls):
        steps += admit(ordered, config, account)
    return steps


def _is_ordered(state: State) -> bool:
    calls = state.calls
    return all(calls[i].id < calls[i + 1].id for i in range(len(calls) - 1))


def _ordered(state: State) -> State:
    return replace(state, calls=tuple(sorted(state.calls, key=lambda c: c.id)))
