"""The observing backend over real processes of the test's own: no root, no cgroups."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from controller.backend import Backend, CallRecord, CallRef, SessionRecord, Whose
from controller.backends.observe import Observer
from controller.model import (
    CallId,
    CallState,
    CallView,
    Grant,
    Intent,
    Limits,
    NotFound,
    SessionView,
    TenantView,
    Tripwire,
    Usage,
    WrongState,
    new_call_id,
    new_session_id,
    new_tenant_id,
)
from controller.processes import procfs

MIB = 1 << 20
BUSY = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"
WAIT = "import sys\nprint('up', flush=True)\nsys.stdin.readline()\n"


class Heard:
    """A Listener that keeps what it is told."""

    def __init__(self) -> None:
        self.empty: list[CallId] = []
        self._told = asyncio.Event()

    def on_empty(self, call_id: CallId) -> None:
        self.empty.append(call_id)
        self._told.set()

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise AssertionError(f"{name}: an observer cannot know that")

    async def until_empty(self, call_id: CallId) -> None:
        while call_id not in self.empty:
            await asyncio.wait_for(self._told.wait(), 60)
            self._told.clear()


class World:
    """An observer with a tenant and a session, and the processes that a test starts."""

    def __init__(self) -> None:
        self.heard = Heard()
        self.observer = Observer(("a test",))
        self.tenant_id, self.session_id = new_tenant_id(), new_session_id()
        self.processes: list[subprocess.Popen[str]] = []
        self.observer.start(self.heard)
        self.observer.add_tenant(TenantView(id=self.tenant_id, name="t", limits=Limits(), priority=50))
        session = SessionView(
            id=self.session_id, tenant_id=self.tenant_id, name="", uid=os.getuid(), opened_at=0.0, labels={}
        )
        self.observer.add_session(SessionRecord(session=session, token_hash="", token_expires=0.0))

    def call(self) -> CallRef:
        ref = CallRef(self.tenant_id, self.session_id, new_call_id())
        grant = Grant(limits=Limits(pids_max=100), tripwire=Tripwire(), priority=50, enforced=False)
        assert self.observer.add_call(ref, Intent(), grant) == ""
        return ref

    def start(self, code: str, ref: CallRef | None = None, environment: dict[str, str] | None = None) -> int:
        """A process that waits to be told ``go``, in ``ref`` if given."""
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", WAIT + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.processes.append(process)
        assert self.line() == "up"
        if ref is not None:
            self.observer.place(ref, process.pid)
        return process.pid

    def go(self, index: int = -1) -> None:
        process = self.processes[index]
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()

    def line(self, index: int = -1) -> str:
        stdout = self.processes[index].stdout
        assert stdout is not None
        return stdout.readline().strip()

    def close(self) -> None:
        with contextlib.suppress(NotFound):
            self.observer.kill_session(self.tenant_id, self.session_id)
        self.observer.stop()
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.close()


@contextlib.contextmanager
def ended_at_last(pid: int) -> Iterator[None]:
    """A process that no longer is this test's child is ended whatever happens."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_it_is_a_backend_that_enforces_nothing() -> None:
    backend: Backend = Observer(())
    assert (backend.mode, backend.enforces, backend.can_brake, backend.can_gate_network) == (
        "observe",
        False,
        False,
        False,
    )
    assert backend.controllers == frozenset()
    assert Observer(("no root",)).missing == ("no root",)


async def test_the_end_of_the_last_process_is_told_once(world: World) -> None:
    ref = world.call()
    pid = world.start("import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', ''])", ref)
    assert list(world.observer.pids(ref)) == [pid]
    assert not world.observer.remove_call(ref)
    world.go()
    await world.heard.until_empty(ref.call_id)
    assert list(world.observer.pids(ref)) == []
    assert world.observer.remove_call(ref)
    assert world.observer.remove_call(ref)
    await asyncio.sleep(0)
    assert world.heard.empty == [ref.call_id]
    assert list(world.observer.pids(ref)) == []


