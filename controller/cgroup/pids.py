"""The pids controller: the same files on v1 and v2."""

from __future__ import annotations

from dataclasses import dataclass

from controller.cgroup import files, knobs
from controller.model import Limits

PID_MAX_LIMIT = 4_194_304  # include/linux/threads.h, 64 bit


@dataclass(frozen=True, slots=True, kw_only=True)
class PidsStat:
    """Tasks (threads count too). ``max_events``: forks refused at this group's limit. ``peak`` is None before 6.1, and
    where it was not asked for."""

    current: int
    peak: int | None
    max_events: int


class Pids:
    """pids.max, pids.current, pids.peak, pids.events."""

    def apply(self, directory: str, limits: Limits) -> list[str]:
        if limits.pids_max is not None:
            path = f"{directory}/pids.max"
            knobs.whole(path, "pids_max", limits.pids_max, low=1, high=PID_MAX_LIMIT, unit="processes")
            files.write(path, knobs.text(limits.pids_max, "max"))
        return []

    def limits(self, directory: str) -> Limits:
        path = f"{directory}/pids.max"
        return Limits(pids_max=files.parse_number(files.read(path, 32), path))

    def max_events(self, directory: str) -> int:
        path = f"{directory}/pids.events"
        return parse_max_events(files.read(path, 128), path)

    def stat(self, directory: str, *, with_peak: bool = True) -> PidsStat:
        current, peak = f"{directory}/pids.current", f"{directory}/pids.peak"
        high = files.read_optional(peak, 32) if with_peak else None
        return PidsStat(
            current=files.parse_number(files.read(current, 32), current),
            peak=files.parse_number(high, peak) if high else None,
            max_events=self.max_events(directory),
        )


def parse_max_events(data: bytes, path: str) -> int:
    return files.key_of(files.parse_flat(data, path), b"max", path)
