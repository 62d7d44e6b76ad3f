"""Slowing a call and letting it go, with the record of it. What the ladder's steps THROTTLE and RELAX come down to."""

from __future__ import annotations

from dataclasses import replace

from controller.backend import Squeezed
from controller.model import Action, Squeeze
from controller.policy.text import human_bytes
from controller.registry import Call, now
from controller.shared import Shared


def throttle(
    shared: Shared, call: Call, squeeze: Squeeze, *, policy: str, evidence: dict[str, float] | None = None
) -> Squeezed:
    """Slows a running call, or slows it differently. A decision is put on record when something came of it.

    ``squeeze.since`` is set here. What was applied is in ``call.squeeze``, too; raises NoSuchGroup where it is gone."""
    since = call.squeeze.since if call.squeeze is not None else now()
    was = call.squeeze
    done = shared.backend.squeeze(call.ref, replace(squeeze, since=since))
    call.squeeze = done.applied
    if done.applied is not None and done.applied != was:
        shared.decide(
            call,
            Action.THROTTLE,
            policy,
            f"{squeeze.reason or 'slowed'}: {describe(done.applied)}",
            evidence={**_numbers(done.applied), **(evidence or {})},
        )
    elif done.applied is None and was is not None:
        call.squeezed_seconds += now() - was.since
    shared.remember(call)
    shared.publish(call)
    return done


def relax(shared: Shared, call: Call, *, policy: str, reason: str) -> Squeezed:
    """Puts back what the call's grant says."""
    was = call.squeeze
    if was is None:
        return Squeezed(None)
    done = shared.backend.squeeze(call.ref, None)
    call.squeeze = None
    lasted = now() - was.since
    call.squeezed_seconds += lasted
    shared.decide(call, Action.RELAX, policy, reason, evidence={"squeezed_seconds": round(lasted, 3)})
    shared.remember(call)
    shared.publish(call)
    return done


def end_squeeze(call: Call) -> None:
    """The call has ended: its time under the squeeze is closed, what was in force goes with its leaf."""
    if call.squeeze is not None:
        call.squeezed_seconds += now() - call.squeeze.since
        call.squeeze = None


def describe(squeeze: Squeeze) -> str:
    """``memory above 1 GiB is reclaimed, CPU weight 10``: for people and language models."""
    parts = []
    if squeeze.memory_high is not None:
        parts.append(f"memory above {human_bytes(squeeze.memory_high)} is reclaimed")
    if squeeze.cpu_max is not None:
        parts.append(f"{squeeze.cpu_max:g} CPU cores")
    if squeeze.cpu_weight is not None:
        parts.append(f"CPU weight {squeeze.cpu_weight}")
    if squeeze.io_weight is not None:
        parts.append(f"I/O weight {squeeze.io_weight}")
    if squeeze.egress_bytes_per_second is not None:
        parts.append(f"{human_bytes(squeeze.egress_bytes_per_second)}/s out to the network")
    return ", ".join(parts) or "nothing"


def _numbers(squeeze: Squeeze) -> dict[str, float]:
    """Named as controller.policy.done.SQUEEZES has it."""
    named = {
        "memory_high_bytes": squeeze.memory_high,
        "cpu_cores": squeeze.cpu_max,
        "cpu_weight": squeeze.cpu_weight,
        "io_weight": squeeze.io_weight,
        "egress_bytes_per_second": squeeze.egress_bytes_per_second,
    }
    return {name: float(value) for name, value in named.items() if value is not None}
