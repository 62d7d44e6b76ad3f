"""The benchmarks' C programs do what their heads say; launchers here only execute the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.bench.accounting import Sink
from tests.bench.churn import parse_begin
from tests.bench.harness import BenchError, Context, run

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

MIB = 1 << 20
EXECUTES_ITS_COMMAND = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
shift
exec "$@"
"""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context(directory=tmp_path_factory.mktemp("bench"), quick=True)


def _run(*command: str | Path, given: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **extra},
    )


def test_what_does_not_compile_is_said(context: Context) -> None:
    with pytest.raises(BenchError, match=r"absent\.c does not compile"):
        context.compile("absent")


def test_spawn_times_every_command_in_every_round(context: Context) -> None:
    done = _run(context.compile("spawn"), "3", "0", "/bin/true", ":::", "/bin/false", "x")
    rows = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [(turn, command) for turn, command, _, _ in rows] == [(t, c) for t in range(3) for c in range(2)]
    assert all(took > 0 for _, _, took, _ in rows)
    assert {status for _, command, _, status in rows if command == 0} == {0}
    assert {os.waitstatus_to_exitcode(status) for _, command, _, status in rows if command == 1} == {1}


def test_spawn_rests_outside_of_what_it_times(context: Context) -> None:
    began = time.monotonic()
    took = [
        int(line.split()[2]) for line in _run(context.compile("spawn"), "2", "300", "/bin/true").stdout.splitlines()
    ]
    assert time.monotonic() - began >= 0.6  # seconds: two rests
    assert len(took) == 2
    # both in one: were the rests timed, even an idle machine could not be faster than them
    assert sum(took) < (time.monotonic() - began) * 1e9 - 0.6e9 + 1


def test_spawn_reports_what_cannot_be_executed(context: Context) -> None:
    done = _run(context.compile("spawn"), "1", "0", "/no/such/program")
    assert os.waitstatus_to_exitcode(int(done.stdout.split()[3])) == 127


@pytest.mark.parametrize("processes", [1, 4])
def test_a_burst_waits_for_its_start_and_touches_all(context: Context, processes: int) -> None:
    burst = context.compile("burst")
    never_told = _run(burst, str(processes), str(8 * MIB), "small", CORRAL_CALL="c-1")
    assert (never_told.returncode, never_told.stdout) == (3, "c-1\n")
    done = _run(burst, str(processes), str(8 * MIB), "small", given="go\n", CORRAL_CALL="c-2")
    assert (done.returncode, done.stdout) == (0, "c-2\n")


def test_loops_time_themselves(context: Context) -> None:
    loops = context.compile("loops")
    for words in (("faults", "2", "4"), ("spawns", "3")):
        wall, cpu = map(int, _run(loops, *words).stdout.split())
        assert wall > 0
        assert cpu >= 0
    assert _run(loops, "sideways").returncode == 2


@pytest.mark.parametrize("children", [0, 3])
def test_work_says_what_it_used(context: Context, tmp_path: Path, children: int) -> None:
    work, source = context.compile("work"), tmp_path / "source"
    source.write_bytes(bytes(MIB))
    n, share = str(children), MIB // children * children if children else MIB
    call, used = _run(work, "cpu", "0.06", n, CORRAL_CALL="c-9").stdout.split()
    assert call == "c-9"
    assert float(used) >= 0.06e6 * 0.9  # getrusage counts in its own way
    for kind, target in (("read", source), ("write", tmp_path / "target"), ("memory", "")):
        done = _run(work, kind, str(MIB), n, target)
        assert (done.returncode, done.stdout.split()[1]) == (0, str(share)), done.stderr
    assert list(tmp_path.iterdir()) == [source]  # what was written is removed


def test_work_that_fails_says_so(context: Context, tmp_path: Path) -> None:
    for children in ("0", "2"):
        done = _run(context.compile("work"), "read", str(MIB), children, tmp_path / "absent")
        assert done.returncode == 3
        assert "work: file" in done.stderr


async def test_work_sends_to_the_sink(context: Context) -> None:
    async with Sink() as port:
        words = [str(context.compile("work")), "send", str(MIB), "2", str(port)]
        said = await run(words, environment={"CORRAL_CALL": "c-3"})
    assert said.split() == ["c-3", str(MIB)]


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    path = tmp_path / "pass-through"
    path.write_text(EXECUTES_ITS_COMMAND)
    path.chmod(0o755)
    return path


def test_churn_begins_and_ends_at_its_rate(context: Context, launcher: Path) -> None:
    churn, hold = context.compile("churn"), context.compile("hold")
    done = _run(churn, "3", "20", "1", launcher, hold, given="churn\nend\n")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("live", "churned")
    begins = [parse_begin(line) for line in lines[1:-1]]
    assert [begin.index for begin in begins] == list(range(3, 23))
    assert all(begin.late_ms >= 0 and begin.begin_ms > begin.late_ms for begin in begins)


def test_churn_without_a_churning_step(context: Context, launcher: Path) -> None:
    done = _run(context.compile("churn"), "2", "1", "0", launcher, context.compile("hold"), given="end\n")
    assert (done.returncode, done.stdout) == (0, "live\n")


def test_churn_gives_up_when_a_launcher_fails(context: Context, tmp_path: Path) -> None:
    refusing = tmp_path / "refuses"
    refusing.write_text("#!/bin/sh\nexit 125\n")
    refusing.chmod(0o755)
    done = _run(context.compile("churn"), "2", "1", "0", refusing, context.compile("hold"), given="end\n")
    assert done.returncode == 1
    assert "a launcher ended with wait status 32000" in done.stderr


async def test_a_program_that_fails_or_hangs_is_an_error(context: Context) -> None:
    with pytest.raises(BenchError, match="status 1"):
        await run(["/bin/false"], environment={})
    with pytest.raises(BenchError, match="did not end within"):
        await run([str(context.compile("hold"))], environment={}, within=0.2)
