"""Replays: hostile trace files, schedules that add up to the recording, the C process, and the command as a whole."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.cli.errors import NotFoundError, UsageError
from agentd.cli.replay.command import _number, _tenants
from agentd.cli.replay.player import Played, Result, Stage, launcher_arguments, play
from agentd.cli.replay.report import complaints, plain, row, verdict
from agentd.cli.replay.trace import TraceError as CommandTraceError
from agentd.cli.replay.trace import read_trace
from agentd.wire import Enter, Ok, Open, Opened, decode, encode
from controller.simulate.plan import MB, Plan, PlannedCall, Schedule, Step, percentile, plan
from controller.simulate.trace import ToolCall, Trace, TraceError, parse_trace
from tests.unit.cli_support import CODER, ROOT, corral

GOOD: dict[str, Any] = {
    "schema": "agentcg-compact-v1",
    "dataset": "made",
    "task": "up",
    "model": "none",
    "t": [0.0, 1.0, 2.0, 3.0],
    "mem_mb": [10.0, 40.0, 20.0, 10.0],
    "cpu_avg_pct": [0, 0, 0, 0],
    "cpu_cores": [0.1, 0.5, 0.2, 0.0],
    "tools": [[0.5, 2.5, "Bash", "test", "pytest"], [1.5, 1.6, "Read", "", ""], [-1.0, -0.5, "Glob", None, None]],
}


def _bytes(**changes: Any) -> bytes:
    whole = copy.deepcopy(GOOD)
    whole.update(changes)
    return json.dumps(whole).encode()


def test_a_trace_is_read_and_its_tools_are_sorted(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(_bytes())
    trace = read_trace(path)
    assert trace.name == "made up"
    assert [tool.tool for tool in trace.tools] == ["Glob", "Bash", "Read"]
    assert trace.seconds == 3.0
    with pytest.raises(NotFoundError, match="no such file"):
        read_trace(tmp_path / "none.json")
    with pytest.raises(CommandTraceError, match="Is a directory"):
        read_trace(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": "v2"}, "schema is 'v2'"),
        ({"t": [0.0, 1.0, 1.0, 3.0]}, "times do not rise"),
        ({"t": [0.0]}, "1 samples"),
        ({"t": "soon"}, r"Expected `array`.*\$.t"),
        ({"mem_mb": [1.0, 2.0]}, "mem_mb: 2 values for 4 samples"),
        ({"mem_mb": [1.0, -2.0, 3.0, 4.0]}, r"mem_mb\[1\] is -2"),
        ({"mem_mb": [1.0, 2e9, 3.0, 4.0]}, r"mem_mb\[1\]"),
        ({"cpu_cores": [1.0, 1e6, 3.0, 4.0]}, r"cpu_cores\[1\]"),
        ({"cpu_cores": [1.0, None, 3.0, 4.0]}, "Expected `float`"),
        ({"tools": [[2.0, 1.0, "Bash", "", ""]]}, r"tools\[0\] lasts from 2.0 to 1.0"),
        ({"tools": [[0.0, 1e300, "Bash", "", ""]]}, r"tools\[0\] lasts"),
        ({"tools": [[0.0, 1.0, "Ba\x1b[2J", "", ""]]}, "tool is no short name"),
        ({"tools": [[0.0, 1.0, "x" * 100, "", ""]]}, "tool is no short name"),
        ({"tools": [[0.0, 1.0, "Bash"]]}, "length 5"),
        ({"task": "x" * 1000}, "length <= 512"),
    ],
)
def test_a_wrong_trace_is_refused_with_the_field(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TraceError, match=said) as error:
        parse_trace(_bytes(**changes), "bad.json")
    assert error.value.message.startswith("bad.json: ")


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"t": NaN}'])
def test_what_is_no_trace_at_all(data: bytes) -> None:
    with pytest.raises(TraceError):
        parse_trace(data, "x")


def _at(schedule: Schedule, moment: float) -> tuple[int, float]:
    """Bytes and cores at ``moment`` seconds after the schedule's start."""
    current = (0, 0.0)
    for step in schedule.steps:
        if step.at <= moment + 1e-9:
            current = (step.nbytes, step.cores)
    return current


