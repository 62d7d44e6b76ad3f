"""Looks into one cgroup with bcc, and prints JSON lines. Run by the system's Python, as root, away from the daemon:

    /usr/bin/python3 worker.py /sys/fs/cgroup/… --tools offcpu,syscalls --seconds 10

Imports the standard library, bcc and programs.py beside it alone. Ends at SIGTERM, after its seconds, or when its
standard input closes (whoever started it has gone), and prints its tables then.

Lines: {"ready": [TOOL, …]}, {"event": {…}}, {"notice": TEXT}, {"table": {"tool": …, "columns": […], "rows": [[…], …]}}
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import importlib
import importlib.util
import json
import os
import platform
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

MAX_ROWS = 40  # of a table
MAX_PATHS = 10_000  # that are told apart: a call may open as many as it likes
MAX_FRAMES = 12  # of a stack
PAGES = 64  # of each CPU's event buffer
POLL = 200  # milliseconds
_STATES = {0: "preempted", 1: "asleep", 2: "waiting for disk"}


class Unable(Exception):
    """Nothing can be traced: what is missing, and how to get it."""


def say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def check() -> None:
    """Raises Unable."""
    release = platform.release()
    if os.geteuid() != 0:
        raise Unable("only root can load what traces; run it through agentd")
    if importlib.util.find_spec("bcc") is None:
        raise Unable(f"{sys.executable} has no bcc module; apt-get install python3-bpfcc")
    built = [Path(f"/lib/modules/{release}/{name}") for name in ("build", "source")]
    if not any(path.exists() for path in (*built, Path("/sys/kernel/kheaders.tar.xz"))):
        raise Unable(
            f"the headers of kernel {release} are not installed, and bcc compiles against them; "
            f"apt-get install linux-headers-{release} (a kernel that is not Debian's has them where it came from)"
        )


class Tool:
    """One tool's programs. ``name`` as in programs.SOURCES."""

    def __init__(self, name: str, source: str, directory: int) -> None:
        from bcc import BPF

        self.name = name
        self.lost = 0
        self._bpf = BPF(text=source)
        self._bpf["the_call"][ctypes.c_int(0)] = directory
        if b"events" in self._bpf.tables or "events" in source:
            self._bpf["events"].open_perf_buffer(self._event, page_cnt=PAGES, lost_cb=self._lost)
            self.streams = True
        else:
            self.streams = False
        self._seen: dict[tuple[str, int], int] = {}
        # bpf_ktime_get_ns counts from the boot, without sleep
        self._epoch = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)

    def poll(self, milliseconds: int) -> None:
        self._bpf.perf_buffer_poll(timeout=milliseconds)

    def _lost(self, count: int) -> None:
        self.lost += count

    def _event(self, _cpu: int, data: Any, _size: int) -> None:
        event = self._bpf["events"].event(data)
        common = {
            "tool": self.name,
            "at": self._epoch + event.at / 1e9,
            "pid": event.pid,
            "command": event.comm.decode("utf-8", "replace"),
        }
        path = event.path.decode("utf-8", "replace")
        if self.name == "files":
            result = event.result
            if count(self._seen, path, min(0, result)):  # the table counts the rest
                say(event={**common, "text": f"{path}{_error(result)}", "value": float(result)})
        elif event.kind == 1:
            say(event={**common, "text": f"exec {path} (child of {event.parent})", "value": 0.0})
        else:
            lived = f", lived {event.lived / 1e6:.1f} ms" if event.lived else ""
            say(event={**common, "text": f"exit {_status(event.status)}{lived}", "value": event.lived / 1e9})

    def table(self) -> None:
        rows = getattr(self, f"_{self.name}")()
        if rows is not None:
            columns, cells = rows
            say(table={"tool": self.name, "columns": columns, "rows": cells[:MAX_ROWS]})
            if len(cells) > MAX_ROWS:
                say(notice=f"{self.name}: {len(cells) - MAX_ROWS} more rows are not shown")
        if self._seen.get(OTHERS):
            say(notice=f"files: {MAX_PATHS} paths are told apart, {self._seen[OTHERS]} opens of others are not")
        if self.lost:
            say(notice=f"{self.name}: {self.lost} events were lost, more came than could be read")

    def _offcpu(self) -> tuple[list[str], list[list[str]]]:
        sums = sorted(self._bpf["off_sums"].items(), key=lambda item: -item[1].ns)
        cells = []
        for key, value in sums:
            state = _STATES.get(key.state & 0xFF, "stopped" if key.state & 0x0C else f"state {key.state:#x}")
            cells.append(
                [
                    str(key.pid), key.comm.decode("utf-8", "replace"), state, str(value.count),
                    _ms(value.ns), _ms(value.most), self._stack(key.stack),
                ]
            )  # fmt: skip
        return ["PID", "COMMAND", "STATE", "TIMES", "MS", "MOST MS", "WHERE"], cells

    def _stack(self, number: int) -> str:
        if number < 0:
            return "-"
        frames = [self._bpf.ksym(address).decode("utf-8", "replace") for address in self._bpf["stacks"].walk(number)]
        # the way into the scheduler is the same for all
        shown = [name for name in frames if name not in ("__schedule", "schedule", "[unknown]")]
        return " < ".join(shown[:MAX_FRAMES]) or "-"

    def _syscalls(self) -> tuple[list[str], list[list[str]]]:
        from bcc.syscall import syscall_name

        sums = sorted(self._bpf["sys_sums"].items(), key=lambda item: -item[1].ns)
        cells = [
            [syscall_name(key.value).decode(), str(v.count), str(v.errors), _ms(v.ns), _ms(v.most)] for key, v in sums
        ]
        return ["SYSCALL", "TIMES", "ERRORS", "MS", "MOST MS"], cells

    def _files(self) -> tuple[list[str], list[list[str]]]:
        found = sorted(((k, n) for k, n in self._seen.items() if k != OTHERS), key=lambda item: -item[1])
        return ["TIMES", "RESULT", "PATH"], [[str(n), _error(r).lstrip(": ") or "opened", p] for (p, r), n in found]

    def _blockio(self) -> tuple[list[str], list[list[str]]]:
        groups: dict[tuple[int, int], list[tuple[int, Any]]] = {}
        for key, value in self._bpf["io_sums"].items():
            groups.setdefault((key.major, key.writes), []).append((key.slot, value))
        cells = []
        for (major, writes), slots in sorted(groups.items()):
            count = sum(value.count for _, value in slots)
            middle, high = _quantile(slots, 0.5), _quantile(slots, 0.99)
            moved, took = sum(v.bytes for _, v in slots), sum(v.ns for _, v in slots)
            cells.append(
                [
                    _device(major), "write" if writes else "read", str(count), f"{moved / 1024:.0f}",
                    f"{took / count / 1e6:.2f}", f"<{middle / 1000:.3g}", f"<{high / 1000:.3g}",
                    _ms(max(v.most for _, v in slots)),
                ]
            )  # fmt: skip
        columns = ["DEVICE", "WHAT", "TIMES", "KIB", "MEAN MS", "P50 MS", "P99 MS", "MOST MS"]
        left = len(self._bpf["asked_for"])
        if left:
            say(notice=f"blockio: {left} requests were merged into others or had not ended")
        return columns, cells

    def _processes(self) -> None:
        """Its events are all there is to tell."""


