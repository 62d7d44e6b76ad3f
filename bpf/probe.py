"""What this host's kernel lets us do: tried, not guessed. ``corral doctor`` shows the table.

A feature that cannot be tried without privilege is reported as unknown (``found`` is None), with the reason.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bpf import sched, trial
from bpf.errors import Unavailable
from bpf.libbpf import library
from bpf.loader import OBJECTS, PARTS
from bpf.pins import DEFAULT_ROOT, on_file_system
from bpf.types import Feature

_BPFFS: Final = 0xCAFE4A11
_TRACEFS: Final = 0x74726163
_CAPABILITIES: Final = {"net_admin": 12, "sys_admin": 21, "perfmon": 38, "bpf": 39}

Trial = Callable[[], str]  # what was seen; raises OSError with the kernel's reason


def probe(cgroup: Path | None = None) -> tuple[Feature, ...]:
    """Every feature, in the order in which they matter. ``cgroup``: a v2 directory to try the gates on; by default
    the one that this process is in. Changes nothing; takes some 0.1 s."""
    return _Probe(cgroup).run()


class _Probe:
    def __init__(self, cgroup: Path | None) -> None:
        self._cgroup = cgroup or own_cgroup()
        self._held = effective_capabilities()
        self._privileged = "sys_admin" in self._held or {"bpf", "perfmon", "net_admin"} <= self._held
        self._types: trial.KernelTypes | None = None
        self._found: list[Feature] = []

    def run(self) -> tuple[Feature, ...]:
        with ExitStack() as stack:
            self._add(
                "capabilities",
                self._capabilities,
                "nothing of the kernel side can be loaded",
                "run agentd as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_RESOURCE",
            )
            self._add(
                "libbpf",
                _libbpf,
                "nothing of the kernel side can be loaded",
                "install libbpf 1.0 or later (Debian: libbpf1)",
            )
            self._add("objects", _objects, "nothing of the kernel side can be loaded", "run scripts/build-bpf")
            self._add(
                "btf",
                lambda: self._open_types(stack),
                "no program can be fitted to this kernel: accounting falls back to cgroup files and netlink",
                "use a kernel built with CONFIG_DEBUG_INFO_BTF",
            )
            self._kernel_side()
            self._bonuses()
        return tuple(self._found)

    def _kernel_side(self) -> None:
        self._add(
            "bpffs",
            _bpffs,
            "thresholds do not outlive the daemon",
            f"as root: mount -t bpf bpf {DEFAULT_ROOT} (agentd does so by itself)",
        )
        self._add(
            "ring buffer",
            _ring_buffer,
            "no events from the kernel",
            "use a kernel 5.8 or later",
            tried=True,
        )
        self._add(
            "tp_btf",
            lambda: self._traced("sched_process_exit"),
            "no forks, execs, exits and harvested counters per call",
            "use a kernel 5.5 or later with BTF",
            tried=True,
        )
        self._add(
            "iter/task",
            self._iterator,
            "counters lack what live tasks used",
            "use a kernel 5.8 or later with BTF",
            tried=True,
        )
        self._add(
            "rss_stat brake",
            self._brake,
            "calls are not braked in the kernel: their hard limit alone holds them",
            "use a kernel 6.1 or later with BTF",
            tried=True,
        )
        gates = {
            "cgroup/connect4": (trial.CGROUP_SOCK_ADDR, trial.CONNECT4),
            "cgroup/connect6": (trial.CGROUP_SOCK_ADDR, trial.CONNECT6),
            "cgroup/sendmsg4": (trial.CGROUP_SOCK_ADDR, trial.SENDMSG4),
            "cgroup/sendmsg6": (trial.CGROUP_SOCK_ADDR, trial.SENDMSG6),
            "cgroup/device": (trial.CGROUP_DEVICE, trial.DEVICE),
            "cgroup_skb/ingress": (trial.CGROUP_SKB, trial.INGRESS),
            "cgroup_skb/egress": (trial.CGROUP_SKB, trial.EGRESS),
        }
        costs = {"cgroup/device": "GPU grants are not enforced", "cgroup_skb/ingress": "no network bytes per call"}
        costs["cgroup_skb/egress"] = "no network bytes per call; open sockets escape a network policy"
        for name, (kind, attach) in gates.items():
            self._add(
                name,
                lambda kind=kind, attach=attach: self._gate(kind, attach),  # type: ignore[misc] # mypy cannot infer a lambda's defaults
                costs.get(name, "network policies are not enforced"),
                "use a kernel with CONFIG_CGROUP_BPF and a v2 hierarchy",
                tried=True,
            )
        self._add(
            "egress rates",
            lambda: self._gate(trial.CGROUP_SKB, trial.EGRESS),
            "egress_max of calls, sessions and tenants is refused",
            "use a kernel with CONFIG_CGROUP_BPF and a v2 hierarchy",
            tried=True,
        )
        self._add(
            "disk trace",
            lambda: self._traced("sys_exit"),
            "that a call's writes found the disk full is hinted at by the disk's state alone, not proven",
            "use a kernel with BTF and CONFIG_FTRACE_SYSCALLS",
            tried=True,
        )

    def _bonuses(self) -> None:
        self._add("kprobe", _kprobe, "nothing of today: `corral trace` uses tracepoints", "CONFIG_KPROBES", tried=True)
        self._add(
            "fentry",
            self._fentry,
            "from Linux 6.19 on, ends of tasks are looked for at each switch of tasks",
            "CONFIG_FUNCTION_TRACER with direct calls",
            tried=True,
        )
        self._add("lsm", self._lsm, "file and mount policies per call", "boot with lsm=...,bpf", tried=True)
        self._add(
            "sched_ext",
            _sched_ext,
            "no CPU scheduling by latency class (sched.mode): calls have cgroup weights",
            "a kernel 6.19 or later with CONFIG_SCHED_CLASS_EXT",
        )
        self._add("tracefs", _tracefs, "`corral trace` cannot run", "mount -t tracefs tracefs /sys/kernel/tracing")
        self._add(
            "kernel headers",
            _headers,
            "`corral trace` cannot compile its tools",
            f"install the headers of {platform.release()}, or a kernel with CONFIG_IKHEADERS",
        )
        self._add(
            "lockdown",
            self._lockdown,
            "with 'confidentiality' no program may read kernel memory, so none of ours works",
            "boot with lockdown=integrity or none",
            tried=True,
        )

    def _add(self, name: str, attempt: Trial, cost: str, remedy: str, *, tried: bool = False) -> None:
        """``tried``: it takes privilege to know."""
        found: bool | None
        if tried and not self._privileged:
            found, detail = None, "not known: trying it takes CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, or root"
        else:
            try:
                found, detail = True, attempt()
            except (OSError, Unavailable) as err:
                found, detail = False, (err.strerror or str(err)) if isinstance(err, OSError) else err.message
        self._found.append(Feature(name=name, found=found, detail=detail, cost=cost, remedy=remedy))

    def _capabilities(self) -> str:
        if not self._privileged:
            held = ", ".join(sorted(self._held)) or "none"
            raise PermissionError(1, f"of those needed, this process holds: {held}")
        return "held: " + ", ".join(sorted(self._held))

    def _open_types(self, stack: ExitStack) -> str:
        self._types = trial.KernelTypes()
        stack.callback(self._types.close)
        return "/sys/kernel/btf/vmlinux"

    def _need_types(self) -> trial.KernelTypes:
        if self._types is None:
            raise OSError(2, "needs BTF")
        return self._types

    def _traced(self, tracepoint: str) -> str:
        btf_id = self._need_types().tracepoint(tracepoint)
        with trial.loaded(trial.TRACING, trial.RETURN_0, attach=trial.RAW_TP, btf_id=btf_id) as fd:
            trial.attach_traced(fd)
        return f"attached to {tracepoint}"

    def _iterator(self) -> str:
        btf_id = self._need_types().function("bpf_iter_task")
        with trial.loaded(trial.TRACING, trial.RETURN_0, attach=trial.ITER, btf_id=btf_id) as fd:
            trial.attach_to(fd, 0, trial.ITER)
        return "attached"

    def _brake(self) -> str:
        btf_id = self._need_types().tracepoint("rss_stat")
        # Loaded, so that the verifier judges the helper; never attached: it would stop every process of the host.
        with trial.loaded(trial.TRACING, trial.STOP_SELF, attach=trial.RAW_TP, btf_id=btf_id):
            pass
        return self._traced("rss_stat") + "; bpf_send_signal is allowed there"

    def _gate(self, kind: int, attach: int) -> str:
        if self._cgroup is None:
            raise OSError(2, "no cgroup v2 hierarchy is mounted")
        target = os.open(self._cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with trial.loaded(kind, trial.RETURN_1, attach=attach) as fd:
                trial.attach_to(fd, target, attach)
        finally:
            os.close(target)
        return f"attached to {self._cgroup}"

    def _fentry(self) -> str:
        btf_id = self._need_types().function("do_exit")
        with trial.loaded(trial.TRACING, trial.RETURN_0, attach=trial.FENTRY, btf_id=btf_id) as fd:
            trial.attach_traced(fd)
        return "attached to do_exit"

    def _lsm(self) -> str:
        btf_id = self._need_types().function("bpf_lsm_file_open")
        with trial.loaded(trial.LSM, trial.RETURN_0, attach=trial.LSM_MAC, btf_id=btf_id) as fd:
            trial.attach_traced(fd)
        return "attached to file_open"

    def _lockdown(self) -> str:
        """Found means: nothing that we need is locked."""
        with trial.loaded(trial.RAW_TRACEPOINT, trial.READ_KERNEL):
            pass
        try:
            with trial.loaded(trial.RAW_TRACEPOINT, trial.WRITE_USER):
                return "kernel memory may be read, user memory written"
        except OSError:
            return "kernel memory may be read; user memory not written, as with lockdown=integrity"


def _sched_ext() -> str:
    why = sched.unavailable()
    if why:
        raise OSError(2, why)
    name = sched.running()
    return f"in force: {name}" if name else "can be had; the kernel's own scheduler is in force"


def _ring_buffer() -> str:
    trial.create_map(trial.RINGBUF, 0, 0, os.sysconf("SC_PAGE_SIZE"))
    return "made"


def _kprobe() -> str:
    trial.open_kprobe("do_exit")
    return "opened on do_exit"


def _libbpf() -> str:
    library()
    return "libbpf.so.1"


def _objects() -> str:
    missing = [part.name for part in PARTS if not (OBJECTS / f"{part.name}.bpf.o").is_file()]
    if missing:
        raise OSError(2, f"not built: {', '.join(missing)}")
    return f"{len(PARTS)} objects"


def _bpffs() -> str:
    if not on_file_system(DEFAULT_ROOT, _BPFFS):
        raise OSError(2, f"{DEFAULT_ROOT} is not mounted")
    return str(DEFAULT_ROOT)


def _tracefs() -> str:
    for path in (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing")):
        if on_file_system(path, _TRACEFS):
            return str(path)
    raise OSError(2, "not mounted, or not readable for this user")


def _headers() -> str:
    for path in (
        Path("/lib/modules", platform.release(), "build/include/linux/kconfig.h"),
        Path("/sys/kernel/kheaders.tar.xz"),
    ):
        if path.exists():
            return str(path)
    raise OSError(2, f"none for {platform.release()}")


def effective_capabilities(status: Path = Path("/proc/self/status")) -> frozenset[str]:
    """Those of the capabilities that matter here which this process has in effect."""
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return frozenset(name for name, bit in _CAPABILITIES.items() if bits >> bit & 1)
    return frozenset()


def own_cgroup() -> Path | None:
    """The directory of this process in the v2 hierarchy; None where none is mounted."""
    for root in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (root / "cgroup.procs").exists() and (root / "cgroup.controllers").exists():
            for line in Path("/proc/self/cgroup").read_text().splitlines():
                if line.startswith("0::"):
                    path = root / line[3:].lstrip("/")
                    return path if path.is_dir() else root
    return None
