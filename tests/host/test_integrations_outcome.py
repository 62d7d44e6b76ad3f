"""What corral-exec tells a program about its call: one JSON object, on a descriptor or in a file."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.broker import Granted, Link, Peer
from agentd.wire import Begin
from controller.model import Refused
from tests.host.launcher_bench import LAUNCHER, Bench, build

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", autouse=True)
def _launcher() -> None:
    build()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.serve()
    yield made
    await made.close()


async def told(
    bench: Bench, *arguments: str, env: dict[str, str] | None = None, variable: bool = False
) -> tuple[int, dict[str, object], bytes, bytes]:
    """Exit status, what was told on a pipe, and both streams."""
    reading, writing = os.pipe()
    extra = dict(env or {})
    if variable:
        extra["CORRAL_OUTCOME_FD"] = str(writing)
    else:
        arguments = ("--outcome-fd", str(writing), *arguments)
    try:
        process = await bench.start(*arguments, env=extra, pass_fds=(writing,))
    finally:
        os.close(writing)
    with open(reading, "rb") as pipe:
        async with asyncio.timeout(30):
            out, err = await process.communicate(b"")
            # it ends with the launcher: the tool does not hold it open
            text = await asyncio.to_thread(pipe.read)
    assert process.returncode is not None
    assert text.count(b"\n") <= 1
    return process.returncode, json.loads(text) if text else {}, out, err


async def test_an_ended_call_tells_its_outcome_though_it_went_well(bench: Bench) -> None:
    status, outcome, _, err = await told(bench, "true")
    call = await bench.handler.next("begin")
    assert await bench.handler.next("ended") == ("ended", call[1], 0, True), "the outcome is always waited for"
    assert (status, err) == (0, b"")
    assert outcome == {
        "state": "ended",
        "call_id": call[1],
        "status": 0,
        "reason": "exited",
        "message": "",
        "suggestions": [],
        "notes": [],
    }


@pytest.mark.parametrize("variable", [False, True])
async def test_a_call_that_was_acted_on(bench: Bench, variable: bool) -> None:
    bench.handler.outcome = ("brake_killed", 'It used "240 MiB" \\ of\n256 MiB: «no room» \x1b[2J.')
    bench.handler.suggestions = ("do it in smaller pieces", "declare more than 256 MiB")
    status, outcome, _, err = await told(bench, "sh", "-c", "exit 3", variable=variable)
    assert status == 3
    assert outcome["reason"] == "brake_killed"
    assert outcome["message"] == 'It used "240 MiB" \\ of\n256 MiB: «no room» \x1b[2J.'
    assert outcome["suggestions"] == ["do it in smaller pieces", "declare more than 256 MiB"]
    assert outcome["status"] == 3 << 8
    assert b"corral: It used" in err, "people are told as before"
    assert b"\x1b" not in err


async def test_the_longest_outcome_fits_in_a_pipe_that_nobody_reads_yet(bench: Bench) -> None:
    bench.handler.outcome = ("oom_call", "ä\x01" * 8_000)
    bench.handler.suggestions = ("\x02ö" * 200,) * 16
    _, outcome, _, _ = await told(bench, "false")
    message, suggestions = outcome["message"], outcome["suggestions"]
    assert isinstance(message, str)
    assert isinstance(suggestions, list)
    assert message.startswith("ä\x01ä")
    assert set(message) == {"ä", "\x01"}, "a cut splits no character"
    assert len(suggestions) == 8


async def test_the_tool_gets_neither_the_descriptor_nor_the_variable(bench: Bench) -> None:
    _, outcome, out, _ = await told(bench, "sh", "-c", "ls /proc/self/fd; env", variable=True)
    assert outcome["state"] == "ended"
    _, plain, _ = await bench.run("sh", "-c", "ls /proc/self/fd")
    assert b"CORRAL_OUTCOME" not in out
    assert out.decode().startswith(plain)


async def test_a_nested_call_does_not_write_for_the_outer(bench: Bench) -> None:
    _, outcome, _, err = await told(bench, str(LAUNCHER), "sh", "-c", "exit 1", variable=True)
    outer = await bench.handler.next("begin")
    assert outcome["call_id"] == outer[1]
    assert err == b""


async def test_refused(bench: Bench) -> None:
    async def refuse(peer: Peer, begin: Begin, link: Link) -> Granted | None:
        raise Refused("the budget is used up", code="budget_exhausted", remedy="wait")

    bench.handler.on_begin = refuse
    status, outcome, _, _ = await told(bench, "true")
    assert status == 125
    assert outcome == {"state": "refused", "code": "budget_exhausted", "message": "the budget is used up; wait"}


async def test_without_a_daemon(bench: Bench) -> None:
    await bench.stop_serving()
    status, outcome, _, _ = await told(bench, "true")
    assert (status, outcome["state"]) == (125, "no_daemon")
    assert str(bench.path) in str(outcome["message"])
    status, outcome, _, _ = await told(bench, "--fail", "open", "sh", "-c", "exit 7")
    assert (status, outcome) == (7, {"state": "uncontrolled", "status": 7 << 8})


async def test_a_wrong_option_is_told_too(bench: Bench) -> None:
    status, outcome, _, err = await told(bench, "--memory", "lots", "true")
    assert (status, outcome["state"]) == (125, "failed")
    assert outcome["message"] == err.decode().removesuffix("\n")


@pytest.mark.parametrize(
    ("number", "says"), [("77", "is not open"), ("1", "stream of the command's own"), ("x", "begin with a number")]
)
async def test_a_bad_descriptor_is_named(bench: Bench, number: str, says: str) -> None:
    status, _, err = await bench.run("--outcome-fd", number, "true")
    assert (status, says in err) == (125, True)
    assert not bench.handler.begins


async def test_a_reader_that_went_away_changes_nothing(bench: Bench) -> None:
    reading, writing = os.pipe()
    process = await bench.start("--outcome-fd", str(writing), "sh", "-c", "read x; exit 4", pass_fds=(writing,))
    os.close(reading)
    os.close(writing)
    await process.communicate(b"\n")
    assert process.returncode == 4


async def test_into_a_file(bench: Bench, tmp_path: Path) -> None:
    target = tmp_path / "outcome"
    assert (await bench.run("--outcome-file", str(target), "true"))[0] == 0
    assert json.loads(target.read_text())["reason"] == "exited"
    assert target.stat().st_mode & 0o777 == 0o600
    # never over what is there, and never through a link
    first = target.read_text()
    assert (await bench.run("--outcome-file", str(target), "false"))[0] == 1
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    assert (await bench.run("--outcome-file", str(link), "true"))[::2] == (0, "")
    assert target.read_text() == first
    assert not (tmp_path / "elsewhere").exists()
