"""``python -m tests.bench NAME``: runs one benchmark and shows or stores what it measured.

Exit status 0: it was measured, whatever the figures say; 2: it could not be; 130: interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from agentd.api.client import ApiError
from agentd.embedded import EmbeddedError
from tests.bench import (
    accounting,
    boundary,
    brake,
    budgets,
    density,
    density_live,
    egress,
    isolation,
    kv,
    kv_sim,
    lab,
    observe,
    reaction,
    recognise,
    scale,
    sched,
    tier_overhead,
    tier_sampling,
    tui,
)
from tests.bench.harness import BenchError, Context
from tests.bench.procstat import Others
from tests.bench.result import Result, document, host_facts, table, write_json

BENCHES: Final[dict[str, Callable[[Context], Awaitable[Result]]]] = {
    "boundary": boundary.measure,
    "brake": brake.measure,
    "observe": observe.measure,
    "accounting": accounting.measure,
    "scale": scale.measure,
    "tui": tui.measure,
    "density": density.measure,
    "density-live": density_live.measure,
    "reaction": reaction.measure,
    "recognise": recognise.measure,
    "isolation": isolation.measure,
    "budgets": budgets.measure,
    "egress": egress.measure,
    "sched": sched.measure,
    "kv-sim": kv_sim.measure,
    "kv": kv.measure,
    "tier-overhead": tier_overhead.measure,
    "tier-sampling": tier_sampling.measure,
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="scripts/bench", description="Measures Corral on this machine; asserts nothing."
    )
    made.add_argument("name", choices=sorted(BENCHES), metavar="NAME", help=", ".join(BENCHES))
    made.add_argument(
        "--runs", type=_positive, metavar="N", help="how often each cell is run (scale: seconds of churn)"
    )
    made.add_argument("--quick", action="store_true", help="fewer runs: ends within 50 s after set-up")
    made.add_argument("--lab", action="store_true", help="in a guest with cgroup v2 and systemd; shows ratios")
    made.add_argument("--kernel", default="newest", metavar="K", help="of the guest: 6.1, 6.12, newest (default)")
    made.add_argument(
        "--with",
        dest="extras",
        action="append",
        default=[],
        metavar="SET",
        help="of packages, in the guest: docker, for docker exec",
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write host, every raw row and the summary there")
    return made


def _positive(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100_000:
        raise argparse.ArgumentTypeError(f"{value} is not in 1 to 100,000")
    return value


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.json is not None and not options.json.parent.is_dir():
        parser().error(f"--json {options.json}: the directory {options.json.parent} does not exist; make it first")
    if options.lab:
        return lab.run(
            options.name,
            kernel=options.kernel,
            runs=options.runs,
            quick=options.quick,
            extras=options.extras,
            stored=options.json,
        )
    if options.extras:
        parser().error("--with is for --lab")
    machine = Others()
    host = host_facts("unknown")
    began = time.monotonic()
    try:
        with asyncio.Runner() as runner:
            result = runner.run(_measure(options.name, quick=options.quick, runs=options.runs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("bench: interrupted; what it had started was ended and removed\n")
        return 130
    except (BenchError, EmbeddedError, ApiError) as err:
        sys.stderr.write(f"bench: {options.name}: {err}\n")
        return 2
    host["cgroup_mode"] = result.mode
    seconds, others = time.monotonic() - began, machine.share()
    found = document(options.name, result, quick=options.quick, others=others, seconds=seconds, host=host)
    if options.json is not None:
        write_json(options.json, found)
    _show(options.name, result, quick=options.quick, stored=options.json, others=others, seconds=seconds)
    return 0


async def _measure(name: str, *, quick: bool, runs: int | None) -> Result:
    """In a directory that is removed whatever happens. SIGTERM counts as Ctrl-C does."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
    directory = Path(tempfile.mkdtemp(prefix="corral-bench-"))
    try:
        return await BENCHES[name](Context(directory=directory, quick=quick, runs=runs))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _show(name: str, result: Result, *, quick: bool, stored: Path | None, others: float, seconds: float) -> None:
    fewer = ", quick: fewer runs than the figures are meant for" if quick else ""
    print(f"{name}: {result.runs} runs of each cell in {seconds:.0f} s{fewer}; others had {others:.0%} of the CPUs")
    for line in table(result.summary):
        print(f"  {line}")
    for note in result.notes:
        print(f"  note: {note}")
    if stored is None:
        print(f"  {len(result.rows)} raw rows: scripts/bench {name} --json FILE stores them")
    else:
        print(f"  {len(result.rows)} raw rows: {stored}")


if __name__ == "__main__":
    sys.exit(main())
