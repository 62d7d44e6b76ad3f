"""What cgroup hierarchies this host has, from /proc/self/mountinfo, statfs and cgroup.controllers."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from controller.cgroup import files
from controller.cgroup.errors import CgroupFileError, NoUsableCgroups, from_os

CGROUP2_MAGIC: Final = 0x63677270  # include/uapi/linux/magic.h
CGROUP1_MAGIC: Final = 0x27E0EB
CONTROLLERS: Final = ("memory", "cpu", "pids", "io")
_V1_NAMES: Final = {"memory": "memory", "cpu": "cpu", "pids": "pids", "blkio": "io"}
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMount:
    """One cgroup mount. ``controllers`` as the kernel names them (v1: blkio); none for v2 and for named hierarchies."""

    version: Literal[1, 2]
    path: Path
    controllers: frozenset[str]
    read_only: bool
    root: str = "/"  # which cgroup the mount shows as its top: another than / inside most containers


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupHost:
    """``mounts`` maps each controller that can be used (memory, cpu, pids, io) to the hierarchy that has it: on unified
    hosts all to ``v2``. ``problems``: what cannot be had, each with its cause, in words for a screen."""

    mode: Literal["unified", "hybrid"]
    v2: Path
    mounts: dict[str, Path]
    mount_roots: dict[Path, str]
    problems: tuple[str, ...] = ()

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset(self.mounts)


def parse_mountinfo(text: str) -> list[CgroupMount]:
    """The cgroup mounts of a /proc/PID/mountinfo, in its order. A later mount on the same path hides an earlier one, of
    whatever type. Lines that are not understood are skipped: other file systems put strange things there."""
    found: dict[str, CgroupMount] = {}
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not separator or len(fields) < 6 or not kind:
            continue
        point = _unescape(fields[4])
        found.pop(point, None)
        if kind[0] not in ("cgroup", "cgroup2"):
            continue
        options = set(kind[2].split(",")) if len(kind) > 2 else set()
        found[point] = CgroupMount(
            version=2 if kind[0] == "cgroup2" else 1,
            path=Path(point),
            controllers=frozenset(options & _V1_NAMES.keys()) if kind[0] == "cgroup" else frozenset(),
            read_only="ro" in fields[5].split(",") or "ro" in options,
            root=_unescape(fields[3]),
        )
    return list(found.values())


def classify(mounts: list[CgroupMount], v2_controllers: frozenset[str]) -> CgroupHost:
    """Choose the hierarchy of each controller. ``v2_controllers``: cgroup.controllers of the v2 mount.

    Raises NoUsableCgroups when there is no v2 hierarchy that can be written: the daemon then only observes.
    """
    v2 = next((m for m in mounts if m.version == 2), None)
    if v2 is None:
        raise NoUsableCgroups(
            "/proc/self/mountinfo",
            "no cgroup v2 hierarchy is mounted",
            remedy="boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup/unified",
        )
    if v2.read_only:
        raise NoUsableCgroups(
            str(v2.path),
            "the cgroup v2 hierarchy is mounted read-only",
            remedy="in a container, start it with a writable cgroup mount; otherwise remount it rw",
        )
    chosen: dict[str, Path] = {}
    roots = {v2.path: v2.root}
    problems: list[str] = []
    hybrid = False
    for name in CONTROLLERS:
        if name in v2_controllers:
            chosen[name] = v2.path
            continue
        old = next((m for m in mounts if m.version == 1 and any(_V1_NAMES[c] == name for c in m.controllers)), None)
        if old is None:
            problems.append(
                f"no {name} controller: neither {v2.path}/cgroup.controllers nor a v1 mount has it; boot with it, "
                f"delegate it to agentd, or mount it (mount -t cgroup -o {_v1_name(name)} ...)"
            )
        elif old.read_only:
            problems.append(f"no {name} controller: {old.path} is mounted read-only; remount it rw")
        else:
            hybrid = True
            chosen[name] = old.path
            roots[old.path] = old.root
    # A v2 hierarchy without any controller is the hybrid kind, also where no v1 hierarchy stands beside it.
    mode: Literal["unified", "hybrid"] = "hybrid" if hybrid or not v2_controllers else "unified"
    return CgroupHost(mode=mode, v2=v2.path, mounts=chosen, mount_roots=roots, problems=tuple(problems))


def _v1_name(controller: str) -> str:
    return next(v1 for v1, name in _V1_NAMES.items() if name == controller)


def detect(root: str = "corral") -> CgroupHost:
    """What this host has. Raises NoUsableCgroups (cause and remedy) where a tree ``root`` could not be made."""
    mounts = []
    lies = []
    for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape")):
        if has_magic(str(mount.path), CGROUP2_MAGIC if mount.version == 2 else CGROUP1_MAGIC):
            mounts.append(mount)
        else:  # hidden below another mount, or not reachable for us
            lies.append(f"{mount.path} is in the list of mounts, but another file system answers there")
    v2 = next((m for m in mounts if m.version == 2), None)
    controllers: frozenset[str] = frozenset()
    if v2 is not None:
        controllers = frozenset(files.read(f"{v2.path}/cgroup.controllers").decode().split())
    host = classify(mounts, controllers)
    for path in dict.fromkeys((host.v2, *host.mounts.values())):
        nearest = path / root
        while not nearest.exists():
            nearest = nearest.parent
        if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
            raise NoUsableCgroups(
                str(nearest),
                f"not writable for uid {os.geteuid()}",
                remedy=(
                    "run agentd as root, or delegate a group to its user (systemd: Delegate=yes)"
                    if os.geteuid()
                    else "it is root without its capabilities: leave it CAP_DAC_OVERRIDE and CAP_SYS_ADMIN"
                ),
            )
    return CgroupHost(
        mode=host.mode,
        v2=host.v2,
        mounts=host.mounts,
        mount_roots=host.mount_roots,
        problems=(*host.problems, *lies),
    )


class _Statfs(ctypes.Structure):
    # struct statfs begins with f_type, a long; what follows is not read, but must have room
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 512))


def filesystem_magic(path: str) -> int:
    """f_type of statfs(2), which os.statvfs does not give. Raises the typed error when the path is not there."""
    result = _Statfs()
    if _libc.statfs(os.fsencode(path), ctypes.byref(result)) != 0:
        number = ctypes.get_errno()
        raise from_os(OSError(number, os.strerror(number)), path)
    return int(result.f_type)


def has_magic(path: str, magic: int) -> bool:
    """Whether ``path`` can be reached and lies on that file system."""
    try:
        return filesystem_magic(path) == magic
    except CgroupFileError:
        return False


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda m: chr(int(m.group(1), 8)), text)
