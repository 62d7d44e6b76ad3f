"""One call's leaf as the enforcing backend keeps it, and the readings of its files and counters as a Usage."""

from __future__ import annotations

import os
from dataclasses import dataclass

import structlog

from bpf import Counters, NetworkPolicy
from controller.backend import CallRef
from controller.cgroup import FastStat, Group, GroupStat, GroupUse
from controller.model import Intent, Limits, Network, Squeeze, Usage

log = structlog.get_logger("corral.leaf")

UNTOUCHED = Limits()
_FIRST = b"1000"  # the most: as good as all of the memory that the OOM is about


@dataclass(slots=True)
class Leaf:
    ref: CallRef
    group: Group
    cgroup_id: int
    limits: Limits = UNTOUCHED  # as granted
    squeeze: Squeeze | None = None  # what is in force of it
    device: int = 0  # of the file system in which it was begun; 0: not known
    stat: GroupUse | None = None  # of the last time that all of it was read
    counters: Counters | None = None  # likewise


def first_to_go(pid: int) -> None:
    """At an OOM above the leaf (its tenant's limit, the host's end) the kernel picks a call's process, never an agent's
    that happens to be larger. Children inherit it, and raising it takes no privilege. See proc_pid_oom_score_adj(5)."""
    try:
        descriptor = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, _FIRST)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended
    except OSError as err:
        log.warning("a call is not marked as the first to go at an OOM", pid=pid, error=str(err))


def network_policy(intent: Intent) -> NetworkPolicy:
    """What the gates are told. The daemon's own broker is a unix socket and not concerned."""
    match intent.network:
        case Network.NONE:
            return NetworkPolicy.NONE
        case Network.EGRESS_LIST:
            return NetworkPolicy.listed((r.network, r.port) for r in intent.egress)
        case _:
            return NetworkPolicy.ANY


def usage_of(stat: GroupUse | FastStat, counters: Counters | None, parts: frozenset[str]) -> Usage:
    """From cgroup files what they count exactly, from the kernel side the rest. What none of its ``parts`` counts is
    None (not known is not nought); faults and block bytes come from memory.stat and io.stat then, where the host has
    them."""
    if isinstance(stat, FastStat):
        return Usage(
            cpu_usec=stat.cpu_usec,
            cpu_user_usec=stat.cpu_user_usec,
            cpu_system_usec=stat.cpu_system_usec,
            memory_now=stat.memory_now,
            memory_peak=stat.memory_peak,
            **_counted(counters, parts),
        )
    memory, pids, io = stat.memory, stat.pids, stat.io
    counted = _counted(counters, parts)
    if counters is None or "accounting" not in parts:
        details = stat.memory if isinstance(stat, GroupStat) else None
        counted["faults"] = details.faults if details is not None else None
        counted["major_faults"] = details.major_faults if details is not None else None
        counted["disk_read_bytes"] = io.read_bytes if io is not None else None
        counted["disk_written_bytes"] = io.written_bytes if io is not None else None
    return Usage(
        cpu_usec=stat.cpu.usage_usec,
        cpu_user_usec=stat.cpu.user_usec,
        cpu_system_usec=stat.cpu.system_usec,
        memory_now=memory.current if memory is not None else None,
        memory_peak=memory.peak if memory is not None else None,
        pids_now=pids.current if pids is not None else None,
        memory_stall_usec=stat.memory_pressure.some_usec if stat.memory_pressure is not None else None,
        cpu_stall_usec=stat.cpu_pressure.some_usec if stat.cpu_pressure is not None else None,
        io_stall_usec=stat.io_pressure.some_usec if stat.io_pressure is not None else None,
        oom_kills=memory.events.oom_kill if memory is not None else None,
        **counted,
    )


def _counted(c: Counters | None, parts: frozenset[str]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    if c is None:
        return found
    if "accounting" in parts:
        found |= {
            "faults": c.faults,
            "major_faults": c.major_faults,
            "read_bytes": c.read_bytes,
            "written_bytes": c.written_bytes,
            "disk_read_bytes": c.disk_read_bytes,
            "disk_written_bytes": c.disk_written_bytes,
            "run_wait_usec": c.run_wait_nsec // 1000,
            "switches": c.switches,
        }
    if "network" in parts:
        found |= {"net_rx_bytes": c.net_rx_bytes, "net_tx_bytes": c.net_tx_bytes}
    if "lifecycle" in parts:
        found |= {"forks": c.forks, "execs": c.execs}
    return found
