"""What the kernel tells of groups, and PSI triggers. Events are awaited, never slept for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from controller.cgroup import (
    Group,
    GroupEvent,
    GroupEventKind,
    KnobMissing,
    NoSuchGroup,
    PressureTrigger,
    ValueRefused,
    Watcher,
)
from controller.model import Limits
from tests.host.cgroup_tools import Session, child, go, line, temporary_tree

pytestmark = pytest.mark.host

SLEEP = "import time\nprint('up', flush=True)\ntime.sleep(600)"
Kind = GroupEventKind


@pytest.fixture
def session() -> Iterator[Session]:
    with temporary_tree() as tree:
        yield Session(tree)


@pytest.fixture
async def watcher() -> AsyncIterator[Watcher]:
    made = Watcher()
    try:
        yield made
    finally:
        made.close()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Events:
    """A callback that keeps what it was told; ``expect`` waits for the next of a kind, whatever comes before it."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[GroupEvent] = asyncio.Queue()
        self.seen: list[GroupEventKind] = []

    def __call__(self, event: GroupEvent) -> None:
        self.seen.append(event.kind)
        self.queue.put_nowait(event)

    async def expect(self, kind: GroupEventKind) -> GroupEvent:
        async with asyncio.timeout(20):
            while True:
                event = await self.queue.get()
                if event.kind is kind:
                    return event


async def test_populated_then_empty(session: Session, watcher: Watcher) -> None:
    call, events = session.call(), Events()
    call.create()
    watcher.add(call, events)
    with child(SLEEP) as process:
        call.move(process.pid)
        event = await events.expect(Kind.POPULATED)
        assert event.group is call
        process.kill()
        await events.expect(Kind.EMPTY)
    watcher.remove(call)
    call.delete()
    assert len(watcher) == 0


async def test_a_call_that_is_over_at_once_is_told_as_empty(session: Session, watcher: Watcher) -> None:
    call, events = session.call(), Events()
    call.create()
    watcher.add(call, events)
    with child("") as process:
        call.move(process.pid)
        process.kill()
        process.wait()  # the loop has not run yet: nobody has seen the group populated
        assert not call.populated()
        await events.expect(Kind.EMPTY)
    assert Kind.POPULATED not in events.seen


async def test_frozen_and_thawed(session: Session, watcher: Watcher) -> None:
    call, events = session.call(), Events()
    call.create()
    watcher.add(call, events)
    with child(SLEEP) as process:
        call.move(process.pid)
        await events.expect(Kind.POPULATED)
        call.freeze()
        await events.expect(Kind.FROZEN)
        call.thaw()
        await events.expect(Kind.THAWED)
        assert Kind.EMPTY not in events.seen


async def test_oom_is_told_before_the_end(session: Session, watcher: Watcher) -> None:
    call, agent = session.call(), session.agent()
    call.create(Limits(memory_max=32 << 20))
    agent.create()
    events, others = Events(), Events()
    watcher.add(call, events)
    watcher.add(agent, others)
    with child("data = bytearray(b'x') * (256 << 20)") as eater, child(SLEEP) as bystander:
        call.move(eater.pid)
        agent.move(bystander.pid)
        go(eater)
        assert (await events.expect(Kind.OOM)).group is call
        assert (await events.expect(Kind.OOM_KILL)).count == 1
        await events.expect(Kind.EMPTY)
        await others.expect(Kind.POPULATED)
    assert not {Kind.OOM, Kind.OOM_KILL} & set(others.seen)


async def test_a_refused_fork_is_told(session: Session, watcher: Watcher) -> None:
    call, events = session.call(), Events()
    call.create(Limits(pids_max=1))
    watcher.add(call, events)
    code = "import os\ntry:\n os.fork()\nexcept BlockingIOError:\n print('refused', flush=True)\n"
    with child(code) as process:
        call.move(process.pid)
        go(process)
        assert line(process) == "refused"
        watcher.check(call)  # v1 counts in silence; where the kernel notifies, it is told once all the same
        assert (await events.expect(Kind.PIDS_MAX)).count == 1
        await events.expect(Kind.EMPTY)
    assert events.seen.count(Kind.PIDS_MAX) == 1


async def test_a_refused_fork_is_told_at_the_latest_with_the_end(session: Session, watcher: Watcher) -> None:
    call, events = session.call(), Events()
    call.create(Limits(pids_max=1))
    watcher.add(call, events)
    with child("import os\ntry:\n os.fork()\nexcept BlockingIOError:\n pass\n") as process:
        call.move(process.pid)
        go(process)
        await events.expect(Kind.PIDS_MAX)
        await events.expect(Kind.EMPTY)


async def test_memory_high_is_told_where_there_is_one(session: Session, watcher: Watcher) -> None:
    call, events = session.call(), Events()
    if call.create(Limits(memory_high=16 << 20)):
        pytest.skip("cgroup v1 has no memory.high")
    watcher.add(call, events)
    with child("data = bytearray(b'x') * (32 << 20)") as process:
        call.move(process.pid)
        go(process)
        await events.expect(Kind.MEMORY_HIGH)


