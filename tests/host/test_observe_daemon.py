"""A real daemon that only observes, and one without eBPF: calls through corral-exec, what they used, how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import end, events_of, go, line, live_call, operate, soon, until_gone
from tests.support.daemons import LAUNCHER, DaemonFactory, DaemonUnderTest, Session

pytestmark = pytest.mark.host

MIB = 1 << 20
PYTHON = (sys.executable, "-S", "-c")
BUSY = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"
NO_LIMITS = {"daemon": {"mode": "observe"}}
NO_EBPF = {"bpf": {"enabled": False}}


async def the_only_end(daemon: DaemonUnderTest, session: Session) -> pb.Call:
    (call,) = (await daemon.history(session, ended=1)).calls
    return call


@contextlib.contextmanager
def launched(session: Session, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """corral-exec, that nobody waits for before the block is over."""
    process = subprocess.Popen([LAUNCHER, "--", *command], env={**os.environ, **session.environment})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def ended_at_last(pid: int) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("settings", [NO_LIMITS, NO_EBPF], ids=["observing", "netlink"])
async def test_a_call_s_use_is_counted_to_its_end(
    daemons: DaemonFactory, settings: dict[str, dict[str, str | bool]], tmp_path: Path
) -> None:
    """0.3 s of CPU in two children, 8 MiB written, by processes that all have ended when the daemon looks last."""
    daemon = await daemons.start(settings=settings)
    session = await daemon.open_session("acme")
    child = BUSY.format(0.15) + f"f = open(sys.argv[1], 'wb', 0)\nfor _ in range(4): f.write(b'x' * {MIB})\n"
    code = (
        "import subprocess, sys\n"
        f"for i in range(2): subprocess.run([sys.executable, '-S', '-c', 'import sys\\n' + {child!r},"
        f" {str(tmp_path / 'file')!r}], check=True)\n"
    )
    # Nobody waits for the launcher before its call has been settled: what it took over can be read for so long.
    # (Else the daemon, when it only observes, may come too late to see how a short process ended.)
    with launched(session, *PYTHON, code) as process:
        call = await the_only_end(daemon, session)
    assert process.returncode == 0
    assert call.outcome.reason == "exited"
    usage = call.outcome.usage
    assert 290_000 <= usage.cpu_usec <= 1_500_000
    assert 8 * MIB <= usage.written_bytes <= 9 * MIB
    assert usage.faults > 500
    if settings == NO_EBPF:
        assert (usage.forks, usage.execs) == (2, 3)
        assert usage.switches > 0
    else:
        assert not usage.HasField("forks")
        assert call.cgroup == ""


@pytest.mark.parametrize("settings", [NO_LIMITS, NO_EBPF], ids=["observing", "netlink"])
async def test_many_calls_of_a_millisecond_end_and_nothing_stays(
    daemons: DaemonFactory, settings: dict[str, dict[str, str | bool]]
) -> None:
    daemon = await daemons.start(settings=settings)
    session = await daemon.open_session("acme")
    for _ in range(20):
        assert await daemon.call(session, "/bin/true") == (0, "", "")
    history = await daemon.history(session, ended=20)
    assert {call.outcome.reason for call in history.calls} == {"exited"}
    assert not (await daemon.snapshot()).calls
    if settings == NO_EBPF:
        # a call may be over before the daemon has looked: how many are depends on what else the machine does
        assert all(call.outcome.usage.execs <= 1 for call in history.calls)
        assert await daemon.call(session, "/bin/sleep", "1") == (0, "", "")  # this one is looked at meanwhile
        (last,) = [c for c in (await daemon.history(session, ended=21)).calls if c.command == "/bin/sleep 1"]
        assert last.outcome.usage.execs == 1


async def test_an_operator_kills_a_daemonised_call_and_its_agent_is_spared(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(settings=NO_LIMITS)
    session = await daemon.open_session("acme")
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "  os.setsid()\n"
        "  if os.fork(): os._exit(0)\n"
        "  print(os.getpid(), flush=True)\n"
        "  time.sleep(600)\n"
        "time.sleep(600)\n"
    )
    with contextlib.ExitStack() as stack:
        other = await daemon.launch(session, *PYTHON, "print('up', flush=True); import time; time.sleep(600)")
        assert await line(other) == "up"
        process = await daemon.launch(session, *PYTHON, code)
        background = int(await line(process))
        stack.enter_context(ended_at_last(background))
        async with events_of(daemon, session) as events:
            call = next(c for c in (await daemon.snapshot()).calls if "setsid" in c.command)
            assert await operate(daemon, "kill", call.id) == [call.id]
            outcome = await events.outcome(call.id)
        assert outcome.reason == "operator_killed"
        await until_gone(background)
        status, _, err = await end(process)
        assert status in (-signal.SIGKILL, 128 + signal.SIGKILL)
        assert "operator" in err
        assert other.returncode is None
        other.kill()
        await end(other)


async def test_what_an_observer_cannot_do_is_said(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(settings=NO_LIMITS)
    session = await daemon.open_session("acme")
    status, _, err = await daemon.call(session, "/bin/true", options=("--memory", "16M:32M"))
    assert status != 0
    assert "only observes" in err
    process = await daemon.launch(
        session, *PYTHON, "import sys; print('up', flush=True); sys.stdin.readline()", stdin=subprocess.PIPE
    )
    assert await line(process) == "up"
    call = await live_call(daemon, session)
    assert call.cgroup == ""
    with pytest.raises(Exception, match="only observes"):
        await operate(daemon, "freeze", call.id)
    host = (await daemon.snapshot()).host
    assert host.mode == "observe"
    assert any("observe" in text for text in host.missing)
    go(process)
    assert (await end(process))[0] == 0


async def test_what_outlives_a_call_is_the_session_s(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(settings=NO_LIMITS)
    session = await daemon.open_session("acme")
    code = (
        "import os, time\n"
        "if os.fork():\n"
        "  time.sleep(0.3)\n"  # seen beside its child, as a tool that leaves a server behind is
        "  os._exit(0)\n"
        "os.close(1); os.close(2)\n"
        "time.sleep(600)\n"
    )
    status, _, _ = await daemon.call(session, *PYTHON, code)
    assert status == 0
    call = await the_only_end(daemon, session)
    assert call.outcome.leftovers == 1
    await daemon.client.call(daemon.client.agent.CloseSession, pb.CloseSessionRequest(session_id=session.id, kill=True))
    await soon(
        "what outlived the call has ended",
        lambda: not any(_has_environment(pid, session.id) for pid in Path("/proc").glob("[0-9]*")),
    )


def _has_environment(process: Path, session_id: str) -> bool:
    try:
        alive = ") Z " not in (process / "stat").read_text(errors="replace")
        return alive and f"CORRAL_SESSION={session_id}".encode() in (process / "environ").read_bytes()
    except OSError:
        return False
