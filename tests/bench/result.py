"""What a benchmark hands back, and how it is shown and stored."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.stats import spread

Cell = str | int | float | bool | None
Row = dict[str, Cell]
REPOSITORY: Final = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One key of the summary. ``value`` None: could not be measured, a note says why.

    ``at_most`` and ``at_least`` None: no such target.
    """

    value: float | None
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    samples: Sequence[float] = ()  # of which it is a statistic: for the spread in the table

    @property
    def met(self) -> bool | None:
        """None where there is no target. A figure that could not be measured does not meet its target."""
        if self.at_most is None and self.at_least is None:
            return None
        if self.value is None:
            return False
        return not (
            (self.at_most is not None and self.value > self.at_most)
            or (self.at_least is not None and self.value < self.at_least)
        )

    @property
    def target(self) -> str:
        """For people."""
        if self.at_least is not None:
            return f"≥ {number(self.at_least)}"
        return "" if self.at_most is None else f"≤ {number(self.at_most)}"


@dataclass(slots=True)
class Result:
    rows: list[Row] = field(default_factory=list)
    summary: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what was skipped, cut short or odd, each with its reason
    runs: int = 0  # of each cell, as done
    mode: str = "unknown"  # of cgroups, as the daemon says


def host_facts(mode: str) -> Row:
    """The machine without its name: kernel, cgroup mode, CPUs, memory, Python, commit, load when this began."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "kernel": platform.release(),
        "cgroup_mode": mode,
        "cpus": os.cpu_count(),
        "cpu_model": model,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _commit() -> str:
    """Of the checkout, with "+" where files differ from it; "unknown" outside of one."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def document(
    name: str, result: Result, *, quick: bool, others: float, seconds: float, host: Row | None = None
) -> dict[str, object]:
    """The JSON form. ``others``: share of the CPUs (0 to 1) that went to other programs meanwhile."""
    return {
        "name": name,
        "quick": quick,
        "runs": result.runs,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "cpu_share_of_others": round(others, 3),
        "host": host_facts(result.mode) if host is None else host,
        "summary": {key: figure.value for key, figure in result.summary.items()},
        "targets": {key: figure.at_most for key, figure in result.summary.items() if figure.at_most is not None},
        "targets_at_least": {
            key: figure.at_least for key, figure in result.summary.items() if figure.at_least is not None
        },
        "notes": result.notes,
        "rows": result.rows,
    }


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Written whole or not at all. Raises OSError."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def number(value: float | None) -> str:
    """Four significant digits, thousands separated: for people."""
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def table(summary: Mapping[str, Figure]) -> list[str]:
    """Lines: figure, value, unit, target, ✓ or ✗, and the spread of its samples."""
    header = ("figure", "value", "unit", "target", "", "samples: n, min, p25, p50, p75, p99, max")
    lines = [header]
    for key, figure in summary.items():
        mark = {None: "", True: "✓", False: "✗"}[figure.met]
        samples = ""
        if figure.samples:
            s = spread(figure.samples)
            values = (s.least, s.p25, s.p50, s.p75, s.p99, s.most)
            samples = f"{s.count}: " + "  ".join(number(v) for v in values)
        lines.append((key, number(figure.value), figure.unit, figure.target, mark, samples))
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
