"""Runs gpu.nvml in a process whose libnvidia-ml.so.1 is the fake; reads a request from stdin, prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from gpu.nvml import EventWatcher, GpuEvent, Nvml, NvmlSample, charge_all
from gpu.nvml.binding import Binding

SECOND = 1_000_000_000


def sample(request: dict[str, Any]) -> dict[str, Any]:
    """Plays the scenarios, one second of the clock apart."""
    now = SECOND
    calls: Counter[str] = Counter()
    read = Binding.read

    def counting(self: Binding, call: str, *arguments: Any, device: str = "") -> Any:
        known = device and (device, call) in self._never
        calls[call] += 0 if known else 1
        return read(self, call, *arguments, device=device)

    Binding.read = counting  # type: ignore[method-assign]  # counts what reaches the library
    nvml = Nvml(rescan_seconds=request["rescan_seconds"], clock=lambda: now)
    samples: list[NvmlSample] = []
    for scenario in request["scenarios"]:
        Path(os.environ["CORRAL_FAKE_NVML"]).write_text(scenario)
        samples.append(nvml.sample_now())
        now += SECOND
    usage = charge_all(samples[0], samples[-1], lambda pid: pid)
    devices = nvml.devices
    nvml.close()
    return {
        "samples": [msgspec.to_builtins(one) for one in samples],
        "devices": [msgspec.to_builtins(one) for one in devices],
        "usage": [msgspec.to_builtins(one) for one in usage],
        "calls": calls,
        "state_after_close": nvml.state.availability,
    }


async def events(request: dict[str, Any]) -> dict[str, Any]:
    """Watches while the scenarios are played, each with a sample; collects the events that are expected."""
    nvml = Nvml(rescan_seconds=request["rescan_seconds"])
    await nvml.sample()
    watcher = EventWatcher(nvml, retry_seconds=0.05)
    watcher.start()
    for scenario in request["scenarios"][1:]:
        Path(os.environ["CORRAL_FAKE_NVML"]).write_text(scenario)
        await nvml.sample()
    found: list[GpuEvent] = []
    async for event in watcher:
        found.append(event)
        if len(found) == request["expected"]:
            break
    await watcher.close()
    nvml.close()
    return {"events": [msgspec.to_builtins(one) for one in found]}


def main() -> None:
    request = json.loads(sys.stdin.read())
    answer = asyncio.run(events(request)) if request["mode"] == "events" else sample(request)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
