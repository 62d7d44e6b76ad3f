"""The demo as a user without rights: observe-only, and all of its checks hold."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from agentd.embedded import REPOSITORY
from tests.host.badhosts_support import NOBODY, ran
from tests.support.daemons import missing_for_daemon
from tests.support.reach import skip_unless_others_can_reach_us

pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(missing_for_daemon()), reason=missing_for_daemon() or "-")]

RIGHTS = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
SAME_VERSION = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"


def interpreter(directory: Path) -> Path:
    """One with our packages that everybody can execute: that of the tests may lie below root's home."""
    system = Path("/usr/bin/python3")
    if subprocess.run([system, "-c", SAME_VERSION], check=False).returncode:
        pytest.skip(
            f"{system} is no Python {sys.version_info.major}.{sys.version_info.minor}, as the packages here want"
        )
    subprocess.run([system, "-m", "venv", "--without-pip", directory], check=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / "corral-tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n{REPOSITORY}\n")
    return directory / "bin/python"


@pytest.mark.timeout(180)
async def test_the_demo_without_root(short_tmp: Path) -> None:
    skip_unless_others_can_reach_us(python="/usr/bin/python3")
    python = interpreter(short_tmp / "venv")
    home = short_tmp / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    environment = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": ""}
    program = (python, "-m", "agentd.demo.main", "--lines")
    ended = await ran(*RIGHTS, *program, environment=environment, cwd=home)
    assert ended.code == 0, ended.out[-4000:] + ended.err[-4000:]
    assert "Traceback" not in ended.err
    assert f"not writable for uid {NOBODY}" in ended.out + ended.err
    assert "checks held (observe-only)" in ended.out
    assert "✓ an intent with a limit is refused, not ignored" in ended.out
    assert "✓ no leaf and no process is left" in ended.out
    assert not list(home.glob("corral-demo-*"))
