"""The GPU's own context switches, from its performance monitor (GPM; Hopper and newer).

GPM gives metrics between two samples of the device's counters: the last sample of each device (or MIG instance) is
kept, and each reading compares with it. NVML has them per graphics/compute engine (GR0 to GR7), not per process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from gpu.nvml.binding import SUCCESS, Binding
from gpu.nvml.types import Absent, ContextSwitches, Why

ENGINES: Final = 8
# Metric ids of nvml.h (NVML_GPM_METRIC_GR0_CTXSW_CYCLES_ELAPSED = 170 and on, five for each engine).
_FIRST: Final = 170
_FIELDS: Final = ("cycles_elapsed", "cycles_active", "requests", "cycles_per_request", "active")
_METRICS: Final = ENGINES * len(_FIELDS)

_CALL: Final = "nvmlGpmMetricsGet"


@dataclass(slots=True)
class _Kept:
    sample: Any


class ContextSwitchReader:
    """Keeps one sample per device and MIG instance; frees what it allocated. Not for several threads at once."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._kept: dict[tuple[str, int | None], _Kept] = {}

    def read(self, uuid: str, handle: Any, gpu_instances: tuple[int, ...] = ()) -> tuple[ContextSwitches, ...] | Absent:
        """Since the last call for this device. The first call has nothing to compare with: Absent, NO_DATA."""
        found: list[ContextSwitches] = []
        absent: Absent | None = None
        for instance in gpu_instances or (None,):
            reading = self._read_one(uuid, handle, instance)
            if isinstance(reading, Absent):
                absent = reading
            else:
                found.extend(reading)
        if found or absent is None:
            return tuple(found)
        return absent

    def _read_one(self, uuid: str, handle: Any, instance: int | None) -> list[ContextSwitches] | Absent:
        new = self._binding.read("nvmlGpmSampleAlloc", device=uuid)
        if isinstance(new, Absent):
            return new
        if instance is None:
            taken = self._binding.read("nvmlGpmSampleGet", handle, new, device=uuid)
        else:
            taken = self._binding.read("nvmlGpmMigSampleGet", handle, instance, new, device=uuid)
        if isinstance(taken, Absent):
            self._binding.read("nvmlGpmSampleFree", new)
            return taken
        key = (uuid, instance)
        before = self._kept.get(key)
        self._kept[key] = _Kept(new)
        if before is None:
            return Absent(Why.NO_DATA, _CALL)
        try:
            return self._compare(uuid, before.sample, new, instance)
        finally:
            self._binding.read("nvmlGpmSampleFree", before.sample)

    def _compare(self, uuid: str, before: Any, after: Any, instance: int | None) -> list[ContextSwitches] | Absent:
        structure = self._binding.structure("c_nvmlGpmMetricsGet_t")
        if structure is None or self._binding.constant("NVML_GPM_METRIC_MAX", 0) < _FIRST + _METRICS:
            return Absent(Why.OLD_BINDINGS, _CALL)
        query = structure()
        query.version = self._binding.constant("NVML_GPM_METRICS_GET_VERSION", 1)
        query.numMetrics = _METRICS
        query.sample1 = before
        query.sample2 = after
        for position in range(_METRICS):
            query.metrics[position].metricId = _FIRST + position
        answer = self._binding.read(_CALL, query, device=uuid)
        if isinstance(answer, Absent):
            return answer
        engines: list[ContextSwitches] = []
        for engine in range(ENGINES):
            values: dict[str, float] = {}
            for offset, field in enumerate(_FIELDS):
                metric = query.metrics[engine * len(_FIELDS) + offset]
                # Each metric has a return code of its own: a device has as many engines as it has.
                if metric.nvmlReturn == SUCCESS and metric.value == metric.value:  # NaN: nothing ran
                    values[field] = metric.value / 100.0 if field == "active" else metric.value
            if values:
                engines.append(ContextSwitches(engine=engine, gpu_instance_id=instance, **values))
        return engines or Absent(Why.UNSUPPORTED, _CALL)

    def drop(self, uuid: str) -> None:
        """Forget one device's samples (it is gone)."""
        for key in [key for key in self._kept if key[0] == uuid]:
            self._binding.read("nvmlGpmSampleFree", self._kept.pop(key).sample)

    def close(self) -> None:
        for kept in self._kept.values():
            self._binding.read("nvmlGpmSampleFree", kept.sample)
        self._kept.clear()
