"""The bench of KV policies in virtual time: on recordings made up here, its rows and what it makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu.simulate import Call
from gpu.simulate.fastswitch import LadderResult, Rung
from tests.bench import kv_sim
from tests.bench.harness import BenchError
from tests.bench.kv_sim import KNOWING, OURS, POLICIES, Recording, cells, latencies, regrets, stage, summarise
from tests.bench.result import Row

MADE_UP: list[Recording] = [
    (f"agent{number}", tuple(Call(10.0 * at, 10.0 * at + 1 + number, "Read") for at in range(6))) for number in range(3)
]


def test_a_scene_is_the_same_for_the_same_seed() -> None:
    scene = stage(MADE_UP, 7, 101)
    assert scene == stage(MADE_UP, 7, 101)
    assert scene != stage(MADE_UP, 7, 102)
    names = [one.name for one in scene.scripts]
    assert {names.count(name) for name, _ in MADE_UP} == {2, 3}  # all of them, over and over
    assert all(len(one.steps) == 7 for one in scene.scripts)
    assert scene.running > scene.idle > 0
    assert scene.decoding > 0


def test_every_policy_meets_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = stage(MADE_UP, 6, 101)
    rows = regrets(scene)
    assert len(rows) == 3 * 3 * (len(POLICIES) + 1)
    for row in rows:
        assert row["regret"] is not None
        assert 1.0 - 1e-9 <= float(row["regret"]) <= float(row["regret_prefill"] or 0) + 1e-9
        assert float(row["bound_seconds"] or 0) <= float(row["avoidable_seconds"] or 0) + 1e-9
    monkeypatch.setattr(kv_sim, "POOLS", (0.8,))
    monkeypatch.setattr(kv_sim, "OUTSIDE", (0.25,))
    waits = latencies(scene)
    assert [row["policy"] for row in waits] == [*(one.name for one in POLICIES), f"{OURS}-admitting"]
    summary = summarise([*rows, *waits, *ladder(4.0, 3.0, 2.0, 1.0)])
    assert summary["regret_mean"].at_most == 1.15
    assert len(summary["regret_mean"].samples) == 9
    assert summary[f"regret_{KNOWING}"].value is not None
    assert summary["ladder_out_of_order"].met


def test_cells_are_means_over_seeds() -> None:
    rows: list[Row] = [
        {"part": "regret", "policy": OURS, "sessions": 8, "pool": 0.6, "outside": 0.0, "seed": seed, "regret": value}
        for seed, value in ((101, 1.0), (102, 2.0))
    ]
    rows.append({**rows[0], "pool": 1.0, "regret": 4.0})
    rows.append({**rows[0], "policy": "lru", "regret": 9.0})
    assert cells(rows, OURS, "regret") == [1.5, 4.0]


def ladder(*tails: float) -> list[Row]:
    runs = {
        rung: [LadderResult(rung, first_token=[tail] * 3, between=[tail] * 3)]
        for rung, tail in zip(Rung, tails, strict=True)
    }
    return kv_sim.ladder_rows(runs)


def test_a_rung_that_does_not_help_is_counted() -> None:
    assert kv_sim.out_of_order(ladder(4.0, 3.0, 2.0, 1.0)) == 0
    assert kv_sim.out_of_order(ladder(4.0, 3.0, 3.0, 1.0)) == len(kv_sim.LADDER_TAILS)


def test_recordings_are_read_and_their_absence_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_TRACES", str(tmp_path))
    with pytest.raises(BenchError, match="no traces"):
        kv_sim.read_recordings()
    trace = {
        "schema": "agentcg-compact-v1",
        "dataset": "d",
        "task": "t",
        "t": [0.0, 1.0, 2.0],
        "mem_mb": [1.0, 1.0, 1.0],
        "cpu_avg_pct": [0.0, 0.0, 0.0],
        "cpu_cores": [0.0, 0.0, 0.0],
        "tools": [[0.1, 0.2, "Read", "", ""], [0.5, 1.5, "Bash", "test", "pytest"]],
    }
    (tmp_path / "one.json").write_text(json.dumps(trace))
    ((_, calls),) = kv_sim.read_recordings()
    assert calls == (Call(0.1, 0.2, "Read"), Call(0.5, 1.5, "Bash/test"))
    (tmp_path / "two.json").write_text("{")
    with pytest.raises(BenchError, match="two"):
        kv_sim.read_recordings()
