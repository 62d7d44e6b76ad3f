"""Groups, helper processes and pins for the tests of the kernel side; all of it is ours and is taken away again."""

from __future__ import annotations

import errno
import os
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bpf.types import Event

REPO = Path(__file__).resolve().parents[2]
MIB = 1 << 20
HYBRID = Path("/sys/fs/cgroup/unified/cgroup.procs").exists()
V2 = Path("/sys/fs/cgroup/unified" if HYBRID else "/sys/fs/cgroup")
MEMORY = Path("/sys/fs/cgroup/memory") if HYBRID else V2
USAGE = "memory.usage_in_bytes" if HYBRID else "memory.current"


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not (V2 / "cgroup.procs").exists():
        pytest.skip("no cgroup v2 hierarchy")


def build(directory: Path) -> Path:
    """The helper, compiled."""
    program = directory / "bpf_load"
    source = REPO / "tests/host/bpf_load.c"
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-pthread", "-o", str(program), str(source)], check=True)
    return program


def build_objects() -> None:
    """What the sources say now; nothing where the objects are newer (a guest of the lab has them, and no clang)."""
    sources = [*(REPO / "bpf/src").iterdir(), REPO / "scripts/build-bpf"]
    wanted = [REPO / "bpf/objects" / f"{path.name.removesuffix('.c')}.o" for path in (REPO / "bpf/src").glob("*.bpf.c")]
    newest = max(path.stat().st_mtime for path in sources)
    if not all(path.exists() and path.stat().st_mtime >= newest for path in wanted):
        subprocess.run([str(REPO / "scripts/build-bpf")], check=True)


class Worker:
    """The helper, started inside or outside a group; it is ready, and waits for ``go``."""

    def __init__(self, program: Path, *args: str) -> None:
        self.process = subprocess.Popen(
            [str(program), *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self.process.pid
        assert self.line() == "ready"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("g")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self) -> int:
        """Let it do its work and say its result; it stays alive."""
        self.go()
        return int(self.line())

    def wait_stopped(self) -> None:
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"ended with {status}, was never stopped"
        assert os.WSTOPSIG(status) == signal.SIGSTOP

    def end(self) -> int:
        """Let it end by itself."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


@dataclass
class Group:
    v2: Path
    memory: Path

    @property
    def id(self) -> int:
        return self.v2.stat().st_ino

    @property
    def memory_id(self) -> int:
        return self.memory.stat().st_ino

    @property
    def usage(self) -> int:
        return int((self.memory / USAGE).read_text())

    def add(self, worker: Worker) -> Worker:
        (self.memory / "cgroup.procs").write_text(str(worker.pid))
        if self.v2 != self.memory:
            (self.v2 / "cgroup.procs").write_text(str(worker.pid))
        return worker


@dataclass
class Host:
    """One test's tree and pin directory."""

    root: Group
    pin_dir: Path
    program: Path
    events: list[Event] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def group(self, name: str = "call") -> Group:
        made = Group(self.root.v2 / name, self.root.memory / name)
        for path in {made.v2, made.memory}:
            path.mkdir()
        self.groups.append(made)
        return made

    def start(self, *args: str) -> Worker:
        worker = Worker(self.program, *args)
        self.workers.append(worker)
        return worker

    def start_in(self, group: Group, *args: str) -> Worker:
        return group.add(self.start(*args))

    def of_kind(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


@contextmanager
def host(program: Path) -> Iterator[Host]:
    name = f"corral-test-{os.getpid()}-{secrets.token_hex(4)}"
    root = Group(V2 / name, MEMORY / name)
    made = Host(root, Path("/sys/fs/bpf") / name, program)
    try:
        for path in {root.v2, root.memory}:
            path.mkdir()
        if not HYBRID:
            (root.v2 / "cgroup.subtree_control").write_text("+memory")
        yield made
    finally:
        for group in made.groups:
            (group.v2 / "cgroup.kill").write_text("1")
        for worker in made.workers:
            worker.kill()
        for group in [*reversed(made.groups), root]:
            for path in {group.v2, group.memory}:
                _remove_group(path)
        subprocess.run(["rm", "-rf", str(made.pin_dir)], check=True)


def _remove_group(path: Path) -> None:
    """rmdir, once the killed processes are gone."""
    events = path / "cgroup.events"
    if events.exists():
        with events.open() as file:
            poller = select.poll()
            poller.register(file, select.POLLPRI)
            while "populated 1" in file.read():
                poller.poll(5000)
                file.seek(0)
    for attempt in range(1000):
        try:
            path.rmdir()
        except OSError as err:
            # A v1 group tells nobody when its last task is gone, which is a little after its twin said so.
            if err.errno != errno.EBUSY or attempt == 999:
                raise
            time.sleep(0.002)
        else:
            return