_TOOLS = st.lists(
    st.tuples(st.floats(-5, 50), st.floats(0.5, 20)).map(lambda s: ToolCall(s[0], s[0] + s[1], "Bash", "test", "")),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(
    memory=st.lists(st.floats(0, 2000), min_size=2, max_size=40),
    cores=st.floats(0, 8),
    tools=_TOOLS,
    speed=st.sampled_from([1.0, 50.0]),
    base=st.sampled_from([0, 100 * MB]),
)
def test_the_parts_add_up_to_the_recording(
    memory: list[float], cores: float, tools: list[ToolCall], speed: float, base: int
) -> None:
    times = tuple(float(n) for n in range(len(memory)))
    ordered = tuple(sorted(tools, key=lambda t: t.start))
    trace = Trace("x", times, tuple(memory), (cores,) * len(memory), ordered)
    made = plan(trace, speed=speed, base_bytes=base)
    assert made.framework is not None
    for index in range(len(memory) - 1):
        moment = times[index] + 0.4999  # tools begin and end at other moments, with all but certainty
        alive = [c for c in made.calls if c.start * speed <= moment < (c.start + c.schedule.end) * speed - 1e-6]
        if any(abs((c.start + c.schedule.end) * speed - moment) < 0.1 or c.schedule.end <= 0.001 for c in made.calls):
            continue
        parts = [_at(made.framework, moment / speed), *(_at(c.schedule, moment / speed - c.start) for c in alive)]
        assert sum(nbytes for nbytes, _ in parts) == pytest.approx(memory[index] * MB, abs=len(parts) + 1)
        assert sum(part for _, part in parts) == pytest.approx(cores)


def test_a_plan_in_numbers() -> None:
    made = plan(parse_trace(_bytes(), "x"), speed=10, scale=2, base_bytes=30 * MB)
    assert made.seconds == 0.3
    assert [call.call_class for call in made.calls] == ["glob", "test", "read"]
    test = made.calls[1]
    assert test.start == pytest.approx(0.05)
    assert test.schedule.end == pytest.approx(0.2)
    # From 0.5 s: 20 - 30 MB is nothing; from 1.0 s: 80 - 30, alone; to 1.6 s shared with Read; from 2.0 s: 40 - 30.
    assert [(round(s.at, 3), s.nbytes // MB) for s in test.schedule.steps] == [
        (0.0, 0),
        (0.05, 50),
        (0.1, 25),
        (0.11, 50),
        (0.15, 10),
    ]
    assert made.calls[2].schedule.peak_bytes == 25 * MB
    assert made.framework is not None
    # After the last tool, at 2.5 s, the sample's 40 MB are the framework's.
    assert [s.nbytes // MB for s in made.framework.steps] == [20, 20, 30, 40, 20]
    assert plan(parse_trace(_bytes(), "x"), speed=10, only_tools=True, most_calls=2).framework is None
    assert len(plan(parse_trace(_bytes(), "x"), speed=10, most_calls=2).calls) == 2


def test_a_schedule_as_text() -> None:
    schedule = Schedule((Step(0.0, 5, 0.25), Step(0.5, 0, 1.5)), 2.0)
    assert schedule.text() == "0 5 250\n500000 0 1500\n2000000 end\n"
    assert schedule.core_seconds == pytest.approx(0.125 + 2.25)


def test_what_a_call_declares(tmp_path: Path) -> None:
    call = plan(parse_trace(_bytes(), "x"), speed=10, base_bytes=0).calls[1]
    stage = Stage(replayer=Path("r"), launcher=Path("l"), folder=tmp_path, environment={})
    assert launcher_arguments(call, stage) == ["l", "--tool", "Bash", "--class", "test", "--"]
    declaring = Stage(replayer=Path("r"), launcher=Path("l"), folder=tmp_path, environment={}, declare_peak=True)
    peak = 50 * MB + 8 * MB  # 40 MB and a quarter, and the program
    assert launcher_arguments(call, declaring)[5:9] == ["--memory", f"{peak // 2}:{peak}", "--duration", "0.200s"]
    bare = Stage(replayer=Path("r"), launcher=None, folder=tmp_path, environment={})
    assert launcher_arguments(call, bare) == []


def test_options_out_of_range() -> None:
    assert _number("--speed", "50x", 0.1, 1000) == 50
    for wrong in ("0", "nan", "fast", "1e9", "-1"):
        with pytest.raises(UsageError, match="--speed"):
            _number("--speed", wrong, 0.1, 1000)
    assert _tenants([], 2) == ["", ""]
    assert _tenants(["a"], 2) == ["a", "a"]
    assert _tenants(["a", "b"], 2) == ["a", "b"]
    with pytest.raises(UsageError, match="2 tenants for 3 traces"):
        _tenants(["a", "b"], 3)


def _result(status: int | None, words: str = "") -> Result:
    return Result(label="Bash", planned_seconds=1, planned_peak=1, status=status, words=words, latencies=[1_000_000])


def test_the_report_counts_what_came_out() -> None:
    calls = [_result(0), _result(1, "no"), _result(-9), _result(137), _result(125, "no room"), _result(125, "no room")]
    assert [verdict(call) for call in calls] == ["ok", "failed", "killed", "killed", "refused", "refused"]
    played = Played(plan=Plan("p", 1.0, None, ()), session="s", tenant="t", wall=2.0, framework=None, calls=calls)
    cells = [cell if isinstance(cell, str) else cell.text for cell in row("p", "t", [played])]
    assert cells[:10] == ["p", "t", "6", "1", "1", "2", "2", "2 s", "1 s", "6"]
    assert complaints([played])[0] == "2× killed: without a word"
    assert "2× refused: no room" in complaints([played])
    whole = plain([played], {"s": {"exited": 1}})
    assert json.loads(json.dumps(whole))["replays"][0]["reasons"] == {"exited": 1}
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 1.0) == 2.0
    assert math.isclose(percentile([float(n) for n in range(1, 101)], 0.95) or 0, 95.0)


@pytest.fixture(scope="module")
def replayer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc to build corral-replay with")
    program = tmp_path_factory.mktemp("replay") / "corral-replay"
    source = ROOT / "agentd/launcher/corral_replay.c"
    subprocess.run(
        [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", program, source], check=True
    )
    return program


def _follow(replayer: Path, schedule: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [replayer, "--schedule", "-", *options], input=schedule, capture_output=True, text=True, timeout=30, check=False
    )


def test_the_process_follows_its_schedule(replayer: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.csv"
    done = _follow(replayer, "# made\n0 10000000 500\n20000 0 1500\n60000 4096 0\n80000 end\n", "--report", str(report))
    assert (done.returncode, done.stderr) == (0, "")
    lines = report.read_text().splitlines()
    assert lines[0] == "at_usec,chunk_bytes,latency_nsec"
    chunks = [[int(part) for part in line.split(",")] for line in lines[1:-1]]
    assert sum(size for _, size, _ in chunks) == -(-10_000_000 // 4096) * 4096 + 4096
    assert all(latency > 0 for _, _, latency in chunks)
    end = dict(part.split("=") for part in lines[-1].removeprefix("# end ").split())
    assert int(end["peak_bytes"]) == -(-10_000_000 // 4096) * 4096
    assert int(end["chunks"]) == len(chunks) == 6
    assert int(end["cpu_usec"]) > 0


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("", "no line 'AT_USEC end'"),
        ("0 5 0\n", "no line 'AT_USEC end'"),
        ("0 5\n1 end\n", "-:1: expected"),
        ("0 -5 0\n1 end\n", "-:1: expected"),
        ("0 5 0 7\n1 end\n", "-:1: expected"),
        ("0 99999999999999999999999 0\n1 end\n", "-:1: expected"),
        ("0 5 999999999\n1 end\n", "-:1: expected"),
        ("9 5 0\n8 5 0\n10 end\n", "-:2: the time"),
        ("x 5 0\n", "-:1: the time"),
        ("0 5 0\n1 end\n2 5 0\n", "-:3: a step after the end"),
        ("0 " + " " * 400 + "\n", "-:1: longer than"),
    ],
)
def test_the_process_refuses_a_wrong_schedule(replayer: Path, schedule: str, said: str) -> None:
    done = _follow(replayer, schedule)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("options", [("--chunk", "0"), ("--chunk", "5000"), ("--nonsense",), ("--report",)])
def test_the_process_refuses_wrong_options(replayer: Path, options: tuple[str, ...]) -> None:
    assert _follow(replayer, "0 end\n", *options).returncode == 2


def test_a_steered_clock_stands_until_it_is_told_to_go(replayer: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.csv"
    done = _follow(
        replayer,
        "0 4096 0\n50000 8192 0\n60000 end\ngo 0 20000\ngo 20000 60000\n",
        "--steered",
        "--report",
        str(report),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "# end peak_bytes=8192" in report.read_text()
    for words in ("jump 5", "go", "go 5", "go x 7", "go 6 5", "go 5 6 7"):
        wrong = _follow(replayer, f"0 4096 0\n60000 end\n{words}\n", "--steered")
        assert (wrong.returncode, f"'{words}' is no command" in wrong.stderr) == (2, True), wrong.stderr
    assert _follow(replayer, "0 end\n", "--steered", "--schedule", "/dev/null").returncode == 2


def _slow_launcher(path: Path, order: Path) -> Path:
    path.write_text(
        f'#!/bin/sh\ntool=$2\necho "begins $tool" >>{order}\nwhile [ "$1" != -- ]; do shift; done; shift\n'
        f'"$@"; [ $tool = Bash ] && sleep 1; echo "ends $tool" >>{order}\n'
    )
    path.chmod(0o755)
    return path


async def test_an_agent_waits_for_a_call_that_is_late(replayer: Path, tmp_path: Path) -> None:
    """The call takes longer than the whole recording; what comes after it waits for it."""
    order = tmp_path / "order"
    slow = _slow_launcher(tmp_path / "slow", order)
    step = (Step(0.0, 4096, 0.0),)
    made = Plan(
        "p",
        0.2,
        Schedule(step, 0.2),
        (
            PlannedCall(0, 0.02, "Bash", "test", "x", Schedule(step, 0.03)),
            PlannedCall(1, 0.06, "Read", "read", "x", Schedule(step, 0.03)),
        ),
    )
    stage = Stage(replayer=replayer, launcher=slow, folder=tmp_path, environment=dict(os.environ))
    played = await play(made, stage, tag="t", session="", token="", tenant="t")
    assert order.read_text().splitlines() == ["begins Bash", "ends Bash", "begins Read", "ends Read"]
    assert played.framework is not None
    assert played.framework.complete
    assert played.framework.wall > played.calls[0].wall, "the clock stood while the call ran on"


async def test_a_bare_replay(replayer: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.json"
    trace.write_bytes(_bytes())
    environment = {"CORRAL_REPLAY": str(replayer)}
    done = await corral(
        "replay", str(trace), "--bare", "--speed", "20", "--base", "5", "--json", environment=environment
    )
    assert done.code == 0, done.err
    (replay,) = json.loads(done.out)["replays"]
    assert [call["verdict"] for call in replay["calls"]] == ["ok", "ok", "ok"]
    assert all(call["complete"] for call in replay["calls"])
    assert replay["framework"]["complete"]
    assert replay["calls"][1]["peak_bytes"] == pytest.approx(35 * MB, abs=8192)
    assert replay["latency_seconds"]["chunks"] > 10
    table = await corral("replay", str(trace), "--bare", "--speed", "20", environment=environment)
    assert table.out.splitlines()[1].startswith("made up")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[tuple[Path, list[object]]]:
    """Answers OPEN and ENTER, for as many connections as come."""
    path = tmp_path / "b.sock"
    heard: list[object] = []
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # shut down below
            with connection:
                packet, descriptors, _, _ = socket.recv_fds(connection, 65_536, 4)
                for descriptor in descriptors:
                    socket.close(descriptor)
                heard.append(decode(packet))
                opened = Opened(session=CODER, token="tk")  # noqa: S106
                connection.send(encode(opened if isinstance(heard[-1], Open) else Ok()))

    thread = threading.Thread(target=serve)
    thread.start()
    yield path, heard
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


async def test_a_replay_opens_a_session_and_sends_every_call_through_the_launcher(
    replayer: Path, tmp_path: Path, broker: tuple[Path, list[object]]
) -> None:
    path, heard = broker
    trace = tmp_path / "t.json"
    trace.write_bytes(_bytes())
    launcher = tmp_path / "launcher"
    launcher.write_text(
        '#!/bin/sh\necho "$CORRAL_SESSION $CORRAL_TOKEN $*" >>"$SEEN"\n'
        'case "$*" in *Read*) echo "no room" >&2; exit 125;; esac\n'
        'while [ "$1" != -- ]; do shift; done; shift; exec "$@"\n'
    )
    launcher.chmod(0o755)
    seen = tmp_path / "seen"
    done = await corral(
        *("replay", str(trace), "--speed", "20", "--base", "5", "--tenant", "acme"),
        api="unix:/nonexistent/api.sock",
        environment={
            "CORRAL_REPLAY": str(replayer),
            "CORRAL_EXEC": str(launcher),
            "CORRAL_SOCKET": str(path),
            "SEEN": str(seen),
        },
    )
    assert done.code == 1  # one was refused
    assert heard == [Open(tenant="acme", name="replay made up"), Enter(token="tk")]  # noqa: S106
    lines = sorted(seen.read_text().splitlines())
    assert [line.split(" -- ")[0] for line in lines] == [
        f"{CODER} tk --tool Bash --class test",
        f"{CODER} tk --tool Glob --class glob",
        f"{CODER} tk --tool Read --class read",
    ]
    assert "1× refused: no room" in done.err
    assert "the sessions stay open" in done.err
    assert done.out.splitlines()[1].split()[:7] == ["made", "up", "acme", "3", "2", "0", "0"]


async def test_a_replay_without_a_broker_starts_nothing(replayer: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.json"
    trace.write_bytes(_bytes())
    environment = {"CORRAL_REPLAY": str(replayer), "CORRAL_EXEC": "/bin/false"}
    argv = ("replay", str(trace), "--socket", str(tmp_path / "none"))
    done = await corral(*argv, "--tenant", "acme", environment=environment)
    assert done.code == 3
    nobody = await corral(*argv, environment=environment)
    assert nobody.code == 2
    assert "--tenant" in nobody.err
    assert done.err.count("\n") == 1
    assert await asyncio.to_thread(lambda: not list(tmp_path.glob("*.csv")))
