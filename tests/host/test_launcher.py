"""corral-exec against a real broker: what the command, the caller and the daemon get to see."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.broker import Granted, Link, Peer
from agentd.wire import Begin
from controller.model import EgressRule, Intent, Network, OnPressure, Refused, is_id, new_session_id
from tests.host.launcher_bench import LAUNCHER, Bench, build, child_of
from tests.unit.broker_handler import Recorder, granted

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


async def test_the_command_runs_as_one_call(bench: Bench) -> None:
    status, out, err = await bench.run("--", "sh", "-c", "echo out; echo err >&2")
    assert (status, out, err) == (0, "out\n", "err\n")
    call = await bench.handler.next("begin")
    assert await bench.handler.next("ended") == ("ended", call[1], 0, False)
    assert bench.handler.begins[0][1].argv == ("sh", "-c", "echo out; echo err >&2")


@pytest.mark.parametrize("code", [1, 42, 125, 255])
async def test_exit_status_is_the_commands(bench: Bench, code: int) -> None:
    status, _, err = await bench.run("sh", "-c", f"exit {code}")
    assert (status, err) == (code, "")
    assert (await bench.handler.next("ended"))[2:] == (code << 8, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT, signal.SIGRTMIN])
async def test_death_by_a_signal_is_passed_on_as_such(bench: Bench, number: signal.Signals) -> None:
    status, _, _ = await bench.run("sh", "-c", f"ulimit -c 0; kill -{number.value} $$")
    assert status == -number
    assert (await bench.handler.next("ended"))[2:] == (number, True)


async def test_not_found_and_not_executable(bench: Bench, tmp_path: Path) -> None:
    status, _, err = await bench.run("corral-no-such-command")
    assert status == 127
    assert err.startswith("corral-exec: cannot run 'corral-no-such-command': No such file")
    plain = tmp_path / "plain"
    plain.write_text("text")
    status, _, err = await bench.run(str(plain))
    assert (status, "Permission denied" in err) == (126, True)
    assert (await bench.handler.next("ended"))[2] == 127 << 8


@pytest.mark.parametrize(("owner", "found"), [(0, True), (12345, False)])
def test_another_users_daemon_is_not_the_default(tmp_path: Path, owner: int, found: bool) -> None:
    """`su` keeps XDG_RUNTIME_DIR: root would hand its calls to whoever it was before."""
    path = tmp_path / "corral" / "broker.sock"
    path.parent.mkdir()
    path.touch()
    os.chown(path, owner, 0)
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([LAUNCHER, "true"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert (str(path) in done.stderr) is found


async def test_a_script_without_interpreter_line_runs(bench: Bench, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "got $1"\n')
    script.chmod(0o755)
    assert await bench.run(str(script), "it") == (0, "got it\n", "")


async def test_stdin_and_stdout_are_the_callers(bench: Bench) -> None:
    data = os.urandom(1 << 20).hex()
    status, out, _ = await bench.run("cat", stdin=data.encode())
    assert status == 0
    assert out == data


async def test_environment(bench: Bench) -> None:
    extra = {"CORRAL_TOOL": "pytest", "CORRAL_CALL": "c-outer", "PLAIN": "ä b"}
    _, out, _ = await bench.run("env", env=extra)
    seen = dict(line.split("=", 1) for line in out.splitlines())
    call = await bench.handler.next("begin")
    assert seen.pop("CORRAL_CALL") == call[1]
    expected = bench.environment(**extra)
    del expected["CORRAL_CALL"]
    assert seen == expected


SETTINGS = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM])
for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE): signal.signal(number, signal.SIG_IGN)
os.umask(0o027)
os.execv(sys.argv[1], sys.argv[1:])
"""
SHOW = "grep -E '^(SigBlk|SigIgn|SigCgt|Umask|NoNewPrivs|Groups|Cpus_allowed):' /proc/self/status; pwd; ulimit -a"


async def test_the_command_inherits_what_the_caller_set(bench: Bench, tmp_path: Path) -> None:
    results = []
    for through in ((), (str(LAUNCHER), "--")):
        process = await bench.start(
            *through, "/bin/sh", "-c", SHOW, program=(sys.executable, "-c", SETTINGS), cwd=tmp_path
        )
        results.append((await process.communicate(b""), process.returncode))
    assert results[0] == results[1]
    assert str(tmp_path) in results[0][0][0].decode()


