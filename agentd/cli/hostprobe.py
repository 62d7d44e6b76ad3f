"""What this host can do, tried in this process: for ``corral doctor`` where no daemon answers.

Each feature is tried and not guessed; a probe that fails says so as a feature that was not found, with the cause.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from agentd.cli.errors import NotFoundError
from agentd.cli.launcher import find_program

# Without these no call can be placed or watched; without any other Corral does less, and says what.
ESSENTIAL: Final = frozenset({"cgroup", "pidfd", "corral-exec"})


class FeatureLike(Protocol):
    """As in ``bpf.types``, the API and here: what was looked for, and what its absence costs. ``found`` is None where
    it could not be tried."""

    @property
    def name(self) -> str: ...
    @property
    def found(self) -> bool | None: ...
    @property
    def detail(self) -> str: ...
    @property
    def cost(self) -> str: ...
    @property
    def remedy(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Feature:
    name: str
    found: bool
    detail: str
    cost: str = ""
    remedy: str = ""


def probe_host() -> list[FeatureLike]:
    """Everything, in the order in which it matters: the table of agentd.doctor, which takes the lines below into it.
    Never raises for what a host lacks."""
    features: Callable[[], Iterable[FeatureLike]] = importlib.import_module("agentd.doctor").features
    return list(features())


def essential_missing(features: Iterable[FeatureLike]) -> list[str]:
    return [feature.name for feature in features if feature.name in ESSENTIAL and not feature.found]


_NO_TREE: Final = "no limits, no freezing, no killing of a call as a whole: agentd can only observe"


def tree_of(mode: str) -> Feature:
    """The cgroup tree that a running daemon has: its HostStatus.mode (unified, hybrid, observe)."""
    if mode in ("unified", "hybrid"):
        return Feature("cgroup", True, mode)
    return Feature("cgroup", False, mode or "unknown", _NO_TREE, "look for the cause in 'journalctl -u agentd'")


def cgroup(root: str = "corral") -> Feature:
    """``root``: cgroup.root of the daemon."""
    try:
        detect = importlib.import_module("controller.cgroup").detect
        host = detect(root)
    except Exception as err:  # every kind of host must get its line in the table
        return Feature(
            "cgroup", False, str(err), _NO_TREE, getattr(err, "remedy", "") or "mount cgroup v2, run as root"
        )
    mode = getattr(host, "mode", "unknown")
    controllers = sorted(str(name) for name in getattr(host, "controllers", ()))
    return Feature("cgroup", True, f"{mode}; {', '.join(controllers) or 'no controllers'}")


def pidfd() -> Feature:
    cost = "a call's first process cannot be identified without a race: calls are refused"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as err:
        return Feature("pidfd", False, f"pidfd_open: {err.strerror}", cost, "run Linux 5.3 or newer")
    return Feature("pidfd", True, "pidfd_open works")


def launcher() -> Feature:
    try:
        found = find_program("corral-exec")
    except NotFoundError as err:
        return Feature(
            "corral-exec", False, err.message, "'corral run' and agents' hooks cannot start calls", err.remedy
        )
    return Feature("corral-exec", True, str(found))


def privilege() -> Feature:
    if os.geteuid() == 0:
        return Feature("root", True, "effective uid 0")
    return Feature(
        "root",
        False,
        f"effective uid {os.geteuid()}",
        "agentd started as this user only observes, unless a cgroup tree was delegated to it",
        "start agentd as root (systemctl start agentd)",
    )


def pressure(root: Path = Path("/proc/pressure")) -> Feature:
    cost = "pressure on CPU, memory and disk is not seen: the ladder acts on memory use alone"
    remedy = "boot with psi=1, on a kernel with CONFIG_PSI"
    try:
        for name in ("cpu", "memory", "io"):
            (root / name).read_text(encoding="ascii")
    except OSError as err:
        return Feature("psi", False, f"{err.filename}: {err.strerror}", cost, remedy)
    return Feature("psi", True, "cpu, memory, io")


def memory_info(meminfo: Path = Path("/proc/meminfo")) -> Feature:
    cost = "how much room the host has is not known: no brake is raised"
    try:
        text = meminfo.read_text(encoding="ascii")
    except OSError as err:
        return Feature("meminfo", False, f"{meminfo}: {err.strerror}", cost, "mount /proc")
    found = "MemAvailable:" in text
    return Feature(
        "meminfo",
        found,
        "MemAvailable" if found else f"{meminfo}: no MemAvailable",
        cost,
        "mount the kernel's own /proc",
    )


def kernel_side() -> list[FeatureLike]:
    """What the eBPF side finds, by its own probe."""
    cost = "no in-kernel brake, no network and short-lived process accounting"
    try:
        probe: Callable[[], Iterable[FeatureLike]] = importlib.import_module("bpf.probe").probe
        found = list(probe())
    except Exception as err:  # a missing libbpf must not take the whole table away
        return [
            Feature("ebpf", False, f"{type(err).__name__}: {err}", cost, "install libbpf1; see docs/architecture.md")
        ]
    return found
