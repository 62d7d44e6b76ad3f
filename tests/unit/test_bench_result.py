"""The form in which figures are shown and stored, and the summaries that are made of raw rows."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.bench import accounting, boundary, brake, lab, observe, procstat, scale
from tests.bench.__main__ import BENCHES, main
from tests.bench.churn import parse_begin
from tests.bench.harness import BenchError, Context, first_file
from tests.bench.result import Figure, Result, Row, document, host_facts, number, table, write_json

MIB = 1 << 20


@pytest.mark.parametrize(
    ("value", "at_most", "met"),
    [(1.0, 1.0, True), (1.01, 1.0, False), (None, 1.0, False), (5.0, None, None), (0.0, 0, True), (1.0, 0, False)],
)
def test_a_target_is_met_or_missed_or_absent(value: float | None, at_most: float | None, met: bool | None) -> None:
    assert Figure(value=value, unit="ms", at_most=at_most).met is met


def test_document_has_the_agreed_keys_and_is_json(tmp_path: Path) -> None:
    result = Result(
        rows=[{"arm": "plain", "ms": 0.5, "warm_up": False}], runs=3, mode="hybrid", notes=["left out: why"]
    )
    result.summary = {
        "added_p50_ms": Figure(value=1.25, unit="ms", at_most=1.5),
        "plain_p50_ms": Figure(value=None, unit="ms"),
    }
    path = tmp_path / "out.json"
    write_json(path, document("boundary", result, quick=True, others=0.25, seconds=4.2))
    stored = json.loads(path.read_text())
    assert stored["name"] == "boundary"
    assert stored["quick"] is True
    assert stored["cpu_share_of_others"] == 0.25
    assert stored["runs"] == 3
    assert stored["rows"] == [{"arm": "plain", "ms": 0.5, "warm_up": False}]
    assert stored["summary"] == {"added_p50_ms": 1.25, "plain_p50_ms": None}
    assert stored["targets"] == {"added_p50_ms": 1.5}
    assert stored["notes"] == ["left out: why"]
    assert stored["host"]["kernel"] == os.uname().release
    assert stored["host"]["cgroup_mode"] == "hybrid"
    assert stored["host"]["cpus"] == os.cpu_count()
    assert list(tmp_path.iterdir()) == [path]


def test_host_facts_do_not_name_the_host() -> None:
    assert os.uname().nodename not in [str(value) for value in host_facts("unified").values()]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert path.read_text() == "old"


def test_table_shows_target_mark_and_spread() -> None:
    lines = table(
        {
            "good_ms": Figure(value=1.0, unit="ms", at_most=2, samples=[1.0, 2.0, 3.0]),
            "bad_ms": Figure(value=3.0, unit="ms", at_most=2),
            "plain_ms": Figure(value=None, unit="ms"),
        }
    )
    assert len(lines) == 4
    assert "≤ 2" in lines[1]
    assert "✓" in lines[1]
    assert "3: 1  1.5  2  2.5  2.98  3" in lines[1]
    assert "✗" in lines[2]
    assert "✓" not in lines[3]
    assert "✗" not in lines[3]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0, "0"), (1048576, "1,048,576"), (12345.6, "12,346"), (0.012345, "0.01235")]
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


# --- summaries -------------------------------------------------------------------------------------------------------


def test_boundary_is_measured_against_the_typical_plain_start() -> None:
    result = Result()
    for arm, times in {
        "plain": [1.0, 1.0, 9.0],
        "corral": [2.0, 2.5, 3.0],
        "grpc": [2.0, 2.0, 2.0],
        "plain_lone": [1.0],
        "corral_lone": [8.0],
    }.items():
        result.rows += [{"arm": arm, "ms": ms, "warm_up": False} for ms in times]
        result.rows.append({"arm": arm, "ms": 1000.0, "warm_up": True})
    result.rows.append({"arm": "daemon", "ms": 0.7, "warm_up": False})
    boundary.summarise(result)
    assert result.summary["added_p50_ms"].value == 1.5
    # a slow plain start (9 ms) must not be taken off the slow starts of calls
    assert result.summary["added_p99_ms"].value == pytest.approx(1.99)
    assert result.summary["grpc_p50_ms"].value == 2.0
    assert result.summary["lone_added_p50_ms"].value == 7.0
    assert "docker_exec_added_p50_ms" not in result.summary


def _brake_row(arm: str, pages: str, overshoot: float, *, stopped: bool = True) -> Row:
    return {
        "arm": arm,
        "cell": f"{pages}, 1 process",
        "pages": pages,
        "stopped": stopped,
        "overshoot_bytes": overshoot,
        "event_ms": 0.5 if stopped else None,
    }


def test_a_burst_that_nothing_stopped_counts_with_all_that_it_touched() -> None:
    result = Result()
    for cell in brake.CELLS:
        row = _brake_row("brake", cell.pages, 1000)
        result.rows += [{**row, "cell": cell.name} for _ in range(3)]
    result.rows.append({**_brake_row("brake", "small", 256 * MIB, stopped=False), "cell": brake.CELLS[0].name})
    result.rows.append(_brake_row("poller", "small", 50 * MIB))
    brake.summarise(result)
    assert result.summary["overshoot_p99_bytes"].met is False
    assert result.summary["overshoot_huge_p99_bytes"].value == 1000
    assert result.summary["overshoot_huge_p99_bytes"].at_most == 2 * MIB * (os.cpu_count() or 1)
    assert result.summary["poller_overshoot_p50_bytes"].value == 50 * MIB
    assert any(note.startswith("1 bursts were not stopped") for note in result.notes)


def test_accounting_reports_the_worst_of_all() -> None:
    result = Result()
    for resource, error in (("cpu", 0.001), ("memory", 0.03), ("cpu", 0.002)):
        case: Row = {"case": resource, "resource": resource, "counted": 1, "expected": 1.0, "unit": "x"}
        result.rows.append({**case, "error": error})
    accounting.summarise(result)
    assert result.summary["worst_error"].value == 0.03
    assert result.summary["worst_error"].met is False
    assert result.summary["cpu_worst_error"].value == 0.002


def test_observe_takes_the_worse_of_both_loops_and_of_both_jobs() -> None:
    result = Result()
    slow = {"faults": 1.1, "spawns": 1.0, "pytest": 1.0, "gcc": 1.01}
    for work, factor in slow.items():
        for arm in ("none", "call", "call_unarmed", "beside"):
            ms = 100 * (factor if arm == "call" else 1)
            result.rows.append({"kind": "work", "work": work, "arm": arm, "ms": ms, "cpu_ms": ms})
    result.rows.append({"kind": "daemon", "cpu_seconds": 0.3, "seconds": 10.0, "rss_bytes": 60 * MIB})
    observe.summarise(result)
    assert result.summary["loop_slowdown"].value == pytest.approx(1.1)
    assert result.summary["job_slowdown"].value == pytest.approx(1.01)
    assert result.summary["daemon_cores"].value == pytest.approx(0.03)
    assert result.summary["daemon_cores"].met is False
    assert result.summary["rss_mb"].value == 60


def test_scale_reports_growth_of_the_daemon() -> None:
    result = Result()
    result.rows += [{"kind": "begin", "begin_ms": 2.0}, {"kind": "begin", "begin_ms": 4.0}]
    result.rows += [
        {"kind": "snapshot", "ms": 900.0, "warm_up": True},
        {"kind": "snapshot", "ms": 9.0, "warm_up": False},
    ]
    before = procstat.ProcStat(cpu_seconds=1, rss_bytes=60 * MIB, fds=100)
    after = procstat.ProcStat(cpu_seconds=2, rss_bytes=63 * MIB, fds=101)
    scale.summarise(result, before, after, 0.25)
    assert result.summary["fd_growth"].value == 1
    assert result.summary["fd_growth"].met is False
    assert result.summary["rss_growth_mb"].value == 3
    assert result.summary["snapshot_ms"].value == 9
    assert result.summary["begin_p99_ms"].value == pytest.approx(3.98)


def test_begin_lines() -> None:
    begin = parse_begin("begin 7 1000000 1500000 4000000")
    assert (begin.index, begin.late_ms, begin.begin_ms) == (7, 0.5, 3.0)
    with pytest.raises(BenchError, match="not the times of a begin"):
        parse_begin("refused 7")


def test_procstat_of_this_process() -> None:
    with Path("/dev/null").open() as held:
        stat = procstat.read(os.getpid())
        assert stat.rss_bytes > MIB
        assert stat.cpu_seconds > 0
        assert stat.fds > held.fileno() - 64
    assert procstat.read(os.getpid()).fds == stat.fds - 1


def test_own_work_is_not_that_of_others() -> None:
    machine = procstat.Others()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert 0 <= machine.share() <= 1


def test_first_file_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "memory.peak").write_text("1")
    assert first_file([tmp_path / "none", tmp_path], "memory.peak", "x") == tmp_path / "memory.peak"
    with pytest.raises(BenchError, match=r"none of a, b exists"):
        first_file([tmp_path], "a", "b")


# --- the command -----------------------------------------------------------------------------------------------------


async def _measured(context: Context) -> Result:
    assert context.directory.is_dir()
    result = Result(rows=[{"directory": str(context.directory)}], runs=context.count(full=9, quick=2), mode="unified")
    result.summary = {"added_p50_ms": Figure(value=2.0, unit="ms", at_most=1.5)}
    return result


async def _cannot(context: Context) -> Result:
    raise BenchError("corral-exec is not built: run scripts/setup")


def test_command_stores_and_shows_and_does_not_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BENCHES, "boundary", _measured)
    path = tmp_path / "b.json"
    assert main(["boundary", "--quick", "--json", str(path)]) == 0  # although the target is missed
    stored = json.loads(path.read_text())
    assert (stored["runs"], stored["quick"], stored["host"]["cgroup_mode"]) == (2, True, "unified")
    assert not Path(stored["rows"][0]["directory"]).exists()
    assert "✗" in capsys.readouterr().out

    assert main(["boundary", "--runs", "5"]) == 0
    out = capsys.readouterr().out
    assert "5 runs of each cell" in out
    assert "scripts/bench boundary --json FILE" in out


def test_command_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(BENCHES, "brake", _cannot)
    assert main(["brake"]) == 2
    assert "bench: brake: corral-exec is not built: run scripts/setup" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["speed"], ["brake", "--runs", "0"], ["brake", "--json", "/nowhere/at/all.json"]]
)
def test_command_refuses_bad_arguments_before_it_measures(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err


def test_ratios_of_starts_in_a_guest() -> None:
    def row(arm: str, ms: float, *, warm_up: bool = False) -> Row:
        return {"kind": "spawn", "arm": arm, "ms": ms, "warm_up": warm_up}

    rows = [row("plain", 20), row("corral", 50), row("corral", 1000, warm_up=True), row("plain_lone", 20)]
    rows += [row("corral_lone", 40), row("plain_beside_systemd_run", 25), row("systemd_run", 175)]
    rows.append({"kind": "grpc", "arm": "grpc", "ms": 1.0, "warm_up": False})
    assert lab.ratios("boundary", rows) == {
        "corral-exec, added / plain": 1.5,
        "corral-exec after a rest, added / plain": 1.0,
        "systemd-run --scope, added / plain": 6.0,
        "systemd-run --scope, added / corral-exec's": 5.0,
    }


def test_ratios_of_overshoots_in_a_guest() -> None:
    rows: list[Row] = [
        {"arm": "brake", "cell": "small, 1 process", "overshoot_bytes": MIB},
        {"arm": "high", "cell": "small, 1 process", "overshoot_bytes": 32 * MIB},
    ]
    found = lab.ratios("brake", rows)
    assert found["the brake, small, 1 process: p50"] == 1 / 64
    assert found["memory.high alone, small, 1 process: p99"] == 0.5


def test_a_bench_that_has_no_guest_says_which_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tui", "--lab"]) == 2
    assert "boundary, brake have" in capsys.readouterr().err
