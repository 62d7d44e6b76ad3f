"""The user side of the CPU scheduler: what calls get, when it is in force, and what is said when it is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from bpf.errors import AttachFailed, InvalidPolicy, LoadFailed, Unavailable
from bpf.sched import Share
from controller.model import (
    CallState,
    CallView,
    Grant,
    Intent,
    Limits,
    Squeeze,
    TenantView,
    Tripwire,
    Usage,
    new_call_id,
    new_session_id,
    new_tenant_id,
)
from controller.scheduling import ASIDE, ATTEMPTS, FIRST_PAUSE, Opener, Scheduling, share_of, weight_of

TENANT, SESSION = new_tenant_id(), new_session_id()
GROUP = 7


class Recorded:
    """A scheduler that keeps what it was told."""

    def __init__(self, shares: dict[int, Share]) -> None:
        self.shares = dict(shares)
        self.why = ""
        self.closed = False
        self.sweeps = 0

    def put(self, cgroup_id: int, share: Share) -> None:
        self.shares[cgroup_id] = share

    def forget(self, cgroup_id: int) -> None:
        del self.shares[cgroup_id]

    def sweep(self) -> None:
        self.sweeps += 1

    def ended(self) -> str:
        return self.why

    def close(self) -> None:
        self.closed = True


class Bench:
    """One Scheduling over recorded schedulers, with a clock of its own."""

    def __init__(self, opener: Opener | None = None) -> None:
        self.made: list[Recorded] = []
        self.at = 1000.0
        self.scheduling = Scheduling(opener or self.open, clock=lambda: self.at)
        self.scheduling.tenant(tenant(), GROUP)

    def open(self, shares: dict[int, Share]) -> Recorded:
        self.made.append(Recorded(shares))
        return self.made[-1]

    async def tick(self, after: float = 0.0) -> None:
        """And what it began is done."""
        self.at += after
        self.scheduling.tick()
        while tasks := [t for t in asyncio.all_tasks() if t.get_name() == "cpu scheduler"]:
            await asyncio.gather(*tasks)

    @property
    def problem(self) -> str:
        return " ".join(self.scheduling.problems)


def view(
    intent: Intent | None = None, limits: Limits | None = None, priority: int = 50, squeeze: Squeeze | None = None
) -> CallView:
    return CallView(
        id=new_call_id(),
        session_id=SESSION,
        tenant_id=TENANT,
        parent_id=None,
        command="make",
        intent=intent or Intent(),
        grant=Grant(limits=limits or Limits(), tripwire=Tripwire(), priority=priority, enforced=True),
        state=CallState.RUNNING,
        begun_at=0.0,
        held_since=None,
        held_seconds=0.0,
        brakes=0,
        usage=Usage(),
        cgroup="",
        squeeze=squeeze,
    )


def tenant(limits: Limits | None = None) -> TenantView:
    return TenantView(id=TENANT, name="acme", limits=limits or Limits(), priority=50)


@pytest.mark.parametrize(
    ("limits", "priority", "weight"),
    [
        (Limits(), 50, 100),
        (Limits(), 75, 200),
        (Limits(), 0, 25),
        (Limits(), 100, 400),
        (Limits(cpu_weight=10), 100, 10),
        (Limits(cpu_weight=10_000), 0, 10_000),
        (Limits(cpu_weight=-1), 75, 200),
    ],
)
def test_weight_is_the_calls_own_or_its_prioritys(limits: Limits, priority: int, weight: int) -> None:
    assert weight_of(limits, priority) == weight


@pytest.mark.parametrize(
    ("call", "prompt"),
    [
        (view(), False),
        (view(Intent(duration=0.5)), True),
        (view(Intent(duration=2.0)), True),
        (view(Intent(duration=2.1)), False),
        (view(Intent(duration=0.0)), False),
        (view(priority=80), True),
        (view(priority=79), False),
        (view(Intent(duration=0.5), squeeze=Squeeze(cpu_weight=25, reason="memory is short")), False),
        (view(Intent(duration=0.5), squeeze=Squeeze(io_weight=25, reason="memory is short")), True),
    ],
)
def test_latency_class(call: CallView, prompt: bool) -> None:
    assert share_of(call, GROUP, 100).latency is prompt


def test_a_squeeze_lowers_the_weight() -> None:
    slowed = view(priority=100, squeeze=Squeeze(cpu_weight=25, reason="memory is short"))
    assert share_of(slowed, GROUP, 300) == Share(group=GROUP, weight=25, group_weight=300)


@pytest.mark.parametrize("share", [Share(group=1, weight=0), Share(group=0), Share(group=1, group_weight=10_001)])
def test_a_share_out_of_range_reaches_no_map(share: Share) -> None:
    with pytest.raises(InvalidPolicy):
        share.pack()


async def test_calls_are_told_before_and_after_it_is_in_force() -> None:
    bench = Bench()
    bench.scheduling.tenant(tenant(Limits(cpu_weight=300)), GROUP)
    early, late = view(priority=75), view(Intent(duration=1.0))
    bench.scheduling.call(11, early)
    assert not bench.made
    await bench.tick()
    (made,) = bench.made
    assert made.shares == {11: Share(group=GROUP, weight=200, group_weight=300)}
    bench.scheduling.call(12, late)
    assert made.shares[12].latency
    bench.scheduling.call(12, replace(late, grant=replace(late.grant, priority=0)))
    assert made.shares[12].weight == 25
    bench.scheduling.tenant(tenant(Limits(cpu_weight=50)), GROUP)
    assert {at: share.group_weight for at, share in made.shares.items()} == {11: 50, 12: 50}
    bench.scheduling.forget(11)
    assert set(made.shares) == {12}
    bench.scheduling.forget(11)  # once more is fine
    await bench.tick()
    assert (len(bench.made), made.sweeps, bench.problem) == (1, 1, "")


async def test_what_happens_while_it_is_loaded_is_made_up_for() -> None:
    bench = Bench()
    changed = view()

    def slow(shares: dict[int, Share]) -> Recorded:
        loop.call_soon_threadsafe(meanwhile)
        done = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
        done.result()  # the loop has run `meanwhile` by now
        return bench.open(shares)

    def meanwhile() -> None:
        bench.scheduling.forget(1)
        bench.scheduling.call(2, replace(changed, grant=replace(changed.grant, priority=100)))
        bench.scheduling.call(3, view())

    loop = asyncio.get_running_loop()
    bench.scheduling = Scheduling(slow)
    bench.scheduling.tenant(tenant(), GROUP)
    bench.scheduling.call(1, view())
    bench.scheduling.call(2, changed)
    await bench.tick()
    (made,) = bench.made
    assert {at: share.weight for at, share in made.shares.items()} == {2: 400, 3: 100}


async def test_ejected_it_is_tried_again_a_few_times_and_then_given_up() -> None:
    bench = Bench()
    await bench.tick()
    for attempt in range(ATTEMPTS):
        made = bench.made[-1]
        made.why = "runnable task stall"
        await bench.tick(after=1.0)
        assert made.closed
        assert "runnable task stall" in bench.problem
        assert f"({attempt + 1} of {ATTEMPTS})" in bench.problem
        pause = FIRST_PAUSE * 4**attempt
        await bench.tick(after=pause - 0.5)
        assert len(bench.made) == attempt + 1
        await bench.tick(after=1.0)
        assert len(bench.made) == attempt + 2
        assert bench.scheduling.in_force
        assert bench.problem == ""
    bench.made[-1].why = "runnable task stall"
    await bench.tick()
    assert "not tried again" in bench.problem
    await bench.tick(after=1e6)
    assert len(bench.made) == ATTEMPTS + 1


async def test_an_hour_in_force_forgives_what_was_before() -> None:
    bench = Bench()
    await bench.tick()
    bench.made[-1].why = "stall"
    await bench.tick()
    await bench.tick(after=FIRST_PAUSE)
    await bench.tick(after=4000.0)
    bench.made[-1].why = "stall"
    await bench.tick()
    assert f"(1 of {ATTEMPTS})" in bench.problem


async def test_it_stands_aside_while_somebody_has_a_cpu_quota() -> None:
    bench = Bench()
    await bench.tick()
    bench.scheduling.call(5, view(limits=Limits(cpu_max=0.5)))
    await bench.tick()
    assert bench.made[0].closed
    assert "has a CPU quota" in bench.problem
    bench.scheduling.forget(5)
    await bench.tick(after=ASIDE - 1.0)
    assert len(bench.made) == 1
    await bench.tick(after=2.0)
    assert bench.scheduling.in_force
    assert bench.problem == ""


@pytest.mark.parametrize("limits", [Limits(), Limits(cpu_max=-1), Limits(cpu_weight=50)])
async def test_what_is_no_quota_keeps_nobody_away(limits: Limits) -> None:
    bench = Bench()
    bench.scheduling.tenant(tenant(limits), GROUP)
    bench.scheduling.quota("session", "session s", limits)
    await bench.tick()
    assert bench.scheduling.in_force


async def test_a_tenants_quota_keeps_it_from_being_loaded() -> None:
    bench = Bench()
    bench.scheduling.tenant(tenant(Limits(cpu_max=2.0)), GROUP)
    await bench.tick()
    assert not bench.made
    assert "tenant 'acme' has a CPU quota" in bench.problem


async def test_a_kernel_without_is_told_once_and_not_asked_again() -> None:
    asked = []

    def none(_: dict[int, Share]) -> Recorded:
        asked.append(1)
        raise Unavailable("this kernel has no sched_ext", remedy="boot another")

    bench = Bench(none)
    await bench.tick()
    await bench.tick(after=1e6)
    assert len(asked) == 1
    assert "this kernel has no sched_ext; boot another" in bench.problem


async def test_a_program_that_is_refused_is_not_asked_again_but_a_place_that_is_taken_is() -> None:
    errors = [AttachFailed("another scheduler is in force"), LoadFailed("the verifier refuses\nand has a long log")]

    def refused(_: dict[int, Share]) -> Recorded:
        raise errors.pop(0)

    bench = Bench(refused)
    await bench.tick()
    assert "another scheduler is in force" in bench.problem
    await bench.tick(after=FIRST_PAUSE)
    assert "cannot be loaded: the verifier refuses" in bench.problem
    assert "long log" not in bench.problem
    await bench.tick(after=1e6)
    assert not errors


async def test_switched_off_nothing_is_kept() -> None:
    scheduling = Scheduling()
    scheduling.call(1, view(limits=Limits(cpu_max=1.0)))
    scheduling.tick()
    assert not scheduling.in_force
    assert scheduling.problems == ()


async def test_stopped_it_is_closed_and_stays_so() -> None:
    bench = Bench()
    await bench.tick()
    bench.scheduling.stop()
    assert bench.made[0].closed
    await bench.tick(after=1e6)
    assert len(bench.made) == 1
