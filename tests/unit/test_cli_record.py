"""``record`` against a daemon that answers on a real socket, and the file that it leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.proto.recording import Recording
from tests.unit.cli_support import FakeDaemon, corral, serve


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    fake, server = await serve(tmp_path / "api.sock")
    yield fake
    await server.stop(None)


async def test_a_recording_holds_what_was_streamed(daemon: FakeDaemon, tmp_path: Path) -> None:
    path = tmp_path / "out.corral"
    done = await corral("record", str(path), "--for", "1ms", "--interval", "0.1", api=daemon.target)
    assert done.code == 0, done.err
    assert f"corral top --replay {path}" in done.out
    with Recording(path) as found:
        assert found.complete
        assert found.about["source"] == daemon.target
        assert len(found.read(found.frames[0]).snapshot.calls) == 4
    again = await corral("record", str(path), "--for", "1s", api=daemon.target)
    assert (again.code, "exists already" in again.err) == (1, True)


async def test_no_daemon_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "out.corral"
    done = await corral("record", str(path), api=f"unix:{tmp_path}/none.sock")
    assert done.code == 3
    assert not path.exists()


@pytest.mark.parametrize("text", ["0s", "soon"])
async def test_a_time_that_is_none_is_wrong_usage(text: str, tmp_path: Path) -> None:
    done = await corral("record", str(tmp_path / "out"), "--for", text, api=f"unix:{tmp_path}/none.sock")
    assert (done.code, "--for" in done.err) == (2, True)