OTHERS = ("", 1)  # no open's result: those are an errno below zero, or 0


def count(seen: dict[tuple[str, int], int], path: str, result: int) -> bool:
    """Whether it is the first open of this path with this result, of those that are told apart."""
    key = (path, result) if (path, result) in seen or len(seen) < MAX_PATHS else OTHERS
    seen[key] = seen.get(key, 0) + 1
    return key != OTHERS and seen[key] == 1


def _quantile(slots: list[tuple[int, Any]], part: float) -> float:
    """The upper bound, in microseconds, of the power of two that holds the quantile."""
    wanted, seen = part * sum(value.count for _, value in slots), 0
    for slot, value in sorted(slots, key=lambda item: item[0]):
        seen += value.count
        if seen >= wanted:
            return float(2**slot)
    return 0.0


def _device(major: int) -> str:
    for line in Path("/proc/devices").read_text().partition("Block devices:")[2].splitlines():
        number, _, name = line.strip().partition(" ")
        if number == str(major):
            return name
    return str(major)


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.2f}"


def _error(result: int) -> str:
    return "" if result >= 0 else f": {errno.errorcode.get(-result, result)}"


def _status(status: int) -> str:
    return f"by signal {status & 0x7F}" if status & 0x7F else f"with {status >> 8 & 0xFF}"


def load(names: list[str], directory: int) -> list[Tool]:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sources = importlib.import_module("programs").SOURCES

    tools = []
    for name in names:
        try:
            tools.append(Tool(name, sources[name], directory))
        except Exception as err:  # bcc raises bare Exception; its compiler's words are on stderr
            say(notice=f"{name}: cannot be traced on this kernel: {err}")
    return tools


def main() -> int:
    parser = argparse.ArgumentParser(description="looks into one cgroup with bcc")
    parser.add_argument("group", help="directory of the cgroup (v2)")
    parser.add_argument("--tools", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stopping.append(got))
    try:
        check()
        directory = os.open(options.group, os.O_RDONLY | os.O_DIRECTORY)
    except Unable as err:
        say(notice=str(err))
        return 3
    except OSError as err:
        say(notice=f"{options.group}: {err.strerror}; the call has ended")
        return 3
    tools = load(options.tools.split(","), directory)
    say(ready=[tool.name for tool in tools])
    if not tools:
        return 3
    streams = [tool for tool in tools if tool.streams]
    until = time.monotonic() + options.seconds
    while not stopping and time.monotonic() < until:
        for tool in streams:
            tool.poll(POLL // len(streams))
        wait = 0.0 if streams else POLL / 1000
        if select.select([sys.stdin], [], [], wait)[0] and not os.read(0, 4096):
            break
    for tool in streams:
        tool.poll(0)
    for tool in tools:
        tool.table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
