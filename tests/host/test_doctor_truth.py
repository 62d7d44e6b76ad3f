"""Each line of `corral doctor`, against the same feature tried here in another way (truth_tools.py, plain files and
system calls). On this host, and in guests of the lab on their kernels: `scripts/lab test --kernel all -- THIS FILE`."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.host import truth_tools as truth
from tests.host.badhosts_support import ran
from tests.host.bpf_support import V2
from tests.host.cgroup_tools import root_name

pytestmark = pytest.mark.host
UNIFIED: Final = Path("/sys/fs/cgroup/cgroup.controllers").exists()
CONTROLLERS: Final = {"memory": "memory", "cpu": "cpu", "pids": "pids", "io": "blkio"}


@pytest.fixture(scope="module")
def group() -> Iterator[Path]:
    """An empty group of cgroup v2, with every controller that its parent can hand down."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes cgroups")
    path = Path(V2) / root_name()
    handed = Path(V2) / "cgroup.subtree_control"
    before = handed.read_text("ascii").split()
    for name in (Path(V2) / "cgroup.controllers").read_text("ascii").split():
        if name in CONTROLLERS and name not in before:
            handed.write_text(f"+{name}")
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()
        for name in set(handed.read_text("ascii").split()) - set(before):
            handed.write_text(f"-{name}")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the command says, with no daemon to ask."""
    nobody = tmp_path_factory.mktemp("truth") / "none.sock"
    done = subprocess.run(
        [sys.executable, "-m", "agentd.cli", "doctor", "--json"],
        env={**os.environ, "CORRAL_API": f"unix:{nobody}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return {line["name"]: line for line in json.loads(done.stdout)["features"]}


def _writes(path: Path, text: str) -> None:
    """Without making a file; raises OSError."""
    descriptor = os.open(path, os.O_WRONLY)
    with truth.closing(descriptor):
        os.write(descriptor, text.encode())


def _v1(controller: str) -> Path | None:
    """A v1 hierarchy's mount."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] == "cgroup" and CONTROLLERS[controller] in right.split()[-1].split(","):
            return Path(left.split()[4])
    return None


def _controller(name: str, knob: str, old: str, text: str, group: Path) -> None:
    """A limit is written and stays; on v1 in a twin of its own."""
    mount = _v1(name)
    if mount is None:
        _writes(group / knob, text)
        return
    twin = mount / group.name
    twin.mkdir()
    try:
        if old:
            _writes(twin / old, text)
    finally:
        twin.rmdir()


