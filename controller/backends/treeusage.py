"""What a process tree used, as a Usage of the model."""

from __future__ import annotations

from controller.model import Usage
from controller.processes import procfs
from controller.processes.tree import Tree


def usage_of(tree: Tree) -> Usage:
    use = tree.use()
    io = use if tree.io_known else None
    return Usage(
        cpu_usec=usec(use.user + use.system),
        cpu_user_usec=usec(use.user),
        cpu_system_usec=usec(use.system),
        memory_now=tree.rss,
        memory_peak=tree.rss_peak,
        pids_now=len(tree.alive),
        faults=use.faults,
        major_faults=use.major,
        read_bytes=io.read if io is not None else None,
        written_bytes=io.written if io is not None else None,
        disk_read_bytes=io.disk_read if io is not None else None,
        disk_written_bytes=io.disk_written if io is not None else None,
    )


def usec(ticks: int) -> int:
    return ticks * 1_000_000 // procfs.TICKS
