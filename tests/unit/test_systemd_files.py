"""The unit files: what systemd says of them, and what the daemon relies on."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from agentd.config import Config
from agentd.main import EXIT_CONFIG

FILES = Path(__file__).parents[2] / "agentd" / "systemd"


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=True, delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep upper case
    parser.read(FILES / name)
    return parser


def run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed: apt-get install systemd")
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for name in ("agentd.service", "corral-calls.service"):
        text = (FILES / name).read_text()
        # the environment that Corral is installed in is not there: any program will do
        (tmp_path / name).write_text(text.replace("/opt/corral/bin/agentd", "/bin/true"))
    said = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, sorted(tmp_path.iterdir())))
    complaints = [line for line in said.splitlines() if "agentd.service" in line or "corral" in line]
    assert complaints == []


def test_the_daemon_may_die_without_its_calls() -> None:
    daemon, calls = unit("agentd.service"), unit("corral-calls.service")
    assert daemon["Service"]["KillMode"] == "process"
    assert daemon["Service"]["RuntimeDirectoryPreserve"] == "yes"
    assert "Delegate" not in daemon["Service"]
    assert calls["Service"]["Delegate"] == "yes"
    assert calls["Service"]["RemainAfterExit"] == "yes"
    assert daemon["Unit"]["Requires"] == "corral-calls.service"
    assert "corral-calls.service" in daemon["Unit"]["After"].split()
    # if calls were bound to the daemon, its stop would end them
    assert not any("agentd" in value for value in calls["Unit"].values())


def test_the_calls_unit_keeps_a_process_in_its_group() -> None:
    """Else systemd gives the empty group up, and a stop of the unit ends no call."""
    command = unit("corral-calls.service")["Service"]["ExecStart"]
    assert "$$group/agentd/cgroup.procs" in command  # the name that the tree knows as no tenant's
    assert "sleep infinity" in command


def test_the_example_names_the_delegated_group() -> None:
    example = tomllib.loads((FILES / "corral.toml").read_text())
    calls = unit("corral-calls.service")
    assert example["cgroup"]["root"] == f"{calls['Service']['Slice']}/corral-calls.service"


def test_the_unit_agrees_with_the_daemon() -> None:
    service = unit("agentd.service")["Service"]
    defaults = Config()
    assert service["RestartPreventExitStatus"] == str(EXIT_CONFIG)
    assert f"/run/{service['RuntimeDirectory']}" == str(defaults.daemon.runtime_dir)
    assert f"/var/lib/{service['StateDirectory']}" == str(defaults.daemon.state_dir)
    assert service["Type"] == "notify"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_every_capability_is_explained() -> None:
    text = (FILES / "agentd.service").read_text()
    comments = " ".join(line for line in text.splitlines() if line.startswith("#"))
    for capability in unit("agentd.service")["Service"]["CapabilityBoundingSet"].split():
        assert capability.removeprefix("CAP_") in comments


def test_the_operators_group_is_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", f"--root={tmp_path}", str(FILES / "corral.sysusers.conf"))
    groups = (tmp_path / "etc" / "group").read_text()
    assert groups.startswith(f"{Config().api.operator_group}:")


def test_the_directories_are_made(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving directories to root needs root")
    run("systemd-tmpfiles", f"--root={tmp_path}", "--create", str(FILES / "corral.tmpfiles.conf"))
    assert (tmp_path / "etc" / "corral").stat().st_mode & 0o7777 == 0o755
