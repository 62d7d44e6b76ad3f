"""Squeezing a running call on the real kernel, and undoing it exactly, also by a daemon that found it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bpf import Unavailable
from controller.backend import CallRecord, CallRef, SessionRecord
from controller.backends.enforce import Enforcer, OpenKernel
from controller.backends.kernelside import KernelSide
from controller.ceilings import check_settable
from controller.cgroup import Group, Tree
from controller.model import (
    CallId,
    CallState,
    CallView,
    CannotEnforce,
    Grant,
    Intent,
    Limits,
    SessionId,
    SessionView,
    Squeeze,
    TenantView,
    Tripwire,
    Usage,
    new_call_id,
    new_session_id,
    new_tenant_id,
)
from tests.host.cgroup_tools import child, go, temporary_tree

pytestmark = pytest.mark.host
MIB = 1 << 20
SQUEEZE = Squeeze(since=5.0, memory_high=32 * MIB, cpu_max=0.5, cpu_weight=10, io_weight=10, reason="a test")


class Nobody:
    """A listener that is not told anything that matters here."""

    def on_empty(self, call_id: CallId, /) -> None: ...
    def on_braked(self, call_id: CallId, pid: int, usage: int, threshold: int, latency: float, /) -> None: ...
    def on_notice(self, call_id: CallId, usage: int, threshold: int, /) -> None: ...
    def on_oom(self, call_id: CallId, kills: int, /) -> None: ...
    def on_pids_refused(self, call_id: CallId, refusals: int, /) -> None: ...
    def on_connect_refused(self, call_id: CallId, destination: str, /) -> None: ...
    def on_agent_grew(self, session_id: SessionId) -> None: ...
    def on_pressure(self) -> None: ...
    def on_exec(self, call_id: CallId, pid: int, parent: int, filename: str, /) -> None: ...


def _no_kernel(*_: object) -> KernelSide:
    raise Unavailable("not in this test", remedy="none")


class Rig:
    """A tree with one call in it, and a daemon's backend over it, which can be lost and come again."""

    def __init__(self, tree: Tree, open_kernel: OpenKernel | None = None) -> None:
        self.tree = tree
        self._open_kernel = open_kernel or _no_kernel
        self.backend = self._backend()
        tenant, session = new_tenant_id(), new_session_id()
        self.ref = CallRef(tenant, session, new_call_id())
        self.backend.add_tenant(TenantView(id=tenant, name="acme", limits=Limits(), priority=50))
        view = SessionView(id=session, tenant_id=tenant, name="s", uid=0, opened_at=0.0, labels={})
        self.backend.add_session(SessionRecord(session=view, token_hash="", token_expires=0.0))

    def _backend(self) -> Enforcer:
        backend = Enforcer(self.tree, self._open_kernel)
        backend.start(Nobody())
        return backend

    def begin(self, limits: Limits) -> None:
        self.grant = Grant(limits=limits, tripwire=Tripwire(), priority=50, enforced=True)
        self.backend.add_call(self.ref, Intent(), self.grant)

    @property
    def group(self) -> Group:
        return self.tree.call(*self.ref)

    def record(self, squeeze: Squeeze | None) -> CallRecord:
        view = CallView(
            id=self.ref.call_id,
            session_id=self.ref.session_id,
            tenant_id=self.ref.tenant_id,
            parent_id=None,
            command="",
            intent=Intent(),
            grant=self.grant,
            state=CallState.RUNNING,
            begun_at=0.0,
            held_since=None,
            held_seconds=0.0,
            brakes=0,
            usage=Usage(cpu_usec=0),
            cgroup=self.group.relative,
            squeeze=squeeze,
        )
        return CallRecord(call=view, launcher=False, main_pid=0, launcher_pid=0)

    def next_daemon(self) -> None:
        """Nothing of the backend's own memory survives: only what is in the tree."""
        self.backend.stop()
        self.backend = self._backend()
        (found,) = self.backend.find(None).calls
        self.backend.adopt_call(self.ref, found)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    with temporary_tree() as tree:
        made = Rig(tree)
        try:
            yield made
        finally:
            made.backend.stop()


@contextlib.contextmanager
def member(rig: Rig) -> Iterator[subprocess.Popen[str]]:
    with child("sys.stdin.readline()") as process:
        rig.backend.place(rig.ref, process.pid)
        go(process)
        yield process


def soft(limits: Limits) -> tuple[object, ...]:
    """As in force; what was never set reads as None on hybrid hosts, and means the default."""
    default = {"memory_high": -1, "cpu_max": -1.0, "cpu_weight": 100, "io_weight": 100}
    return tuple(value if (value := getattr(limits, n)) is not None else d for n, d in default.items())


