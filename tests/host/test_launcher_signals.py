"""corral-exec and signals: forwarded ones, those of a terminal, job control under an interactive shell, the brake."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.host.launcher_bench import LAUNCHER, Bench, Terminal, build, child_of, handled, in_state, stat_fields

pytestmark = pytest.mark.host

REPORTER = """
import signal, sys
def report(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM: sys.exit(7)
for name in "TERM INT HUP QUIT USR1 USR2 WINCH CONT TSTP ALRM".split():
    signal.signal(getattr(signal, "SIG" + name), report)
print("ready", flush=True)
while True: signal.pause()
"""


@pytest.fixture(scope="module", autouse=True)
def _launcher() -> None:
    build()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.serve()
    yield made
    await made.close()


@pytest.fixture
async def terminal(bench: Bench, tmp_path: Path) -> AsyncIterator[Terminal]:
    made = Terminal(bench, tmp_path)
    try:
        await made.until(Terminal.PROMPT)
        yield made
    finally:
        await made.close()


async def test_signals_to_the_launcher_alone_reach_the_command(bench: Bench) -> None:
    process = await bench.start(sys.executable, "-c", REPORTER)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    for name in ("INT", "HUP", "QUIT", "USR1", "USR2", "WINCH", "CONT", "TSTP", "ALRM", "TERM"):
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert await process.stdout.readline() == f"SIG{name}\n".encode()
    await process.communicate(b"")
    assert process.returncode == 7, "it ended as the command did, and outlived every signal before"


async def test_a_signal_of_the_command_itself_is_not_sent_back(bench: Bench) -> None:
    # the command ignores the first and dies of a second: "kill 0" must reach it once
    script = "trap 'trap - USR1' USR1; kill -USR1 0; kill -USR2 $PPID; echo once"
    status, out, _ = await bench.run("sh", "-c", script)
    assert (status, out) == (0, "once\n")


async def test_signals_blocked_or_ignored_by_the_caller_are_no_end(bench: Bench) -> None:
    script = 'trap "" TERM; exec "$@"'
    process = await bench.start("x", str(LAUNCHER), "cat", program=("sh", "-c", script))
    await bench.handler.next("begin")
    process.terminate()
    await handled(process.pid, signal.SIGTERM)
    assert await process.communicate(b"alive") == (b"alive", b"")
    assert process.returncode == 0


async def test_a_stop_by_the_brake_is_no_stop_of_the_job(bench: Bench) -> None:
    process = await bench.start("sh", "-c", "kill -STOP $$; echo resumed")
    await bench.handler.next("begin")
    child = child_of(process.pid)
    await in_state(child, "T")
    await handled(process.pid, signal.SIGCHLD)
    fields = stat_fields(process.pid)
    assert fields is not None
    assert fields[0] != "T"
    os.kill(child, signal.SIGCONT)
    out, _ = await process.communicate(b"")
    assert (process.returncode, out) == (0, b"resumed\n")


async def test_control_c_and_control_backslash(terminal: Terminal, bench: Bench) -> None:
    for key, number in (("\x03", signal.SIGINT), ("\x1c", signal.SIGQUIT)):
        terminal.type(f"ulimit -c 0; {LAUNCHER} sh -c 'echo up; exec sleep 1000'\n")
        await terminal.until("up")
        terminal.type(key)
        await terminal.until(Terminal.PROMPT)
        assert f"status {128 + number}." in await terminal.command("echo status $?.")
        assert (await bench.handler.next("ended"))[2] == number


async def test_control_c_is_one_signal(terminal: Terminal) -> None:
    terminal.type(f"{LAUNCHER} {sys.executable} -c '{REPORTER}'\n")
    await terminal.until("ready")
    terminal.type("\x03")
    await terminal.until("SIGINT")
    launcher = child_of(terminal.shell.pid)
    await handled(launcher, signal.SIGINT)
    os.kill(launcher, signal.SIGUSR1)
    between = await terminal.until("SIGUSR1")
    assert "SIGINT" not in between
    os.kill(launcher, signal.SIGTERM)
    await terminal.until(Terminal.PROMPT)
    assert "status 7." in await terminal.command("echo status $?.")


async def test_control_z_and_fg(terminal: Terminal, bench: Bench) -> None:
    terminal.type(f"{LAUNCHER} cat\n")
    await bench.handler.next("begin")
    terminal.type("one\n")
    await terminal.until("one")
    for _ in range(2):
        terminal.type("\x1a")
        await terminal.until("Stopped")
        await terminal.until(Terminal.PROMPT)
        assert "Stopped" in await terminal.command("jobs")
        terminal.type("fg\n")
        await terminal.until("cat")
        terminal.type("two\n")
        await terminal.until("two")
    terminal.type("\x04")
    await terminal.until(Terminal.PROMPT)
    assert "status 0." in await terminal.command("echo status $?.")
    assert (await bench.handler.next("ended"))[2] == 0


async def test_background_and_kill_by_job_number(terminal: Terminal, bench: Bench) -> None:
    await terminal.command(f"{LAUNCHER} sleep 1000 &")
    await bench.handler.next("begin")
    terminal.type("kill %1; wait $!; echo status $?.\n")
    await terminal.until("status 143.")
    assert (await bench.handler.next("ended"))[2] == signal.SIGTERM


async def test_control_z_while_the_call_is_braked(terminal: Terminal, bench: Bench) -> None:
    terminal.type(f"{LAUNCHER} sh -c 'kill -STOP $$; echo resumed'\n")
    await bench.handler.next("begin")
    launcher = child_of(terminal.shell.pid)
    child = child_of(launcher)
    await in_state(child, "T")
    await handled(launcher, signal.SIGCHLD)
    terminal.type("\x1a")
    await terminal.until("Stopped")
    await terminal.until(Terminal.PROMPT)
    terminal.type("fg\n")
    await terminal.until("resumed")
    await terminal.until(Terminal.PROMPT)


async def test_the_terminal_is_the_commands(terminal: Terminal) -> None:
    output = await terminal.command(f"{LAUNCHER} sh -c 'test -t 0 && test -t 1 && test -t 2 && stty size && tty'")
    assert "/dev/pts/" in output