async def test_cpu_of_ended_and_of_reaped_children_is_counted_once(world: World) -> None:
    """Two children of 0.2 s each, waited for, beside 0.1 s of its own."""
    ref = world.call()
    child = f"[sys.executable, '-S', '-c', {BUSY.format(0.2)!r}]"
    code = f"import subprocess, sys\nfor _ in range(2): subprocess.run({child})\n"
    world.start(code + BUSY.format(0.1) + "print('done', flush=True)\nsys.stdin.readline()", ref)
    world.go()
    seen = []
    reader = asyncio.get_running_loop().run_in_executor(None, world.line)
    while not reader.done():
        seen.append(world.observer.usage(ref).cpu_usec)
        await asyncio.sleep(0.02)
    assert await reader == "done"
    live = world.observer.usage(ref)
    assert 450_000 <= live.cpu_usec <= 900_000
    assert live.cpu_usec == live.cpu_user_usec + live.cpu_system_usec
    assert seen == sorted(seen)
    world.go()
    await world.heard.until_empty(ref.call_id)
    ended = world.observer.usage(ref)
    assert live.cpu_usec <= ended.cpu_usec <= 900_000
    assert world.observer.tenant_cpu_usec(world.tenant_id) == ended.cpu_usec
    assert world.observer.remove_call(ref)
    assert world.observer.tenant_cpu_usec(world.tenant_id) == ended.cpu_usec


async def test_the_use_of_one_that_nobody_waited_for_stays(world: World) -> None:
    ref = world.call()
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"  # the kernel reaps, and adds to nobody's account
        "child = os.fork()\n"
        "if child == 0:\n"
        + "".join(f"  {line}\n" for line in BUSY.format(0.2).splitlines())
        + "  print('used', flush=True)\n"
        "  sys.stdin.readline()\n"
        "  os._exit(0)\n"
        "try: os.wait()\n"
        "except ChildProcessError: pass\n"
        "print('gone', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    world.start(code, ref)
    world.go()
    assert await asyncio.to_thread(world.line) == "used"
    with_child = world.observer.usage(ref)
    assert with_child.pids_now == 2
    assert with_child.cpu_usec >= 180_000
    world.go()
    assert await asyncio.to_thread(world.line) == "gone"
    after = world.observer.usage(ref)
    assert after.pids_now == 1
    assert with_child.cpu_usec <= after.cpu_usec <= with_child.cpu_usec + 60_000


