"""Recorded agent traces (schema ``agentcg-compact-v1``): untrusted files, checked before anything is done with them.

A trace holds a container's memory (decimal MB) and CPU (cores) about once a second, and the interval, tool and kind of
every tool call. Times are seconds from the first sample; a tool may begin before it (a negative start).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from controller.model import ControllerError

SCHEMA: Final = "agentcg-compact-v1"
MAX_FILE: Final = 64 << 20  # bytes
MAX_SAMPLES: Final = 1_000_000
MAX_TOOLS: Final = 100_000
MAX_SECONDS: Final = 30 * 86_400.0
MAX_MB: Final = 64e6  # 64 TB: more than any host; larger is a mistake in units
MAX_CORES: Final = 256.0  # what corral-replay spins at most

_Name = Annotated[str, msgspec.Meta(max_length=512)]


class TraceError(ControllerError):
    """The file is no trace. Names the file, the field and what is wrong with it."""


class NoTrace(TraceError):
    """There is no such file."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Seconds from the first sample. ``kind``: test, install, build, git, ...; "" for built-in tools."""

    start: float
    end: float
    tool: str
    kind: str
    command: str


@dataclass(frozen=True, slots=True)
class Trace:
    name: str  # dataset and task
    times: tuple[float, ...]
    memory_mb: tuple[float, ...]
    cores: tuple[float, ...]
    tools: tuple[ToolCall, ...]

    @property
    def seconds(self) -> float:
        return self.times[-1]


class _File(msgspec.Struct, frozen=True):
    schema: str
    dataset: _Name
    task: _Name
    t: list[float]
    mem_mb: list[float]
    cpu_cores: list[float]
    tools: list[tuple[float, float, _Name, str | None, str | None]]


def read_trace(path: Path) -> Trace:
    """Raises TraceError: NoTrace where there is no such file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise NoTrace(f"{path}: no such file", remedy=f"name a trace of schema {SCHEMA}") from None
    except OSError as err:
        raise TraceError(f"{path}: {err.strerror}", remedy="name a readable file") from None
    if len(data) > MAX_FILE:
        raise TraceError(f"{path}: larger than {MAX_FILE >> 20} MiB", remedy="is it a trace?")
    return parse_trace(data, str(path))


def parse_trace(data: bytes, source: str) -> Trace:
    """The trace in ``data``; ``source`` is named in errors. Raises TraceError."""
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as err:
        raise TraceError(f"{source}: {err}", remedy=f"expected JSON of schema {SCHEMA}") from None
    if file.schema != SCHEMA:
        raise TraceError(f"{source}: schema is {file.schema[:40]!r}", remedy=f"this replays {SCHEMA}")
    count = len(file.t)
    if not 2 <= count <= MAX_SAMPLES:
        raise TraceError(f"{source}: t: {count} samples", remedy=f"2 to {MAX_SAMPLES}")
    for field, values, most in (
        ("t", file.t, MAX_SECONDS),
        ("mem_mb", file.mem_mb, MAX_MB),
        ("cpu_cores", file.cpu_cores, MAX_CORES),
    ):
        if len(values) != count:
            raise TraceError(f"{source}: {field}: {len(values)} values for {count} samples")
        _check_values(source, field, values, most)
    if any(later <= earlier for earlier, later in itertools.pairwise(file.t)):
        raise TraceError(f"{source}: t: times do not rise", remedy="each sample must be later than the one before")
    if len(file.tools) > MAX_TOOLS:
        raise TraceError(f"{source}: tools: {len(file.tools)} entries", remedy=f"at most {MAX_TOOLS}")
    tools = sorted((_tool(source, number, entry) for number, entry in enumerate(file.tools)), key=lambda t: t.start)
    return Trace(
        _clean(f"{file.dataset} {file.task}"), tuple(file.t), tuple(file.mem_mb), tuple(file.cpu_cores), tuple(tools)
    )


def _check_values(source: str, field: str, values: Sequence[float], most: float) -> None:
    for number, value in enumerate(values):
        # "not (0 <= value <= most)" also catches NaN
        if not 0 <= value <= most:
            raise TraceError(f"{source}: {field}[{number}] is {value}", remedy=f"0 to {most:g}")


def _tool(source: str, number: int, entry: tuple[float, float, str, str | None, str | None]) -> ToolCall:
    start, end, tool, kind, command = entry
    if not (math.isfinite(start) and math.isfinite(end) and abs(start) <= MAX_SECONDS and start <= end <= MAX_SECONDS):
        raise TraceError(f"{source}: tools[{number}] lasts from {start} to {end}", remedy="give seconds, the end last")
    for field, text in (("tool", tool), ("category", kind or "")):
        if len(text) > 64 or not text.isprintable():
            raise TraceError(f"{source}: tools[{number}]: the {field} is no short name", remedy="at most 64 characters")
    return ToolCall(start, end, tool, kind or "", _clean((command or "")[:120]))


def _clean(text: str) -> str:
    """Without what could steer a terminal: names and commands of a trace end up on one."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
