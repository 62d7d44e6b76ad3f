"""corral-client on this kernel: real launchers, a broker of the test's own, and a real daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import corral_client as corral
from agentd.broker import Granted, Link, Peer
from agentd.wire import Begin
from controller.model import Intent, Refused
from corral_client import aio
from corral_client.api import Api
from tests.host.launcher_bench import LAUNCHER, Bench, build
from tests.support.daemons import DaemonFactory

pytestmark = pytest.mark.host
PIPE = subprocess.PIPE

# Touches more and more memory, past any threshold of these tests.
HUNGRY = "blocks = []\nfor _ in range(600): blocks.append(bytearray(b'x' * (1 << 20)))"


@pytest.fixture(scope="module", autouse=True)
def _launcher() -> None:
    build()


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    for name in [name for name in os.environ if name.startswith("CORRAL_")]:
        monkeypatch.delenv(name)
    made = Bench(tmp_path)
    await made.serve()
    monkeypatch.setenv("CORRAL_SOCKET", str(made.path))
    monkeypatch.setenv("CORRAL_EXEC", str(LAUNCHER))
    yield made
    await made.close()


async def blocking(work: Callable[[], Any]) -> Any:
    """In a thread: the broker that it talks to runs in this loop."""
    async with asyncio.timeout(30):
        return await asyncio.to_thread(work)


async def test_run_is_subprocess_run_with_an_outcome(bench: Bench) -> None:
    bench.handler.outcome, bench.handler.suggestions = ("braked", "It was held."), ("use less",)
    script = "cat; echo err >&2; exit 3"
    done = await blocking(
        lambda: corral.run(["sh", "-c", script], input="ä\n", capture_output=True, text=True, tool="sh", memory=1 << 30)
    )
    begin = bench.handler.begins[0][1]
    assert begin.argv == ("sh", "-c", script)
    assert begin.intent == Intent(tool="sh", memory_peak=1 << 30)
    assert (done.returncode, done.stdout, done.args) == (3, "ä\n", ["sh", "-c", script])
    assert done.stderr == "err\ncorral: It was held.\n"
    call = await bench.handler.next("begin")
    assert done.outcome == corral.Outcome(
        state="ended",
        call_id=str(call[1]),
        reason="braked",
        message="It was held.",
        suggestions=("use less",),
        wait_status=3 << 8,
    )


async def test_a_call_that_was_let_alone(bench: Bench) -> None:
    done = await blocking(lambda: corral.run(["true"], check=True))
    assert (done.outcome.reason, done.outcome.acted, done.outcome.controlled) == ("exited", False, True)


async def test_check_raises_with_the_paragraph(bench: Bench) -> None:
    bench.handler.outcome = ("oom_call", "It was killed at 1 GiB.")
    with pytest.raises(corral.CallFailed, match=r"SIGKILL.*It was killed at 1 GiB") as caught:
        await blocking(lambda: corral.run(["sh", "-c", "echo out; kill -9 $$"], check=True, stdout=PIPE, stderr=PIPE))
    assert isinstance(caught.value, subprocess.CalledProcessError)
    assert (caught.value.returncode, caught.value.output) == (-9, b"out\n")
    assert caught.value.outcome.reason == "oom_call"


async def test_a_timeout_ends_the_tool(bench: Bench) -> None:
    with pytest.raises(corral.CallTimeout) as caught:
        await blocking(lambda: corral.run(["sh", "-c", "echo early; exec sleep 60"], timeout=0.3, stdout=PIPE))
    assert isinstance(caught.value, subprocess.TimeoutExpired)
    assert caught.value.outcome.wait_status == signal.SIGTERM
    assert (await bench.handler.next("ended"))[2:] == (signal.SIGTERM, True)


async def test_a_tool_that_ignores_sigterm_goes_with_its_launcher(bench: Bench) -> None:
    stubborn = "trap '' TERM; exec sleep 60"
    with pytest.raises(corral.CallTimeout) as caught:
        await blocking(lambda: corral.run(["sh", "-c", stubborn], timeout=0.3, stdin=subprocess.DEVNULL))
    assert caught.value.outcome == corral.Outcome()
    # a broker of a test ends nobody; the daemon would end the call's leaf now
    pid = bench.handler.begins[0][0].pid
    assert await bench.handler.next("hung_up")
    os.kill(pid, signal.SIGKILL)


async def test_refusals_and_wrong_options_raise(bench: Bench) -> None:
    async def refuse(peer: Peer, begin: Begin, link: Link) -> Granted | None:
        raise Refused("the budget is used up", code="budget_exhausted", remedy="wait until 14:00")

    bench.handler.on_begin = refuse
    with pytest.raises(corral.Refused, match="wait until 14:00") as caught:
        await blocking(lambda: corral.run(["true"], stderr=subprocess.DEVNULL))
    assert caught.value.code == "budget_exhausted"
    with pytest.raises(corral.LauncherFailed, match="--memory: 'lots' does not begin with a number"):
        await blocking(lambda: corral.run(["true"], memory="lots", stderr=subprocess.DEVNULL))
    with pytest.raises(TypeError, match="bash"):
        corral.run("rm -rf x")


async def test_without_a_daemon(bench: Bench, tmp_path: Path) -> None:
    await bench.stop_serving()
    proof = tmp_path / "ran"
    with pytest.raises(corral.DaemonAway, match='fail="open"'):
        await blocking(lambda: corral.run(["touch", str(proof)], stderr=subprocess.DEVNULL, fail="closed"))
    assert not proof.exists()
    done = await blocking(lambda: corral.run(["sh", "-c", "exit 4"], stderr=PIPE, fail="open", memory="1M:4M"))
    assert (done.returncode, done.outcome.state) == (4, "uncontrolled")
    assert b"UNCONTROLLED" in done.stderr


async def test_without_a_launcher(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CORRAL_EXEC", str(tmp_path / "none"))
    with pytest.raises(corral.LauncherMissing, match="unset it"):
        corral.run(["true"])
    done = corral.run(["sh", "-c", "echo $CORRAL_CALL"], fail="open", stdout=PIPE)
    assert (done.returncode, done.stdout, done.outcome.state) == (0, b"\n", "uncontrolled")
    assert not bench.handler.begins
    monkeypatch.delenv("CORRAL_EXEC")
    monkeypatch.setenv("PATH", f"{LAUNCHER.parent}:{os.environ['PATH']}")
    assert corral.find_launcher() == str(LAUNCHER)


async def test_a_program_that_cannot_be_run(bench: Bench) -> None:
    done = await blocking(lambda: corral.run(["corral-no-such-program"], stderr=PIPE))
    assert (done.returncode, done.outcome.state) == (127, "ended")
    assert b"cannot run 'corral-no-such-program'" in done.stderr


async def test_call_is_a_process_in_a_block(bench: Bench) -> None:
    def work() -> tuple[list[bytes], corral.Outcome]:
        with corral.call(["sh", "-c", "echo a; read x; echo $x"], stdin=PIPE, stdout=PIPE, call_class="test") as call:
            assert call.process.stdin is not None
            assert call.process.stdout is not None
            lines = [call.process.stdout.readline()]
            with pytest.raises(corral.CorralError, match="still runs"):
                _ = call.outcome
            call.process.stdin.write(b"b\n")
            call.process.stdin.close()
            lines += call.process.stdout.readlines()
        return lines, call.outcome

    lines, outcome = await blocking(work)
    assert lines == [b"a\n", b"b\n"]
    assert outcome.reason == "exited"
    assert bench.handler.begins[0][1].intent.call_class == "test"


async def test_a_block_that_fails_ends_its_call(bench: Bench) -> None:
    def work() -> None:
        with corral.call(["sh", "-c", "echo up; exec sleep 60"], stdout=PIPE) as call:
            assert call.process.stdout is not None
            call.process.stdout.readline()
            raise KeyError("in the block")

    with pytest.raises(KeyError):
        await blocking(work)
    ended = await bench.handler.next("ended")
    assert ended[2] == signal.SIGTERM


async def test_no_descriptors_are_left(bench: Bench) -> None:
    def work() -> None:
        before = len([*Path("/proc/self/fd").iterdir()])
        for _ in range(3):
            corral.run(["true"])
            with pytest.raises(FileNotFoundError):
                corral.run(["true"], cwd="/no/such/directory")
        assert len([*Path("/proc/self/fd").iterdir()]) == before

    await blocking(work)


async def test_async_run_and_call(bench: Bench) -> None:
    done = await aio.run(["sh", "-c", "cat; exit 2"], input=b"in", capture_output=True, tool="sh")
    assert (done.returncode, done.stdout, done.outcome.reason) == (2, b"in", "exited")
    with pytest.raises(corral.CallFailed):
        await aio.run(["false"], check=True)
    with pytest.raises(corral.CallTimeout) as caught:
        await aio.run(["sleep", "60"], timeout=0.3)
    assert caught.value.outcome.wait_status == signal.SIGTERM
    async with aio.call(["sh", "-c", "echo line"], stdout=PIPE) as call:
        assert call.process.stdout is not None
        lines = [line async for line in call.process.stdout]
    assert (lines, call.outcome.wait_status) == ([b"line\n"], 0)


async def test_a_cancelled_task_ends_its_tool(bench: Bench) -> None:
    task = asyncio.create_task(aio.run(["sleep", "60"]))
    await bench.handler.next("begin")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # SIGTERM may arrive before the exec, when the launcher has not been told of the grant yet
    async with asyncio.timeout(20):
        assert (await bench.handler.events.get())[0] in {"ended", "hung_up"}


async def test_under_a_real_daemon(daemons: DaemonFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_EXEC", str(LAUNCHER))
    daemon = await daemons.start(tenants={"acme": {"memory_max": "512M"}})
    async with await aio.open_session("acme", "client", socket=daemon.broker_socket) as session:
        fine = await aio.run(["sh", "-c", "echo $CORRAL_CALL"], session=session, tool="sh", stdout=PIPE)
        assert fine.outcome == corral.Outcome(
            state="ended", call_id=fine.stdout.decode().strip(), reason="exited", wait_status=0
        )
        hungry = await aio.run(
            [sys.executable, "-c", HUNGRY], session=session, tool="crunch", memory="16M:48M", capture_output=True
        )
        assert hungry.returncode != 0
        assert hungry.outcome.reason in {"brake_killed", "oom_call"}
        assert "'crunch' call" in hungry.outcome.message
        assert hungry.outcome.suggestions
        assert all(text in hungry.outcome.message for text in hungry.outcome.suggestions)

        def ask() -> None:
            with Api(str(daemon.operator_socket), session.token) as api:
                again = api.outcome(hungry.outcome.call_id)
                assert (again.reason, again.summary) == (hungry.outcome.reason, hungry.outcome.message)
                assert again.suggestions == hungry.outcome.suggestions
                assert {budget.scope for budget in api.budgets()} <= {"tenant", "session"}
                with pytest.raises(corral.Refused) as caught:
                    api.outcome("c-0000000000000000")
                assert caught.value.code == "not_found"

        await asyncio.to_thread(ask)
        background = await asyncio.create_subprocess_exec(
            *(LAUNCHER, "sh", "-c", "echo up; exec sleep 60"),
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, **session.environment},
        )
        assert background.stdout is not None
        await background.stdout.readline()
        with pytest.raises(corral.Refused, match="still runs"):
            await asyncio.to_thread(session.close)
    _, err = await background.communicate()
    assert background.returncode == -signal.SIGKILL, "the block's end closes the session and ends its calls"
    assert b"corral: The call was ended" in err
    with pytest.raises(corral.NotPermitted, match="not one of an open session"):
        await asyncio.to_thread(corral.Session(session.id, session.token, session.socket).close)
