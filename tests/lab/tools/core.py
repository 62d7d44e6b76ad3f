"""A part of the tests, for every change, in a guest. What is not Corral's never makes it fail: such a run is skipped,
with the reason. It ends: building, waiting, booting and each test have their time."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.lab.tools import guests, machine
from tests.lab.tools.errors import GuestFailed, LabError
from tests.lab.tools.host import Log, alone

# What every change should pass on another kernel than the one at hand, in minutes: what only v2 has, eBPF, the brake.
TESTS: Final = (
    "tests/lab/test_unified.py",
    "tests/host/test_bpf_brake.py",
    "tests/host/test_bpf_counters.py",
    "tests/host/test_bpf_gates.py",
    "tests/host/test_daemon_brake.py",
)
SKIPPED: Final = 77  # as automake has it: the test could not be made here
LOCK_WITHIN: Final = 900.0  # seconds to wait for a guest of somebody else's
PER_TEST: Final = 240  # seconds, of an emulated machine: a test that hangs is told as one, within the guest's time
_PASSED, _FAILED = 0, 1  # pytest's exit statuses that say something of Corral
_DISK: Final = 6 << 30  # bytes: what building takes at most, with what a run leaves for its time
_DISK_BUILT: Final = 3 << 30
_MEMORY: Final = 3584 << 20  # bytes: the guest's 3 GiB and QEMU's own


def run(request: guests.Request, cache: Path, log: Log) -> int:
    """0: passed; 1: tests failed; SKIPPED, with the reason on stderr: no guest could be made, or it got no answer."""
    try:
        room(cache)
        with alone(cache, "guest", within=LOCK_WITHIN):
            guests.build(cache, log)
        room(cache)
        status = guests.run(request, cache, log, within=LOCK_WITHIN)
    except GuestFailed as err:
        return _skip(f"the guest does not boot here: {err}")
    except (LabError, OSError) as err:
        return _skip(str(err))
    if status in (_PASSED, _FAILED):
        return status
    if status == machine.TIMED_OUT:
        return _skip(f"not done within {request.timeout:g} s: this machine is slow, or busy")
    if status == guests.CANNOT:
        return _skip("the guest died (see above)")
    return status  # pytest itself could not: an error of collection, say


def room(cache: Path, *, available: Callable[[], int | None] | None = None) -> None:
    """Raises LabError where a guest would run this machine out of disk or memory."""
    memory = (available or _memory_available)()
    if memory is not None and memory < _MEMORY:
        raise LabError(f"{memory >> 20} MiB of memory are available, a guest needs {_MEMORY >> 20}")
    built = any(cache.glob("root-*.ext4"))
    for place, needed in ((cache, _DISK_BUILT if built else _DISK), (guests.temporary_directory(), _DISK_BUILT)):
        free = shutil.disk_usage(_existing(place)).free
        if free < needed:
            raise LabError(f"{place}: {free >> 20} MiB are free, a guest needs {needed >> 20}")


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _memory_available() -> int | None:
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _skip(reason: str) -> int:
    print(f"lab: skipped: {reason}", file=sys.stderr, flush=True)
    return SKIPPED


def asked(request: guests.Request) -> guests.Request:
    """With a bound for each test that is well within the guest's own."""
    return replace(request, command=request.command.replace("-o timeout=900", f"-o timeout={PER_TEST}"))
