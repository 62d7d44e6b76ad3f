"""Builds the fake library and runs the real bindings against it, in a process of their own.

A process of its own, because the bindings load their library once and for all, by LD_LIBRARY_PATH.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def build(directory: Path, *, old_driver: bool = False) -> Path:
    """Compiles libnvidia-ml.so.1 into ``directory``; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *("gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"),
            *(("-DOLD_DRIVER",) if old_driver else ()),
            *("-o", str(directory / "libnvidia-ml.so.1"), str(HERE / "fake.c")),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return directory


@dataclass(frozen=True)
class Fake:
    """The library's directory, and a place for scenarios."""

    library: Path
    scratch: Path

    def environment(self, scenario: str) -> dict[str, str]:
        file = self.scratch / "scenario"
        file.write_text(scenario)
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.library),
            "CORRAL_FAKE_NVML": str(file),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def sample(self, *scenarios: str, rescan_seconds: float = 3600.0) -> list[dict[str, Any]]:
        """One NvmlSample (as JSON) for each scenario, in one process; a second passes between two of them."""
        samples: list[dict[str, Any]] = self._run("sample", scenarios, rescan_seconds)["samples"]
        return samples

    def report(self, *scenarios: str, rescan_seconds: float = 3600.0) -> dict[str, Any]:
        """As ``sample``, with the devices, usage by pid between the first and last sample, and NVML's call count."""
        return self._run("sample", scenarios, rescan_seconds)

    def events(self, *scenarios: str, expected: int, rescan_seconds: float = 3600.0) -> list[dict[str, Any]]:
        """The first ``expected`` events, while the scenarios are played."""
        events: list[dict[str, Any]] = self._run("events", scenarios, rescan_seconds, expected)["events"]
        return events

    def _run(self, mode: str, scenarios: tuple[str, ...], rescan: float, expected: int = 0) -> dict[str, Any]:
        request = {"mode": mode, "scenarios": scenarios, "rescan_seconds": rescan, "expected": expected}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.unit.nvml_fake.child"],
            input=json.dumps(request),
            env=self.environment(scenarios[0]),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"child ended with {done.returncode}:\n{done.stderr}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
