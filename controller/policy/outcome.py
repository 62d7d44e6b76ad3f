"""How a call ended, proven from records, and the paragraph that tells its agent. Pure.

The cause is never guessed from an exit status: 137 alone says only that something sent SIGKILL. A kill is ours when we
made it, the kernel's when the group's own counters say so, and else whoever's: ``signalled``.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from controller.model import Action, Decision, Grant, Intent, Reason, Usage
from controller.policy.text import human_bytes, human_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What is known of the end of one call. Counts are of the call's own leaf, since its begin."""

    wait_status: int | None
    killed_as: Reason | None  # set when we ended it, with why
    oom_kills: int  # by the call's own limit
    oom_tenant_kills: int  # in this leaf, by a limit above it
    oom_host_kills: int  # in this leaf, because the host ran out
    pids_refused: int
    connects_refused: int
    launcher_lost: bool
    decisions: Sequence[Decision]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    reason: Reason
    summary: str
    suggestions: tuple[str, ...]


def reason_of(proof: Proof) -> Reason:
    """The strongest proven cause. A call that ended well in spite of a refusal has ``exited``."""
    if proof.killed_as is not None:
        return proof.killed_as
    status = proof.wait_status
    died_badly = status is None or status != 0
    if died_badly:
        for count, reason in (
            (proof.oom_kills, Reason.OOM_CALL),
            (proof.oom_tenant_kills, Reason.OOM_TENANT),
            (proof.oom_host_kills, Reason.OOM_HOST),
        ):
            if count:
                return reason
    if proof.launcher_lost:
        return Reason.CANCELLED
    if status is None:
        return Reason.UNKNOWN
    if status == 0:
        return Reason.BRAKED if _was_braked(proof.decisions) else Reason.EXITED
    if proof.pids_refused:
        return Reason.PIDS_LIMIT
    if proof.connects_refused:
        return Reason.NETWORK_DENIED
    if _signal_of(status):
        return Reason.SIGNALLED
    return Reason.BRAKED if _was_braked(proof.decisions) else Reason.FAILED


def explain(
    *, intent: Intent, grant: Grant, usage: Usage, proof: Proof, wall_seconds: float, held_seconds: float
) -> Explanation:
    """The reason, one paragraph (empty when nothing was done to the call), and suggestions, from the numbers alone."""
    reason = reason_of(proof)
    peak = usage.memory_peak or 0
    sentences: list[str] = []
    suggestions: list[str] = []
    name = f"The {intent.tool!r} call" if intent.tool else "The call"
    match reason:
        case Reason.OOM_CALL:
            sentences.append(
                f"{name} was killed by the kernel when it reached its memory limit of "
                f"{_bytes(grant.limits.memory_max)}."
            )
            suggestions += _memory_advice(peak, grant)
        case Reason.OOM_TENANT:
            sentences.append(f"{name} was killed by the kernel because its tenant as a whole ran out of memory.")
            suggestions.append("run fewer calls at once, or ask the operator for a higher ceiling")
        case Reason.OOM_HOST:
            sentences.append(f"{name} was killed by the kernel because the whole host ran out of memory.")
            suggestions.append("retry later; declare memory_peak so that the call can be held in time")
        case Reason.BRAKE_KILLED:
            sentences.append(f"{name} was stopped at its memory threshold and then ended: it {_why_killed(proof)}.")
            suggestions += _memory_advice(peak, grant)
        case Reason.PRESSURE_KILLED:
            sentences.append(f"{name} was ended for lack of memory, at no fault of its own: it {_why_killed(proof)}.")
            suggestions.append("begin it again: it will wait for its turn; or do the work in smaller pieces")
        case Reason.BUDGET_EXHAUSTED:
            sentences.append(f"{name} was ended because a budget is used up: {_why_killed(proof)}.")
            suggestions.append("do less at once, finish with what there is, or ask the operator for more")
        case Reason.OPERATOR_KILLED:
            sentences.append(f"{name} was ended by an operator.")
        case Reason.TIMEOUT:
            sentences.append(
                f"{name} was ended because it reached the deadline of {human_seconds(intent.deadline or 0.0)} that it "
                "declared."
            )
            suggestions.append("declare a longer deadline, or split the work")
        case Reason.CANCELLED:
            sentences.append(f"{name} was ended because the process that started it went away.")
        case Reason.PIDS_LIMIT:
            sentences.append(
                f"{name} failed; {proof.pids_refused} times it could not start a process: its limit is "
                f"{grant.limits.pids_max} at once."
            )
            suggestions.append(f"start fewer processes at once, or declare more than {grant.limits.pids_max} (pids)")
        case Reason.NETWORK_DENIED:
            sentences.append(
                f"{name} failed; {proof.connects_refused} connections were refused: its intent allows "
                + ("no network." if intent.network.value == "none" else "only the destinations that it listed.")
            )
            suggestions.append("declare the destinations that the call needs (network, egress)")
        case _:
            pass
    sentences += _what_was_done(proof, held_seconds, name if not sentences else "It", usage, grant)
    if not sentences:
        return Explanation(reason=reason, summary="", suggestions=())
    if reason not in {Reason.CANCELLED, Reason.OPERATOR_KILLED} and intent.memory_peak and peak > intent.memory_peak:
        declared = human_bytes(intent.memory_peak)
        sentences.append(f"It declared a peak of {declared} and used up to {human_bytes(peak)}.")
        if not suggestions:
            suggestions.append(f"declare a memory peak of about {human_bytes(peak * 1.1)} next time")
    sentences.append(
        f"It ran {human_seconds(wall_seconds)} and used {human_seconds(usage.cpu_usec / 1e6)} of CPU"
        + (f" and at most {human_bytes(peak)} of memory." if peak else ".")
    )
    if suggestions:
        sentences.append("What to try: " + "; ".join(suggestions) + ".")
    return Explanation(reason=reason, summary=" ".join(sentences), suggestions=tuple(suggestions))


