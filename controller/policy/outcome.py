"""How a call ended, proven from records, and the paragraph that tells its agent. Pure.

The cause is never guessed from an exit status: 137 alone says only that something sent SIGKILL. A kill is ours when we
made it, the kernel's when the group's own counters say so, and else whoever's: ``signalled``.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from controller.model import Action, Decision, Grant, Intent, Reason, Usage
from controller.policy.advice import Expected, declared, memory_advice
from controller.policy.done import done
from controller.policy.text import human_bytes, human_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What is known of the end of one call. Counts are of the call's own leaf, since its begin."""

    wait_status: int | None
    killed_as: Reason | None  # set when we ended it, with why
    oom_kills: int  # by the call's own limit
    oom_tenant_kills: int  # in this leaf, by a limit above it
    oom_host_kills: int  # in this leaf, by no limit of the call, its session or its tenant: the host ran out
    pids_refused: int
    connects_refused: int
    launcher_lost: bool
    decisions: Sequence[Decision]
    oom_at_root: bool = False  # not the host's end, but a limit of the group that holds all of Corral
    no_space: int = 0  # writes that found the disk full, or a quota used up
    full_disk: str = ""  # which file system; without such a write: the one that has no room now, if it was in that
    packets_held: int = 0  # turned back because of an egress rate
    squeezed_seconds: float = 0.0
    queued_seconds: float = 0.0  # before it began


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
    if proof.no_space:
        return Reason.DISK_FULL
    if _signal_of(status):
        return Reason.SIGNALLED
    return Reason.BRAKED if _was_braked(proof.decisions) else Reason.FAILED


def explain(
    *,
    intent: Intent,
    grant: Grant,
    usage: Usage,
    proof: Proof,
    wall_seconds: float,
    held_seconds: float,
    expected: Expected | None = None,
) -> Explanation:
    """The reason, one paragraph (empty when nothing was done to the call), and suggestions, from the numbers alone:
    this call's, and (``expected``) what earlier ones like it came to."""
    reason = reason_of(proof)
    name = f"The {intent.tool!r} call" if intent.tool else "The call"
    case = _Case(intent, grant, usage, proof, expected)
    sentence, suggestions = _cause(reason, name, case)
    sentences = [sentence] if sentence else []
    peak = usage.memory_peak or 0
    subject = name if not sentences else "It"
    sentences += done(
        proof.decisions,
        subject=subject,
        grant=grant,
        held=held_seconds,
        squeezed=proof.squeezed_seconds,
        queued=proof.queued_seconds,
    )
    survived_ooms = proof.oom_kills if proof.killed_as is None and proof.wait_status == 0 else 0
    if survived_ooms:
        sentences.append(f"{survived_ooms} of its processes were killed at its memory limit.")
    if not sentences:
        return Explanation(reason=reason, summary="", suggestions=())
    if proof.packets_held:
        sentences.append(f"{proof.packets_held} of its packets were held back to keep to an egress rate.")
    if reason not in {Reason.CANCELLED, Reason.OPERATOR_KILLED} and intent.memory_peak and peak > intent.memory_peak:
        asked = human_bytes(intent.memory_peak)
        sentences.append(f"It declared a peak of {asked} and used up to {human_bytes(peak)}.")
        if not suggestions:
            suggestions.append(f"declare a memory peak of about {declared(peak)} next time")
    sentences.append(
        f"It ran {human_seconds(wall_seconds)} and used {human_seconds(usage.cpu_usec / 1e6)} of CPU"
        + (f" and at most {human_bytes(peak)} of memory." if peak else ".")
    )
    if suggestions:
        sentences.append("What to try: " + "; ".join(suggestions) + ".")
    return Explanation(reason=reason, summary=" ".join(sentences), suggestions=tuple(suggestions))


@dataclass(frozen=True, slots=True)
class _Case:
    intent: Intent
    grant: Grant
    usage: Usage
    proof: Proof
    expected: Expected | None

    @property
    def memory(self) -> list[str]:
        return memory_advice(self.usage.memory_peak or 0, self.grant, self.expected)


