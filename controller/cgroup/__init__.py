"""cgroups: one interface to unified (cgroup v2) and hybrid hosts (v1 controllers, and v2 without any beside them).

    host = detect()                                  what this host has; NoUsableCgroups: only observing is possible
    tree = Tree(host, "corral"); tree.prepare()      the root, in every hierarchy that is used
    call = tree.call(tenant_id, session_id, call_id)
    call.create(Limits(memory_max=1 << 30)); call.move(pid); call.stat(); call.kill(); call.delete()
    watcher = Watcher(); watcher.add(call, on_event) before the first process comes; remove before delete

What a limit or figure is on each kind of host ("twin": a directory of the same path in the v1 hierarchy):

    Limits, Group          unified                          hybrid
    ---------------------  -------------------------------  ----------------------------------------------------------
    memory_max             memory.max                       memory.limit_in_bytes
    memory_high, _low      memory.high, memory.low          none: a note
    cpu_max                cpu.max                          cpu.cfs_quota_us / cpu.cfs_period_us; twin on demand
    cpu_weight             cpu.weight                       cpu.shares = weight * 1024 / 100; twin on demand
    pids_max               pids.max                         pids.max (twin)
    io_weight              io.weight, io.bfq.weight         blkio.bfq.weight where a disk is under bfq, else a note
    io_max                 io.max, each disk                blkio.throttle.*_bps_device (no buffered writes); on demand
    egress_max             no cgroup file: eBPF (bpf/pace.py), the same on each
    oom_group              memory.oom.group                 none: a note (the daemon kills the rest)
    freeze, kill           cgroup.freeze, cgroup.kill       the same, on the v2 side
    id, xattr, populated   the v2 directory                 the same
    cpu time               cpu.stat                         cpu.stat of the v2 side; throttling from the cpu twin
    memory now, peak       memory.current, memory.peak      memory.usage_in_bytes, memory.max_usage_in_bytes
    OOM counters           memory.events.local              memory.oom_control (kills), memory.failcnt (limit met)
    OOM notification       inotify on memory.events.local   eventfd through cgroup.event_control
    pids.max hit           inotify on pids.events           Watcher.check, and when empty: newer kernels do not notify
    disk bytes             io.stat                          blkio.throttle.io_service_bytes_recursive, given a twin
    pressure               *.pressure                       the same, on the v2 side

Errors: controller.cgroup.errors. None of a Limits' fields touches swap: memory_max bounds resident memory.
"""

from controller.cgroup.core import MAX_RECORD
from controller.cgroup.cpu import CpuStat
from controller.cgroup.detect import CgroupHost, detect
from controller.cgroup.errors import (
    CgroupFileError,
    FormatError,
    GroupBusy,
    GroupExists,
    KernelRefused,
    KnobMissing,
    NoSuchGroup,
    NoSuchProcess,
    NotPermitted,
    NoUsableCgroups,
    ValueRefused,
)
from controller.cgroup.files import Pressure
from controller.cgroup.group import Group, GroupKind
from controller.cgroup.host import HostStat, read_host, read_memory
from controller.cgroup.io import IoStat
from controller.cgroup.memory import MemoryEvents, MemoryStat
from controller.cgroup.pids import PidsStat
from controller.cgroup.pressure import PressureTrigger
from controller.cgroup.stat import FastStat, GroupStat, GroupUse
from controller.cgroup.tree import Found, Tree
from controller.cgroup.watch import GroupEvent, GroupEventKind, Watcher

__all__ = [
    "MAX_RECORD",
    "CgroupFileError",
    "CgroupHost",
    "CpuStat",
    "FastStat",
    "FormatError",
    "Found",
    "Group",
    "GroupBusy",
    "GroupEvent",
    "GroupEventKind",
    "GroupExists",
    "GroupKind",
    "GroupStat",
    "GroupUse",
    "HostStat",
    "IoStat",
    "KernelRefused",
    "KnobMissing",
    "MemoryEvents",
    "MemoryStat",
    "NoSuchGroup",
    "NoSuchProcess",
    "NoUsableCgroups",
    "NotPermitted",
    "PidsStat",
    "Pressure",
    "PressureTrigger",
    "Tree",
    "ValueRefused",
    "Watcher",
    "detect",
    "read_host",
    "read_memory",
]
