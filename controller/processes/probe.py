"""``python -m controller.processes.probe``: whether process connector and taskstats can be had, as one line of JSON.

A program of its own, because pyroute2 takes 12 MiB for good, and the daemon that asks has eBPF most of the time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

from controller.processes.errors import NetlinkError, NoProcessEvents
from controller.processes.events import ProcessEvents
from controller.processes.stats import TaskStats


def try_all() -> dict[str, dict[str, str]]:
    """By name of the feature: ``detail`` where it works, ``error`` and ``remedy`` where it does not."""
    return {"process connector": _try(_events), "taskstats": _try(_stats)}


def _try(attempt: Callable[[], str]) -> dict[str, str]:
    try:
        return {"detail": attempt()}
    except NetlinkError as err:
        return {"error": err.message, "remedy": err.remedy}


def _events() -> str:
    events = ProcessEvents()
    try:
        child = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", ""], os.environ)
        os.waitpid(child, 0)
        seen = []
        while (event := events.read()) is not None:
            if child in (event.pid, event.child_pid):
                seen.append(event.kind.name.lower())
    finally:
        events.close()
    if not seen:
        raise NoProcessEvents(
            "the process connector answers, but tells nothing of our own child",
            remedy="run as root, outside containers",
        )
    return f"told of {', '.join(seen)} of a child"


def _stats() -> str:
    stats = TaskStats()
    try:
        use = stats.use(os.getpid())
    finally:
        stats.close()
    return f"told of {use.faults} page faults of ours" if use is not None else "answers"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(try_all()) + "\n")