async def test_descriptors_are_inherited_and_none_added(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("through descriptor\n")
    with open(tmp_path / "data") as data:
        seen = []
        for through in ((), (str(LAUNCHER),)):
            listing = await bench.start(program=(*through, "ls", "/proc/self/fd"), pass_fds=(data.fileno(),))
            reading = await bench.start(
                program=(*through, "cat", f"/dev/fd/{data.fileno()}"), pass_fds=(data.fileno(),)
            )
            seen.append([(await process.communicate(b""))[0].decode() for process in (listing, reading)])
        assert str(data.fileno()) in seen[0][0].split()
    assert seen[0] == seen[1]
    assert seen[0][1] == "through descriptor\n"


async def test_closed_standard_descriptors_stay_closed(bench: Bench) -> None:
    seen = []
    for through in ((), (str(LAUNCHER),)):
        closing = 'exec <&- 2>&-; exec "$@"'
        process = await bench.start("x", *through, "ls", "/proc/self/fd", program=("sh", "-c", closing))
        out, _ = await process.communicate(b"")
        seen.append((process.returncode, out))
    assert seen[0] == seen[1]
    assert b"2" not in seen[1][1].split(), "neither stderr nor anything in its place"


async def test_the_command_stays_in_the_callers_process_group(bench: Bench) -> None:
    process = await bench.start("cat")
    await bench.handler.next("begin")
    child = child_of(process.pid)
    assert os.getpgid(child) == os.getpgid(process.pid)
    assert os.getsid(child) == os.getsid(process.pid)
    await process.communicate(b"")


FULL = Intent(
    tool="pytest",
    call_class="test",
    memory_typical=300 << 20,
    memory_peak=1 << 30,
    cpu=1.5,
    pids=64,
    duration=30.0,
    deadline=300.0,
    priority=70,
    network=Network.EGRESS_LIST,
    egress=(EgressRule("10.0.0.0/8"), EgressRule("192.0.2.1", 443), EgressRule("2001:db8::/32", 80), EgressRule("::1")),
    gpu=True,
    on_pressure=OnPressure.FAIL_FAST,
    engine="vllm-0",
    conversation="conv 1",
)
VALUES = {
    "tool": "pytest",
    "class": "test",
    "memory": "300M:1G",
    "cpu": "1.5",
    "pids": "64",
    "duration": "30s",
    "deadline": "5m",
    "priority": "70",
    "network": "10.0.0.0/8,192.0.2.1:443,[2001:db8::/32]:80,::1",
    "on-pressure": "fail-fast",
    "engine": "vllm-0",
    "conversation": "conv 1",
}


async def test_the_intent_from_options_and_from_variables(bench: Bench) -> None:
    session = new_session_id()
    options = [word for name, value in VALUES.items() for word in (f"--{name}", value)]
    await bench.run(*options, "--gpu", f"--session={session}", "true", "--tool", env={"CORRAL_TOKEN": "abc-123"})
    variables = {f"CORRAL_{name.upper().replace('-', '_')}": value for name, value in VALUES.items()}
    variables |= {"CORRAL_GPU": "1", "CORRAL_SESSION": session, "CORRAL_TOKEN": "abc-123", "CORRAL_MEMORY": "1K:1G"}
    await bench.run("--memory", "0.29296875Gi:1024m", "true", "--tool", env=variables)
    expected = Begin(argv=("true", "--tool"), intent=FULL, token="abc-123", session=session)  # noqa: S106 - no real one
    assert [begin for _, begin in bench.handler.begins] == [expected, expected]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no command"),
        (["--frobnicate", "true"], "option '--frobnicate' is unknown"),
        (["--memory"], "lacks its value"),
        (["--memory", "lots", "true"], "--memory: 'lots'"),
        (["--memory", "1X", "true"], "not a size"),
        (["--cpu", "0x10", "true"], "hexadecimal"),
        (["--cpu", "nan", "true"], "begin with a number"),
        (["--pids", "1.5", "true"], "whole number"),
        (["--priority", "101", "true"], "from 0 to 100"),
        (["--duration", "5 parsecs", "true"], "not a time"),
        (["--network", "10.0.0.0/8:http", "true"], "port 'http'"),
        (["--network", "10.0.0.0/8,", "true"], "empty"),
        (["--on-pressure", "panic", "true"], "choose wait"),
        (["--fail", "maybe", "true"], "choose open or closed"),
        (["--token", "x", "true"], "set CORRAL_TOKEN"),
        (["--tool", "x" * 70_000, "true"], "does not fit"),
    ],
)
async def test_bad_options_are_named(bench: Bench, arguments: list[str], says: str) -> None:
    status, out, err = await bench.run(*arguments)
    assert (status, out) == (125, "")
    assert err.startswith("corral-exec: ")
    assert says in err
    assert not bench.handler.begins


