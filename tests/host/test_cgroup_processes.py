"""Processes in real groups: moved, frozen, killed, bounded in memory, CPU and number."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.cgroup import Group, GroupBusy, KernelRefused, NoSuchProcess, Tree, core
from controller.cgroup.membership import read_membership
from controller.model import Limits, new_call_id
from tests.host.cgroup_tools import Session, child, go, line, temporary_tree

pytestmark = pytest.mark.host

SLEEP = "import time\nprint('up', flush=True)\ntime.sleep(600)"


@pytest.fixture
def session() -> Iterator[Session]:
    with temporary_tree() as tree:
        yield Session(tree)


def wait_for(group: Group, *, populated: bool | None = None, frozen: bool | None = None) -> None:
    """Wait in poll(2) until cgroup.events says so."""
    with open(f"{group.path}/cgroup.events", "rb", buffering=0) as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while True:
            state = core.parse_core_state(os.pread(events.fileno(), 128, 0), group.path)
            if populated in (None, state.populated) and frozen in (None, state.frozen):
                return
            assert poll.poll(20_000), f"{group} stays {state}"


def in_group(pid: int, group: Group) -> bool:
    return all(
        path == f"/{group.relative}" for name, path in read_membership(pid).items() if name in ("", "memory", "pids")
    )


def test_moved_in_every_hierarchy_and_counted(session: Session) -> None:
    call = session.call()
    call.create()
    assert not call.populated()
    with child("data = bytearray(b'x') * (32 << 20)\n" + SLEEP) as process:
        call.move(process.pid)
        assert in_group(process.pid, call)
        assert call.pids() == [process.pid]
        assert session.tenant.pids() == []
        assert session.tenant.pids(recursive=True) == [process.pid]
        assert session.tree.locate(process.pid) == call
        assert call.populated()
        with pytest.raises(GroupBusy):
            call.delete()
        with pytest.raises(GroupBusy):
            session.tenant.delete(recursive=True)
        assert in_group(process.pid, call)  # the failed removal has taken no hierarchy away
        go(process)
        assert line(process) == "up"
        stat = call.stat()
        fast = call.fast_stat()
        assert stat.cpu.usage_usec > 0
        assert stat.cpu.usage_usec <= fast.cpu_usec
        assert stat.memory is not None
        assert stat.memory.current >= 32 << 20
        assert stat.memory.peak is None or stat.memory.peak >= 32 << 20
        # memory.stat may lag behind by a few pages for each CPU: enough was touched that it cannot lag behind all
        assert stat.memory.faults > 0
        assert stat.memory.anon >= 16 << 20
        assert fast.memory_now is not None
        assert fast.memory_now >= 32 << 20
        assert stat.pids is not None
        assert stat.pids.current == 1
    wait_for(call, populated=False)
    call.delete()


def test_moved_with_all_of_its_threads(session: Session) -> None:
    call = session.call()
    call.create()
    code = (
        "import threading, time\n"
        "for _ in range(8): threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        "print('up', flush=True)\n"
        "time.sleep(600)"
    )
    with child(code) as process:
        go(process)
        assert line(process) == "up"
        call.move(process.pid)
        tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
        assert len(tasks) == 9
        for task in tasks:
            assert f"0::/{call.relative}\n" in (task / "cgroup").read_text()
        stat = call.stat()
        assert stat.pids is not None
        assert stat.pids.current == 9


def test_a_process_that_has_ended(session: Session) -> None:
    call = session.call()
    call.create()
    with child("") as process:
        process.kill()
        process.wait()
        with pytest.raises(NoSuchProcess):
            call.move(process.pid)
    assert call.pids() == []


def test_a_number_that_has_come_to_name_another_is_taken_back(session: Session) -> None:
    call = session.call()
    call.create()
    with child(SLEEP) as meant, child(SLEEP) as stranger:
        pidfd = os.pidfd_open(meant.pid)
        try:
            call.move(meant.pid, pidfd)
            assert in_group(meant.pid, call)
            meant.kill()
            meant.wait()
            before = read_membership(stranger.pid)
            with pytest.raises(NoSuchProcess):
                call.move(stranger.pid, pidfd)  # as if the stranger had been given the number
            assert read_membership(stranger.pid) == before
            assert call.pids() == []
        finally:
            os.close(pidfd)


def test_a_move_that_fails_half_way_is_taken_back(session: Session) -> None:
    if session.tree.mode == "unified":
        pytest.skip("one hierarchy: a move has no halves there")
    call = session.call()
    call.create()
    with child(SLEEP) as process:
        before = read_membership(process.pid)
        # v2, which comes last, refuses processes in a threaded group's domain-invalid child
        Path(f"{call.path}/domain").mkdir()
        Path(f"{call.path}/domain/cgroup.type").write_text("threaded")
        Path(f"{call.path}/domain/below").mkdir()
        try:
            invalid = Group(call._layout, call.kind, f"{call.relative}/domain/below")
            for mount in call._layout.eager:
                Path(f"{mount}/{invalid.relative}").mkdir(parents=True)
            with pytest.raises(KernelRefused, match=r"cgroup\.procs.*ENOTSUP"):
                invalid.move(process.pid)
            assert read_membership(process.pid) == before
        finally:
            call.delete(recursive=True)


def test_frozen_thawed_killed(session: Session) -> None:
    call = session.call()
    call.create()
    with child("n = 0\nwhile True: n += 1") as process:
        call.move(process.pid)
        go(process)
        call.freeze()
        wait_for(call, frozen=True)
        assert call.is_frozen()
        used = call.fast_stat().cpu_usec
        assert call.fast_stat().cpu_usec == used
        call.thaw()
        wait_for(call, frozen=False)
        call.freeze()
        wait_for(call, frozen=True)
        call.kill()  # frozen as it is
        assert process.wait() == -signal.SIGKILL
        wait_for(call, populated=False)
        call.delete()


def test_killed_with_all_of_its_children_also_without_cgroup_kill(session: Session) -> None:
    code = (
        "import os, time\n"
        "for _ in range(5):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        break\n"
        "else:\n"
        "    print('up', flush=True)\n"
        "time.sleep(600)"
    )
    for way in (core.kill, core.kill_by_signal):
        call = session.call()
        call.create()
        with child(code) as process:
            call.move(process.pid)
            go(process)
            assert line(process) == "up"
            assert len(call.pids()) == 6
            way(call.path)
            assert process.wait() == -signal.SIGKILL
        wait_for(call, populated=False)
        call.delete()


def test_oom_spares_who_is_outside_the_leaf(session: Session) -> None:
    agent, call = session.agent(), session.call()
    agent.create()
    call.create(Limits(memory_max=32 << 20))
    call.oom_group(True)
    with child(SLEEP) as bystander, child("data = bytearray(b'x') * (256 << 20)\nprint('lived')") as eater:
        agent.move(bystander.pid)
        call.move(eater.pid)
        go(bystander)
        assert line(bystander) == "up"
        go(eater)
        assert eater.wait() == -signal.SIGKILL
        assert line(eater) == ""
        assert bystander.poll() is None
        events = call.memory_events()
        assert events is not None
        assert events.oom_kill >= 1
        assert events.max
        others = agent.memory_events()
        assert others is not None
        assert others.oom_kill == 0
        peak = call.fast_stat().memory_peak
        assert peak is None or (16 << 20) < peak <= (32 << 20)
        if call.reset_peak():
            fresh = call.fast_stat().memory_peak
            assert fresh is not None
            assert peak is not None
            assert fresh < peak


def test_a_fork_bomb_stops_at_pids_max(session: Session) -> None:
    call = session.call()
    call.create(Limits(pids_max=10))
    code = (
        "import os, time\n"
        "made = 0\n"
        "try:\n"
        "    while made < 100:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(600)\n"
        "            os._exit(0)\n"
        "        made += 1\n"
        "except BlockingIOError:\n"
        "    print(made, flush=True)\n"
        "time.sleep(600)"
    )
    with child(code) as process:
        call.move(process.pid)
        go(process)
        assert line(process) == "9"
        assert call.pids_max_events() == 1
        stat = call.stat()
        assert stat.pids is not None
        assert stat.pids.current == 10
        assert stat.pids.peak in (None, 10)
        call.kill()
        process.wait()


def test_a_cpu_quota_holds(session: Session) -> None:
    call = session.call()
    call.create(Limits(cpu_max=0.2))
    # the child measures itself: a second of its wall time, and what CPU it got in it
    code = (
        "import time\n"
        "begin = time.monotonic()\n"
        "while time.monotonic() < begin + 1: pass\n"
        "print(time.process_time() / (time.monotonic() - begin))"
    )
    with child(code) as process:
        call.move(process.pid)
        go(process)
        assert float(line(process)) < 0.5
    stat = call.stat()
    assert stat.cpu.throttled_periods
    assert stat.cpu.throttled_usec


def test_a_cpu_limit_that_comes_later_finds_the_processes(session: Session) -> None:
    call, other = session.call(), session.call()
    call.create()
    other.create()
    with child(SLEEP) as process, child(SLEEP) as neighbour:
        call.move(process.pid)
        other.move(neighbour.pid)
        session.tenant.set(Limits(cpu_weight=50))
        if session.tree.mode == "hybrid":
            assert read_membership(neighbour.pid)["cpu"] == f"/{session.tenant.relative}"
        # a call's own limit: its processes, and nobody else's; the others stay under their tenant
        call.set(Limits(cpu_max=0.5))
        assert core.processes(str(call.directory("cpu"))) == [process.pid]
        calls = call.relative.rpartition("/")[0]
        if session.tree.mode == "hybrid":
            assert read_membership(neighbour.pid)["cpu"] == f"/{calls}"
        # a call that begins now, without a limit of its own, is under its tenant's too
        third = session.call()
        third.create()
        with child(SLEEP) as late:
            third.move(late.pid)
            if session.tree.mode == "hybrid":
                assert read_membership(late.pid)["cpu"] == f"/{calls}"
        # a daemon that starts anew sees the same
        again = Tree(session.tree.host, session.tree.root.relative)
        again.prepare()
        assert again.by_path(f"/{call.relative}") == call
        fourth = again.call(session.tenant_id, session.session_id, new_call_id())
        fourth.create()
        with child(SLEEP) as late:
            fourth.move(late.pid)
            if session.tree.mode == "hybrid":
                assert read_membership(late.pid)["cpu"] == f"/{calls}"


def test_the_first_cpu_limit_of_a_call_takes_nobody_out_of_reach_of_a_later_one(session: Session) -> None:
    call, other = session.call(), session.call()
    other.create()
    with child(SLEEP) as neighbour:
        other.move(neighbour.pid)
        call.create(Limits(cpu_max=0.5))  # makes the twins above it, which now are everybody's nearest
        session.tenant.set(Limits(cpu_max=0.25))
        path = read_membership(neighbour.pid).get("cpu")
        if session.tree.mode == "hybrid":
            assert path is not None
            assert path.startswith(f"/{session.tenant.relative}/")


def test_a_limit_below_what_is_in_use(session: Session) -> None:
    if session.tree.mode == "unified":
        pytest.skip("cgroup v2 kills there rather than refuse")
    call = session.call()
    call.create()
    with child("data = bytearray(b'x') * (64 << 20)\nprint('up', flush=True)\nimport time\ntime.sleep(600)") as process:
        call.move(process.pid)
        go(process)
        assert line(process) == "up"
        if Path("/proc/swaps").read_text().count("\n") > 1:
            pytest.skip("with swap the kernel can make room")
        with pytest.raises(GroupBusy, match=r"limit_in_bytes.*EBUSY"):
            call.set(Limits(memory_max=8 << 20))
        assert process.poll() is None


def test_processes_end_without_us(session: Session) -> None:
    """What a leaf looks like after a short-lived child: counted, empty, removable."""
    call = session.call()
    call.create()
    with child("import subprocess\nsubprocess.run(['/bin/true'], check=True)") as process:
        call.move(process.pid)
        go(process)
        assert process.wait() == 0
    wait_for(call, populated=False)
    assert call.fast_stat().cpu_usec > 0
    assert call.pids() == []
    call.delete()
