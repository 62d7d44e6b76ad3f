"""The netlink stand-in against this machine's kernel: what a group's processes did is counted, and nothing else."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import Event, ExecEvent, NetworkPolicy, NotRegistered, Unavailable
from controller.backends.kernelside import KernelSide
from controller.cgroup import Group, Tree
from controller.processes.errors import NoProcessEvents
from controller.processes.events import Kind, ProcessEvents
from controller.processes.netlink import NetlinkSide
from controller.processes.stats import TaskStats
from tests.host.cgroup_tools import Session, child, go, line, temporary_tree

pytestmark = pytest.mark.host

MIB = 1 << 20
WHY = Unavailable("no BTF", remedy="use another kernel")


@pytest.fixture
def tree() -> Iterator[Tree]:
    with temporary_tree() as made:
        yield made


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def side(tree: Tree, told: list[Event]) -> Iterator[NetlinkSide]:
    made = NetlinkSide.open(cgroup=Path(tree.root.path), on_event=told.append, because=WHY)
    yield made
    made.close()


@pytest.fixture
def call(tree: Tree, side: NetlinkSide) -> Group:
    group = Session(tree).call()
    group.create()
    side.register(group.id)
    return group


UP = "print('up', flush=True)\nsys.stdin.readline()\n"


def enter(side: NetlinkSide, group: Group, process: subprocess.Popen[str]) -> None:
    """Started with UP, and moved in while the queues are read promptly, as the daemon's loop does."""
    go(process)
    assert line(process) == "up"
    side.drain()
    group.move(process.pid)
    side.drain()


def run_in(side: NetlinkSide, group: Group, code: str) -> None:
    """A process that is moved into the group, runs ``code`` there, and has ended."""
    with child(UP + code) as process:
        enter(side, group, process)
        go(process)
        process.wait()


def test_it_is_a_kernel_side_and_says_what_it_lacks(side: NetlinkSide) -> None:
    kernel: KernelSide = side
    assert kernel.parts == {"lifecycle", "accounting"}
    text = "\n".join(kernel.problems)
    for words in ("no BTF", "use another kernel", "no in-kernel brake", "network", "KiB"):
        assert words in text


def test_forks_execs_and_exits_of_a_group_are_counted(side: NetlinkSide, call: Group) -> None:
    run_in(side, call, "import subprocess\nfor _ in range(25): subprocess.run(['/bin/true'], check=True)")
    subprocess.run(["/bin/true"], check=True)  # outside
    counters = side.counters(call.id, live=False)
    assert counters is not None
    assert (counters.forks, counters.execs, counters.exits) == (25, 25, 26)
    assert counters.faults > 25 * 10  # not even /bin/true starts with fewer


def test_daemonised_and_short_lived_grandchildren_count(side: NetlinkSide, call: Group) -> None:
    code = (
        "import os\n"
        "for _ in range(10):\n"
        "  if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0: os.execv('/bin/true', ['true'])\n"
        "    os._exit(0)\n"
        "  os.wait()\n"
    )
    watched = select.poll()
    with child(UP + code) as process:
        enter(side, call, process)
        go(process)
        process.wait()
        _until_empty(call, watched)
    counters = side.counters(call.id, live=False)
    assert counters is not None
    assert (counters.forks, counters.execs, counters.exits) == (20, 10, 21)


def _until_empty(group: Group, poll: select.poll) -> None:
    fd = os.open(f"{group.path}/cgroup.events", os.O_RDONLY)
    try:
        poll.register(fd, select.POLLPRI)
        while group.populated():
            poll.poll(1000)
    finally:
        os.close(fd)


