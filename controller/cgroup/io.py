"""The io controller (v1: blkio): a weight, and the bytes that reached block devices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from controller.cgroup import files, knobs
from controller.cgroup.errors import FormatError
from controller.model import UNLIMITED, Limits
from controller.model.limits import MAX_RATE, MIN_IO

_NO_DISK: Final = ("loop", "ram", "zram", "sr", "fd")


@dataclass(frozen=True, slots=True, kw_only=True)
class IoStat:
    """Bytes moved to and from block devices, of the group and its descendants."""

    read_bytes: int
    written_bytes: int


class Io(Protocol):
    def without_effect(self) -> str | None:
        """Why a weight would do nothing on this host, in one sentence; None when it works."""

    def apply(self, directory: str, limits: Limits) -> list[str]: ...
    def limits(self, directory: str) -> Limits: ...
    def stat(self, directory: str) -> IoStat | None:
        """None where the group is not in the hierarchy that counts."""


class IoV2:
    """io.weight (iocost), io.bfq.weight, io.max, io.stat. ``mount``: of v2, where iocost is switched on."""

    def __init__(self, mount: str) -> None:
        self._cost = f"{mount}/io.cost.qos"

    def without_effect(self) -> str | None:
        if b"enable=1" in (files.read_optional(self._cost, files.LARGE) or b"") or bfq_in_use():
            return None
        return "io_weight is not set: no disk of this host is under iocost or the bfq scheduler"

    def apply(self, directory: str, limits: Limits) -> list[str]:
        if limits.io_max is not None:
            path = f"{directory}/io.max"
            rate = knobs.text(rate_of(path, limits.io_max), "max")
            for device in disks():
                files.write(path, f"{device} rbps={rate} wbps={rate}")
        if limits.io_weight is None:
            return []
        path = f"{directory}/io.weight"
        weight = knobs.weight(path, "io_weight", limits.io_weight)
        known = False
        for knob, value in ((path, f"default {weight}"), (f"{directory}/io.bfq.weight", str(bfq_weight(weight)))):
            if files.read_optional(knob) is not None:
                files.write(knob, value)
                known = True
        return [] if known else ["io_weight is not set: this kernel has neither the iocost nor the bfq I/O policy"]

    def limits(self, directory: str) -> Limits:
        path = f"{directory}/io.max"
        data = files.read_optional(path, files.LARGE)
        most = parse_io_max(data, path) if data is not None else None
        path = f"{directory}/io.weight"
        for line in (files.read_optional(path) or b"").splitlines():
            if line.startswith(b"default "):
                return Limits(io_weight=files.parse_number(line[8:], path), io_max=most)
        return Limits(io_max=most)

    def stat(self, directory: str) -> IoStat | None:
        path = f"{directory}/io.stat"
        data = files.read_optional(path, files.LARGE)
        return parse_io_stat(data, path) if data is not None else None


class IoV1:
    """blkio.bfq.weight, blkio.throttle.*. Of writes, v1 limits those alone that bypass the page cache (O_DIRECT):
    what is written back later is charged to the root (Documentation/admin-guide/cgroup-v1/blkio-controller.rst)."""

    def without_effect(self) -> str | None:
        return None if bfq_in_use() else "io_weight is not set: no disk of this host is under the bfq scheduler"

    def apply(self, directory: str, limits: Limits) -> list[str]:
        if limits.io_max is not None:
            path = f"{directory}/blkio.throttle.read_bps_device"
            rate = max(0, rate_of(path, limits.io_max))  # 0: none
            for device in disks():
                files.write(path, f"{device} {rate}")
                files.write(f"{directory}/blkio.throttle.write_bps_device", f"{device} {rate}")
        if limits.io_weight is None:
            return []
        path = f"{directory}/blkio.bfq.weight"
        weight = knobs.weight(path, "io_weight", limits.io_weight)
        if files.read_optional(path) is None:
            return ["io_weight is not set: this kernel has no bfq I/O scheduler"]
        files.write(path, str(bfq_weight(weight)))
        return []

    def limits(self, directory: str) -> Limits:
        path = f"{directory}/blkio.throttle.read_bps_device"
        data = files.read_optional(path, files.LARGE)
        most = parse_bps_device(data, path) if data is not None else None
        path = f"{directory}/blkio.bfq.weight"
        data = files.read_optional(path)
        weight = from_bfq_weight(files.parse_number(data, path)) if data else None
        return Limits(io_weight=weight, io_max=most)

    def stat(self, directory: str) -> IoStat | None:
        path = f"{directory}/blkio.throttle.io_service_bytes_recursive"
        data = files.read_optional(path, files.LARGE)
        return parse_blkio_bytes(data, path) if data is not None else None


def bfq_in_use() -> bool:
    """Whether any disk is under the bfq scheduler (the name in brackets is the one in use)."""
    return any("[bfq]" in path.read_text() for path in Path("/sys/block").glob("*/queue/scheduler"))


def disks() -> list[str]:
    """MAJ:MIN of the host's disks: whole ones with a size, as limits are of whole ones; no loop device, which has a
    file beneath it, no memory and no medium that is read once."""
    found = []
    for entry in sorted(Path("/sys/block").iterdir()):
        if entry.name.startswith(_NO_DISK):
            continue
        try:
            if int((entry / "size").read_text()):
                found.append((entry / "dev").read_text().strip())
        except (FileNotFoundError, ValueError):
            continue  # unplugged meanwhile
    return found


def rate_of(path: str, value: int) -> int:
    """Bytes a second, or UNLIMITED. Raises ValueRefused."""
    knobs.whole(path, "io_max", value, low=MIN_IO, high=MAX_RATE, unit="bytes per second")
    return value


def bfq_weight(weight: int) -> int:
    """A weight of 1 to 10,000 as bfq's 1 to 1,000: equal up to the default of both, 100, and linear above (as systemd's
    BFQ_WEIGHT does it)."""
    return weight if weight <= 100 else 100 + (weight - 100) * 900 // 9900


def from_bfq_weight(weight: int) -> int:
    return weight if weight <= 100 else 100 + (weight - 100) * 9900 // 900


def parse_io_stat(data: bytes, path: str) -> IoStat:
    """Lines ``MAJ:MIN rbytes=N wbytes=N ...``, summed over the devices. A device without figures is skipped."""
    read = written = 0
    try:
        for line in data.splitlines():
            for pair in line.split()[1:]:
                key, _, value = pair.partition(b"=")
                if key == b"rbytes":
                    read += int(value)
                elif key == b"wbytes":
                    written += int(value)
    except ValueError:
        raise _format(path, data) from None
    return IoStat(read_bytes=read, written_bytes=written)


def parse_io_max(data: bytes, path: str) -> int:
    """io.max, lines ``MAJ:MIN rbps=N wbps=N ...``: the tightest rate of any disk, or UNLIMITED."""
    rates = []
    try:
        for line in data.splitlines():
            for pair in line.split()[1:]:
                key, _, value = pair.partition(b"=")
                if key in (b"rbps", b"wbps") and value != b"max":
                    rates.append(int(value))
    except ValueError:
        raise _format(path, data) from None
    return min(rates, default=UNLIMITED)


def parse_bps_device(data: bytes, path: str) -> int:
    """blkio.throttle.read_bps_device, lines ``MAJ:MIN N``: the tightest rate of any disk, or UNLIMITED."""
    try:
        return min((int(line.split()[1]) for line in data.splitlines()), default=UNLIMITED)
    except (ValueError, IndexError):
        raise _format(path, data) from None


def parse_blkio_bytes(data: bytes, path: str) -> IoStat:
    """Lines ``MAJ:MIN Read N``, ``... Write N`` and others, then ``Total N``."""
    read = written = 0
    try:
        for line in data.splitlines():
            words = line.split()
            if len(words) != 3:
                if len(words) == 2 and words[0] == b"Total":
                    continue
                raise ValueError(line)
            if words[1] == b"Read":
                read += int(words[2])
            elif words[1] == b"Write":
                written += int(words[2])
    except ValueError:
        raise _format(path, data) from None
    return IoStat(read_bytes=read, written_bytes=written)


def _format(path: str, data: bytes) -> FormatError:
    return FormatError(
        path, f"expected bytes by device, found {data[:80]!r}", remedy="this kernel's format is not known; report it"
    )
