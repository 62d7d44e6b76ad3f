"""A daemon that is killed with SIGKILL while a call is squeezed, at each point between the kernel and the record."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bpf import Event, KernelSide
from bpf.pins import PinDir
from controller.backend import CallRecord, CallRef
from controller.backends.enforce import Enforcer
from controller.cgroup import Tree, detect
from controller.model import Limits, Squeeze
from tests.host import bpf_support as support
from tests.host.cgroup_tools import temporary_tree
from tests.host.test_squeeze import Nobody, Rig

pytestmark = pytest.mark.host
REPOSITORY = Path(__file__).parents[2]
GRANTED = Limits(cpu_weight=70, cpu_max=2.0, egress_max=50_000_000)
SQUEEZE = Squeeze(since=5.0, cpu_max=0.5, cpu_weight=10, egress_bytes_per_second=100_000, reason="a test")


def pins_of(name: str) -> Path:
    return Path("/sys/fs/bpf") / name


def opener(name: str) -> Callable[[Path, Callable[[Event], None]], KernelSide]:
    return lambda root, on_event: KernelSide.open(cgroup=root, pin_dir=pins_of(name), on_event=on_event, majors=[])


async def daemon(name: str, point: str) -> None:
    """What is killed: a backend that begins a call, squeezes it, and gets as far as ``point``."""
    rig = Rig(Tree(detect(), name), opener(name))
    rig.begin(GRANTED)
    rig.backend.remember(rig.ref, rig.record(None))
    applied = rig.backend.squeeze(rig.ref, SQUEEZE).applied
    if point != "squeezed":
        rig.backend.remember(rig.ref, rig.record(applied))
    if point == "let go":
        rig.backend.squeeze(rig.ref, None)
    print("/".join(rig.ref), flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def killed_at(tree: Tree, point: str) -> Iterator[CallRef]:
    """The call that a daemon left, which was killed there."""
    name = tree.root.relative
    code = (
        f"import asyncio; from tests.host import test_squeeze_killed as t; asyncio.run(t.daemon({name!r}, {point!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        assert said, "the daemon ended before it had squeezed"
        process.kill()
        process.wait()
        tenant, session, call = said.split("/")
        yield CallRef(tenant, session, call)  # type: ignore[arg-type]  # ids that it made
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module", autouse=True)
def objects() -> None:
    support.need_root()
    support.build_objects()


@pytest.fixture
async def tree() -> AsyncIterator[Tree]:
    with temporary_tree() as made:
        try:
            yield made
        finally:
            pins = PinDir(pins_of(made.root.relative))
            if pins.path.exists():
                pins.remove_all()


def in_force(tree: Tree, backend: Enforcer, ref: CallRef) -> tuple[float | None, int | None, int | None]:
    group = tree.call(*ref)
    limits = group.limits()
    kernel = backend._kernel
    assert isinstance(kernel, KernelSide)
    return limits.cpu_max, limits.cpu_weight, kernel.paces.rate(group.id)


@pytest.mark.parametrize("point", ["squeezed", "on record", "let go"])
async def test_the_next_daemon_makes_the_kernel_say_what_is_on_record(tree: Tree, point: str) -> None:
    with killed_at(tree, point) as ref:
        backend = Enforcer(tree, opener(tree.root.relative))
        found = backend.start(Nobody())
        try:
            (record,) = found.calls
            assert isinstance(record, CallRecord)
            assert (record.call.squeeze is not None) == (point != "squeezed")
            backend.adopt_call(ref, record)
            granted = (2.0, 70, 50_000_000)
            if point == "squeezed":
                assert in_force(tree, backend, ref) == granted, "nobody would ever have let it go"
            else:
                assert in_force(tree, backend, ref) == (0.5, 10, 100_000)
                backend.squeeze(ref, None)
                assert in_force(tree, backend, ref) == granted
        finally:
            backend.stop()


async def test_rates_are_set_again_when_the_programs_are_new(tree: Tree) -> None:
    """As after an update of agentd whose maps have another shape: what the tree remembers is in force again."""
    with killed_at(tree, "on record") as ref:
        name = tree.root.relative
        tenant = tree.tenant(ref.tenant_id)
        first = Enforcer(tree, opener(name))
        (found,) = first.start(Nobody()).tenants
        first.add_tenant(replace(found, limits=Limits(egress_max=7_000_000)))
        first.stop()
        PinDir(pins_of(name)).remove_all()
        backend = Enforcer(tree, opener(name))
        record = backend.start(Nobody()).calls[0]
        try:
            backend.adopt_call(ref, record)
            kernel = backend._kernel
            assert isinstance(kernel, KernelSide)
            assert kernel.paces.rate(tenant.id) == 7_000_000
            assert in_force(tree, backend, ref) == (0.5, 10, 100_000)
        finally:
            backend.stop()


async def test_the_squeeze_holds_while_no_daemon_runs(tree: Tree) -> None:
    with killed_at(tree, "on record") as ref:
        limits = tree.call(*ref).limits()
        assert (limits.cpu_max, limits.cpu_weight) == (0.5, 10)
        assert any((pins_of(tree.root.relative) / "links").iterdir()), "the programs go on without it"
