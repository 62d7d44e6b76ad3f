"""One call's leaf as the enforcing backend keeps it, and the readings of its files and counters as a Usage."""

from __future__ import annotations

from dataclasses import dataclass

from bpf import Counters, NetworkPolicy
from controller.backend import CallRef
from controller.cgroup import FastStat, Group, GroupStat
from controller.model import Intent, Network, Usage


@dataclass(slots=True)
class Leaf:
    ref: CallRef
    group: Group
    cgroup_id: int


def network_policy(intent: Intent) -> NetworkPolicy:
    """What the gates are told. The daemon's own broker is a unix socket and not concerned."""
    match intent.network:
        case Network.NONE:
            return NetworkPolicy.NONE
        case Network.EGRESS_LIST:
            return NetworkPolicy.listed((r.network, r.port) for r in intent.egress)
        case _:
            return NetworkPolicy.ANY


def usage_of(stat: GroupStat | FastStat, counters: Counters | None) -> Usage:
    """From cgroup files what they count exactly, from eBPF the rest. Without eBPF what only it counts is None, and
    faults and block bytes come from memory.stat and io.stat where the host has them."""
    c = counters
    if isinstance(stat, FastStat):
        return Usage(
            cpu_usec=stat.cpu_usec,
            cpu_user_usec=stat.cpu_user_usec,
            cpu_system_usec=stat.cpu_system_usec,
            memory_now=stat.memory_now,
            memory_peak=stat.memory_peak,
            **_counted(c),
        )
    memory, pids, io = stat.memory, stat.pids, stat.io
    counted = _counted(c)
    if c is None:
        counted["faults"] = memory.faults if memory is not None else None
        counted["major_faults"] = memory.major_faults if memory is not None else None
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


def _counted(c: Counters | None) -> dict[str, int | None]:
    if c is None:
        return {}
    return {
        "faults": c.faults,
        "major_faults": c.major_faults,
        "read_bytes": c.read_bytes,
        "written_bytes": c.written_bytes,
        "disk_read_bytes": c.disk_read_bytes,
        "disk_written_bytes": c.disk_written_bytes,
        "net_rx_bytes": c.net_rx_bytes,
        "net_tx_bytes": c.net_tx_bytes,
        "forks": c.forks,
        "execs": c.execs,
        "run_wait_usec": c.run_wait_nsec // 1000,
        "switches": c.switches,
    }
