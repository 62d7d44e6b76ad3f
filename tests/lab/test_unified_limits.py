"""What the kernel does with the limits of cgroup v2 beyond memory: disk, CPU, processes, pressure, and clone3."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.cgroup import Tree
from controller.model import Limits
from tests.host.cgroup_tools import Session, child, go, line, temporary_tree

MIB = 1 << 20
SPIN = "import os\nos.sched_setaffinity(0, {1})\nprint('up', flush=True)\nwhile True: pass"


@pytest.fixture
def tree() -> Iterator[Tree]:
    with temporary_tree() as made:
        yield made


@pytest.fixture
def session(tree: Tree) -> Session:
    return Session(tree)


def disk(path: Path) -> str:
    """MAJOR:MINOR of the whole disk under a file; io.max takes no partitions."""
    device = path.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if (block / "partition").exists():
        block = block.parent
    return (block / "dev").read_text().strip()


# Past the page cache, whose write-back is charged elsewhere in time: every write is on the disk when it returns.
WRITE = """
import mmap, os, sys, time
block = mmap.mmap(-1, 1 << 18)
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
print("up", flush=True)
begun = time.monotonic()
for _ in range(int(sys.argv[2]) * 4):
    os.write(fd, block)
print(time.monotonic() - begun, flush=True)
"""


def test_io_max_bounds_the_bytes_of_a_second(session: Session) -> None:
    path = Path("/var/tmp") / f"corral-io-{os.getpid()}"
    call = session.call()
    call.create()
    device = disk(Path("/var/tmp"))
    try:
        Path(call.path, "io.max").write_text(f"{device} wbps={MIB}")
        assert f"wbps={MIB}" in Path(call.path, "io.max").read_text()
        with child(WRITE.replace("sys.argv[1]", repr(str(path))).replace("sys.argv[2]", "4")) as process:
            call.move(process.pid)
            go(process)
            assert line(process) == "up"
            # 4 MiB at 1 MiB a second; the kernel lets a slice of some 100 ms go ahead
            assert float(line(process)) > 2.5
            assert process.wait() == 0
        [stat] = [text for text in Path(call.path, "io.stat").read_text().splitlines() if text.startswith(f"{device} ")]
        written = int(dict(word.split("=") for word in stat.split()[1:])["wbytes"])
        assert 4 * MIB <= written < 5 * MIB
    finally:
        path.unlink(missing_ok=True)


def test_io_weight_is_taken_where_the_kernel_has_a_controller_for_it(session: Session) -> None:
    call = session.call()
    call.create()
    knob = Path(call.path, "io.weight")
    if not knob.exists():
        pytest.skip("no io.weight: neither io.cost (CONFIG_BLK_CGROUP_IOCOST) nor BFQ serves a disk of this guest")
    knob.write_text("default 250")
    assert "default 250" in knob.read_text()


def test_cpu_max_holds_who_never_sleeps(session: Session) -> None:
    call = session.call()
    call.create(Limits(cpu_max=0.25))
    with child(SPIN) as process, child("import time\ntime.sleep(4)\nprint('over', flush=True)") as clock:
        call.move(process.pid)
        go(process)
        assert line(process) == "up"
        begun, before = time.monotonic(), call.fast_stat().cpu_usec
        go(clock)
        assert line(clock) == "over"
        used = (call.fast_stat().cpu_usec - before) / 1e6
        share = used / (time.monotonic() - begun)
        stat = dict(text.split() for text in Path(call.path, "cpu.stat").read_text().splitlines())
    assert int(stat["nr_throttled"]) > 0
    # a quarter of a CPU, and a period's quota of 25 ms that was there at the begin
    assert share < 0.35


def test_pids_max_refuses_the_next_fork_and_counts_it(session: Session) -> None:
    call = session.call()
    call.create(Limits(pids_max=3))
    code = (
        "import os, time\n"
        "made = 0\n"
        "try:\n"
        "    while made < 10:\n"
        "        if os.fork() == 0: time.sleep(600)\n"
        "        made += 1\n"
        "except BlockingIOError:\n"
        "    print(made, flush=True)\n"
        "    time.sleep(600)"
    )
    with child(code) as process:
        call.move(process.pid)
        go(process)
        assert line(process) == "2"
        stat = call.stat()
        assert stat.pids is not None
        assert stat.pids.max_events == 1
        assert len(call.pids()) == 3
        call.kill()
        process.wait()


def test_a_psi_trigger_on_a_group_wakes_who_polls_it(session: Session) -> None:
    """Two that never sleep on one CPU: within a second one has waited for the other longer than 100 ms."""
    call = session.call()
    call.create()
    with (Path(call.path) / "cpu.pressure").open("r+b", buffering=0) as trigger:
        trigger.write(b"some 100000 1000000\0")
        poller = select.poll()
        poller.register(trigger, select.POLLPRI)
        assert poller.poll(0) == []
        with child(SPIN) as one, child(SPIN) as two:
            for process in (one, two):
                call.move(process.pid)
                go(process)
                assert line(process) == "up"
            [(_, event)] = poller.poll(60_000)
            assert event & select.POLLPRI
            assert not event & select.POLLERR


CLONE = """
import ctypes, os, signal, struct, sys
group = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
# struct clone_args (include/uapi/linux/sched.h): flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size,
# tls, set_tid, set_tid_size, cgroup
arguments = struct.pack("=11Q", 0x200000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, group)
libc = ctypes.CDLL(None, use_errno=True)
pid = libc.syscall(ctypes.c_long(435), arguments, ctypes.c_size_t(len(arguments)))
if pid == 0:
    os.write(1, open("/proc/self/cgroup").read().encode())
    os._exit(0)
if pid < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
sys.exit(os.waitpid(pid, 0)[1])
"""


def test_clone3_makes_a_child_in_a_group(session: Session) -> None:
    """The kernel offers it. Corral's daemon moves a call's first process instead (docs/decisions.md): a descriptor of
    the group, handed to an agent, would let that agent put its children into a call's leaf at any time."""
    call = session.call()
    call.create()
    done = subprocess.run([sys.executable, "-c", CLONE, call.path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0::" + call.path.removeprefix("/sys/fs/cgroup")
