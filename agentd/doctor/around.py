"""Lines about what stands around Corral: systemd, container engines, GPUs, what `corral trace` compiles with."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agentd.doctor.attempt import Absent, Unknown, tried
from bpf import Feature

# what bcc's tools need of the kernel: lines of bpf.probe
_TRACE_NEEDS: Final = ("tracefs", "kernel headers")
_BCC: Final = Path("/usr/lib/python3/dist-packages/bcc/__init__.py")


def lines(kernel: Sequence[Feature]) -> list[Feature]:
    """``kernel``: the lines of bpf.probe."""
    return [
        tried(
            "systemd",
            _systemd,
            "nothing starts agentd at boot or after a crash, and no tree is delegated to it",
            "start agentd by your own means; as root it makes its tree by itself",
        ),
        tried(
            "docker",
            lambda: _docker(Path("/var/run/docker.sock")),
            "containers cannot be attached as sessions (corral session attach --container)",
            "install docker.io, if agents run in containers; attach.docker says where it listens",
        ),
        tried(
            "docker sdk",
            lambda: _module("docker"),
            "containers cannot be attached as sessions, though Docker is there",
            "install Corral anew (scripts/install): the package is one of its dependencies",
        ),
        tried(
            "nvidia",
            _nvidia,
            "no GPU time, memory and energy per session",
            "install NVIDIA's driver, if this host has such a GPU",
        ),
        tried(
            "bcc",
            lambda: _bcc(_BCC),
            "`corral trace` cannot compile its tools",
            "apt install python3-bpfcc (the PyPI package named bcc is something else)",
        ),
        tried(
            "corral trace",
            lambda: _trace(kernel, _BCC),
            "a running call cannot be looked into (off-CPU time, system calls, files, block I/O); all else works",
            "see the lines that are named",
        ),
    ]


def _systemd() -> str:
    if not Path("/run/systemd/system").is_dir():  # sd_booted(3)
        raise Absent("this host was not booted with systemd")
    unit = os.environ.get("INVOCATION_ID")
    return "manages this host" + ("; this process runs in a unit" if unit else "; this process runs outside of a unit")


def _docker(path: Path) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(0.2)
        try:
            connection.connect(str(path))
        except PermissionError:
            raise Unknown(f"{path} may not be opened by this user") from None
        except OSError as err:
            raise Absent(f"{path}: {err.strerror or err}") from None
    return f"a daemon listens at {path}"


def _nvidia() -> str:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        raise Absent("no libnvidia-ml.so.1 (NVML)") from None
    if not Path("/dev/nvidiactl").exists():
        raise Absent("NVML is installed, but no driver is loaded (/dev/nvidiactl)")
    return "NVML and the driver are there"


def _bcc(path: Path) -> str:
    if not path.is_file():
        raise Absent(f"{path} is not there")
    return str(path.parent)


def _module(name: str) -> str:
    """Where it would be imported from. It is not: the SDK takes a tenth of a second to load."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise Absent(f"this Python has no module {name!r}")
    return str(spec.origin)


def _trace(kernel: Sequence[Feature], bcc: Path) -> str:
    """From lines that were tried already: to compile a tool takes seconds."""
    found = {line.name: line.found for line in kernel} | {"bcc": bcc.is_file()}
    missing = [name for name in (*_TRACE_NEEDS, "bcc") if found.get(name) is False]
    if missing:
        raise Absent(f"missing: {', '.join(missing)}")
    unknown = [name for name in _TRACE_NEEDS if found.get(name) is None]
    if unknown:
        raise Unknown(f"{', '.join(unknown)} could not be tried")
    return "bcc, and what it needs of the kernel"
