"""``--lab``: a benchmark in a guest of the lab, on cgroup v2 under systemd. The guest is emulated, so its times mean
nothing: what is shown are ratios of what was measured side by side."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.brake import THRESHOLD
from tests.bench.stats import median, percentile
from tests.lab.tools import guests
from tests.lab.tools.errors import LabError
from tests.lab.tools.host import Log, cache_directory

SUPPORTED: Final = ("boundary", "brake")
RUNS: Final = {"boundary": 60, "brake": 10}  # by default: each start takes a tenth of a second and more
WITHIN: Final = 1800.0  # seconds for a guest
OUT: Final = "bench.json"


def run(name: str, *, kernel: str, runs: int | None, quick: bool, extras: Sequence[str], stored: Path | None) -> int:
    """0: measured; 2: not, and stderr says why."""
    if name not in SUPPORTED:
        sys.stderr.write(f"bench: {name} has no --lab: {', '.join(SUPPORTED)} have\n")
        return 2
    words = [name, "--json", f"/payload/out/{OUT}"]
    words += ["--quick"] if quick else ["--runs", str(runs if runs is not None else RUNS[name])]
    cache = cache_directory()
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as directory:
        request = guests.Request(
            command=f".venv/bin/python -m tests.bench {shlex.join(words)} >/dev/null",
            kernels=[kernel],
            timeout=WITHIN,
            out=Path(directory),
            extras=extras,
        )
        try:
            status = guests.run(request, cache, Log(cache / "build.log"))
        except LabError as err:
            sys.stderr.write(f"bench: {name}: {err}\n")
            return 2
        found = Path(directory) / OUT
        if status or not found.exists():
            sys.stderr.write(f"bench: {name}: in the guest it ended with status {status}; what it said is above\n")
            return 2
        if stored is not None:
            shutil.copyfile(found, stored)
        document = json.loads(found.read_text("utf-8"))
    sys.stdout.write("\n".join(lines(name, document)) + "\n")
    return 0


def lines(name: str, document: Mapping[str, Any]) -> list[str]:
    """For people: the guest's kernel, ratios, notes."""
    host = document["host"]
    head = f"{name}, in a guest: Linux {host['kernel']}, cgroups {host['cgroup_mode']}, {document['runs']} runs of each"
    return [
        head,
        *(f"  {label:<44} {value:8.3f}" for label, value in ratios(name, document["rows"]).items()),
        *(f"  note: {note}" for note in document["notes"]),
    ]


def ratios(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return _starts(rows) if name == "boundary" else _overshoots(rows)


def _starts(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What a start adds to plain fork+exec in the same rounds, over what that takes; each of the others over ours."""
    times: dict[str, list[float]] = {}
    for row in rows:
        if row["kind"] == "spawn" and not row["warm_up"]:
            times.setdefault(row["arm"], []).append(row["ms"])

    def added(arm: str, beside: str) -> float:
        return median(times[arm]) / median(times[beside]) - 1

    found = {
        "corral-exec, added / plain": added("corral", "plain"),
        "corral-exec after a rest, added / plain": added("corral_lone", "plain_lone"),
    }
    ours = median(times["corral"]) - median(times["plain"])
    for arm, label in (("systemd_run", "systemd-run --scope"), ("docker_exec", "docker exec")):
        if arm in times:
            beside = f"plain_beside_{arm}"
            found[f"{label}, added / plain"] = added(arm, beside)
            found[f"{label}, added / corral-exec's"] = (median(times[arm]) - median(times[beside])) / ours
    return found


def _overshoots(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Bytes past the threshold over the threshold."""
    labels = {"brake": "the brake", "high": "memory.high alone", "poller": "poller of 100 ms"}
    found: dict[str, float] = {}
    for arm, label in labels.items():
        for cell in dict.fromkeys(row["cell"] for row in rows if row["arm"] == arm):
            past = [row["overshoot_bytes"] / THRESHOLD for row in rows if row["arm"] == arm and row["cell"] == cell]
            found[f"{label}, {cell}: p50"] = median(past)
            found[f"{label}, {cell}: p99"] = percentile(past, 99)
    return found
