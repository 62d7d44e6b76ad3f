"""What the daemon's command line says when it cannot start, in either form of the log; and its preparations."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd import main as command
from agentd import prepare
from agentd.config import load
from agentd.doctor import netlink
from agentd.log import LogHandler
from agentd.prepare import CannotStart, lock_state, make_directories, raise_file_limit
from bpf.errors import LoadFailed
from controller.model import ControllerError


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Exception]]:
    """The daemon raises what a test puts here; logging is as it was when the test is over."""
    errors: list[Exception] = []

    def run(daemon: Coroutine[Any, Any, None]) -> None:
        daemon.close()
        raise errors[0]

    monkeypatch.setattr(asyncio, "run", run)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield errors
    for handler in [h for h in root.handlers if isinstance(h, LogHandler) and h not in before]:
        root.removeHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ControllerError("the tree is taken", remedy="stop the other"), "the tree is taken; stop the other"),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied: '/x'"),
        (ZeroDivisionError("division by zero"), "internal error: ZeroDivisionError: division by zero"),
        (ControllerError("two\nlines"), "two lines"),
    ],
    ids=["ours", "system", "defect", "lines"],
)
def test_one_line_and_no_traceback(
    told: list[Exception], capsys: pytest.CaptureFixture[str], error: Exception, words: str
) -> None:
    told.append(error)
    assert command.main(["--set", "daemon.log_format=text"]) == command.EXIT_FAILED
    err = capsys.readouterr().err
    assert err.startswith("agentd: ")
    assert words in err
    assert err.count("\n") == 1


def test_one_object_in_json(told: list[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    told.append(ControllerError("the tree is taken", remedy="stop the other"))
    assert command.main(["--set", "daemon.log_format=json"]) == command.EXIT_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert said["level"] == "critical"
    assert said["error"] == "the tree is taken; stop the other"


def test_a_defect_has_its_traceback_at_debug(told: list[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    told.append(ZeroDivisionError("division by zero"))
    assert command.main(["--set", "daemon.log_level=debug", "--set", "daemon.log_format=text"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[daemon]\nmode = 'both'\n", 2, ("daemon.mode", "enforce")),
        ("[call]\n\npids_max = 0\n", 3, ("call.pids_max",)),
        ("[tenants.acme]\nmemory_max = '3X'\n", 2, ("tenants.acme.memory_max", "3X")),
        ("[daemon]\nmode = \n", 2, ()),
    ],
)
def test_wrong_configuration_names_file_line_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: int, words: tuple[str, ...]
) -> None:
    file = tmp_path / "corral.toml"
    file.write_text(text, "utf-8")
    assert command.main(["--config", str(file)]) == command.EXIT_CONFIG == 78
    err = capsys.readouterr().err
    assert f"{file}:{line}:" in err
    for word in words:
        assert word in err


def test_the_state_directory_is_held_by_one(tmp_path: Path) -> None:
    held = lock_state(tmp_path)
    with pytest.raises(CannotStart, match="another daemon keeps its ledger there"):
        lock_state(tmp_path)
    os.close(held)
    os.close(lock_state(tmp_path))
    with pytest.raises(CannotStart, match="No such file or directory"):
        lock_state(tmp_path / "none")


def test_directories_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for key in ("state_dir", "runtime_dir"):
        other = "runtime_dir" if key == "state_dir" else "state_dir"
        config = load(
            None,
            overrides={f"daemon.{key}": str(tmp_path / "file/x"), f"daemon.{other}": str(tmp_path / "fine")},
            accounts=False,
        )
        with pytest.raises(CannotStart, match=rf"daemon\.{key} .*file/x cannot be made: .*set daemon\.{key}"):
            make_directories(config)


@pytest.mark.parametrize(
    ("hard", "said", "wanted"),
    [(1024, 1, 1024), (20_000, 0, 20_000), (resource.RLIM_INFINITY, 0, 65_536), (1 << 20, 0, 65_536)],
)
def test_few_open_files_are_said(monkeypatch: pytest.MonkeyPatch, hard: int, said: int, wanted: int) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (512, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: asked.append(both))
    problems = raise_file_limit()
    assert asked == [(wanted, hard)]
    assert len(problems) == said
    assert all("LimitNOFILE" in text for text in problems)


def test_pressure_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> bytes:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "read_bytes", missing)
    (text,) = prepare.pressure_problems()
    assert "/proc/pressure/memory: No such file or directory" in text
    assert "psi=1" in text


def test_a_doctors_probe_that_cannot_start_costs_its_lines_alone() -> None:
    lines = netlink.lines(PermissionError(13, "Permission denied", "/root/python"))
    assert {line.name for line in lines} == {"process connector", "taskstats"}
    for line in lines:
        assert line.found is None
        assert "cannot be started: /root/python: Permission denied" in line.detail


def test_brief_leaves_the_log_to_the_log() -> None:
    err = LoadFailed("a.bpf.o cannot be loaded: no\n  libbpf: one\n  libbpf: two\n", remedy="see the log")
    assert err.brief == "a.bpf.o cannot be loaded: no; see the log"
    assert "libbpf: two" in str(err)
