"""Chooses what the daemon can do on this host: enforce, or only observe, and says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from agentd.config import Config
from bpf import BpfError, Event, KernelSide, PinsInUse
from bpf.sched import Scheduler
from controller.backend import Backend
from controller.backends.enforce import Enforcer
from controller.backends.kernelside import KernelSide as KernelSidePort
from controller.cgroup import NoUsableCgroups, Tree, detect
from controller.model import AlreadyExists
from controller.scheduling import Scheduling

_DEMANDED: Final = frozenset({"memory", "cpu", "pids"})

_log: Final = structlog.get_logger("corral.platform")


class CannotEnforceHere(Exception):
    """daemon.mode is "enforce" and this host cannot."""


def choose_backend(config: Config) -> Backend:
    """Raises CannotEnforceHere."""
    if config.daemon.mode == "observe":
        return _observer("daemon.mode is observe: no limits, no cgroups")
    try:
        tree = Tree(detect(config.cgroup.root), config.cgroup.root)
        tree.prepare()
        if config.daemon.mode == "enforce":
            _demand_controllers(tree)
    except NoUsableCgroups as err:
        if config.daemon.mode == "enforce":
            raise CannotEnforceHere(f'daemon.mode is "enforce", but limits cannot be enforced here: {err}') from err
        return _observer(f"only observing, no limits: {err}")
    scheduling = Scheduling(Scheduler if config.sched.mode == "auto" else None)
    return Enforcer(tree, lambda root, on_event: open_kernel_side(config, root, on_event), scheduling)


def open_kernel_side(config: Config, root: Path, on_event: Callable[[Event], None]) -> KernelSidePort:
    """eBPF where it is to be had, else the netlink stand-in (process connector and taskstats), else the BpfError."""
    try:
        if config.bpf.enabled:
            side = KernelSide.open(cgroup=root, pin_dir=config.bpf.pin_dir, on_event=on_event)
            for detail in side.details:
                if "\n" in detail:  # libbpf's own words, too many for a screen
                    _log.info("a part of the kernel side was not loaded", detail=detail)
            return _completed(side, root, on_event)
        cause = BpfError("eBPF is switched off (bpf.enabled)", remedy="set bpf.enabled = true")
    except PinsInUse as err:
        raise AlreadyExists(err.message, remedy=err.remedy) from err  # going without would hide a wrong configuration
    except BpfError as err:
        cause = err
    from controller.processes.netlink import NetlinkSide  # pyroute2 costs memory that a daemon with eBPF has no use for

    return NetlinkSide.open(cgroup=root, on_event=on_event, because=cause)


def _completed(side: KernelSide, root: Path, on_event: Callable[[Event], None]) -> KernelSidePort:
    """eBPF that was loaded in part, with the stand-in for what it has a stand-in for."""
    from controller.backends.bothsides import STANDS_IN_FOR, BothSides

    if side.parts >= STANDS_IN_FOR:
        return side
    from controller.processes.netlink import NetlinkSide

    # execs are told once: by the side that has them
    told = on_event if "lifecycle" not in side.parts else lambda _: None
    try:
        second = NetlinkSide.open(cgroup=root, on_event=told, because=BpfError("loaded in part"))
    except BpfError as err:
        _log.info("the process connector cannot stand in for what is missing", cause=str(err.__cause__ or err))
        return side
    return BothSides(side, second)


def _demand_controllers(tree: Tree) -> None:
    """Mode "enforce" stands for all limits: a host without some of them is one that cannot. Raises NoUsableCgroups."""
    lacking = sorted(_DEMANDED - tree.controllers)
    if lacking:
        why = "; ".join(tree.host.problems) or "not delegated to agentd"
        raise NoUsableCgroups(
            tree.root.path,
            f"no {', '.join(lacking)} controller ({why})",
            remedy='mount or delegate it, or set daemon.mode = "auto" to go without',
        )


def _observer(why: str) -> Backend:
    from controller.backends.observe import Observer  # likewise psutil

    return Observer((why,))
