"""One daemon for one tree."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from controller.model import AlreadyExists


def lock_root(path: Path) -> int:
    """An exclusive lock on the tree's root, held by the descriptor. Two daemons on one tree would each undo what the
    other does; their configurations may differ in everything else. Raises AlreadyExists."""
    try:
        # the one file of a group that nobody else can open: whoever can open a file can lock it, and keep us out
        descriptor = os.open(path / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # before Linux 5.14
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyExists(
            f"another daemon runs on the cgroup tree {path}",
            remedy="stop it (systemctl stop agentd), or give this one another cgroup.root",
        ) from None
    return descriptor
