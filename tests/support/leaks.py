"""What a test run left behind: processes, cgroup directories and BPF pins that carry its marks."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from agentd.embedded import cgroup_mounts, kill_group, processes_with

RUN_VARIABLE: Final = "CORRAL_TEST_RUN"
BPFFS: Final = Path("/sys/fs/bpf")
GRACE: Final = 5.0  # seconds for processes that are ending already


@dataclass(frozen=True, slots=True)
class Leaks:
    """``run``: value of CORRAL_TEST_RUN in the run's processes. ``prefix``: of its cgroup roots and pin directories."""

    run: str
    prefix: str

    def find(self) -> list[str]:
        """In words; waits for processes that are ending, and for the cgroups that go with them."""
        deadline = time.monotonic() + GRACE
        while True:
            found = [f"process {pid} ({name})" for pid, name in self.processes()]
            found += [f"cgroup {path}" for path in self.groups()]
            found += [f"BPF pins {path}" for path in self.pins()]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def processes(self) -> list[tuple[int, str]]:
        """Other than this process and its ancestors (``env CORRAL_TEST_RUN=... pytest`` would show them)."""
        own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        return [(pid, name) for pid, name in processes_with(f"{RUN_VARIABLE}={self.run}") if pid not in own]

    def groups(self) -> list[Path]:
        return [path for mount in cgroup_mounts() for path in mount.glob(f"{self.prefix}*") if path.is_dir()]

    def pins(self) -> list[Path]:
        # not every host has a bpffs, and not every user may look into it
        with contextlib.suppress(OSError):
            return [*BPFFS.glob(f"{self.prefix}*"), *BPFFS.glob(f"corral/{self.prefix}*")]
        return []

    def remove(self) -> None:
        """By force, as far as it goes: one leak must not fail the next run as well."""
        for pid, _ in self.processes():
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()
        for group in self.groups():
            kill_group(group)
        deadline = time.monotonic() + GRACE
        while groups := self.groups():
            for group in groups:
                for directory, _, _ in os.walk(group, topdown=False):
                    with contextlib.suppress(OSError):
                        Path(directory).rmdir()
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for pins in self.pins():
            shutil.rmtree(pins, ignore_errors=True)