async def test_a_bad_variable_is_named(bench: Bench) -> None:
    status, _, err = await bench.run("true", env={"CORRAL_CPU": "many"})
    assert (status, "CORRAL_CPU: 'many'" in err) == (125, True)


async def test_what_the_daemon_finds_out_of_range_is_said(bench: Bench) -> None:
    status, _, err = await bench.run("--cpu", "100000", "true")
    assert status == 125
    assert "refused (invalid_request): intent.cpu" in err


async def test_help_and_version(bench: Bench) -> None:
    status, out, _ = await bench.run("--help")
    assert (status, "--on-pressure" in out) == (0, True)
    status, out, _ = await bench.run("--version")
    assert (status, out.startswith("corral-exec ")) == (0, True)


async def test_refused(bench: Bench, tmp_path: Path) -> None:
    async def refuse(peer: Peer, begin: Begin, link: Link) -> Granted | None:
        raise Refused("the tenant's budget is used up\x1b[2J", code="budget_exhausted", remedy="wait until 14:00")

    bench.handler.on_begin = refuse
    status, out, err = await bench.run("touch", str(tmp_path / "ran"))
    assert (status, out) == (125, "")
    assert "refused (budget_exhausted): the tenant's budget is used up" in err
    assert "wait until 14:00" in err
    assert "\x1b" not in err, "what the daemon quotes must not drive the terminal"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("quiet", [False, True])
async def test_queued_then_granted(bench: Bench, quiet: bool) -> None:
    async def queue(peer: Peer, begin: Begin, link: Link) -> Granted | None:
        link.queued(12.0, "4 calls are ahead")
        link.queued(11.0, "3 calls are ahead")
        return granted(notes=("memory peak 512 MiB instead of 1 GiB",))

    bench.handler.on_begin = queue
    status, _, err = await bench.run(*(["--quiet"] if quiet else []), "true")
    assert status == 0
    lines = [] if quiet else [
        "corral-exec: queued (about 12 s): 4 calls are ahead; Ctrl-C cancels",
        "corral-exec: note: memory peak 512 MiB instead of 1 GiB",
    ]  # fmt: skip
    assert err.splitlines() == lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_ending_the_launcher_leaves_the_queue(bench: Bench, number: signal.Signals) -> None:
    async def forever(peer: Peer, begin: Begin, link: Link) -> Granted | None:
        link.queued(None, "full")
        await asyncio.Event().wait()
        return None

    bench.handler.on_begin = forever
    process = await bench.start("true")
    assert process.stderr is not None
    await process.stderr.readline()
    process.send_signal(number)
    await process.communicate(b"")
    assert process.returncode == -number
    await bench.handler.next("cancelled")


async def test_no_daemon(bench: Bench, tmp_path: Path) -> None:
    await bench.stop_serving()
    status, out, err = await bench.run("echo", "ran")
    assert (status, out) == (125, "")
    assert str(bench.path) in err
    assert "start agentd" in err
    for arguments, env in ((["--fail", "open"], {}), ([], {"CORRAL_FAIL": "open"})):
        status, out, err = await bench.run(*arguments, "sh", "-c", "echo ran $CORRAL_CALL; exit 3", env=env)
        assert (status, out) == (3, "ran\n")
        assert "UNCONTROLLED" in err
    status, _, err = await bench.run("--fail", "closed", "true", env={"CORRAL_FAIL": "open"})
    assert status == 125
    bench.path.write_text("not a socket")
    status, _, err = await bench.run("true")
    assert (status, "Connection refused" in err) == (125, True)
    status, _, err = await bench.run("--socket", "/" + "x" * 200, "true")
    assert (status, "name too long" in err) == (125, True)


