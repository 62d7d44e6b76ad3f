"""The disk below the state directory: full, read-only, or holding something that is no ledger of ours."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from agentd.api.client import ApiError
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.badhosts_support import BadHost, agentd, bad_host, one_line
from tests.support.daemons import missing_for_daemon

pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(missing_for_daemon()), reason=missing_for_daemon() or "-")]

SMALL = "mount -t tmpfs -o size=4M none @STATE"
FILL = "cat /dev/zero > {0}/fill 2>/dev/null || test -s {0}/fill"
WITHIN = 30.0  # seconds for the ledger to notice; it tries at least every 5


async def until(daemon: BadHost, *, failing: bool) -> None:
    """The ledger's health is told on the stream of the host's state: wait for it there."""
    stream = daemon.client.operator.Watch(pb.WatchRequest(interval_seconds=0.1), timeout=WITHIN)
    async for update in stream:
        if update.HasField("snapshot") and failing == (
            "the history is not written" in "\n".join(update.snapshot.host.missing)
        ):
            stream.cancel()
            return
    raise AssertionError("the stream ended")


async def works_without_history(daemon: BadHost) -> str:
    """A call runs to its end and has an outcome; its id."""
    session = await daemon.open_session("acme")
    code, out, err = await daemon.call(session, "/bin/echo", "here", options=("--memory", "16M:64M"))
    assert (code, out) == (0, "here\n"), err
    (call,) = [c for c in (await daemon.snapshot(with_ended=True)).calls if c.session_id == session.id]
    assert call.outcome.reason == "exited"
    return call.id


async def recorded(daemon: BadHost, call_id: str) -> pb.Call:
    async with asyncio.timeout(WITHIN):
        while True:
            page = await daemon.client.call(daemon.client.operator.History, pb.HistoryRequest(call_id=call_id))
            if page.calls and page.calls[0].HasField("outcome"):
                return page.calls[0]
            await asyncio.sleep(0.05)  # the ledger is written in batches and tells nobody when


async def test_full_at_the_start(short_tmp: Path) -> None:
    async with bad_host(short_tmp, f"{SMALL}\n{FILL.format('@STATE')}") as daemon:
        missing = await daemon.missing()
        assert "the history is not written" in missing
        assert "free space on the file system of" in missing
        assert "calls go on" in daemon.log
        assert "Traceback" not in daemon.log
        call_id = await works_without_history(daemon)
        with pytest.raises(ApiError) as caught:
            await daemon.client.call(daemon.client.operator.History, pb.HistoryRequest())
        assert "cannot be read before it can be written" in str(caught.value)
        assert "corral ps --all" in caught.value.remedy

        assert (await daemon.inside("rm", f"{daemon.state_dir}/fill")).code == 0
        await until(daemon, failing=False)
        assert (await recorded(daemon, call_id)).outcome.reason == "exited"
        assert "the ledger can be written again" in daemon.log


async def test_full_while_running(short_tmp: Path) -> None:
    async with bad_host(short_tmp, SMALL) as daemon:
        before = await works_without_history(daemon)
        await recorded(daemon, before)
        assert "history" not in await daemon.missing()

        filled = await daemon.inside("/bin/sh", "-c", FILL.format(daemon.state_dir))
        assert filled.code == 0, filled.err
        meanwhile = [await works_without_history(daemon) for _ in range(3)]
        await until(daemon, failing=True)
        assert "records wait in memory" in await daemon.missing()
        assert (await recorded(daemon, before)).id == before  # what is written can be read

        await daemon.inside("rm", f"{daemon.state_dir}/fill")
        await until(daemon, failing=False)
        for call_id in meanwhile:
            assert (await recorded(daemon, call_id)).outcome.reason == "exited"


async def test_read_only_state_directory(short_tmp: Path) -> None:
    async with bad_host(short_tmp, f"{SMALL}\nmount -o remount,ro @STATE") as daemon:
        await daemon.says_everywhere("Read-only file system", "writable for this user")
        call_id = await works_without_history(daemon)
        assert (await daemon.inside("mount", "-o", "remount,rw", str(daemon.state_dir))).code == 0
        await until(daemon, failing=False)
        assert (await recorded(daemon, call_id)).outcome.reason == "exited"


async def refused(directory: Path, ledger: bytes | None = None, *, newer: bool = False) -> str:
    """What a start says that finds ``ledger``; the file is left as it was, and nothing else is made."""
    daemon = BadHost(directory, tenants={"acme": {}})
    try:
        file = daemon.state_dir / "ledger.db"
        if newer:
            await daemon.start()
            await daemon.stop()
            await daemon.purge()
            with sqlite3.connect(file) as connection:
                connection.execute("PRAGMA user_version = 99")
            connection.close()
        elif ledger is None:
            file.mkdir()
        else:
            file.write_bytes(ledger)
        before = file.read_bytes() if file.is_file() else None
        text = one_line(await agentd(daemon.config_file))
        assert str(file) in text
        assert (file.read_bytes() if file.is_file() else None) == before
        assert not daemon.leftovers()
        return text
    finally:
        await daemon.close()


async def test_a_ledger_of_a_newer_version(short_tmp: Path) -> None:
    text = await refused(short_tmp, newer=True)
    assert "version 99" in text
    assert "install the newer Corral again" in text


async def test_what_is_no_ledger(short_tmp: Path) -> None:
    assert "not a database" in await refused(short_tmp, b"a letter to somebody, kept in a strange place\n" * 40)


async def test_another_programs_database(short_tmp: Path) -> None:
    other = short_tmp / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    assert "a database of another program" in await refused(short_tmp, other.read_bytes())


async def test_a_directory_in_the_ledgers_place(short_tmp: Path) -> None:
    assert "not a plain file" in await refused(short_tmp)
