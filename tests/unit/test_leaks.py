"""The guard of the test suites notices what it is there for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.leaks import RUN_VARIABLE, Leaks

SLEEPER = [sys.executable, "-c", "import sys; sys.stdout.write('up\\n'); sys.stdout.flush(); sys.stdin.read()"]


def test_finds_a_process_that_is_left_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.leaks.GRACE", 0.0)
    run = f"leak-{os.getpid()}"
    leaks = Leaks(run=run, prefix=f"corral-test-leak-{os.getpid()}-")
    assert leaks.find() == []
    with subprocess.Popen(
        SLEEPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, RUN_VARIABLE: run}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"  # it has its environment from here on
        found = leaks.find()
        assert len(found) == 1
        assert found[0].startswith(f"process {process.pid} (")
        leaks.remove()
        assert process.wait() == -9
    assert leaks.find() == []


def test_finds_groups_and_pins_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.leaks.GRACE", 0.0)
    monkeypatch.setattr("tests.support.leaks.cgroup_mounts", lambda: [tmp_path / "v2"])
    monkeypatch.setattr("tests.support.leaks.BPFFS", tmp_path / "bpf")
    leaks = Leaks(run="none", prefix="corral-test-1-")
    (tmp_path / "v2" / "corral-test-1-aa" / "t-1").mkdir(parents=True)
    (tmp_path / "v2" / "corral-test-12-bb").mkdir()
    (tmp_path / "bpf" / "corral-test-1-aa").mkdir(parents=True)
    assert leaks.find() == [
        f"cgroup {tmp_path}/v2/corral-test-1-aa",
        f"BPF pins {tmp_path}/bpf/corral-test-1-aa",
    ]
    leaks.remove()
    assert leaks.find() == []
    assert (tmp_path / "v2" / "corral-test-12-bb").is_dir(), "what belongs to another run was touched"
