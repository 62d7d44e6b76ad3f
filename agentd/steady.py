"""What keeps the interpreter from making a call wait: its threads, and its search for garbage."""

from __future__ import annotations

import gc
import sys
from typing import Final

# Seconds. Each system call of the loop's thread lets another thread have the interpreter (the ledger's writer, a scrape
# that is rendered), and to get it back takes up to this long. Measured beside a thread that computes, both CPUs busy:
# 60 system calls in a row took up to 39 ms with Python's own 5 ms, 25 with 0.5 ms, 0.6 with this.
SWITCH_INTERVAL: Final = 1e-4


def steady() -> None:
    """Once, when the daemon has started: what it has made so far stays, and is not looked through again by each full
    collection (tens of thousands of objects, milliseconds in which no call begins)."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()