@pytest.mark.parametrize(
    "limits",
    [Limits(), Limits(cpu_weight=50, pids_max=64), Limits(cpu_max=2.0, memory_max=128 * MIB)],
    ids=["nothing granted", "a weight granted", "a quota granted"],
)
async def test_squeezed_and_let_go_it_is_as_granted(rig: Rig, limits: Limits) -> None:
    rig.begin(limits)
    before = rig.group.limits()
    with member(rig) as process:
        done = rig.backend.squeeze(rig.ref, SQUEEZE)
        applied = done.applied
        assert applied is not None
        now = rig.group.limits()
        assert (now.cpu_max, now.cpu_weight) == (0.5, 10)
        assert (applied.cpu_max, applied.cpu_weight) == (0.5, 10)
        assert (now.memory_max, now.pids_max) == (before.memory_max, before.pids_max)
        if rig.group.memory_is_v1():
            assert applied.memory_high is None
            assert any(note.startswith("memory_high is not set") for note in done.notes)
        else:
            assert now.memory_high == applied.memory_high == 32 * MIB
        if applied.io_weight is None:
            assert any(note.startswith("io_weight is not set") for note in done.notes)
        else:
            assert now.io_weight == 10
        assert process.pid in rig.group.pids(), "it runs on"
        assert f"/{rig.group.relative}\n" in Path(f"/proc/{process.pid}/cgroup").read_text()

        undone = rig.backend.squeeze(rig.ref, None)
        assert undone.applied is None
        assert undone.notes == ()
        assert soft(rig.group.limits()) == soft(before)


async def test_a_new_grant_leaves_the_squeeze_and_is_what_it_is_let_go_to(rig: Rig) -> None:
    rig.begin(Limits(cpu_weight=80))
    rig.backend.squeeze(rig.ref, SQUEEZE)
    rig.grant = Grant(limits=Limits(cpu_weight=200, cpu_max=0.25), tripwire=Tripwire(), priority=50, enforced=True)
    rig.backend.limit_call(rig.ref, rig.grant, Intent())
    now = rig.group.limits()
    assert (now.cpu_weight, now.cpu_max) == (10, 0.25), "the tighter of both"
    rig.backend.squeeze(rig.ref, None)
    now = rig.group.limits()
    assert (now.cpu_weight, now.cpu_max) == (200, 0.25)


async def test_one_squeeze_after_another_replaces_it(rig: Rig) -> None:
    rig.begin(Limits())
    rig.backend.squeeze(rig.ref, SQUEEZE)
    done = rig.backend.squeeze(rig.ref, Squeeze(cpu_weight=20))
    now = rig.group.limits()
    assert (now.cpu_weight, now.cpu_max) == (20, -1.0)
    assert done.applied == Squeeze(cpu_weight=20)


@pytest.mark.parametrize("recorded", [True, False], ids=["on record", "not yet on record"])
async def test_the_next_daemon_knows_what_to_undo(rig: Rig, recorded: bool) -> None:
    """A daemon dies after it has squeezed: on record, the squeeze stays and can be undone; else it is lifted."""
    rig.begin(Limits(cpu_weight=70))
    before = rig.group.limits()
    rig.backend.remember(rig.ref, rig.record(None))
    applied = rig.backend.squeeze(rig.ref, SQUEEZE).applied
    if recorded:
        rig.backend.remember(rig.ref, rig.record(applied))
    rig.next_daemon()
    if recorded:
        assert rig.group.limits().cpu_weight == 10
        rig.backend.squeeze(rig.ref, None)
    assert soft(rig.group.limits()) == soft(before)


async def test_a_daemon_that_died_before_the_undo_on_record_is_finished(rig: Rig) -> None:
    """It had let go in the kernel, and its record still says squeezed: the next one squeezes again, and can undo it."""
    rig.begin(Limits())
    applied = rig.backend.squeeze(rig.ref, SQUEEZE).applied
    rig.backend.remember(rig.ref, rig.record(applied))
    rig.backend.squeeze(rig.ref, None)
    rig.next_daemon()
    assert rig.group.limits().cpu_weight == 10
    rig.backend.squeeze(rig.ref, None)
    assert rig.group.limits().cpu_weight == 100


async def test_a_cpu_quota_is_felt(rig: Rig) -> None:
    """Throttled periods are the kernel's own proof that it held the call back."""
    rig.begin(Limits())
    with child("import time\nwhile time.process_time() < 0.1: pass") as process:
        rig.backend.place(rig.ref, process.pid)
        rig.backend.squeeze(rig.ref, Squeeze(cpu_max=0.1))
        go(process)
        await asyncio.wait_for(asyncio.to_thread(process.wait), 60)
        assert rig.group.stat().cpu.throttled_periods


async def test_without_ebpf_an_egress_rate_is_left_out_with_a_word(rig: Rig) -> None:
    tenant = TenantView(id=new_tenant_id(), name="beta", limits=Limits(egress_max=1 << 20, pids_max=9), priority=50)
    (note,) = rig.backend.add_tenant(tenant)
    assert note == "egress_max is not set: this host does not load the eBPF programs that see packets"
    assert any("limits of tenant 'beta' are not all in force" in text for text in rig.backend.missing)
    assert rig.tree.tenant(tenant.id).limits().pids_max == 9, "the others are"
    with pytest.raises(CannotEnforce, match="eBPF programs that see packets") as refused:
        check_settable(Limits(egress_max=1 << 20), rig.backend.controllers)
    assert refused.value.field == "limits.egress_bytes_per_second"
    rig.begin(Limits())
    done = rig.backend.squeeze(rig.ref, Squeeze(egress_bytes_per_second=5000))
    assert done.applied is None
    assert done.notes == ("egress is not slowed: this host does not load the eBPF programs that see packets",)
