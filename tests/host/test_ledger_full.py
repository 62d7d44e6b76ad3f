"""A disk that is really full, and one that really takes no writes: a tmpfs of 2 MiB of our own."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentd.ledger import Health, Ledger, LedgerFull, LedgerIo, LedgerReader, LedgerReadOnly, LedgerSettings
from tests.unit.ledger_objects import call, counting, ended

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root"),
]

_PATIENCE = 60.0  # seconds
_QUICK = LedgerSettings(retry_seconds=0.01, retry_max_seconds=0.05)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "disk"
    where.mkdir()
    mount("-t", "tmpfs", "-o", "size=2m,mode=0700", f"corral-test-{os.getpid()}", str(where))
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


@pytest.fixture
def reports() -> asyncio.Queue[Health]:
    return asyncio.Queue()


async def until(reports: asyncio.Queue[Health], wanted: Callable[[Health], bool]) -> Health:
    async with asyncio.timeout(_PATIENCE):
        while not wanted(health := await reports.get()):
            pass
        return health


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4_096)
        except OSError:
            return ballast


async def test_no_record_is_lost_when_the_disk_is_full(disk: Path, reports: asyncio.Queue[Health]) -> None:
    ledger = Ledger.open(disk / "ledger.db", settings=_QUICK, on_trouble=reports.put_nowait)
    seen, done = counting()
    first = ended(call())
    ledger.call_ended(first, done(first.id))
    await ledger.flush()
    ballast = fill(disk)
    calls = [ended(call(command="make " + "x" * 2_000)) for _ in range(300)]
    for one in calls:
        ledger.call_ended(one, done(one.id))
    health = await until(reports, lambda health: not health.ok)
    assert str(disk) in health.error
    assert "space" in health.error
    with LedgerReader(ledger.path) as reader:  # what was there can still be read
        assert {record.call.id for record in reader.calls()} >= set(seen)
    assert len(seen) < 1 + len(calls)

    ballast.unlink()
    await until(reports, lambda health: health.ok)
    await ledger.flush()
    await ledger.close()
    assert sorted(seen) == sorted([first.id, *(one.id for one in calls)])
    with LedgerReader(ledger.path) as reader:
        assert {record.call.id for record in reader.calls()} == set(seen)


async def test_a_disk_that_is_full_at_the_start(disk: Path, reports: asyncio.Queue[Health]) -> None:
    ballast = fill(disk)
    path = disk / "ledger.db"
    with pytest.raises((LedgerFull, LedgerIo)) as caught:
        Ledger.open(path)
    assert "space" in caught.value.remedy
    ledger = Ledger.open(path, settings=_QUICK, on_trouble=reports.put_nowait, wait_for_disk=True)
    running = call()
    ledger.call_begun(running)
    await until(reports, lambda health: not health.ok)
    ballast.unlink()
    await until(reports, lambda health: health.ok)
    await ledger.close()
    with LedgerReader(path) as reader:
        assert reader.call(running.id) is not None


async def test_a_disk_that_becomes_read_only(disk: Path, reports: asyncio.Queue[Health]) -> None:
    path = disk / "ledger.db"
    ledger = Ledger.open(path, settings=_QUICK)
    ledger.call_begun(call())
    await ledger.close()
    mount("-o", "remount,ro", str(disk))
    with pytest.raises(LedgerReadOnly, match="writable"):
        Ledger.open(path)
    with pytest.raises(LedgerReadOnly, match="writable"):
        Ledger.open(disk / "another.db")
    ledger = Ledger.open(path, settings=_QUICK, on_trouble=reports.put_nowait, wait_for_disk=True)
    running = call()
    ledger.call_begun(running)
    await until(reports, lambda health: not health.ok)
    mount("-o", "remount,rw", str(disk))
    await until(reports, lambda health: health.ok)
    await ledger.close()
    with LedgerReader(path) as reader:
        assert len(reader.calls()) == 2
