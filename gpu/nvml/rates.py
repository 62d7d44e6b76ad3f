"""What happened between two samples, and who caused it. Pure functions.

The driver gives an energy counter for the device and shares for processes; what one process cost is computed from both:

    GPU-seconds = its SM share x the interval
    joules      = the device's joules x its SM share

Where shares add up to more than one (the driver averages over windows of its own) they are scaled down to one. What no
process used is charged to nobody (owner None), so that the parts always add up to the device's total: idle power is the
operator's, not the last process's that happened to run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpu.nvml.types import DeviceSample, DeviceState, NvmlSample, present

Owner = TypeVar("Owner", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """Between two samples of one device. None: the driver does not tell."""

    uuid: str
    seconds: float
    joules: float | None
    watts: float | None  # average over the interval
    gpu_seconds: float | None  # time in which processes kept the SMs busy
    context_switches_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage(Generic[Owner]):
    """What one owner used; ``owner`` None: nobody's (idle), or processes that are not ours."""

    owner: Owner | None
    gpu_seconds: float = 0.0
    joules: float = 0.0
    memory_bytes: int = 0  # held at the second sample
    byte_seconds: float = 0.0  # memory held x the interval


def rates(before: DeviceSample, after: DeviceSample) -> DeviceRates | None:
    """None where the two cannot be compared: another device, one of them lost, or no time between them."""
    seconds = (after.at_nsec - before.at_nsec) / 1e9
    if before.uuid != after.uuid or seconds <= 0 or not _well(before) or not _well(after):
        return None
    joules = _joules(before, after, seconds)
    shares = present(after.shares)
    switches = present(after.context_switches)
    requests = None if switches is None else [one.requests for one in switches if one.requests is not None]
    return DeviceRates(
        uuid=after.uuid,
        seconds=seconds,
        joules=joules,
        watts=None if joules is None else joules / seconds,
        gpu_seconds=None if shares is None else min(1.0, sum(share.sm for share in shares)) * seconds,
        context_switches_per_second=sum(requests) / seconds if requests else None,
    )


def _well(sample: DeviceSample) -> bool:
    return sample.state is DeviceState.OK and bool(sample.uuid)


def _joules(before: DeviceSample, after: DeviceSample, seconds: float) -> float | None:
    first, last = present(before.energy), present(after.energy)
    if first is not None and last is not None:
        # The counter starts anew with the driver: a smaller value says nothing about this interval.
        return last - first if last >= first else None
    # Before Volta there is no counter: power at both ends is the best there is.
    powers = [power for power in (present(before.power), present(after.power)) if power is not None]
    return sum(powers) / len(powers) * seconds if powers else None


def charge(
    before: DeviceSample, after: DeviceSample, owner_of: Callable[[int], Owner | None]
) -> tuple[Usage[Owner], ...]:
    """Who used this device between the two samples.

    :param owner_of: pid (in the host's pid namespace, as the driver reports it) to its owner; None: not ours
    :returns: one entry per owner; the one with owner None carries the rest. Empty where ``rates`` gives None.
    """
    between = rates(before, after)
    if between is None:
        return ()
    busy: defaultdict[Owner | None, float] = defaultdict(float)
    for share in present(after.shares) or ():
        busy[owner_of(share.pid)] += share.sm
    total = sum(busy.values())
    scale = 1.0 / total if total > 1.0 else 1.0
    memory = memory_by_owner(after, owner_of)
    joules = between.joules or 0.0
    used: dict[Owner | None, Usage[Owner]] = {}
    for owner in {*busy, *memory, None}:
        share_of_owner = busy.get(owner, 0.0) * scale
        charged = share_of_owner
        if owner is None:
            charged += max(0.0, 1.0 - total * scale)  # idle energy
        held = memory.get(owner, 0)
        used[owner] = Usage(
            owner=owner,
            gpu_seconds=share_of_owner * between.seconds,
            joules=joules * charged,
            memory_bytes=held,
            byte_seconds=held * between.seconds,
        )
    return tuple(used.values())


def memory_by_owner(sample: DeviceSample, owner_of: Callable[[int], Owner | None]) -> dict[Owner | None, int]:
    """Bytes that each owner's processes hold. A process with a compute and a graphics context counts once."""
    held: dict[tuple[int, int | None, int | None], int] = {}
    for process in present(sample.processes) or ():
        if process.bytes is not None:
            # The driver reports the same total for both contexts of one process; MIG instances are apart.
            place = (process.pid, process.gpu_instance_id, process.compute_instance_id)
            held[place] = max(held.get(place, 0), process.bytes)
    totals: defaultdict[Owner | None, int] = defaultdict(int)
    for (pid, _, _), size in held.items():
        totals[owner_of(pid)] += size
    return dict(totals)


def pairs(before: NvmlSample, after: NvmlSample) -> Iterable[tuple[DeviceSample, DeviceSample]]:
    """Devices that are in both samples, matched by UUID: indexes move when a device goes."""
    earlier = {device.uuid: device for device in before.devices if device.uuid}
    for device in after.devices:
        if device.uuid in earlier:
            yield earlier[device.uuid], device


def charge_all(
    before: NvmlSample, after: NvmlSample, owner_of: Callable[[int], Owner | None]
) -> tuple[Usage[Owner], ...]:
    """``charge`` summed over all devices."""
    total: dict[Owner | None, Usage[Owner]] = {}
    for first, last in pairs(before, after):
        for usage in charge(first, last, owner_of):
            had = total.get(usage.owner, Usage(owner=usage.owner))
            total[usage.owner] = Usage(
                owner=usage.owner,
                gpu_seconds=had.gpu_seconds + usage.gpu_seconds,
                joules=had.joules + usage.joules,
                memory_bytes=had.memory_bytes + usage.memory_bytes,
                byte_seconds=had.byte_seconds + usage.byte_seconds,
            )
    return tuple(total.values())
