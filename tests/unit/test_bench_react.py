"""The record of a burst, and what is read from it."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.bench.harness import BenchError, Context
from tests.bench.react import PAGE, Clocks, Record, Touched
from tests.bench.reaction import _reactions, summarise
from tests.bench.result import Result

TOUCHED = Touched({7: (1.0, 1.1, 1.2, 3.0, 3.1), 8: (1.05, 1.25, 3.5)})
CLOCKS = Clocks(ahead=1000.0)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_burst_leaves_the_moment_of_each_page(tmp_path: Path) -> None:
    program = Context(directory=tmp_path, quick=True).compile("react")
    record = Record(2, 64 * PAGE)
    before = time.monotonic()
    with subprocess.Popen(record.words(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"  # it is in no call
        assert record.read().nbytes == 0
        process.stdin.write(b"go\n")
        process.stdin.flush()
        while record.read().nbytes < 64 * PAGE:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    touched = record.read()
    record.close()
    assert process.pid in touched.moments
    assert [len(one) for one in touched.moments.values()] == [32, 32]
    for one in touched.moments.values():
        assert list(one) == sorted(one)
        assert before < one[0] <= one[-1] < time.monotonic()


def test_moments_before_and_after() -> None:
    assert TOUCHED.last_before(2.0) == 1.25
    assert TOUCHED.last_before(2.0, 7) == 1.2
    assert TOUCHED.last_before(0.5) is None
    assert TOUCHED.first_after(2.0) == 3.0
    assert TOUCHED.first_after(3.5) is None
    assert TOUCHED.crossing(2 * PAGE) == 1.1
    assert TOUCHED.crossing(-5) == 1.0
    assert TOUCHED.crossing(8 * PAGE) is None
    assert TOUCHED.nbytes == 8 * PAGE


def _decision(action: str, at: float, **evidence: float) -> pb.Decision:
    return pb.Decision(action=action, at=1000.0 + at, evidence=evidence)


def _brake(at: float, frozen_ms: float) -> pb.Decision:
    return _decision("brake", at, pid=7, frozen_ms=frozen_ms, overshoot_bytes=4096)


def test_each_stop_has_its_row() -> None:
    outcome = pb.Outcome(decisions=[_brake(1.7, 400), _decision("raise", 2.0), _brake(3.6, 0), _decision("kill", 4.0)])
    raised, killed = _reactions(outcome, TOUCHED, CLOCKS, 4.5, {"arm": "wait", "processes": 2})
    assert raised["decision"] == "raise"
    assert raised["brake_ms"] == pytest.approx(100)  # stopped at 1.3, ran last at 1.2
    assert raised["still_ms"] == pytest.approx(50)  # the other process ran on until 1.25
    assert raised["ran_on"] is False
    assert raised["decision_ms"] == pytest.approx(800)
    assert raised["effect_ms"] == pytest.approx(1000)
    assert raised["gone_ms"] is None
    assert killed["brake_ms"] == pytest.approx(500)
    assert killed["effect_ms"] == pytest.approx(500)
    assert killed["gone_ms"] is None  # it had been raised meanwhile: the time from its first stop says nothing


def test_a_process_that_ran_on_after_its_stop_is_found() -> None:
    outcome = pb.Outcome(decisions=[_brake(1.15, 0), _decision("kill", 2.0)])
    (row,) = _reactions(outcome, TOUCHED, CLOCKS, 2.5, {"arm": "fail-fast", "processes": 2})
    assert row["ran_on"] is True
    assert row["gone_ms"] == pytest.approx(1400)
    result = Result(rows=[row])
    summarise(result)
    assert result.summary["ran_on"].met is False
    assert result.summary["not_stopped"].met is True


def test_a_burst_that_nothing_stopped_is_counted_and_one_that_touched_nothing_is_no_measurement() -> None:
    nothing = _reactions(pb.Outcome(reason="exited"), TOUCHED, CLOCKS, 4.5, {"arm": "wait", "processes": 1})
    result = Result(rows=nothing)
    summarise(result)
    assert result.summary["not_stopped"].value == 1
    assert result.summary["burst_to_brake_1_p50_us"].value is None
    with pytest.raises(BenchError, match="touched nothing before"):
        _reactions(
            pb.Outcome(decisions=[_brake(0.5, 0), _decision("kill", 0.6)]), TOUCHED, CLOCKS, 1.0, {"arm": "wait"}
        )