def _what_was_done(proof: Proof, held: float, subject: str, usage: Usage, grant: Grant) -> list[str]:
    sentences = []
    brakes = sum(1 for d in proof.decisions if d.action is Action.BRAKE)
    raises = sum(1 for d in proof.decisions if d.action is Action.RAISE)
    if brakes:
        first = next(d for d in proof.decisions if d.action is Action.BRAKE)
        at = human_bytes(first.evidence.get("brake_bytes", grant.tripwire.brake or 0))
        again = f" {brakes} times, the first" if brakes > 1 else ""
        sentences.append(f"{subject} was stopped{again} when it used {at}, and held for {human_seconds(held)} in all.")
        if raises:
            times = "once" if raises == 1 else f"{raises} times"
            sentences.append(f"There was room, so its threshold was raised {times} and it went on.")
    elif any(d.action is Action.FREEZE for d in proof.decisions):
        sentences.append(f"{subject} was held for {human_seconds(held)} by an operator.")
    survived_ooms = proof.oom_kills if proof.killed_as is None and proof.wait_status == 0 else 0
    if survived_ooms:
        sentences.append(f"{survived_ooms} of its processes were killed at its memory limit.")
    return sentences


def _why_killed(proof: Proof) -> str:
    return next((d.reason for d in reversed(proof.decisions) if d.action is Action.KILL), "was in the way of others")


def _memory_advice(peak: int, grant: Grant) -> list[str]:
    granted = grant.limits.memory_max or grant.tripwire.brake or 0
    return [
        "do the work in smaller pieces or with fewer workers",
        f"or declare a memory peak above {human_bytes(max(peak, granted))}",
    ]


def _was_braked(decisions: Sequence[Decision]) -> bool:
    return any(d.action is Action.BRAKE for d in decisions)


def _signal_of(status: int) -> int:
    """The number of the signal in a wait status, 0 for a normal exit (the layout of wait(2))."""
    return status & 0x7F


def signal_name(status: int) -> str:
    """``SIGTERM`` for a wait status that says so; empty for a normal exit."""
    number = _signal_of(status)
    if not number:
        return ""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _bytes(value: int | None) -> str:
    return human_bytes(value) if value is not None else "none of its own"