async def test_removal_of_a_watched_group(session: Session, watcher: Watcher) -> None:
    call, other = session.call(), session.call()
    call.create()
    other.create()
    events, others = Events(), Events()
    watcher.add(call, events)
    watcher.add(other, others)
    call.delete()  # against the advice to end the watch first
    if call.memory_is_v1():  # there the kernel tells of it
        await events.expect(Kind.GONE)
        assert call not in watcher
    with child(SLEEP) as process:  # and the other watch goes on
        other.move(process.pid)
        await others.expect(Kind.POPULATED)
    watcher.remove(call)
    watcher.remove(call)


async def test_added_twice_replaces_the_callback(session: Session, watcher: Watcher) -> None:
    call, first, second = session.call(), Events(), Events()
    call.create()
    watcher.add(call, first)
    watcher.add(call, second)
    with child(SLEEP) as process:
        call.move(process.pid)
        await second.expect(Kind.POPULATED)
    assert first.seen == []
    assert len(watcher) == 1


async def test_what_is_not_there_is_refused_and_nothing_is_kept(session: Session, watcher: Watcher) -> None:
    before = open_files()
    with pytest.raises(NoSuchGroup):
        watcher.add(session.call(), Events())
    assert len(watcher) == 0
    assert open_files() == before


async def test_a_callback_that_raises_costs_the_others_nothing(session: Session, watcher: Watcher) -> None:
    failures: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: failures.append(str(context["message"])))

    def broken(event: GroupEvent) -> None:
        raise RuntimeError(event.kind)

    one, two, events = session.call(), session.call(), Events()
    one.create()
    two.create()
    watcher.add(one, broken)
    watcher.add(two, events)
    with child(SLEEP) as first, child(SLEEP) as second:
        one.move(first.pid)
        two.move(second.pid)
        await events.expect(Kind.POPULATED)
    loop.set_exception_handler(None)
    assert len(failures) >= 1
    assert "populated" in failures[0]


async def test_a_callback_may_end_watches(session: Session, watcher: Watcher) -> None:
    call, done = session.call(), asyncio.Event()
    call.create()

    def reap(event: GroupEvent) -> None:
        if event.kind is Kind.EMPTY:
            watcher.remove(event.group)
            event.group.delete()
            done.set()

    watcher.add(call, reap)
    with child(SLEEP) as process:
        call.move(process.pid)
        go(process)
        assert line(process) == "up"
        call.kill()
        async with asyncio.timeout(20):
            await done.wait()
    assert not call.exists()


async def test_many_groups(session: Session, watcher: Watcher) -> None:
    before = open_files()
    groups = [session.call() for _ in range(300)]
    events = Events()
    for group in groups:
        group.create()
        watcher.add(group, events)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(child(SLEEP)) for _ in range(10)]
        moved = groups[::30]
        for group, process in zip(moved, processes, strict=True):
            group.move(process.pid)
        populated = {(await events.expect(Kind.POPULATED)).group for _ in moved}
        assert populated == set(moved)
    emptied: set[Group] = set()
    while emptied != set(moved):
        emptied.add((await events.expect(Kind.EMPTY)).group)
    for group in groups:
        watcher.remove(group)
        group.delete()
    assert len(watcher) == 0
    assert open_files() == before


async def fired(path: str, start: Callable[[], None], **options: int) -> bool:
    event = asyncio.Event()
    trigger = PressureTrigger(path, event.set, stall_usec=options["stall"], window_usec=options["window"])
    try:
        start()
        async with asyncio.timeout(30):
            await event.wait()
    finally:
        trigger.close()
        trigger.close()
    assert trigger.closed
    return True


@pytest.mark.parametrize("whose", ["group", "host"])
async def test_a_pressure_trigger_fires(session: Session, whose: str) -> None:
    call = session.call()
    call.create()
    path = f"{call.path}/cpu.pressure" if whose == "group" else "/proc/pressure/cpu"
    if not Path(path).exists():
        pytest.skip("PSI is off on this host: boot with psi=1")
    code = "import os\nos.sched_setaffinity(0, {0})\nwhile True: pass"
    with child(code) as one, child(code) as two:  # two on one CPU: one always waits

        def start() -> None:
            for process in (one, two):
                call.move(process.pid)
                go(process)

        assert await fired(path, start, stall=50_000, window=2_000_000)


async def test_a_trigger_of_a_removed_group_ends(session: Session) -> None:
    call, gone = session.call(), asyncio.Event()
    call.create()
    path = f"{call.path}/memory.pressure"
    if not Path(path).exists():
        pytest.skip("PSI is off on this host: boot with psi=1")
    trigger = PressureTrigger(path, lambda: None, stall_usec=100_000, window_usec=2_000_000, on_gone=gone.set)
    call.delete()
    try:
        async with asyncio.timeout(20):
            await gone.wait()
        assert trigger.closed
    finally:
        trigger.close()


async def test_triggers_that_cannot_be(session: Session) -> None:
    call = session.call()
    call.create()
    for stall, window in ((0, 1_000_000), (2_000_000, 1_000_000), (1, 499_999), (1, 10_000_001)):
        with pytest.raises(ValueRefused, match="out of range"):
            PressureTrigger("/proc/pressure/cpu", lambda: None, stall_usec=stall, window_usec=window)
    with pytest.raises(KnobMissing):
        PressureTrigger(f"{call.path}/nothing.pressure", lambda: None, stall_usec=1, window_usec=2_000_000)