def _kill(group: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            _writes(group / "cgroup.procs", str(process.pid))
            _writes(group / "cgroup.kill", "1")
            if process.wait(20) != -signal.SIGKILL:
                raise OSError(5, "it lives")
        finally:
            process.kill()


def _freeze(group: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            _writes(group / "cgroup.procs", str(process.pid))
            with truth.closing(os.open(group / "cgroup.events", os.O_RDONLY)) as events:
                _writes(group / "cgroup.freeze", "1")
                waiting = select.poll()
                waiting.register(events, select.POLLPRI)
                while b"frozen 1" not in os.pread(events, 4096, 0):
                    if not waiting.poll(20_000):
                        raise OSError(5, "it does not freeze")
        finally:
            _writes(group / "cgroup.freeze", "0")
            process.kill()


def _trigger(path: Path) -> None:
    """A PSI trigger is taken, and can be polled."""
    with truth.closing(os.open(path, os.O_RDWR | os.O_NONBLOCK)) as descriptor:
        os.write(descriptor, b"some 150000 2000000\0")
        waiting = select.poll()
        waiting.register(descriptor, select.POLLPRI)
        if any(mask & select.POLLERR for _, mask in waiting.poll(0)):
            raise OSError(5, "the trigger is gone")


def _attribute(group: Path) -> None:
    os.setxattr(group, "trusted.truth", b"1")
    os.removexattr(group, "trusted.truth")


def _pidfd() -> None:
    with subprocess.Popen(["true"]) as process, truth.closing(os.pidfd_open(process.pid)) as descriptor:
        if not select.select([descriptor], [], [], 20)[0]:
            raise OSError(5, "its end is not told")


def _connector() -> None:
    """NETLINK_CONNECTOR, CN_IDX_PROC: a child's fork is told."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 11) as told:
        told.bind((0, 1))
        told.settimeout(10)
        body = struct.pack("=IIIIHHI", 1, 1, 0, 0, 4, 0, 1)  # cn_msg, then PROC_CN_MCAST_LISTEN
        told.send(struct.pack("=IHHII", 16 + len(body), 3, 0, 0, os.getpid()) + body)
        subprocess.run(["true"], check=True)
        while True:
            what = struct.unpack_from("=I", told.recv(4096), 36)[0]
            if what == 1:  # PROC_EVENT_FORK
                return


def _taskstats() -> None:
    """Generic netlink: CTRL_CMD_GETFAMILY of TASKSTATS."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as asked:
        asked.bind((0, 0))
        asked.settimeout(10)
        body = struct.pack("=BBH", 3, 1, 0) + struct.pack("=HH", 14, 2) + b"TASKSTATS\0" + b"\0\0"
        asked.send(struct.pack("=IHHII", 16 + len(body), 0x10, 1, 1, 0) + body)
        answer = asked.recv(65536)
        if struct.unpack_from("=H", answer, 4)[0] == 2:  # NLMSG_ERROR
            raise OSError(-struct.unpack_from("=i", answer, 16)[0], "no such family")


def _docker() -> None:
    with socket.socket(socket.AF_UNIX) as engine:
        engine.settimeout(10)
        engine.connect("/var/run/docker.sock")
        engine.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
        if b" 200 " not in engine.recv(4096):
            raise OSError(5, "no engine")


def _bpffs() -> None:
    done = subprocess.run(["stat", "-f", "-c", "%t", "/sys/fs/bpf"], capture_output=True, text=True, check=True)
    if done.stdout.strip() != "cafe4a11":
        raise OSError(2, "not mounted")


def _headers() -> None:
    release = os.uname().release
    if not any(
        Path(p).exists()
        for p in (f"/lib/modules/{release}/build/include/linux/kconfig.h", "/sys/kernel/kheaders.tar.xz")
    ):
        raise OSError(2, "none")


def _tracefs() -> None:
    if not any(Path(p, "available_events").exists() for p in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")):
        raise OSError(2, "none")


def _imports(module: str, python: str = sys.executable) -> None:
    subprocess_of = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
    if subprocess_of.returncode:
        raise OSError(2, module)


def _holds_capabilities() -> None:
    bits = int(
        next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("CapEff")).split()[1], 16
    )
    if not all(bits >> bit & 1 for bit in (12, 21, 38, 39)):  # net_admin, sys_admin, perfmon, bpf
        raise OSError(1, "not all")


def _exists(path: str) -> None:
    Path(path).stat()


def _systemd() -> None:
    if Path("/proc/1/comm").read_text().strip() != "systemd":
        raise OSError(2, "another")


def _v2_memory(group: Path, name: str, text: str) -> None:
    _writes(group / name, text)


def _peak(group: Path) -> None:
    mount = _v1("memory")
    (mount / "memory.max_usage_in_bytes" if mount else group / "memory.peak").read_text()


def _trials(group: Path) -> dict[str, Callable[[], object]]:
    sock, skb = truth.CGROUP_SOCK_ADDR, truth.CGROUP_SKB
    return {
        "cgroup": group.stat,
        "pidfd": _pidfd,
        "root": partial(os.setpriority, os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0)),
        "psi": partial(_trigger, Path("/proc/pressure/memory")),
        "meminfo": lambda: os.sysconf("SC_AVPHYS_PAGES"),
        "memory controller": partial(
            _controller, "memory", "memory.max", "memory.limit_in_bytes", str(64 << 20), group
        ),
        "cpu controller": partial(_controller, "cpu", "cpu.weight", "cpu.shares", "200", group),
        "pids controller": partial(_controller, "pids", "pids.max", "pids.max", "50", group),
        "io controller": partial(_controller, "io", "io.max", "", "", group),
        "memory.high": partial(_v2_memory, group, "memory.high", str(32 << 20)),
        "memory.low": partial(_v2_memory, group, "memory.low", "4096"),
        "memory.peak": partial(_peak, group),
        "cgroup.freeze": partial(_freeze, group),
        "cgroup.kill": partial(_kill, group),
        "cgroup attributes": partial(_attribute, group),
        "psi per cgroup": partial(_trigger, group / "cpu.pressure"),
        "capabilities": _holds_capabilities,
        "libbpf": partial(ctypes.CDLL, "libbpf.so.1"),
        "btf": partial(_exists, "/sys/kernel/btf/vmlinux"),
        "bpffs": _bpffs,
        "ring buffer": truth.ring_buffer,
        "tp_btf": partial(truth.traced, "sched_process_exit"),
        "iter/task": partial(truth.iterator, "task"),
        "rss_stat brake": truth.brake,
        "cgroup/connect4": partial(truth.gate, group, sock, 10),
        "cgroup/connect6": partial(truth.gate, group, sock, 11),
        "cgroup/sendmsg4": partial(truth.gate, group, sock, 14),
        "cgroup/sendmsg6": partial(truth.gate, group, sock, 15),
        "cgroup/device": partial(truth.gate, group, truth.CGROUP_DEVICE, 6),
        "cgroup_skb/ingress": partial(truth.gate, group, skb, 0),
        "cgroup_skb/egress": partial(truth.gate, group, skb, 1),
        "egress rates": partial(truth.gate, group, skb, 1),
        "disk trace": partial(truth.traced, "sys_exit"),
        "kprobe": partial(truth.kprobe, "do_exit"),
        "fentry": partial(truth.traced, "do_exit", truth.FENTRY),
        "lsm": partial(truth.traced, "file_open", truth.LSM_MAC, truth.LSM),
        "sched_ext": partial(_exists, "/sys/kernel/sched_ext/state"),
        "tracefs": _tracefs,
        "kernel headers": _headers,
        "process connector": _connector,
        "taskstats": _taskstats,
        "systemd": _systemd,
        "docker": _docker,
        "docker sdk": partial(_imports, "docker"),
        "nvidia": partial(ctypes.CDLL, "libnvidia-ml.so.1"),
        "bcc": partial(_imports, "bcc", "/usr/bin/python3"),
    }


# Amounts, which are compared below, and what is made of other lines.
OTHERS: Final = {
    *("corral-exec", "favordynmods", "inotify watches", "open files", "state directory", "objects", "lockdown"),
    "corral trace",
}


def test_every_line_is_true(table: dict[str, dict[str, Any]], group: Path) -> None:
    trials = _trials(group)
    wrong = []
    for name, trial in trials.items():
        found = truth.holds(trial)
        if table[name]["found"] is not found:
            wrong.append(f"{name}: {'it works' if found else 'it does not work'}, the line says {table[name]}")
    assert not wrong, "\n".join(wrong)


def test_every_line_is_tried(table: dict[str, dict[str, Any]], group: Path) -> None:
    assert set(table) - OTHERS == set(_trials(group))


def test_amounts_are_the_kernels(table: dict[str, dict[str, Any]]) -> None:
    watches = Path("/proc/sys/fs/inotify/max_user_watches").read_text().strip()
    assert table["inotify watches"]["detail"].startswith(f"{watches} watches")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert table["open files"]["detail"].startswith(f"{files} descriptors")


async def test_the_launcher_that_is_named_runs(table: dict[str, dict[str, Any]]) -> None:
    ended = await ran(table["corral-exec"]["detail"], "--help")
    assert ended.code == 0
    assert "corral-exec" in ended.out + ended.err


def test_what_is_made_of_other_lines(table: dict[str, dict[str, Any]]) -> None:
    needed = ("bcc", "tracefs", "kernel headers")
    assert table["corral trace"]["found"] == all(table[name]["found"] for name in needed)