async def test_what_a_launcher_waited_for_is_exact(world: World) -> None:
    """Its child has ended and is reaped before the observer looks: the launcher's own account says what it used."""
    ref = world.call()
    launcher = world.start(
        "import subprocess\n"
        f"p = subprocess.Popen([sys.executable, '-S', '-c', {WAIT + BUSY.format(0.3)!r}], stdout=subprocess.PIPE)\n"
        "p.stdout.readline()\n"
        "print(p.pid, flush=True)\n"
        "p.wait()\n"
        "print('reaped', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    world.go()
    child = int(await asyncio.to_thread(world.line))
    world.observer.place(ref, child)
    world.observer.remember(ref, _record(ref, child, launcher))
    world.observer.stop()  # nothing looks in between
    world.go()
    assert world.line() == "reaped"
    usage = world.observer.usage(ref)
    assert usage.pids_now == 0
    assert 290_000 <= usage.cpu_usec <= 500_000


def _record(ref: CallRef, main: int, launcher: int) -> CallRecord:
    view = CallView(
        id=ref.call_id,
        session_id=ref.session_id,
        tenant_id=ref.tenant_id,
        parent_id=None,
        command="",
        intent=Intent(),
        grant=Grant(limits=Limits(), tripwire=Tripwire(), priority=50, enforced=False),
        state=CallState.RUNNING,
        begun_at=0.0,
        held_since=None,
        held_seconds=0.0,
        brakes=0,
        usage=Usage(),
        cgroup="",
    )
    return CallRecord(call=view, launcher=True, main_pid=main, launcher_pid=launcher)


async def test_memory_and_bytes(world: World) -> None:
    ref = world.call()
    code = (
        f"block = b'x' * {64 * MIB}\nopen('/dev/null', 'wb', 0).write(block)\nprint('done', flush=True)\n"
        "sys.stdin.readline()\ndel block\nprint('less', flush=True)\nsys.stdin.readline()\n"
    )
    world.start(code, ref)
    before = world.observer.usage(ref)
    assert before.written_bytes == 0  # what it used before it was placed is not the call's
    world.go()
    assert await asyncio.to_thread(world.line) == "done"
    full = world.observer.usage(ref)
    assert full.memory_now is not None
    assert full.memory_now >= 64 * MIB
    assert full.written_bytes is not None
    assert 64 * MIB <= full.written_bytes <= 65 * MIB
    assert full.faults is not None
    assert full.faults > 100
    assert world.observer.memory(ref) == world.observer.tenant_memory(world.tenant_id) == full.memory_now
    world.go()
    assert await asyncio.to_thread(world.line) == "less"
    less = world.observer.usage(ref)
    assert less.memory_now is not None
    assert less.memory_now < full.memory_now
    assert less.memory_peak is not None
    assert less.memory_peak >= 64 * MIB
    assert (less.net_rx_bytes, less.forks, less.run_wait_usec) == (None, None, None)  # nothing here can say


async def test_kill_ends_the_tree_and_nothing_else(world: World) -> None:
    ref, other = world.call(), world.call()
    bystander = world.start("sys.stdin.readline()", other)
    world.start(
        "import os, time\n"
        "pids = []\n"
        "for _ in range(5):\n"
        "  r, w = os.pipe()\n"
        "  if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if (pid := os.fork()): os.write(w, str(pid).encode()); os._exit(0)\n"
        "    time.sleep(600)\n"
        "  pids.append(int(os.read(r, 20))); os.wait()\n"
        "print(*pids, flush=True)\n"
        "time.sleep(600)\n",
        ref,
        {"CORRAL_CALL": ref.call_id},
    )
    world.go()
    daemons = [int(pid) for pid in (await asyncio.to_thread(world.line)).split()]
    with contextlib.ExitStack() as stack:
        for pid in daemons:
            stack.enter_context(ended_at_last(pid))
        world.observer.usage(ref)  # a look at the whole host
        assert set(daemons) < set(world.observer.pids(ref))  # by their environment: their parents are gone
        world.observer.kill(ref)
        await world.heard.until_empty(ref.call_id)
        assert [pid for pid in daemons if (s := procfs.read_stat(pid)) is not None and s.alive] == []
    assert list(world.observer.pids(other)) == [bystander]
    assert other.call_id not in world.heard.empty


async def test_a_fork_bomb_cannot_outrun_the_kill(world: World) -> None:
    ref = world.call()
    code = (
        "import os, time\n"
        "for depth in range(6): os.fork()\n"  # 64 processes
        "print('x', flush=True)\n"
        "while True:\n"
        "  if os.fork() == 0: os._exit(0)\n"
        "  os.wait()\n"
    )
    world.start(code, ref)
    world.go()
    for _ in range(64):
        await asyncio.to_thread(world.line)
    world.observer.kill(ref)
    await world.heard.until_empty(ref.call_id)
    assert list(world.observer.pids(ref)) == []


async def test_an_environment_makes_a_member_but_never_an_identity(world: World) -> None:
    ref = world.call()
    unknown = world.start("", environment={"CORRAL_CALL": new_call_id()})
    claiming = world.start("", environment={"CORRAL_CALL": ref.call_id})
    later = world.call()
    older = world.start("", environment={"CORRAL_CALL": later.call_id})
    main = world.start("", ref)
    world.observer.usage(ref)  # a look at the whole host
    assert set(world.observer.pids(ref)) == {main, claiming}
    assert world.observer.whose(claiming) == Whose()
    assert world.observer.whose(main) == Whose(world.session_id, ref.call_id)
    assert list(world.observer.pids(later)) == []  # no process was placed there: whose user would it be
    assert world.observer.whose(older) == world.observer.whose(unknown) == Whose()


async def test_leftovers_go_to_the_session_with_their_future_use_only(world: World) -> None:
    ref = world.call()
    code = (
        "import os\n"
        "if os.fork(): os._exit(0)\n" + BUSY.format(0.2) + "print('used', flush=True)\nsys.stdin.readline()\n"
    )
    world.start(code, ref, {"CORRAL_CALL": ref.call_id})
    world.go()
    assert await asyncio.to_thread(world.line) == "used"
    (left,) = world.observer.pids(ref)
    with ended_at_last(left):
        used = world.observer.usage(ref)
        assert world.observer.adopt_leftovers(ref) == 1
        assert list(world.observer.pids(ref)) == []
        assert world.observer.usage(ref).cpu_usec >= used.cpu_usec >= 180_000
        assert world.observer.whose(left) == Whose(world.session_id)
        assert world.observer.session_pids(world.tenant_id, world.session_id) == 1
        assert world.observer.remove_call(ref)
        assert not world.observer.remove_session(world.tenant_id, world.session_id)
        world.observer.kill_session(world.tenant_id, world.session_id)
        pidfd = os.pidfd_open(left)
        try:
            await asyncio.to_thread(select.select, [pidfd], [], [], 60)
        finally:
            os.close(pidfd)
        assert world.observer.remove_session(world.tenant_id, world.session_id)
        assert world.observer.session_pids(world.tenant_id, world.session_id) == 0


async def test_whose_process_it_is_goes_by_its_parents(world: World) -> None:
    assert world.observer.whose(os.getpid()) == Whose()
    assert world.observer.whose(4_190_000) == Whose()
    agent = world.start(
        "import subprocess\n"
        "p = subprocess.Popen(['sleep', '600'])\n"
        "print(p.pid, flush=True)\nsys.stdin.readline()\np.kill(); p.wait()\n"
    )
    world.observer.enter_session(world.tenant_id, world.session_id, agent)
    world.go()
    tool = int(await asyncio.to_thread(world.line))
    with ended_at_last(tool):
        assert world.observer.whose(agent) == world.observer.whose(tool) == Whose(world.session_id)
        ref = world.call()
        world.observer.place(ref, tool)
        assert world.observer.whose(tool) == Whose(world.session_id, ref.call_id)
        assert world.observer.whose(agent) == Whose(world.session_id)
        assert list(world.observer.pids(ref)) == [tool]


async def test_what_cannot_be_done_is_refused_in_words(world: World) -> None:
    ref = world.call()
    pid = world.start("", ref)
    with pytest.raises(WrongState, match=r"only observes.*no freezer.*corral doctor"):
        world.observer.freeze(ref)
    with pytest.raises(WrongState):
        world.observer.thaw(ref, [pid])
    with pytest.raises(WrongState):
        world.observer.resume(ref, pid)
    limits = Limits(memory_max=MIB)
    notes = world.observer.limit_session(world.tenant_id, world.session_id, limits)
    assert notes == ("memory_max: not in force, this host only observes",)
    tenant = TenantView(id=world.tenant_id, name="t", limits=limits, priority=50)
    assert world.observer.add_tenant(tenant) == notes
    with pytest.raises(NotFound, match="has ended"):
        world.observer.place(ref, 4_190_000)
    process = world.processes[-1]
    pidfd = os.pidfd_open(pid)
    try:
        process.kill()
        process.wait()
        other = world.start("")  # a pidfd of another process, which has ended
        with pytest.raises(NotFound):
            world.observer.place(ref, other, pidfd)
        assert other not in world.observer.pids(ref)
    finally:
        os.close(pidfd)
    with pytest.raises(NotFound, match="is not observed"):
        world.observer.usage(CallRef(ref.tenant_id, ref.session_id, new_call_id()))


async def test_a_sample_of_many_calls_is_one_pass(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = [world.call() for _ in range(5)]
    for ref in refs:
        world.start("", ref)
    passes = 0
    scan = procfs.scan

    def counted() -> dict[int, procfs.ProcStat]:
        nonlocal passes
        passes += 1
        return scan()

    monkeypatch.setattr(procfs, "scan", counted)
    world.observer.begin_round()
    passes = 0
    sampled = world.observer.sample([*refs, CallRef(world.tenant_id, world.session_id, new_call_id())], full=True)
    assert world.observer.sample(refs, full=False).usage == {r: sampled.usage[r] for r in sampled.usage}
    assert passes == 0
    assert set(sampled.usage) == {ref.call_id for ref in refs}
    assert all(usage.pids_now == 1 for usage in sampled.usage.values())


def _descriptors() -> set[int]:
    with os.scandir("/proc/self/fd") as entries:
        return {int(entry.name) for entry in entries if "/fd" not in str(Path(entry.path).readlink())}


async def test_stop_lets_go_of_the_loop_and_of_every_descriptor(world: World) -> None:
    before = _descriptors()
    ref = world.call()
    world.start("", ref)
    pipes = {f.fileno() for p in world.processes for f in (p.stdin, p.stdout) if f is not None}
    world.observer.stop()
    assert _descriptors() - pipes == before
    world.observer.stop()


def test_ticks_and_time_agree() -> None:
    stat = procfs.read_stat(os.getpid())
    assert stat is not None
    assert stat.alive
    assert stat.ppid == os.getppid()
    assert stat.rss > MIB
    assert stat.start <= time.clock_gettime(time.CLOCK_BOOTTIME) * procfs.TICKS


@pytest.mark.parametrize("data", [b"", b"1 (a", b"1 (a) R", b"x (a) R " + b"1 " * 30, b"1 (a) R " + b"x " * 30])
def test_a_stat_file_in_another_form_is_none(data: bytes) -> None:
    assert procfs.parse_stat(data) is None


def test_a_name_with_parentheses_and_blanks_shifts_nothing() -> None:
    fields = " ".join(str(n) for n in range(4, 53))
    stat = procfs.parse_stat(f"77 (a) R 1 (b) S {fields}".encode())
    assert stat is not None
    assert (stat.pid, stat.state, stat.ppid, stat.user, stat.start) == (77, "S", 4, 14, 22)
    assert (stat.faults, stat.major, stat.child_faults, stat.rss) == (10 + 12, 12, 11 + 13, 24 * procfs.PAGE)


@pytest.mark.parametrize("data", [b"", b"rchar: x\n", b"rchar: 1\n"])
def test_an_io_file_in_another_form_is_none(data: bytes) -> None:
    assert procfs.parse_io(data) is None
