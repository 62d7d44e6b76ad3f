"""What `corral doctor` looks at: the places of a daemon, and what a user without root is told about one of his own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agentd.config import Config
from agentd.userdaemon import CGROUP_MOUNTS, NoUserPlaces, user_places
from bpf import Feature


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """``root``: the tree's group below the mount of each hierarchy. ``state``: the daemon's state directory."""

    root: str
    state: Path
    lines: tuple[Feature, ...] = ()


def places(
    root: str | None,
    state: Path | None,
    *,
    environment: Mapping[str, str] = os.environ,
    uid: int | None = None,
    mounts: tuple[Path, ...] = CGROUP_MOUNTS,
) -> Places:
    """``root`` and ``state`` as a running daemon has them; None: the defaults, which without root are those of
    ``agentd --user``."""
    defaults, uid = Config(), os.geteuid() if uid is None else uid
    root_default, state_default = defaults.cgroup.root, defaults.daemon.state_dir
    lines: tuple[Feature, ...] = ()
    if uid != 0:
        try:
            own = user_places(environment, uid, mounts)
        except NoUserPlaces as err:
            lines = (_line(False, str(err)),)
        else:
            lines = (_line(own.group is not None, own.group or own.problem),)
            root_default, state_default = own.group or root_default, own.state
    return Places(root=root or root_default, state=state or state_default, lines=lines)


def _line(found: bool, detail: str) -> Feature:
    return Feature(
        name="user service",
        found=found,
        detail=detail,
        cost="agentd --user, a daemon without root, only observes",
        remedy="systemctl --user start corral-calls; before that, as root: loginctl enable-linger USER",
    )
