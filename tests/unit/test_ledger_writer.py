"""The writer: what a commit promises, what comes twice, what happens when the disk says no."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agentd.ledger import (
    Health,
    Ledger,
    LedgerFull,
    LedgerMisuse,
    LedgerReader,
    LedgerSettings,
    LedgerUnwritten,
    schema,
)
from agentd.ledger.backlog import SAMPLE_BATCH, SAMPLE_LINGER, Backlog, CallBegun, Marker
from controller.model import CallId, CallState, Reason, Usage
from tests.unit.ledger_objects import T0, call, counting, decision, ended, nothing, session, tenant, usage

_PATIENCE = 60.0  # seconds until a test that hangs says where; nothing here takes long
_QUICK = LedgerSettings(retry_seconds=0.001, retry_max_seconds=0.01)


class Watch:
    """An ``on_trouble`` whose reports can be awaited."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[Health] = asyncio.Queue()

    def __call__(self, health: Health) -> None:
        self.reports.put_nowait(health)

    async def until(self, wanted: Callable[[Health], bool]) -> Health:
        async with asyncio.timeout(_PATIENCE):
            while True:
                health = await self.reports.get()
                if wanted(health):
                    return health


class Ceiling:
    """A disk that is full: every connection of the writer may use so many pages and no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spare_pages: int | None = None
        self._open = schema.open_for_writing
        monkeypatch.setattr(schema, "open_for_writing", self)

    def __call__(self, path: Path) -> sqlite3.Connection:
        connection = self._open(path)
        if self.spare_pages is not None:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages + self.spare_pages}")
        return connection


def fail_next_writes(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Callable[[], None]:
    """The ledger cannot be opened any more, until the returned function is called."""
    real, broken = schema.open_for_writing, threading.Event()
    broken.set()

    def opening(path: Path) -> sqlite3.Connection:
        if broken.is_set():
            raise error
        return real(path)

    monkeypatch.setattr(schema, "open_for_writing", opening)
    return broken.clear


async def test_committed_is_called_on_the_loop_once_the_record_can_be_read(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db")
    with LedgerReader(ledger.path) as reader:
        finished = ended(call())
        done: asyncio.Future[tuple[int, bool]] = asyncio.get_running_loop().create_future()

        def committed() -> None:
            done.set_result((threading.get_ident(), reader.call(finished.id) is not None))

        ledger.call_ended(finished, committed)
        assert not done.done()
        async with asyncio.timeout(_PATIENCE):
            assert await done == (threading.get_ident(), True)
    await ledger.close()


async def test_a_callback_that_raises_does_not_stop_the_others(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db")
    complaints: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["exception"]))
    seen, done = counting()
    first, second = ended(call()), ended(call())

    def broken() -> None:
        raise RuntimeError("the leaf is gone already")

    ledger.call_ended(first, broken)
    ledger.call_ended(second, done(second.id))
    await ledger.flush()
    await asyncio.sleep(0)
    assert seen == [second.id]
    assert [str(err) for err in complaints] == ["the leaf is gone already"]
    await ledger.close()


async def test_records_that_come_again_make_no_second_row(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    running = call()
    taken = decision(running)
    finished = ended(running, decisions=(taken,))
    assert finished.outcome is not None
    poorer = replace(finished, outcome=replace(finished.outcome, reason=Reason.UNKNOWN, wait_status=None))
    for _ in range(2):  # the second time as after a restart
        ledger = Ledger.open(path)
        for again in range(2):
            ledger.call_begun(running)
            ledger.decision(taken)
            ledger.call_ended(finished if again == 0 else poorer, nothing)
            ledger.call_begun(running)
            ledger.sample(T0, running.id, CallState.RUNNING, Usage())
            await ledger.flush()
        await ledger.close()
    with LedgerReader(path) as reader:
        assert [record.call for record in reader.calls()] == [finished]
        assert reader.decisions() == [taken]
        assert len(reader.samples()) == 1
        assert reader.open_calls() == []


async def test_news_of_an_open_call_replaces_what_was_known(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db")
    queued = replace(call(), state=CallState.QUEUED)
    ledger.call_begun(queued)
    await ledger.flush()
    running = replace(queued, state=CallState.RUNNING, brakes=1, grant=replace(queued.grant, priority=3), usage=usage())
    ledger.call_begun(running)
    await ledger.flush()
    with LedgerReader(ledger.path) as reader:
        assert [record.call for record in reader.calls()] == [running]
    await ledger.close()


async def test_the_end_of_an_unknown_call_makes_its_row(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db")
    finished = ended(call())
    ledger.call_ended(finished, nothing)
    await ledger.close()
    with LedgerReader(ledger.path) as reader:
        assert [record.call for record in reader.calls()] == [finished]


async def test_an_end_without_outcome_is_refused_at_once(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db")
    with pytest.raises(LedgerMisuse, match="without an outcome"):
        ledger.call_ended(call(), nothing)
    await ledger.close()


async def test_close_writes_what_waits_and_then_refuses(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db", settings=LedgerSettings(flush_seconds=3_600.0))
    running = call()
    ledger.call_begun(running)
    ledger.sample(T0, running.id, CallState.RUNNING, Usage())
    await ledger.close()
    await ledger.close()
    with pytest.raises(LedgerMisuse, match="is closed"):
        ledger.call_begun(running)
    with pytest.raises(LedgerMisuse, match="is closed"):
        await ledger.flush()
    with LedgerReader(ledger.path) as reader:
        assert len(reader.calls()) == len(reader.samples()) == 1
    assert not any(thread.name == "ledger" for thread in threading.enumerate())


async def test_a_full_batch_does_not_wait_for_its_time(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db", settings=LedgerSettings(flush_seconds=3_600.0, batch=10))
    done = asyncio.Event()
    for _ in range(9):
        ledger.call_begun(call())
    ledger.call_ended(ended(call()), done.set)
    async with asyncio.timeout(_PATIENCE):
        await done.wait()
    await ledger.close()


async def test_a_record_that_cannot_be_written_does_not_hold_up_the_others(tmp_path: Path) -> None:
    watch = Watch()
    ledger = Ledger.open(tmp_path / "ledger.db", on_trouble=watch)
    good, bad = [ended(call()) for _ in range(3)], ended(call())
    seen, done = counting()
    ledger.call_ended(good[0], done(good[0].id))
    ledger.call_ended(replace(bad, brakes=1 << 70), done(bad.id))
    ledger.call_ended(good[1], done(good[1].id))
    ledger.session_opened(replace(session(tenant()), opened_at=float("nan")))
    ledger.call_ended(good[2], done(good[2].id))
    health = await watch.until(lambda health: health.rejected == 2)
    assert health.ok
    assert "was not written" in health.error
    await ledger.flush()
    assert seen == [one.id for one in good]
    assert ledger.health.ok
    await ledger.close()
    with LedgerReader(ledger.path) as reader:
        assert {record.call.id for record in reader.calls()} == {one.id for one in good}
        assert reader.sessions() == []


async def test_counters_beyond_sqlite_are_capped(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db")
    ledger.call_begun(replace(call(), usage=Usage(cpu_usec=1 << 64, net_rx_bytes=(1 << 64) - 1)))
    await ledger.close()
    with LedgerReader(ledger.path) as reader:
        (record,) = reader.calls()
    assert record.call.usage == Usage(cpu_usec=(1 << 63) - 1, net_rx_bytes=(1 << 63) - 1)


async def test_a_full_disk_keeps_the_records_until_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ceiling, watch = Ceiling(monkeypatch), Watch()
    ceiling.spare_pages = 20
    ledger = Ledger.open(tmp_path / "ledger.db", settings=_QUICK, on_trouble=watch)
    seen, done = counting()
    calls = [ended(call(command="make " + "x" * 2_000)) for _ in range(100)]
    for one in calls:
        ledger.call_ended(one, done(one.id))
    full = await watch.until(lambda health: not health.ok)
    assert full.failing_since is not None
    assert "SQLITE_FULL" in full.error
    assert "free space" in full.error
    assert full.backlog > 0
    with pytest.raises(LedgerUnwritten, match="records and 0 samples are not on disk"):
        await ledger.flush(timeout=0.05)
    in_time = set(seen)
    with LedgerReader(ledger.path) as reader:
        assert in_time <= {record.call.id for record in reader.calls()}
    assert len(in_time) < len(calls)

    ceiling.spare_pages = None
    well = await watch.until(lambda health: health.ok)
    assert (well.failing_since, well.error) == (None, "")
    await ledger.flush()
    assert sorted(seen) == sorted(one.id for one in calls)  # each exactly once
    assert ledger.health.backlog == 0
    await ledger.close()
    with LedgerReader(ledger.path) as reader:
        assert {record.call.id for record in reader.calls()} == set(seen)


async def test_close_on_a_full_disk_says_what_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ceiling = Ceiling(monkeypatch)
    ceiling.spare_pages = 0
    ledger = Ledger.open(tmp_path / "ledger.db", settings=_QUICK)
    for _ in range(50):
        ledger.call_begun(call(command="x" * 4_000))
    with pytest.raises(LedgerUnwritten, match=r"50 records and 0 samples are not on disk.*SQLITE_FULL"):
        await ledger.close(timeout=0.05)
    await ledger.close()
    assert not any(thread.name == "ledger" for thread in threading.enumerate())


async def test_a_disk_that_is_full_at_the_start_can_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, watch = tmp_path / "ledger.db", Watch()
    mend = fail_next_writes(monkeypatch, LedgerFull(path, "no space", "free some"))
    with pytest.raises(LedgerFull):
        Ledger.open(path)
    ledger = Ledger.open(path, settings=_QUICK, on_trouble=watch, wait_for_disk=True)
    assert not ledger.health.ok
    running = call()
    ledger.call_begun(running)
    assert not (await watch.until(lambda health: not health.ok)).ok
    mend()
    await watch.until(lambda health: health.ok)
    await ledger.close()
    with LedgerReader(path) as reader:
        assert reader.call(running.id) is not None


async def test_any_other_mistake_does_not_end_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, watch = tmp_path / "ledger.db", Watch()
    ceiling = Ceiling(monkeypatch)
    ceiling.spare_pages = 0  # so that the connection is opened again, and meets the next one
    ledger = Ledger.open(path, settings=_QUICK, on_trouble=watch)
    mend = fail_next_writes(monkeypatch, RuntimeError("out of luck"))
    for _ in range(50):
        ledger.call_begun(call(command="x" * 4_000))
    health = await watch.until(lambda health: "out of luck" in health.error)
    assert not health.ok
    ceiling.spare_pages = None
    mend()
    await watch.until(lambda health: health.ok)
    await ledger.close()
    with LedgerReader(path) as reader:
        assert len(reader.calls()) == 50


async def test_a_damaged_ledger_that_is_moved_away_is_made_anew(tmp_path: Path) -> None:
    path, watch = tmp_path / "ledger.db", Watch()
    ledger = Ledger.open(path, settings=_QUICK, on_trouble=watch)
    await ledger.flush()
    for file in tmp_path.iterdir():  # under the writer's feet: its log and its pages are gone
        file.write_bytes(b"\xa5" * max(8_192, file.stat().st_size))
    running = call()
    ledger.call_begun(running)
    await watch.until(lambda health: not health.ok)
    aside = tmp_path / "aside"
    aside.mkdir()
    for file in [entry for entry in tmp_path.iterdir() if entry.is_file()]:
        file.rename(aside / file.name)
    await watch.until(lambda health: health.ok)
    await ledger.close()
    with LedgerReader(path) as reader:
        assert reader.call(running.id) is not None


async def test_samples_give_way_and_records_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    mend = fail_next_writes(monkeypatch, LedgerFull(path, "no space", "free some"))
    bounds = LedgerSettings(retry_seconds=0.001, retry_max_seconds=0.01, max_records=20, max_samples=10)
    watch = Watch()
    ledger = Ledger.open(path, settings=bounds, on_trouble=watch, wait_for_disk=True)
    calls = [call() for _ in range(6_000)]
    for one in calls:
        ledger.call_begun(one)
    for second in range(50):
        ledger.sample(T0 + second, calls[0].id, CallState.RUNNING, Usage())
    health = ledger.health
    assert health.full
    assert health.backlog == 6_000
    assert health.backlog_samples + health.dropped_samples == 50
    assert health.backlog_samples <= 2 * 10  # those that wait, and those in hand
    mend()
    await watch.until(lambda health: health.ok)
    await ledger.close()
    assert not ledger.health.full
    with LedgerReader(path) as reader:
        assert len(reader.calls(limit=10_000)) == 6_000
        assert len(reader.samples()) == 50 - ledger.health.dropped_samples


def backlog(**changes: float) -> Backlog:
    values = {"flush_seconds": 3_600.0, "batch": 100, "max_records": 5, "max_samples": 3} | changes
    return Backlog(
        flush_seconds=values["flush_seconds"],
        batch=int(values["batch"]),
        max_records=int(values["max_records"]),
        max_samples=int(values["max_samples"]),
    )


def test_the_thread_is_woken_when_a_batch_is_due_and_not_before() -> None:
    asked: list[float] = []
    queue = Backlog(flush_seconds=0.05, batch=100, max_records=5, max_samples=3, wake_in=asked.append)
    for _ in range(3):
        queue.put(Marker(lambda: None))
    assert asked == [0.05]
    queue.put_sample((0.0, CallId("c"), CallState.RUNNING, Usage()))
    queue.put_sample((1.0, CallId("c"), CallState.RUNNING, Usage()))
    assert asked == [0.05, SAMPLE_LINGER]
    queue.take(10)
    queue.put(Marker(lambda: None))
    assert asked == [0.05, SAMPLE_LINGER, 0.05]


async def test_commits_are_told_one_in_a_turn_of_the_loop(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db")
    turn, told = 0, list[int]()
    for _ in range(4):
        ledger.call_ended(ended(call()), lambda: told.append(turn))
    reached = asyncio.ensure_future(ledger.flush())
    while not reached.done():
        await asyncio.sleep(0)
        turn += 1
    assert len(told) == 4
    assert len(set(told)) == 4  # a call that begins waits for one removal of a leaf, not for all of a batch
    await ledger.close()


def test_the_oldest_samples_are_dropped_first() -> None:
    queue = backlog()
    for second in range(10):
        queue.put_sample((float(second), CallId("c"), CallState.RUNNING, Usage()))
    assert queue.dropped_samples == 7
    assert [sample[0] for sample in queue.take(10).samples] == [7.0, 8.0, 9.0]


def test_while_records_fill_the_memory_samples_have_none() -> None:
    queue = backlog()
    queue.put_sample((0.0, CallId("c"), CallState.RUNNING, Usage()))
    for _ in range(7):
        queue.put(CallBegun(call()))
    assert queue.full
    for second in range(1, 4):
        queue.put_sample((float(second), CallId("c"), CallState.RUNNING, Usage()))
    batch = queue.take(100)
    assert (len(batch.records), [sample[0] for sample in batch.samples]) == (7, [3.0])
    assert queue.dropped_samples == 3
    assert not queue.full


def test_what_makes_a_batch_due() -> None:
    past = 0.0  # of the monotonic clock: wait only looks
    queue = backlog(batch=2, max_samples=10_000)
    assert not queue.wait(past)
    queue.put(CallBegun(call()))
    assert not queue.wait(past)
    queue.put(CallBegun(call()))
    assert queue.wait(past)
    queue.take(1)
    assert not queue.wait(past)
    queue.put_urgent(Marker(nothing))
    assert queue.wait(past)
    queue.take(2)
    assert not queue.wait(past)
    for _ in range(SAMPLE_BATCH):
        queue.put_sample((T0, CallId("c"), CallState.RUNNING, Usage()))
    assert queue.wait(past)
    queue.take(0)
    assert not queue.wait(past)
    queue.close()
    assert queue.wait(past)


_WRITER = """
import asyncio, sys
from pathlib import Path
from agentd.ledger import Ledger
from tests.unit.ledger_objects import call, decision, ended

async def main():
    ledger = Ledger.open(Path(sys.argv[1]))
    while True:
        for _ in range(20):
            running = call()
            ledger.call_begun(running)
            ledger.call_ended(
                ended(running, decisions=(decision(running),)), lambda id=running.id: print(id, flush=True)
            )
        await asyncio.sleep(0)

asyncio.run(main())
"""


def test_nothing_that_was_committed_is_lost_when_the_daemon_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as writer:
        try:
            assert writer.stdout is not None
            told = [writer.stdout.readline().strip() for _ in range(500)]
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().splitlines(keepends=True)
        finally:
            writer.kill()
    told += [line.strip() for line in rest if line.endswith("\n")]
    assert writer.returncode == -signal.SIGKILL
    assert all(told)
    schema.open_for_writing(path).close()  # the next start
    with LedgerReader(path) as reader:
        records = {record.call.id: record.call for record in reader.calls(limit=1_000_000)}
        assert len(told) >= 500
        assert set(told) <= set(records)
        assert all(one.outcome is not None and len(one.outcome.decisions) == 1 for one in records.values())
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
