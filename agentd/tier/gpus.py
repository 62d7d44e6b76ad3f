"""GPUs on a beat: read in a thread of their own, their processes mapped to calls, what they used charged.

Reading keeps to its share of one core: the interval is stretched where a round costs more. A driver that hangs holds up
its thread alone; what is shown is then the last sample, and it says how old that is.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import structlog

from agentd.tier.view import DeviceView, GpuTotals, Owner, ProcessView
from agentd.tier.worker import Worker
from gpu.nvml import (
    Absent,
    DeviceInfo,
    DeviceSample,
    DeviceState,
    EventWatcher,
    GpuEvent,
    Nvml,
    NvmlSample,
    Usage,
    charge_all,
    present,
    rates,
)

_log: Final = structlog.get_logger("corral.gpus")

_FAULTS: Final = 16  # kept of each device
_LOOKED_UP_AT_ONCE: Final = 16  # processes: some 30 us each, between two turns of the event loop
_ABSENT_INTERVAL: Final = 30.0  # seconds between two looks for a driver or a GPU that is not there
_HANGING: Final = 10.0  # seconds after which a sample that has not come is said


class Charges(Protocol):
    """Who is charged. Both from the event loop."""

    def owner_of(self, pid: int, /) -> Owner | None: ...
    def charge(self, owner: Owner, /, *, memory_bytes: int, gpu_seconds: float, joules: float) -> None:
        """``memory_bytes`` held now; the others since the last time."""


class Gpus:
    """``start`` and ``stop`` on the event loop. ``enabled``: auto, on or off."""

    def __init__(
        self,
        charges: Charges,
        *,
        nvml: Callable[[], Nvml] = Nvml,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._charges = charges
        self._make = nvml
        self._clock = clock
        self._nvml: Nvml | None = None
        self._worker = Worker("corral-nvml")
        self._events: EventWatcher | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._enabled = "off"
        self._interval = 1.0
        self._share = 0.005
        self._last: NvmlSample | None = None
        self._before: NvmlSample | None = None
        self._owners: dict[int, Owner | None] = {}
        self._commands: dict[int, str] = {}
        self._holding: set[Owner] = set()  # who held GPU memory at the last sample
        self._first_energy: dict[str, float] = {}
        self._faults: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=_FAULTS))
        self._tenants: dict[str, GpuTotals] = {}
        self._asked_at: float | None = None
        self.cost = 0.0  # seconds of CPU of the last round
        self.rounds = 0
        self.sampled = asyncio.Event()  # set at each round, for whoever waits for the next one

    # --- life --------------------------------------------------------------------------------------------------------

    async def configure(self, *, enabled: str, interval: float, share: float) -> None:
        """``share`` of one core that rounds may take."""
        self._interval, self._share = interval, share
        if (enabled == "off") != (self._enabled == "off"):
            await self.stop()
            if enabled != "off":
                self._start()
        self._enabled = enabled

    def _start(self) -> None:
        self._nvml = self._make()
        self._worker = Worker("corral-nvml")
        self._tasks = [asyncio.create_task(self._run(), name="gpus")]

    async def stop(self) -> None:
        """Does not wait for a driver that hangs."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        nvml, self._nvml = self._nvml, None
        events, self._events = self._events, None
        if events is not None:
            await events.close()
        if nvml is not None:
            closing = asyncio.ensure_future(self._worker.run(nvml.close))
            await asyncio.wait({closing}, timeout=1.0)
            closing.cancel()
        self._worker.close()
        self._last = self._before = None
        for owner in self._holding:
            self._charges.charge(owner, memory_bytes=0, gpu_seconds=0.0, joules=0.0)
        self._holding = set()

    async def _run(self) -> None:
        while True:
            try:
                await self._round()
            except Exception as err:  # a bug in reading one device must not end the reading of all
                _log.error("GPUs could not be sampled", error=f"{type(err).__name__}: {err}", exc_info=err)
            ready = self._last is not None and self._last.state.ready
            pause = self._interval if ready else max(self._interval, _ABSENT_INTERVAL)
            self.sampled.set()
            self.sampled = asyncio.Event()
            await asyncio.sleep(max(pause, self.cost / self._share))

    # --- one round ---------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        nvml = self._nvml
        if nvml is None:
            return
        self._asked_at = self._clock()
        sample, cost = await self._worker.run(lambda: _timed(nvml))
        self._asked_at = None
        started = time.thread_time()
        news = self._last is None or self._last.state.availability is not sample.state.availability
        if news:
            self._tell(sample)
        if sample.state.ready and self._events is None:
            self._follow(nvml)
        self._before, self._last = self._last, sample
        cost += time.thread_time() - started
        cost += await self._look_up(_pids(sample))
        started = time.thread_time()
        self._note_energy(sample)
        self._charge(sample)
        self.cost = cost + time.thread_time() - started
        self.rounds += 1

    def _tell(self, sample: NvmlSample) -> None:
        state = sample.state
        if state.ready:
            _log.info("GPUs found", devices=len(sample.devices))
        elif self._enabled == "on":
            _log.warning("no GPU can be used", why=state.message, remedy=state.remedy)
        else:
            _log.debug("no GPU", why=state.message)

    async def _look_up(self, pids: frozenset[int]) -> float:
        """Whose the processes are. What this costs, in seconds of CPU."""
        owners: dict[int, Owner | None] = {}
        commands: dict[int, str] = {}
        cost = 0.0
        ordered = sorted(pids)
        for start in range(0, len(ordered), _LOOKED_UP_AT_ONCE):
            started = time.thread_time()
            for pid in ordered[start : start + _LOOKED_UP_AT_ONCE]:
                owner = self._charges.owner_of(pid)
                if owner is None and not Path(f"/proc/{pid}").exists():
                    # it ended since: the driver still tells what it used, and it was somebody's
                    owner = self._owners.get(pid)
                owners[pid] = owner
                commands[pid] = self._commands.get(pid) or _command(pid)
            cost += time.thread_time() - started
            await asyncio.sleep(0)
        self._owners, self._commands = owners, commands
        return cost

    def _note_energy(self, sample: NvmlSample) -> None:
        for device in sample.devices:
            energy = present(device.energy)
            if energy is not None and device.uuid:
                first = self._first_energy.get(device.uuid)
                if first is None or energy < first:  # the driver was loaded anew: its counter began again
                    self._first_energy[device.uuid] = energy

    def _charge(self, sample: NvmlSample) -> None:
        held: set[Owner] = set()
        tenants = {name: replace(total, memory_bytes=0) for name, total in self._tenants.items()}
        for usage in self._usages(sample):
            if usage.owner is None:
                continue
            owner = usage.owner
            if usage.memory_bytes:
                held.add(owner)
            if usage.memory_bytes or usage.gpu_seconds or usage.joules or owner in self._holding:
                self._charges.charge(
                    owner, memory_bytes=usage.memory_bytes, gpu_seconds=usage.gpu_seconds, joules=usage.joules
                )
            had = tenants.get(owner.tenant_id, GpuTotals())
            tenants[owner.tenant_id] = GpuTotals(
                memory_bytes=had.memory_bytes + usage.memory_bytes,
                seconds=had.seconds + usage.gpu_seconds,
                joules=had.joules + usage.joules,
            )
        for owner in self._holding - held:
            self._charges.charge(owner, memory_bytes=0, gpu_seconds=0.0, joules=0.0)
        self._holding = held
        self._tenants = tenants

    def _usages(self, sample: NvmlSample) -> Iterable[Usage[Owner]]:
        if self._before is None or not self._before.state.ready:
            return ()
        return charge_all(self._before, sample, self._owners.get)

    # --- XID errors --------------------------------------------------------------------------------------------------

    def _follow(self, nvml: Nvml) -> None:
        self._events = watcher = EventWatcher(nvml)
        watcher.start()
        self._tasks.append(asyncio.create_task(self._hear(watcher), name="gpu events"))

    async def _hear(self, watcher: EventWatcher) -> None:
        async for event in watcher:
            self._fault(event)

    def _fault(self, event: GpuEvent) -> None:
        text = f"XID {event.xid}: {event.meaning}" if event.xid else event.meaning or str(event.kind)
        _log.warning("a GPU reports an error", gpu=event.index, uuid=event.uuid, error=text)
        self._faults[event.uuid or ""].append(text)

    # --- what is known -----------------------------------------------------------------------------------------------

    @property
    def availability(self) -> str:
        """gpu.nvml.Availability's word; "" while switched off."""
        if self._enabled == "off":
            return ""
        return str(self._last.state.availability) if self._last is not None else "closed"

    @property
    def detail(self) -> str:
        if self._enabled == "off":
            return "switched off (gpu.enabled)"
        if self._asked_at is not None and self._clock() - self._asked_at > _HANGING:
            return f"the driver has not answered for {self._clock() - self._asked_at:.0f} s; see dmesg and nvidia-smi"
        if self._last is None or self._last.state.ready:
            return ""
        state = self._last.state
        return f"{state.message}; {state.remedy}" if state.remedy else state.message

    @property
    def problem(self) -> str:
        """What an operator must know; "" where all is well, or no GPU was asked for."""
        detail = self.detail
        if self._enabled == "off" or not detail:
            return ""
        hangs = self._asked_at is not None and self._last is not None and self._last.state.ready
        return f"GPUs cannot be read: {detail}" if self._enabled == "on" or hangs else ""

    @property
    def tenants(self) -> Mapping[str, GpuTotals]:
        return self._tenants

    @property
    def share(self) -> float:
        """Of one core, that rounds take at the present interval."""
        return self.cost / max(self._interval, self.cost / self._share)

    def devices(self) -> tuple[DeviceView, ...]:
        if self._nvml is None or self._last is None:
            return ()
        infos = {info.uuid: info for info in self._nvml.devices}
        before = {} if self._before is None else {one.uuid: one for one in self._before.devices}
        found: list[DeviceView] = []
        for device in self._last.devices:
            found.append(self._device(device, infos.get(device.uuid), before.get(device.uuid)))
            for slice_ in present(device.mig) or ():
                found.append(
                    DeviceView(
                        index=slice_.index,
                        uuid=slice_.uuid,
                        name=f"MIG {slice_.gpu_instance_id}/{slice_.compute_instance_id}",
                        state=str(device.state),
                        memory_total=present(slice_.memory_total),
                        memory_used=present(slice_.memory_used),
                        parent_uuid=device.uuid,
                    )
                )
        return tuple(found)

    def _device(self, device: DeviceSample, info: DeviceInfo | None, before: DeviceSample | None) -> DeviceView:
        between = None if before is None else rates(before, device)
        energy, first = present(device.energy), self._first_energy.get(device.uuid)
        return DeviceView(
            index=device.index,
            uuid=device.uuid,
            name=(present(info.name) if info is not None else None) or "",
            state=str(device.state),
            detail=_why(device),
            memory_total=present(device.memory_total),
            memory_used=present(device.memory_used),
            sm_utilisation=present(device.sm_utilisation),
            memory_utilisation=present(device.memory_utilisation),
            power_watts=present(device.power),
            energy_joules=None if energy is None or first is None else energy - first,
            temperature=present(device.temperature),
            switches_per_second=None if between is None else between.context_switches_per_second,
            processes=self._processes(device),
            faults=tuple(self._faults.get(device.uuid, ())),
        )

    def _processes(self, device: DeviceSample) -> tuple[ProcessView, ...]:
        memory: dict[int, int | None] = {}
        for process in present(device.processes) or ():
            had = memory.get(process.pid)
            memory[process.pid] = process.bytes if had is None else max(had, process.bytes or 0)
        shares: defaultdict[int, float] = defaultdict(float)
        for share in present(device.shares) or ():
            shares[share.pid] += share.sm
        told = not isinstance(device.shares, Absent)
        return tuple(
            ProcessView(
                pid=pid,
                command=self._commands.get(pid, ""),
                owner=self._owners.get(pid),
                memory_bytes=memory.get(pid),
                sm_share=shares.get(pid, 0.0) if told else None,
            )
            for pid in sorted({*memory, *shares})
        )


def _timed(nvml: Nvml) -> tuple[NvmlSample, float]:
    started = time.thread_time()
    return nvml.sample_now(), time.thread_time() - started


def _pids(sample: NvmlSample) -> frozenset[int]:
    found: set[int] = set()
    for device in sample.devices:
        found |= {process.pid for process in present(device.processes) or ()}
        found |= {share.pid for share in present(device.shares) or ()}
    return frozenset(found)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
    except OSError:
        return ""  # it ended, or is in another pid namespace


def _why(device: DeviceSample) -> str:
    """In words, what cannot be read of a device that is otherwise well, or why it is not."""
    if device.state is not DeviceState.OK:
        reading = device.memory_used
        why = f" ({reading.call}, code {reading.code})" if isinstance(reading, Absent) else ""
        return f"{device.state}{why}; it is looked for again every 30 s, see dmesg and nvidia-smi"
    readings = {
        "memory of processes": device.processes,
        "shares of processes": device.shares,
        "energy": device.energy,
        "power": device.power,
        "context switches": device.context_switches,
    }
    missing = [f"{name}: {one.why}" for name, one in readings.items() if isinstance(one, Absent)]
    return "not told: " + ", ".join(missing) if missing else ""
