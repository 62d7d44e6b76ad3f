"""New leaves are watched a turn of the loop late, and lose nothing by it. Real cgroups; events are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from controller.backend import CallRef
from controller.backends.leaf import Leaf
from controller.backends.watching import Watching
from controller.cgroup import GroupEvent, GroupEventKind, KernelRefused, Watcher, inotify
from controller.model import CallId, Limits, new_call_id
from tests.host.cgroup_tools import Session, child, go, temporary_tree

pytestmark = pytest.mark.host

Kind = GroupEventKind


class Told:
    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[CallId, GroupEventKind]] = asyncio.Queue()

    def __call__(self, ref: CallRef, event: GroupEvent) -> None:
        self.queue.put_nowait((ref.call_id, event.kind))

    async def expect(self, call_id: CallId, kind: GroupEventKind) -> None:
        async with asyncio.timeout(20):
            while await self.queue.get() != (call_id, kind):
                pass


@pytest.fixture
def session() -> Iterator[Session]:
    with temporary_tree() as tree:
        yield Session(tree)


@pytest.fixture
async def told() -> Told:
    return Told()


@pytest.fixture
async def watching(told: Told) -> AsyncIterator[Watching]:
    made = Watching(told)
    try:
        yield made
    finally:
        made.close()


def leaf(session: Session, limits: Limits | None = None) -> Leaf:
    ref = CallRef(session.tenant_id, session.session_id, new_call_id())
    group = session.tree.call(*ref)
    group.create(limits)
    return Leaf(ref=ref, group=group, cgroup_id=group.id)


async def test_a_call_that_is_over_before_it_is_watched_is_told_as_empty(
    session: Session, watching: Watching, told: Told
) -> None:
    call = leaf(session)
    watching.add_new(call)
    with child("") as process:
        call.group.move(process.pid)
        process.kill()
        process.wait()  # the loop has had no turn: nobody watches
    await told.expect(call.ref.call_id, Kind.EMPTY)


async def test_one_that_runs_on_is_told_as_any_other(session: Session, watching: Watching, told: Told) -> None:
    first, second = leaf(session), leaf(session, Limits(memory_max=32 << 20))
    watching.add_new(first)
    watching.add_new(second)
    with child("data = bytearray(b'x') * (256 << 20)") as eater, child("sys.stdin.readline()") as idle:
        second.group.move(eater.pid)
        first.group.move(idle.pid)
        await told.expect(second.ref.call_id, Kind.POPULATED)
        go(eater)
        # the second group's counters were not read when it was made: that they began at nought is known from the first
        await told.expect(second.ref.call_id, Kind.OOM_KILL)
        await told.expect(second.ref.call_id, Kind.EMPTY)


async def test_what_was_killed_before_it_is_watched_is_found_by_the_next_sample(
    session: Session, watching: Watching, told: Told
) -> None:
    watching.add_new(leaf(session))  # whose counters are the measure of later ones
    await asyncio.sleep(0)
    call = leaf(session, Limits(memory_max=32 << 20))
    watching.add_new(call)
    with child("data = bytearray(b'x') * (256 << 20)") as eater:
        call.group.move(eater.pid)
        go(eater)
        eater.wait()
    await told.expect(call.ref.call_id, Kind.OOM_KILL)


async def test_nothing_is_told_of_one_that_was_taken_back(session: Session, watching: Watching, told: Told) -> None:
    call, other = leaf(session), leaf(session)
    watching.add_new(call)
    watching.add_new(other)
    watching.remove(call)
    with child("") as process, child("") as second:
        call.group.move(process.pid)
        other.group.move(second.pid)
    await told.expect(other.ref.call_id, Kind.EMPTY)
    assert told.queue.empty()


async def test_a_leaf_that_somebody_else_removed_is_told_as_gone(
    session: Session, watching: Watching, told: Told
) -> None:
    call = leaf(session)
    watching.add_new(call)
    call.group.delete()
    await told.expect(call.ref.call_id, Kind.GONE)


async def test_without_watches_it_is_tried_again(
    session: Session, watching: Watching, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = leaf(session)
    with monkeypatch.context() as patched:

        def refuse(fd: int, path: str) -> int:
            raise KernelRefused(path, "no space left", remedy="raise fs.inotify.max_user_watches")

        patched.setattr(inotify, "add", refuse)
        watching.add_new(call)
        await asyncio.sleep(0)
        watching.round()
    with child("") as process:
        call.group.move(process.pid)
        watching.round()
        await told.expect(call.ref.call_id, Kind.POPULATED)
    await told.expect(call.ref.call_id, Kind.EMPTY)


async def test_which_counters_there_are_is_learned_from_groups_that_have_counted_nothing(session: Session) -> None:
    watcher = Watcher()
    try:
        events: asyncio.Queue[GroupEvent] = asyncio.Queue()
        used = leaf(session, Limits(memory_max=32 << 20))
        with child("data = bytearray(b'x') * (256 << 20)") as eater:
            used.group.move(eater.pid)
            go(eater)
            eater.wait()
        watcher.add(
            used.group, events.put_nowait, made_just_now=True
        )  # a lie: its counters must not become the measure
        fresh = leaf(session)
        watcher.add(fresh.group, events.put_nowait, made_just_now=True)
        watcher.check(fresh.group)
        assert events.empty()
    finally:
        watcher.close()
