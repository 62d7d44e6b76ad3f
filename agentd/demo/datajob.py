"""A data job as agents write them: loads a table in chunks, keeps all of it in memory, sorts and aggregates.

    python -m agentd.demo.datajob --megabytes 400 [--step 16] [--pause 0.05] [--out FILE]

Its memory grows by ``--step`` MiB at a time up to ``--megabytes``, stays there for the aggregation, and is freed
at its end. Runs on the standard library alone. Prints a line; exit status 0 when the aggregates are what they must be.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from array import array
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
VALUES_PER_MIB: Final = MIB // 8
BLOCK: Final = (
    4096  # values that are drawn; a chunk repeats them, so that loading is bound by memory and not by random()
)


def load(rng: random.Random, mebibytes: int) -> array[float]:
    """A chunk of the table: ``mebibytes`` of doubles in [0, 1)."""
    block = array("d", (rng.random() for _ in range(BLOCK)))
    return block * (mebibytes * VALUES_PER_MIB // BLOCK)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="datajob")
    parser.add_argument("--megabytes", type=int, required=True)
    parser.add_argument("--step", type=int, default=16)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two chunks")
    parser.add_argument("--out", type=Path, help="where the aggregates are written, as CSV")
    options = parser.parse_args(arguments)
    rng = random.Random(options.megabytes)  # noqa: S311 - data, not a secret
    table: list[array[float]] = []
    loaded = 0
    while loaded < options.megabytes:
        step = min(options.step, options.megabytes - loaded)
        table.append(load(rng, step))
        loaded += step
        time.sleep(options.pause)
    rows, wrong = [], 0
    for number, chunk in enumerate(table):
        head = sorted(chunk[:BLOCK])
        total = sum(chunk)
        # every block of a chunk is the same one, so the mean of the chunk is the mean of its first block
        wrong += abs(total / len(chunk) - sum(head) / BLOCK) > 1e-9
        rows.append(f"{number},{len(chunk)},{total:.6f},{head[BLOCK // 2]:.6f}\n")
    if options.out:
        options.out.write_text("chunk,values,sum,median\n" + "".join(rows), encoding="utf-8")
    sys.stdout.write(f"{loaded} MiB in {len(table)} chunks aggregated, {wrong} wrong\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
