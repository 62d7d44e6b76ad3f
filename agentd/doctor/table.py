"""The table of `corral doctor`: the one place that composes it.

Each line is tried, never guessed: a cgroup is made and removed, a descriptor opened, a socket spoken to. What cannot be
tried here is None, and ``detail`` says why. Works without privilege, takes some 0.3 s, leaves nothing behind.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from agentd.cli import hostprobe
from agentd.doctor import around, groups, limits, netlink
from agentd.doctor.places import places
from bpf import Feature


def own_features(missing: Iterable[str]) -> tuple[Feature, ...]:
    """One line for each thing missing to a running daemon. Its text has the cause, the remedy and the cost together, as
    every screen shows it: the other columns stay empty."""
    return tuple(Feature(name="daemon", found=False, detail=text, cost="", remedy="") for text in missing)


def features(
    missing: Sequence[str] = (), *, cgroup_root: str | None = None, state_dir: Path | None = None
) -> tuple[Feature, ...]:
    """The whole table: a daemon's own ``missing`` first, then what matters most. ``cgroup_root`` and ``state_dir`` as
    configured; None: the defaults. Never raises for what a host lacks."""
    at = places(cgroup_root, state_dir)
    probe = netlink.start()
    try:
        kernel = [_feature(line) for line in hostprobe.kernel_side()]
        return (
            *own_features(missing),
            *_basics(at.root),
            *at.lines,
            *groups.lines(at.root),
            *limits.lines(at.state),
            *kernel,
            *netlink.lines(probe),
            *around.lines(kernel),
        )
    finally:
        if isinstance(probe, subprocess.Popen):
            probe.kill()
            probe.communicate()


def _feature(line: hostprobe.FeatureLike) -> Feature:
    if isinstance(line, Feature):
        return line
    return Feature(name=line.name, found=line.found, detail=line.detail, cost=line.cost, remedy=line.remedy)


def _basics(root: str) -> list[Feature]:
    lines = (hostprobe.pidfd, hostprobe.launcher, hostprobe.privilege, hostprobe.pressure, hostprobe.memory_info)
    return [_feature(hostprobe.cgroup(root)), *(_feature(line()) for line in lines)]