async def test_the_paragraph_follows_the_commands_output(bench: Bench) -> None:
    bench.handler.outcome = ("brake_killed", "Killed at 104857600 bytes.\nTry --memory 200M:400M.")
    _, out, _ = await bench.run("sh", "-c", "echo first; echo second >&2; exit 1", merge=True)
    assert out == "first\nsecond\ncorral: Killed at 104857600 bytes.\nTry --memory 200M:400M.\n"
    assert (await bench.handler.next("ended"))[3] is True


async def test_a_call_that_was_acted_on_wants_its_outcome_even_if_it_went_well(bench: Bench) -> None:
    bench.handler.outcome = ("braked", "Held for 2 s.")
    process = await bench.start("cat")
    call = await bench.handler.next("begin")
    bench.handler.links[str(call[1])].acted()
    _, err = await process.communicate(b"")
    assert (process.returncode, err) == (0, b"corral: Held for 2 s.\n")


async def test_a_daemon_that_hangs_at_the_end_does_not_hang_the_tool(bench: Bench) -> None:
    bench.handler.outcome_gate = asyncio.Event()  # never set
    assert await bench.run("sh", "-c", "exit 5") == (5, "", "")
    bench.handler.outcome_gate.set()


async def test_a_killed_launcher_is_reported(bench: Bench) -> None:
    process = await bench.start("sleep", "1000")
    call = await bench.handler.next("begin")
    process.kill()
    assert await bench.handler.next("hung_up") == ("hung_up", call[1])


async def test_another_daemon_takes_the_call_up(bench: Bench) -> None:
    process = await bench.start("cat")
    call = await bench.handler.next("begin")
    assert process.stdin is not None
    assert process.stdout is not None
    child = child_of(process.pid)
    await bench.stop_serving()
    process.stdin.write(b"still alive\n")
    assert await process.stdout.readline() == b"still alive\n"
    second = await bench.serve()
    assert await second.next("resume") == ("resume", call[1], child)
    second.outcome = ("braked", "Held by the second daemon.")
    second.links[str(call[1])].acted()
    _, err = await process.communicate(b"")
    assert (process.returncode, err) == (0, b"corral: Held by the second daemon.\n")
    assert await second.next("ended") == ("ended", call[1], 0, True)


async def test_an_end_during_the_restart_reaches_the_next_daemon(bench: Bench) -> None:
    await bench.stop_serving()
    first = await bench.serve()
    process = await bench.start("sh", "-c", "read line; exit 7")
    call = await first.next("begin")
    await bench.stop_serving()
    communicating = asyncio.create_task(process.communicate(b"go\n"))
    second = await bench.serve()
    assert await second.next("ended") == ("ended", call[1], 7 << 8, True)
    await communicating
    assert process.returncode == 7


async def test_a_daemon_that_stays_away_changes_nothing_for_the_command(bench: Bench) -> None:
    process = await bench.start("sh", "-c", "read line; exit 7")
    await bench.handler.next("begin")
    await bench.stop_serving()
    _, err = await process.communicate(b"go\n")
    assert (process.returncode, err) == (7, b"")


async def test_a_call_that_lost_its_place_in_the_queue_begins_again(bench: Bench) -> None:
    async def forever(peer: Peer, begin: Begin, link: Link) -> Granted | None:
        link.queued(None, "full")
        await asyncio.Event().wait()
        return None

    bench.handler.on_begin = forever
    process = await bench.start("--tool", "again", "echo", "ran")
    assert process.stderr is not None
    await process.stderr.readline()
    await bench.stop_serving()
    second = await bench.serve(Recorder())
    out, _ = await process.communicate(b"")
    assert (process.returncode, out) == (0, b"ran\n")
    assert second.begins[0][1].intent.tool == "again"
    assert is_id(str((await second.next("ended"))[1]))
