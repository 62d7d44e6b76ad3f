"""A daemon of one's own: its configuration, and what is said when it does not start. (Real ones: tests/host.)"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agentd.embedded import EmbeddedDaemon, EmbeddedError, StartFailed, Table, cgroup_mounts, processes_with, to_toml


def test_toml_reads_back_as_it_was() -> None:
    table: Table = {
        "daemon": {"state_dir": '/tmp/a "quoted"\\path\n', "mode": "auto"},
        "tenants": {"acme": {"uids": [1, 2], "memory_max": "1G", "nested": {"share": 0.5, "on": True}}, "b": {}},
        "call": {"hold_max": 3},
    }
    assert tomllib.loads(to_toml(table)) == table


def test_settings_override_and_keep_the_rest(tmp_path: Path) -> None:
    daemon = EmbeddedDaemon(
        tmp_path, tenants={"acme": {}}, settings={"daemon": {"mode": "observe"}, "call": {"pids_max": 5}}
    )
    config = tomllib.loads(daemon.config_file.read_text())
    assert config["daemon"] == {
        "state_dir": str(tmp_path / "state"),
        "runtime_dir": str(tmp_path / "run"),
        "mode": "observe",
    }
    assert config["cgroup"]["root"] == daemon.name
    assert config["bpf"]["pin_dir"].endswith(daemon.name)
    assert config["tenants"] == {"acme": {}}


def test_two_daemons_share_nothing(tmp_path: Path) -> None:
    names = set()
    for directory in (tmp_path / "a", tmp_path / "b"):
        names.add(EmbeddedDaemon(directory, tenants={}).name)
    assert len(names) == 2


def script(tmp_path: Path, text: str) -> str:
    """An "interpreter" that does what ``text`` says instead of running the daemon."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


async def test_a_daemon_that_ends_says_why(tmp_path: Path) -> None:
    python = script(
        tmp_path, "import sys\nprint('corral.toml: line 3: cgroup.root: wrong', flush=True)\nsys.exit(78)\n"
    )
    daemon = EmbeddedDaemon(tmp_path / "d", tenants={}, python=python)
    with pytest.raises(StartFailed, match=r"(?s)ended with status 78.*line 3: cgroup\.root: wrong"):
        await daemon.start()
    assert not daemon.running


async def test_a_daemon_that_is_never_ready_is_ended(tmp_path: Path) -> None:
    daemon = EmbeddedDaemon(
        tmp_path / "d",
        tenants={},
        python=script(tmp_path, "import sys\nsys.stdin.read()\nimport signal\nsignal.pause()\n"),
    )
    with pytest.raises(StartFailed, match=r"was not ready within 0\.3 s"):
        await daemon.start(within=0.3)
    assert not daemon.running


READY = """import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for message in (b"STATUS=half way\\n", b"STATUS=up\\nREADY=1\\n"):
    notify.sendto(message, os.environ["NOTIFY_SOCKET"])
if "--purge" not in sys.argv:
    signal.pause()
"""


async def test_start_waits_for_ready_and_stop_ends(tmp_path: Path) -> None:
    daemon = EmbeddedDaemon(tmp_path / "d", tenants={}, python=script(tmp_path, READY))
    await daemon.start()
    try:
        assert daemon.running
        with pytest.raises(EmbeddedError, match="runs already"):
            await daemon.start()
    finally:
        assert await daemon.stop() == 0
    await daemon.start()  # again, after a stop
    assert await daemon.kill() == -9
    assert not daemon.running


def test_mounts_are_real_cgroup_hierarchies() -> None:
    mounts = cgroup_mounts()
    assert all((mount / "cgroup.procs").exists() for mount in mounts)


def test_processes_are_found_by_their_environment() -> None:
    mark = f"CORRAL_TEST_MARK={os.getpid()}"
    name, value = mark.split("=")
    sleeper = [sys.executable, "-c", "print('up', flush=True); input()"]
    with subprocess.Popen(
        sleeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, name: value}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert [pid for pid, _ in processes_with(mark)] == [process.pid]
        assert processes_with(mark + "0") == []
        process.communicate(b"\n")
    assert processes_with(mark) == []
