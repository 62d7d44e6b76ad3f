"""Ends all calls and removes what the daemon made in the kernel: its cgroup tree and its pinned programs and maps.

The ledger stays. For uninstalling, tests and demonstrations; refused while a daemon runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentd.config import Config
from bpf import BpfError, PinDir
from controller.backends.rootlock import lock_root
from controller.cgroup import NoUsableCgroups, Tree, detect
from controller.model import AlreadyExists, ControllerError

_PATIENCE: Final = 15.0  # seconds for processes to be gone


class PurgeError(Exception):
    pass


def tree_is_there(config: Config) -> bool:
    """Whether an earlier daemon left groups. Where it cannot be known: yes."""
    try:
        return Tree(detect(config.cgroup.root), config.cgroup.root).root.exists()
    except NoUsableCgroups:
        return False
    except ControllerError:
        return True


def pins_are_there(config: Config) -> bool:
    try:
        return config.bpf.pin_dir.exists()
    except OSError:
        return True


def purge(config: Config) -> Iterator[str]:
    """Yields a line for each thing removed. Raises PurgeError with what is in the way."""
    yield from purge_tree(config)
    yield from purge_pins(config)


def purge_tree(config: Config) -> Iterator[str]:
    try:
        tree = Tree(detect(config.cgroup.root), config.cgroup.root)
        existed = tree.root.exists()
        if existed:
            lock = lock_root(Path(tree.root.path))
            try:
                tree.remove_all(kill=True, timeout=_PATIENCE)
            finally:
                os.close(lock)
            yield f"removed the cgroup tree {config.cgroup.root}"
    except NoUsableCgroups:
        pass  # then there is none of ours either
    except AlreadyExists as err:
        raise PurgeError(str(err)) from err
    except ControllerError as err:
        raise PurgeError(f"the cgroup tree {config.cgroup.root} could not be removed: {err}") from err


def purge_pins(config: Config) -> Iterator[str]:
    try:
        if not config.bpf.pin_dir.exists():
            return
        pins = PinDir(config.bpf.pin_dir)
        lock = pins.lock()
        try:
            pins.remove_all()
        finally:
            os.close(lock)
    except BpfError as err:
        raise PurgeError(str(err)) from err
    except PermissionError as err:
        raise PurgeError(f"{err.filename}: {err.strerror}; purge as the user whom the daemon ran as") from err
    yield f"removed the pinned programs below {config.bpf.pin_dir}"
