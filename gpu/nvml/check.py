"""``scripts/check-gpu``: every reading of every GPU on a terminal, with the reason where one is absent."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from gpu.nvml import (
    Absent,
    ContextSwitches,
    DeviceInfo,
    DeviceSample,
    DeviceState,
    Nvml,
    NvmlSample,
    charge,
    rates,
)

_OK, _BROKEN, _NONE = 0, 1, 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="check-gpu", description="What Corral sees of this machine's GPUs.")
    parser.add_argument("--seconds", type=float, default=2.0, help="between the two samples (2)")
    parser.add_argument("--json", action="store_true", help="the two samples, raw")
    options = parser.parse_args(arguments)
    if not 0 < options.seconds <= 3600:
        parser.error("--seconds must be between 0 and 3600")
    nvml = Nvml()
    first = nvml.sample_now()
    if first.state.ready:
        time.sleep(options.seconds)
        second = nvml.sample_now()
    else:
        second = first
    devices = nvml.devices
    nvml.close()
    if options.json:
        _say(
            json.dumps({"first": asdict(first), "second": asdict(second), "devices": [asdict(one) for one in devices]})
        )
    else:
        _print(first, second, devices)
    if not second.state.ready:
        return _NONE
    return _OK if all(one.state is DeviceState.OK for one in second.devices) else _BROKEN


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _print(first: NvmlSample, second: NvmlSample, devices: tuple[DeviceInfo, ...]) -> None:
    if not second.state.ready:
        _say(f"no GPU to check: {second.state.message} ({second.state.availability}); {second.state.remedy}")
        return
    earlier = {one.uuid: one for one in first.devices}
    for info, sample in zip(devices, second.devices, strict=True):
        _say(f"GPU {info.index}  {_reading(info.name)}  {info.uuid or '(no uuid)'}  {sample.state}")
        for name, value in _rows(info, earlier.get(sample.uuid), sample):
            _say(f"  {name:<28} {value}")


def _rows(info: DeviceInfo, before: DeviceSample | None, now: DeviceSample) -> list[tuple[str, str]]:
    rows = [
        ("PCI bus", _reading(info.bus_id)),
        ("compute capability", _reading(info.compute_capability)),
        (
            "memory used / total",
            f"{_reading(now.memory_used, 2**30, ' GiB')} / {_reading(now.memory_total, 2**30, ' GiB')}",
        ),
        ("SM utilisation", _reading(now.sm_utilisation, 0.01, " %")),
        ("memory utilisation", _reading(now.memory_utilisation, 0.01, " %")),
        ("power / limit", f"{_reading(now.power, 1, ' W')} / {_reading(info.power_limit, 1, ' W')}"),
        ("energy since driver load", _reading(now.energy, 1, " J")),
        ("temperature", _reading(now.temperature, 1, " C")),
        ("MIG", _reading(info.mig_enabled)),
        ("GPM", _reading(info.gpm_supported)),
    ]
    if not isinstance(now.mig, Absent):
        rows += [
            (
                f"  MIG {one.gpu_instance_id}/{one.compute_instance_id}",
                f"{one.uuid} {_reading(one.memory_used, 2**30, ' GiB')}",
            )
            for one in now.mig
        ]
    if isinstance(now.context_switches, Absent):
        rows.append(("context switches", _reading(now.context_switches)))
    else:
        rows += [(f"context switches, GR{one.engine}", _switches(one)) for one in now.context_switches]
    if isinstance(now.processes, Absent):
        rows.append(("processes", _reading(now.processes)))
    else:
        rows += [(f"process {one.pid}", _process(one.pid, one.bytes)) for one in now.processes]
    rows.append(("busy processes", _reading(now.shares) if isinstance(now.shares, Absent) else str(len(now.shares))))
    between = None if before is None else rates(before, now)
    if before is not None and between is not None:
        rows.append(("average power", "not told" if between.watts is None else f"{between.watts:.1f} W"))
        rows += [
            (f"charged to {'nobody (idle)' if one.owner is None else f'pid {one.owner}'}", f"{one.joules:.1f} J")
            for one in charge(before, now, lambda pid: pid)
        ]
    return rows


def _process(pid: int, size: int | None) -> str:
    try:
        name = (Path("/proc") / str(pid) / "comm").read_text().strip()
    except OSError:  # in another pid namespace, or gone
        name = "(not visible from here)"
    return f"{name} {'memory not told' if size is None else f'{size / 2**30:.2f} GiB'}"


def _switches(one: ContextSwitches) -> str:
    parts = [
        f"{one.requests:.0f} requests" if one.requests is not None else "",
        f"{one.cycles_per_request:.0f} cycles each" if one.cycles_per_request is not None else "",
        f"{one.active:.2%} of the time" if one.active is not None else "",
    ]
    return ", ".join(part for part in parts if part) or "none"


def _reading(value: object, unit: float = 0, suffix: str = "") -> str:
    if isinstance(value, Absent):
        return f"- ({value.why}: {value.call}{f', code {value.code}' if value.code else ''})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit and isinstance(value, int | float):
        return f"{value / unit:.2f}{suffix}"
    return ".".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    sys.exit(main())
