"""What this host can do and what it cannot, for `corral doctor`: the one place that composes the table.

Each line is tried, never guessed: a cgroup is made and removed, a descriptor opened, a socket spoken to. What cannot be
tried here is None, and ``detail`` says why. Works without privilege, takes some 0.3 s, leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from agentd.cli import hostprobe
from agentd.userdoctor import places
from bpf import Feature
from controller.cgroup import CgroupHost, NoUsableCgroups, detect
from controller.cgroup.core import core_state
from controller.model import CgroupError

_PATIENCE: Final = 10.0  # seconds for the probe of netlink, which takes 0.2
_WATCHES_EACH: Final = 3  # inotify watches of a call, at most
_FILES_EACH: Final = 3  # descriptors of a call: its launcher's connection, its pidfd, and on v1 an eventfd
_CALLS_WANTED: Final = 1000  # at once, before a limit counts as too low
_FREE_WANTED: Final = 64 << 20  # bytes

Attempt = Callable[[], str]  # what was seen; raises _NotFound, or OSError with the kernel's reason


class _NotFound(Exception):
    """Tried, and it is not there. ``remedy``: a better one than the line's own."""

    def __init__(self, detail: str, *, remedy: str = "") -> None:
        self.detail = detail
        self.remedy = remedy
        super().__init__(detail)


class _NotKnown(Exception):
    """It cannot be tried from here."""


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
    netlink = _start_netlink()
    try:
        return (
            *own_features(missing),
            *_basics(at.root),
            *at.lines,
            *_cgroups(at.root),
            *_limits_of_the_host(at.state),
            *map(_feature, hostprobe.kernel_side()),
            *_netlink(netlink),
            *_surroundings(),
        )
    finally:
        if isinstance(netlink, subprocess.Popen):
            netlink.kill()
            netlink.communicate()


def _feature(line: hostprobe.FeatureLike) -> Feature:
    if isinstance(line, Feature):
        return line
    return Feature(name=line.name, found=line.found, detail=line.detail, cost=line.cost, remedy=line.remedy)


def _try(name: str, attempt: Attempt, cost: str, remedy: str) -> Feature:
    found: bool | None
    try:
        found, detail = True, attempt()
    except _NotKnown as err:
        found, detail = None, f"not known: {err}"
    except _NotFound as err:
        found, detail, remedy = False, err.detail, err.remedy or remedy
    except CgroupError as err:
        found, detail = False, err.message
    except OSError as err:
        found, detail = False, f"{err.filename}: {err.strerror}" if err.filename else err.strerror or str(err)
    return Feature(name=name, found=found, detail=detail, cost=cost, remedy=remedy)


def _basics(root: str) -> list[Feature]:
    lines = (hostprobe.pidfd, hostprobe.launcher, hostprobe.privilege, hostprobe.pressure, hostprobe.memory_info)
    return [_feature(hostprobe.cgroup(root)), *(_feature(line()) for line in lines)]


# --- cgroups ----------------------------------------------------------------------------------------------------------

_CONTROLLERS: Final = {
    "memory": "no memory limits and no memory use per call; the brake and the ladder have nothing to go by",
    "cpu": "no CPU limits and weights",
    "pids": "no limit of processes: a fork bomb in a call is not held",
    "io": "no disk weights; without eBPF no disk bytes per call",
}


class _Trial:
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
            raise _NotKnown(f"no group can be made here ({self.why})")
        return self.directory

    def need_host(self) -> CgroupHost:
        if self.host is None:
            raise _NotFound(self.why)
        return self.host

    def knob(self, name: str) -> Path:
        """A file of the trial group. A file of a controller that is not handed down here says nothing."""
        path = self.need() / name
        controller = name.partition(".")[0]
        if not path.exists() and controller in _CONTROLLERS:
            handed = (path.parent.parent / "cgroup.subtree_control").read_text(encoding="ascii").split()
            if controller not in handed:
                raise _NotKnown(f"{path.parent.parent} does not hand {controller} down yet; agentd does when it starts")
        if not path.exists():
            raise _NotFound(f"this kernel's groups have no {name}")
        return path


@contextlib.contextmanager
def _trial(cgroup_root: str) -> Iterator[_Trial]:
    trial = _Trial(cgroup_root)
    try:
        yield trial
    finally:
        trial.close()


