"""What was done to a call on its way, how long and why: sentences for its outcome. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from controller.model import Action, Decision, Grant
from controller.policy.text import human_bytes, human_seconds

# In the evidence of a decision that slowed a call: see controller.throttle.
SQUEEZES: Final = frozenset({"memory_high_bytes", "cpu_cores", "cpu_weight", "io_weight", "egress_bytes_per_second"})
LONG_WAIT: Final = 5.0  # seconds in the queue from which on it is worth a word to an agent whose call went well


def done(
    decisions: Sequence[Decision], *, subject: str, grant: Grant, held: float, squeezed: float, queued: float
) -> list[str]:
    """``subject``: how the first sentence begins. Seconds: ``held`` by anybody, ``squeezed``, ``queued`` before it
    began. Empty when nothing was done to the call."""
    said = (
        _queued(decisions, queued),
        _braked(decisions, grant, held),
        _frozen(decisions, held),
        _throttled(decisions, squeezed),
    )
    sentences = [sentence for sentence in said if sentence]
    return [f"{'It' if i else subject} {sentence}" for i, sentence in enumerate(sentences)]


def _of(decisions: Sequence[Decision], action: Action) -> list[Decision]:
    return [d for d in decisions if d.action is action]


def _queued(decisions: Sequence[Decision], queued: float) -> str:
    if queued < LONG_WAIT:
        return ""
    why = next((d.reason for d in decisions if d.action is Action.QUEUE), "")
    return f"waited {human_seconds(queued)} in the queue before it began" + (f": {why}." if why else ".")


def _braked(decisions: Sequence[Decision], grant: Grant, held: float) -> str:
    brakes = _of(decisions, Action.BRAKE)
    if not brakes:
        return ""
    at = human_bytes(brakes[0].evidence.get("brake_bytes", grant.tripwire.brake or 0))
    again = f" {len(brakes)} times, the first" if len(brakes) > 1 else ""
    stopped = f"was stopped{again} when it used {at}, and held for {human_seconds(held)} in all."
    raises = len(_of(decisions, Action.RAISE))
    if not raises:
        return stopped
    times = "once" if raises == 1 else f"{raises} times"
    return f"{stopped} There was room, so its threshold was raised {times} and it went on."


def _frozen(decisions: Sequence[Decision], held: float) -> str:
    freezes = _of(decisions, Action.FREEZE)
    if not freezes:
        return ""
    by_operator = freezes[0].reason == "frozen by an operator"
    why = "by an operator" if by_operator else f"({freezes[0].reason})"
    if _of(decisions, Action.BRAKE):
        return f"was frozen as well, {why}."
    again = f", {len(freezes)} times" if len(freezes) > 1 else ""
    return f"was held for {human_seconds(held)}{again} {why}."


def _throttled(decisions: Sequence[Decision], squeezed: float) -> str:
    # the ladder also throttles by a lower threshold alone, which slows nobody who does not meet it
    throttles = [d for d in _of(decisions, Action.THROTTLE) if squeezed > 0 or SQUEEZES & d.evidence.keys()]
    if not throttles:
        return ""
    how_long = f" for {human_seconds(squeezed)}" if squeezed > 0 else ""
    again = f", {len(throttles)} times," if len(throttles) > 1 else ""
    return f"was slowed{how_long}{again} ({throttles[0].reason})."