def _cause(reason: Reason, name: str, case: _Case) -> tuple[str, list[str]]:
    """What ended the call, in one sentence, and what to try; empty where it ended by itself."""
    proof, grant, intent = case.proof, case.grant, case.intent
    known = case.expected if case.expected is not None and case.expected.says_something else None
    match reason:
        case Reason.OOM_CALL:
            limit = _bytes(grant.limits.memory_max)
            return f"{name} was killed by the kernel when it reached its memory limit of {limit}.", case.memory
        case Reason.OOM_TENANT:
            advice = ["run fewer calls at once, or ask the operator for a higher ceiling"]
            if known is not None:
                advice.append(f"count with what such calls need: {known.describe()}")
            return f"{name} was killed by the kernel because its tenant as a whole ran out of memory.", advice
        case Reason.OOM_HOST:
            size = f" of about {declared(known.high)} ({known.describe()})" if known is not None else ""
            what = "all that Corral may use of this host" if proof.oom_at_root else "the whole host"
            return (
                f"{name} was killed by the kernel because {what} ran out of memory.",
                [f"retry later; declare memory_peak{size} so that the call can be held in time"],
            )
        case Reason.BRAKE_KILLED:
            return f"{name} was stopped at its memory threshold and then ended: it {_why_killed(proof)}.", case.memory
        case Reason.PRESSURE_KILLED:
            return (
                f"{name} was ended for lack of memory, at no fault of its own: it {_why_killed(proof)}.",
                ["begin it again: it will wait for its turn; or do the work in smaller pieces"],
            )
        case Reason.BUDGET_EXHAUSTED:
            return (
                f"{name} was ended because a budget is used up: {_why_killed(proof)}.",
                ["do less at once, finish with what there is, or ask the operator for more"],
            )
        case Reason.OPERATOR_KILLED:
            return f"{name} was ended by an operator.", []
        case Reason.TIMEOUT:
            limit = human_seconds(intent.deadline or 0.0)
            return (
                f"{name} was ended because it reached the deadline of {limit} that it declared.",
                ["declare a longer deadline, or split the work"],
            )
        case Reason.CANCELLED:
            return f"{name} was ended because the process that started it went away.", []
        case Reason.PIDS_LIMIT | Reason.NETWORK_DENIED | Reason.DISK_FULL | Reason.FAILED:
            return _failed(reason, name, case)
        case _:
            return "", []


def _failed(reason: Reason, name: str, case: _Case) -> tuple[str, list[str]]:
    """It ended by itself, and badly; and something that it asked for was not to be had."""
    proof = case.proof
    match reason:
        case Reason.PIDS_LIMIT:
            limit, times = str(case.grant.limits.pids_max), f"{proof.pids_refused} times"
            return (
                f"{name} failed; {times} it could not start a process: its limit is {limit} at once.",
                [f"start fewer processes at once, or declare more than {limit} (pids)"],
            )
        case Reason.NETWORK_DENIED:
            allowed = "no network" if case.intent.network.value == "none" else "only the destinations that it listed"
            return (
                f"{name} failed; {proof.connects_refused} connections were refused: its intent allows {allowed}.",
                ["declare the destinations that the call needs (network, egress)"],
            )
        case Reason.DISK_FULL:
            where = f": {proof.full_disk}" if proof.full_disk else ""
            writes = "a write of it" if proof.no_space == 1 else f"{proof.no_space} of its writes"
            return (
                f"{name} failed; {writes} found no space on the disk, or a quota used up{where}.",
                ["remove what is not needed there (build outputs, caches, downloads), or write elsewhere"],
            )
        case _ if proof.full_disk and _wrote(case.usage):
            return (
                f"{name} failed by itself. It may be for want of space, which was not watched: {proof.full_disk}.",
                ["look for 'No space left on device' in what it said; make room there and try again"],
            )
        case _:
            return "", []


def _why_killed(proof: Proof) -> str:
    return next((d.reason for d in reversed(proof.decisions) if d.action is Action.KILL), "was in the way of others")


def _wrote(usage: Usage) -> bool:
    return bool(usage.written_bytes or usage.disk_written_bytes)


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
