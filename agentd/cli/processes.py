"""The processes in a call's leaf as rows and JSON. Reading them is agentd.processes' part."""

from __future__ import annotations

from agentd.cli.plain import Plain
from agentd.cli.table import Cell
from agentd.processes import Process
from agentd.units import format_bytes, format_duration


def row(process: Process) -> list[Cell | str]:
    return [
        str(process.pid),
        process.state,
        format_bytes(process.memory_bytes),
        format_duration(process.cpu_seconds),
        process.command,
    ]


def plain(process: Process) -> dict[str, Plain]:
    return {
        "pid": process.pid,
        "state": process.state,
        "memory_bytes": process.memory_bytes,
        "cpu_seconds": process.cpu_seconds,
        "command": process.command,
    }