def test_bytes_of_ended_and_of_live_processes(side: NetlinkSide, call: Group, tmp_path: Path) -> None:
    file = tmp_path / "data"
    code = (
        f"import os, sys\n"
        f"block = b'x' * {MIB}\n"
        f"if os.fork() == 0:\n"
        f"  fd = os.open({str(file)!r}, os.O_WRONLY | os.O_CREAT)\n"
        f"  for _ in range(8): os.write(fd, block)\n"
        f"  os._exit(0)\n"
        f"os.wait()\n"
        f"fd = os.open({str(file)!r}, os.O_RDONLY)\n"
        f"while os.read(fd, {MIB}): pass\n"
        f"print('read', flush=True)\n"
        f"sys.stdin.readline()\n"
    )
    with child(UP + code) as process:
        before = side.counters(call.id)
        assert before is not None
        assert before.read_bytes == 0
        enter(side, call, process)
        entered = side.counters(call.id)
        assert entered is not None
        assert entered.read_bytes == 0  # its past, the start of a Python, is not the call's
        assert entered.faults < 100
        go(process)
        assert line(process) == "read"
        live = side.counters(call.id)
        assert live is not None
        assert 8 * MIB <= live.written_bytes <= 8 * MIB + 64 * 1024
        assert 8 * MIB - 1024 <= live.read_bytes <= 8 * MIB + 256 * 1024
        assert live.switches > 0
        assert side.all_counters()[call.id].written_bytes == live.written_bytes
        go(process)
        process.wait()
    ended = side.counters(call.id, live=False)
    assert ended is not None
    assert ended.written_bytes >= live.written_bytes
    assert ended.read_bytes >= live.read_bytes
    assert ended.faults >= live.faults > 0
    assert ended.exits == 2