def _cgroups(cgroup_root: str) -> list[Feature]:
    with _trial(cgroup_root) as trial:
        unified = "boot with systemd.unified_cgroup_hierarchy=1, so that cgroup v2 has the memory controller"
        return [
            *(
                _try(f"{name} controller", lambda name=name: _controller(trial, name), cost, _give(name))  # type: ignore[misc] # mypy cannot infer a lambda's defaults
                for name, cost in _CONTROLLERS.items()
            ),
            _try(
                "memory.high",
                lambda: _v2_memory(trial, "memory.high"),
                "calls under pressure are not slowed softly; what is left is the brake, the freezer and the kill",
                unified,
            ),
            _try(
                "memory.low",
                lambda: _v2_memory(trial, "memory.low"),
                "the agent's own memory is not protected from reclaim",
                unified,
            ),
            _try(
                "memory.peak",
                lambda: _memory_peak(trial),
                "a call's memory peak is the largest sample, not the kernel's own figure",
                "use a kernel 5.19 or later",
            ),
            _try(
                "cgroup.freeze",
                lambda: _freeze(trial),
                "calls cannot be held: a braked one runs on, or is killed",
                "use a kernel 5.2 or later",
            ),
            _try(
                "cgroup.kill",
                lambda: _written(trial.knob("cgroup.kill"), "1"),
                "calls are killed process by process, frozen meanwhile: slower",
                "use a kernel 5.14 or later",
            ),
            _try(
                "cgroup attributes",
                lambda: _attribute(trial),
                "a restarted daemon does not know the calls that it finds",
                "use a kernel with extended attributes on cgroups (user.* since 5.7)",
            ),
            _try(
                "psi per cgroup",
                lambda: _read(trial.need() / "cpu.pressure"),
                "no stall times per call",
                "boot with psi=1 and without cgroup_disable=pressure",
            ),
            _try(
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
    raise _NotKnown("no cgroup mount has the option")


def _give(controller: str) -> str:
    return (
        f"hand it to agentd (systemd: Delegate=yes), mount the v1 {'blkio' if controller == 'io' else controller} "
        "hierarchy, or boot without cgroup_disable"
    )


def _is_v2(trial: _Trial) -> bool:
    host = trial.host
    return host is not None and host.mounts.get("memory") == host.v2


def _controller(trial: _Trial, name: str) -> str:
    host = trial.need_host()
    mount = host.mounts.get(name)
    if mount is None:
        why = next((problem for problem in host.problems if f"no {name} controller" in problem), "none has it")
        raise _NotFound(why)
    parent = trial.directory.parent if trial.directory is not None and mount == host.v2 else mount
    if parent != mount and name not in (parent / "cgroup.controllers").read_text(encoding="ascii").split():
        raise _NotFound(f"{parent} was not given it")
    return f"{'v2' if mount == host.v2 else 'v1'}, {mount}"


def _v2_memory(trial: _Trial, name: str) -> str:
    if not _is_v2(trial):
        where = trial.need_host().mounts.get("memory")
        raise _NotFound(f"the memory controller is v1 ({where})" if where else "no memory controller")
    return _read(trial.knob(name))


def _memory_peak(trial: _Trial) -> str:
    if _is_v2(trial):
        return _read(trial.knob("memory.peak"))
    mount = trial.need_host().mounts.get("memory")
    if mount is None:
        raise _NotFound("no memory controller")
    path = mount / "memory.max_usage_in_bytes"
    _read(path)
    return f"{path.name} of v1"


def _freeze(trial: _Trial) -> str:
    knob = trial.knob("cgroup.freeze")
    _write(knob, "1")
    frozen = core_state(str(knob.parent)).frozen
    _write(knob, "0")
    if not frozen:
        raise _NotFound("a group does not say that it is frozen")
    return "a group was frozen and thawed"


def _attribute(trial: _Trial) -> str:
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


# --- limits and files -------------------------------------------------------------------------------------------------


def _limits_of_the_host(state_dir: Path) -> list[Feature]:
    return [
        _try(
            "inotify watches",
            _watches,
            "more calls at once than that are not told when they empty: their ends come late",
            f"sysctl -w fs.inotify.max_user_watches={_CALLS_WANTED * _WATCHES_EACH * 20}",
        ),
        _try(
            "open files",
            _files,
            "more calls at once than that are refused",
            "LimitNOFILE=65536 in agentd.service, or ulimit -Hn 65536",
        ),
        _try(
            "state directory",
            lambda: _state(state_dir),
            "the ledger cannot be written: history is kept in memory, and lost when agentd stops",
            "make it a directory of agentd's user on a disk with room, or set daemon.state_dir",
        ),
    ]


def _watches() -> str:
    watches = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text(encoding="ascii"))
    return _enough(f"{watches} watches", watches // _WATCHES_EACH)


def _files() -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return "no limit"
    return _enough(f"{hard} descriptors (hard limit)", hard // _FILES_EACH)


def _enough(what: str, calls: int) -> str:
    text = f"{what}: some {calls} calls at once"
    if calls < _CALLS_WANTED:
        raise _NotFound(text)
    return text


def _state(directory: Path) -> str:
    """Written to where it is there; else whether it could be made."""
    nearest = directory
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    with tempfile.TemporaryFile(dir=nearest) as file:  # without a name: nothing to leave behind
        file.write(b"x")
        file.flush()
    room = os.statvfs(nearest)
    free = room.f_bavail * room.f_frsize
    text = f"{directory}, {free >> 20} MiB free" + ("" if nearest == directory else f" (to be made in {nearest})")
    if free < _FREE_WANTED:
        raise _NotFound(text)
    return text


# --- netlink ----------------------------------------------------------------------------------------------------------


def _start_netlink() -> subprocess.Popen[str] | OSError:
    """In a process of its own, beside the rest: see controller.procprobe for why. What kept it from starting is told
    in its place: an interpreter below another user's home, say."""
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "controller.procprobe"],
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as err:
        return err


def _netlink(probe: subprocess.Popen[str] | OSError) -> list[Feature]:
    costs = {
        "process connector": "without eBPF, too, nothing counts forks and execs or knows short-lived processes",
        "taskstats": "without eBPF, too, no faults, bytes and run-queue wait per call",
    }
    told: dict[str, dict[str, str]] = {}
    try:
        if isinstance(probe, OSError):
            raise probe
        out, err = probe.communicate(timeout=_PATIENCE)
        trouble = err.strip().rpartition("\n")[2] or "its probe told nothing"
        told = json.loads(out) if probe.returncode == 0 else {}
    except subprocess.TimeoutExpired:
        trouble = f"its probe took longer than {_PATIENCE:g} s"
    except ValueError as err:
        trouble = f"its probe answered strangely: {err}"
    except OSError as err:
        trouble = f"its probe cannot be started: {err.filename}: {err.strerror}"
    found = []
    for name, cost in costs.items():
        line = told.get(name)
        if line is None:
            found.append(Feature(name=name, found=None, detail=f"not known: {trouble}", cost=cost, remedy="report it"))
        else:
            found.append(
                Feature(
                    name=name,
                    found="detail" in line,
                    detail=line.get("detail") or line.get("error", ""),
                    cost=cost,
                    remedy=line.get("remedy", ""),
                )
            )
    return found


# --- what stands around -----------------------------------------------------------------------------------------------


def _surroundings() -> list[Feature]:
    return [
        _try(
            "systemd",
            _systemd,
            "nothing starts agentd at boot or after a crash, and no tree is delegated to it",
            "start agentd by your own means; as root it makes its tree by itself",
        ),
        _try(
            "docker",
            lambda: _docker(Path("/var/run/docker.sock")),
            "containers cannot be attached as sessions (corral session attach --container)",
            "install docker.io, if agents run in containers; attach.docker says where it listens",
        ),
        _try(
            "nvidia",
            _nvidia,
            "no GPU time, memory and energy per session",
            "install NVIDIA's driver, if this host has such a GPU",
        ),
        _try(
            "bcc",
            lambda: _bcc(Path("/usr/lib/python3/dist-packages/bcc/__init__.py")),
            "nothing yet: `corral trace`, which compiles its tools with it, is not in this version",
            "apt install python3-bpfcc (the PyPI package named bcc is something else)",
        ),
    ]


def _systemd() -> str:
    if not Path("/run/systemd/system").is_dir():  # sd_booted(3)
        raise _NotFound("this host was not booted with systemd")
    unit = os.environ.get("INVOCATION_ID")
    return "manages this host" + ("; this process runs in a unit" if unit else "; this process runs outside of a unit")


def _docker(path: Path) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(0.2)
        try:
            connection.connect(str(path))
        except PermissionError:
            raise _NotKnown(f"{path} may not be opened by this user") from None
        except OSError as err:
            raise _NotFound(f"{path}: {err.strerror or err}") from None
    return f"a daemon listens at {path}"


def _nvidia() -> str:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        raise _NotFound("no libnvidia-ml.so.1 (NVML)") from None
    if not Path("/dev/nvidiactl").exists():
        raise _NotFound("NVML is installed, but no driver is loaded (/dev/nvidiactl)")
    return "NVML and the driver are there"


def _bcc(path: Path) -> str:
    if not path.is_file():
        raise _NotFound(f"{path} is not there")
    return str(path.parent)
