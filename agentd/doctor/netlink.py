"""Lines about netlink, which stands in where there is no eBPF."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from bpf import Feature

_PATIENCE: Final = 10.0  # seconds for the probe of netlink, which takes 0.2


def start() -> subprocess.Popen[str] | OSError:
    """In a process of its own, beside the rest: see controller.processes.probe for why. What kept it from starting is
    told in its place: an interpreter below another user's home, say."""
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "controller.processes.probe"],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as err:
        return err


def lines(probe: subprocess.Popen[str] | OSError) -> list[Feature]:
    costs = {
        "process connector": "without eBPF, too, nothing counts forks and execs or knows short-lived processes",
        "taskstats": "without eBPF, too, no faults, bytes and run-queue wait per call",
    }
    told: dict[str, dict[str, str]] = {}
    try:
        if isinstance(probe, OSError):
            raise probe
        out, err = probe.communicate(timeout=_PATIENCE)
        trouble = err.strip().rpartition("\n")[2] or "its probe told nothing"
        told = json.loads(out) if probe.returncode == 0 else {}
    except subprocess.TimeoutExpired:
        trouble = f"its probe took longer than {_PATIENCE:g} s"
    except ValueError as err:
        trouble = f"its probe answered strangely: {err}"
    except OSError as err:
        trouble = f"its probe cannot be started: {err.filename}: {err.strerror}"
    found = []
    for name, cost in costs.items():
        line = told.get(name)
        if line is None:
            found.append(Feature(name=name, found=None, detail=f"not known: {trouble}", cost=cost, remedy="report it"))
        else:
            found.append(
                Feature(
                    name=name,
                    found="detail" in line,
                    detail=line.get("detail") or line.get("error", ""),
                    cost=cost,
                    remedy=line.get("remedy", ""),
                )
            )
    return found