def test_threads_count_once(side: NetlinkSide, call: Group) -> None:
    code = (
        "import os, sys, threading\n"
        f"def work(): fd = os.open('/dev/zero', 0); [os.read(fd, {MIB}) for _ in range(4)]\n"
        "ts = [threading.Thread(target=work) for _ in range(4)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\n"
        "print('done', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with child(UP + code) as process:
        enter(side, call, process)
        side.counters(call.id)
        go(process)
        assert line(process) == "done"
        live = side.counters(call.id)
        assert live is not None
        assert 16 * MIB <= live.read_bytes <= 17 * MIB
        assert (live.forks, live.exits) == (0, 0)  # threads are no processes
        go(process)
        process.wait()
    ended = side.counters(call.id, live=False)
    assert ended is not None
    assert live.read_bytes <= ended.read_bytes <= 17 * MIB
    assert ended.exits == 1


def test_a_process_already_in_the_group_counts_from_its_birth(side: NetlinkSide, tree: Tree) -> None:
    group = Session(tree).call()
    group.create()
    with child("sys.stdin.readline()") as process:
        side.drain()
        group.move(process.pid)
        side.register(group.id)
        counters = side.counters(group.id)
        assert counters is not None
        assert counters.read_bytes > 0  # what a restarted daemon finds: all of it is the call's


def test_what_is_settled_stays_and_what_moved_out_counts_no_more(side: NetlinkSide, call: Group, tree: Tree) -> None:
    other = Session(tree).call()
    other.create()
    code = (
        "import os\nfd = os.open('/dev/zero', 0)\n"
        f"os.read(fd, {MIB}); print('one', flush=True); sys.stdin.readline()\n"
        f"[os.read(fd, {MIB}) for _ in range(8)]; print('two', flush=True); sys.stdin.readline()\n"
    )
    with child(UP + code) as process:
        enter(side, call, process)
        side.counters(call.id)
        go(process)
        assert line(process) == "one"
        side.settle(call.id)
        other.move(process.pid)
        go(process)
        assert line(process) == "two"
        go(process)
        process.wait()
    counters = side.counters(call.id)
    assert counters is not None
    assert MIB <= counters.read_bytes < 2 * MIB


async def test_exec_events_come_through_the_loop(side: NetlinkSide, call: Group, told: list[Event]) -> None:
    loop = asyncio.get_running_loop()
    came = asyncio.Event()

    def drain() -> None:
        side.drain()
        if told:
            came.set()

    loop.add_reader(side.fileno(), drain)
    try:
        with child(UP + "import os; os.execv('/bin/sleep', ['sleep', '60'])") as process:
            enter(side, call, process)
            go(process)
            await asyncio.wait_for(came.wait(), 30)
            (event,) = told
            assert isinstance(event, ExecEvent)
            assert (event.cgroup_id, event.pid, event.ppid) == (call.id, process.pid, os.getpid())
            assert event.comm == "sleep"
            assert event.path.endswith("sleep")
    finally:
        loop.remove_reader(side.fileno())


def test_an_event_that_a_question_read_is_told_by_the_next_drain(
    side: NetlinkSide, call: Group, told: list[Event]
) -> None:
    run_in(side, call, "import subprocess\nsubprocess.run(['/bin/true'], check=True)")
    side.counters(call.id)
    assert told == []
    assert select.select([side.fileno()], [], [], 30)[0]
    side.drain()
    assert [type(event) for event in told] == [ExecEvent]


def test_forgotten_groups_and_unknown_ones(side: NetlinkSide, call: Group) -> None:
    assert side.registered() == {call.id}
    side.arm(call.id, notify=MIB, brake=2 * MIB)
    side.set_network(call.id, NetworkPolicy.NONE)
    side.forget(call.id)
    side.forget(call.id)
    assert side.registered() == set()
    assert side.counters(call.id) is None
    with pytest.raises(NotRegistered, match="register it first"):
        side.settle(call.id)
    with pytest.raises(NotRegistered, match="is not below"):
        side.register(1)


def test_a_queue_that_overflows_is_said_and_counting_goes_on(tree: Tree) -> None:
    events, stats = ProcessEvents(), TaskStats()
    side = NetlinkSide(cgroup=Path(tree.root.path), on_event=lambda _: None, because=WHY, events=events, stats=stats)
    group = Session(tree).call()
    group.create()
    side.register(group.id)
    try:
        events.set_receive_buffer(1)  # the least that the kernel gives: a few events
        run_in(side, group, "import subprocess\nfor _ in range(40): subprocess.run(['/bin/true'], check=True)")
        first = side.counters(group.id)
        assert first is not None
        assert events.lost > 0
        assert first.forks < 40
        assert any("dropped" in problem for problem in side.problems)
        events.set_receive_buffer(1 << 20)
        run_in(side, group, "import subprocess\nfor _ in range(5): subprocess.run(['/bin/true'], check=True)")
        second = side.counters(group.id)
        assert second is not None
        assert second.forks >= first.forks + 5
    finally:
        side.close()


def test_where_nothing_is_to_be_had_the_reason_for_no_ebpf_is_raised() -> None:
    """In a process of its own, in a user namespace, where the kernel tells nothing of other processes."""
    code = (
        "import ctypes, os\n"
        "from pathlib import Path\n"
        "from bpf import Unavailable\n"
        "from controller.processes.netlink import NetlinkSide\n"
        "if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):\n"  # CLONE_NEWUSER
        "  print('no namespace', ctypes.get_errno(), flush=True); os._exit(9)\n"
        "try: NetlinkSide.open(cgroup=Path('/'), on_event=print, because=Unavailable('no BTF'))\n"
        "except Unavailable as err: print(type(err.__cause__).__name__, '|', err.__cause__)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    if done.returncode == 9:
        pytest.skip(f"this kernel gives no user namespace: {done.stdout}")
    assert done.returncode == 0, done.stderr
    name, _, message = done.stdout.partition(" | ")
    assert name == NoProcessEvents.__name__
    assert "the process connector" in message
    assert "namespaces" in message


def test_the_connector_tells_of_our_own_fork() -> None:
    events = ProcessEvents()
    try:
        with child("") as process:
            seen = []
            while (event := events.read()) is not None:
                seen.append((event.kind, event.child_pid))
            assert (Kind.FORK, process.pid) in seen
    finally:
        events.close()
