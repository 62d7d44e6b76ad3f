"""Usage: what one call has used so far. Counters only grow; ``None`` means that nothing on this host can say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes, microseconds, counts. Sources: cgroup files (CPU, memory, PSI, pids), eBPF (the rest).

    ``read_bytes``/``written_bytes`` are what the processes moved through read() and write() (page cache included),
    ``disk_*`` what reached a block device on their account, ``net_*`` IP packets with their headers.
    """

    cpu_usec: int = 0
    cpu_user_usec: int = 0
    cpu_system_usec: int = 0
    memory_now: int | None = None
    memory_peak: int | None = None
    pids_now: int | None = None
    faults: int | None = None
    major_faults: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    disk_read_bytes: int | None = None
    disk_written_bytes: int | None = None
    net_rx_bytes: int | None = None
    net_tx_bytes: int | None = None
    forks: int | None = None
    execs: int | None = None
    run_wait_usec: int | None = None  # runnable, but waiting for a CPU
    switches: int | None = None  # context switches
    memory_stall_usec: int | None = None  # PSI "some", since the leaf was made
    cpu_stall_usec: int | None = None
    io_stall_usec: int | None = None
    oom_kills: int | None = None
    gpu_memory_bytes: int | None = None  # that its processes hold, on all GPUs, at the last sample
    gpu_seconds: float | None = None  # its share of the SMs x time, summed over the GPUs, as the driver samples it
    gpu_joules: float | None = None  # of the GPUs' energy, by the same share; idle power is nobody's
