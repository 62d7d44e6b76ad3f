"""Lines about cgroups: controllers, and each knob tried in a group of the doctor's own, which is removed again."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentd.doctor.attempt import Absent, Unknown, tried
from bpf import Feature
from controller.cgroup import CgroupHost, NoUsableCgroups, detect
from controller.cgroup.core import core_state
from controller.model import CgroupError

_CONTROLLERS: Final = {
    "memory": "no memory limits and no memory use per call; the brake and the ladder have nothing to go by",
    "cpu": "no CPU limits and weights",
    "pids": "no limit of processes: a fork bomb in a call is not held",
    "io": "no disk weights; without eBPF no disk bytes per call",
}


class Trial:
    """A group of the doctor's own, beside the daemon's root, in which knobs are tried. ``directory`` is None where none
    can be made, and ``why`` says so."""

    def __init__(self, cgroup_root: str) -> None:
        self.host: CgroupHost | None = None
        self.directory: Path | None = None
        self.why = ""
        try:
            self.host = detect(cgroup_root)
            parent = (self.host.v2 / cgroup_root).parent
            if not parent.is_dir():
                self.why = f"{parent} is not there yet; agentd makes it when it starts"
                return
            directory = parent / f"corral-doctor-{os.getpid()}-{secrets.token_hex(4)}"
            directory.mkdir(mode=0o755)
            self.directory = directory
        except (CgroupError, OSError) as err:
            self.why = err.message if isinstance(err, NoUsableCgroups) else str(err)

    def close(self) -> None:
        if self.directory is not None:
            self.directory.rmdir()

    def need(self) -> Path:
        if self.directory is None:
            raise Unknown(f"no group can be made here ({self.why})")
        return self.directory

    def need_host(self) -> CgroupHost:
        if self.host is None:
            raise Absent(self.why)
        return self.host

    def knob(self, name: str) -> Path:
        """A file of the trial group. A file of a controller that is not handed down here says nothing."""
        path = self.need() / name
        controller = name.partition(".")[0]
        if not path.exists() and controller in _CONTROLLERS:
            handed = (path.parent.parent / "cgroup.subtree_control").read_text(encoding="ascii").split()
            if controller not in handed:
                raise Unknown(f"{path.parent.parent} does not hand {controller} down yet; agentd does when it starts")
        if not path.exists():
            raise Absent(f"this kernel's groups have no {name}")
        return path


@contextlib.contextmanager
def trial_group(cgroup_root: str) -> Iterator[Trial]:
    trial = Trial(cgroup_root)
    try:
        yield trial
    finally:
        trial.close()


def lines(cgroup_root: str) -> list[Feature]:
    with trial_group(cgroup_root) as trial:
        unified = "boot with systemd.unified_cgroup_hierarchy=1, so that cgroup v2 has the memory controller"
        return [
            *(
                tried(f"{name} controller", lambda name=name: _controller(trial, name), cost, _give(name))  # type: ignore[misc] # mypy cannot infer a lambda's defaults
                for name, cost in _CONTROLLERS.items()
            ),
            tried(
                "memory.high",
                lambda: _v2_memory(trial, "memory.high"),
                "calls under pressure are not slowed softly; what is left is the brake, the freezer and the kill",
                unified,
            ),
            tried(
                "memory.low",
                lambda: _v2_memory(trial, "memory.low"),
                "the agent's own memory is not protected from reclaim",
                unified,
            ),
            tried(
                "memory.peak",
                lambda: _memory_peak(trial),
                "a call's memory peak is the largest sample, not the kernel's own figure",
                "use a kernel 5.19 or later",
            ),
            tried(
                "cgroup.freeze",
                lambda: _freeze(trial),
                "calls cannot be held: a braked one runs on, or is killed",
                "use a kernel 5.2 or later",
            ),
            tried(
                "cgroup.kill",
                lambda: _written(trial.knob("cgroup.kill"), "1"),
                "calls are killed process by process, frozen meanwhile: slower",
                "use a kernel 5.14 or later",
            ),
            tried(
                "cgroup attributes",
                lambda: _attribute(trial),
                "a restarted daemon does not know the calls that it finds",
                "use a kernel with extended attributes on cgroups (user.* since 5.7)",
            ),
            tried(
                "psi per cgroup",
                lambda: _read(trial.need() / "cpu.pressure"),
                "no stall times per call",
                "boot with psi=1 and without cgroup_disable=pressure",
            ),
            tried(
                "favordynmods",
                lambda: _favordynmods(Path("/proc/self/mountinfo")),
                "a call that begins some time after the last one waits for a grace period of the kernel (7 ms on 6.18)",
                "the operator's choice, for the whole host: mount cgroups with favordynmods (6.0); forks and exits get "
                "a little slower",
            ),
        ]


def _favordynmods(mountinfo: Path) -> str:
    """A kernel built with CONFIG_CGROUP_FAVOR_DYNMODS does not show it, so that its absence proves nothing."""
    for line in mountinfo.read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup") and "favordynmods" in right.split()[-1].split(","):
            return f"a mount option of {left.split()[4]}"
    raise Unknown("no cgroup mount has the option")


def _give(controller: str) -> str:
    return (
        f"hand it to agentd (systemd: Delegate=yes), mount the v1 {'blkio' if controller == 'io' else controller} "
        "hierarchy, or boot without cgroup_disable"
    )


def _is_v2(trial: Trial) -> bool:
    host = trial.host
    return host is not None and host.mounts.get("memory") == host.v2


def _controller(trial: Trial, name: str) -> str:
    host = trial.need_host()
    mount = host.mounts.get(name)
    if mount is None:
        why = next((problem for problem in host.problems if f"no {name} controller" in problem), "none has it")
        raise Absent(why)
    parent = trial.directory.parent if trial.directory is not None and mount == host.v2 else mount
    if parent != mount and name not in (parent / "cgroup.controllers").read_text(encoding="ascii").split():
        raise Absent(f"{parent} was not given it")
    return f"{'v2' if mount == host.v2 else 'v1'}, {mount}"


def _v2_memory(trial: Trial, name: str) -> str:
    if not _is_v2(trial):
        where = trial.need_host().mounts.get("memory")
        raise Absent(f"the memory controller is v1 ({where})" if where else "no memory controller")
    return _read(trial.knob(name))


def _memory_peak(trial: Trial) -> str:
    if _is_v2(trial):
        return _read(trial.knob("memory.peak"))
    mount = trial.need_host().mounts.get("memory")
    if mount is None:
        raise Absent("no memory controller")
    path = mount / "memory.max_usage_in_bytes"
    _read(path)
    return f"{path.name} of v1"


def _freeze(trial: Trial) -> str:
    knob = trial.knob("cgroup.freeze")
    _write(knob, "1")
    frozen = core_state(str(knob.parent)).frozen
    _write(knob, "0")
    if not frozen:
        raise Absent("a group does not say that it is frozen")
    return "a group was frozen and thawed"


def _attribute(trial: Trial) -> str:
    name = "trusted.corral" if os.geteuid() == 0 else "user.corral"
    os.setxattr(trial.need(), name, b"x")
    return name


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)


def _written(path: Path, text: str) -> str:
    _write(path, text)
    return f"{path.name} takes {text}"


def _read(path: Path) -> str:
    path.read_bytes()
    return f"{path.name} can be read"
