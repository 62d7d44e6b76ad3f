"""Which directory of which hierarchy does what, for one tree: shared by all of its groups."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from controller.cgroup import files
from controller.cgroup.cpu import Cpu, CpuV1, CpuV2
from controller.cgroup.detect import CgroupHost
from controller.cgroup.errors import NoSuchGroup
from controller.cgroup.io import Io, IoV1, IoV2
from controller.cgroup.memory import Memory, MemoryV1, MemoryV2
from controller.cgroup.pids import Pids

# v1 hierarchies in which every group has a twin from the start. The others cost a mkdir and a move on the path of each
# call, and only those with a limit there need them.
_EAGER: Final = ("memory", "pids")
_V1_NAMES: Final = {"memory": "memory", "pids": "pids", "cpu": "cpu", "io": "blkio"}


class Layout:
    """``v2`` and the mounts are strings without a trailing slash; a group's directory is ``f"{mount}/{relative}"``.

    ``memory``, ``cpu``, ``pids``, ``io``: the pair of mount and implementation, None where the host has no such
    controller. ``eager``, ``lazy``: v1 mounts with twins always, and with twins on demand. ``attribute``: the extended
    attribute that carries a group's record. ``lazy_in_use``: those of ``lazy`` in which the tree's root exists.
    ``kernel_names``: by mount, the name in /proc/PID/cgroup and the group that the mount shows as its top.
    """

    __slots__ = (
        "attribute", "cpu", "delegated", "eager", "io", "kernel_names", "lazy", "lazy_in_use", "memory", "mode", "pids",
        "root", "v2",
    )  # fmt: skip

    def __init__(self, host: CgroupHost, root: str, attribute: str) -> None:
        self.mode: Literal["unified", "hybrid"] = host.mode
        self.root = root
        self.v2 = str(host.v2)
        self.attribute = attribute
        mounts = {name: str(path) for name, path in host.mounts.items()}
        # a dict keeps the order and names each mount once: cpu and cpuacct, say, may share one
        others = {mount: name for name, mount in mounts.items() if mount != self.v2}
        self.eager = tuple(dict.fromkeys(m for n, m in mounts.items() if m in others and n in _EAGER))
        self.lazy = tuple(m for m in others if m not in self.eager)
        self.kernel_names = {
            mount: ("" if mount == self.v2 else _V1_NAMES[others[mount]], host.mount_roots.get(Path(mount), "/"))
            for mount in (self.v2, *others)
        }
        self.lazy_in_use: set[str] = set()
        self.delegated = tuple(name for name, mount in mounts.items() if mount == self.v2)
        self.memory: tuple[str, Memory] | None = None
        self.cpu: tuple[str, Cpu] | None = None
        self.pids: tuple[str, Pids] | None = None
        self.io: tuple[str, Io] | None = None
        if (mount := mounts.get("memory")) is not None:
            self.memory = (mount, MemoryV2() if mount == self.v2 else MemoryV1())
        if (mount := mounts.get("cpu")) is not None:
            self.cpu = (mount, CpuV2() if mount == self.v2 else CpuV1(f"{mount}/{root}"))
        if (mount := mounts.get("pids")) is not None:
            self.pids = (mount, Pids())
        if (mount := mounts.get("io")) is not None:
            self.io = (mount, IoV2(mount) if mount == self.v2 else IoV1())

    @property
    def mounts(self) -> tuple[str, ...]:
        """Every hierarchy that may hold groups of the tree, v2 first."""
        return (self.v2, *self.eager, *self.lazy)

    def without(self, names: set[str]) -> None:
        """Forget controllers that were not delegated to us: their knobs would not be there."""
        if "memory" in names:
            self.memory = None
        if "cpu" in names:
            self.cpu = None
        if "pids" in names:
            self.pids = None
        if "io" in names:
            self.io = None
        self.delegated = tuple(n for n in self.delegated if n not in names)

    def refresh_lazy(self) -> None:
        """Look which lazily made hierarchies hold the tree already (after a restart)."""
        self.lazy_in_use = {m for m in self.lazy if files.is_directory(f"{m}/{self.root}")}

    def make(self, mount: str, relative: str, *, inner: bool) -> None:
        """mkdir of one directory, with its missing parents up to the tree's root. Raises GroupExists."""
        path = f"{mount}/{relative}"
        try:
            files.make_directory(path)  # its parent is there but for the first time: nothing is asked before
        except NoSuchGroup:
            if len(relative) <= len(self.root):
                raise
            self.make_all(mount, relative.rpartition("/")[0])
            files.make_directory(path)
        if mount in self.lazy:
            self.lazy_in_use.add(mount)
        if inner and mount == self.v2 and self.delegated:
            self.enable_below(path)

    def make_all(self, mount: str, relative: str) -> str | None:
        """The directory and its missing parents; those that are there stay. All of them are inner nodes.

        Returns the topmost that was missing, None when there was none.
        """
        if files.is_directory(f"{mount}/{relative}"):
            return None
        top, parent = relative, relative.rpartition("/")[0]
        while len(top) > len(self.root) and not files.is_directory(f"{mount}/{parent}"):
            top, parent = parent, parent.rpartition("/")[0]
        self.make(mount, relative, inner=True)
        return top

    def enable_below(self, path: str) -> None:
        """Give the groups below a v2 directory the tree's controllers."""
        files.write(f"{path}/cgroup.subtree_control", " ".join(f"+{name}" for name in self.delegated))
