"""The Debian package: installed, upgraded under a running call, removed, purged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.service_tools import RELEASE, ROOT, calls, configure, live_call, main_pid, run, systemctl, with_changes

REPOSITORY = Path(__file__).parents[2]


def built(release: Path) -> Path:
    """The package of a release."""
    return REPOSITORY / run(REPOSITORY / "scripts" / "build-deb", release).splitlines()[-1]


@pytest.fixture
def package() -> Iterator[Path]:
    if not RELEASE.exists():
        pytest.skip("no release was brought into the guest: scripts/lab test does that")
    yield built(RELEASE)
    run("dpkg", "--purge", "corral", status=None)


def test_installed_upgraded_removed_and_purged(package: Path, tmp_path: Path) -> None:
    run("dpkg", "--install", package)
    assert systemctl("is-active", "agentd", "corral-calls").split() == ["active", "active"]
    assert Path("/usr/bin/corral-exec").resolve().name == "corral-exec"
    configure("")
    systemctl("restart", "agentd")

    newer = built(with_changes(RELEASE, "9.9.9", tmp_path, lambda env: (env / "marker").write_text("new")))
    Path("/usr/local/bin/corral-exec").symlink_to("/usr/bin/corral-exec")  # where the tests' tools look
    Path("/usr/local/bin/corral").symlink_to("/usr/bin/corral")
    try:
        with live_call() as call:
            before = main_pid()
            run("dpkg", "--force-confold", "--install", newer)
            assert main_pid() != before
            assert Path("/opt/corral/current/marker").read_text() == "new"
            assert [path.name for path in Path("/opt/corral/versions").iterdir()] == ["9.9.9"]
            assert [c["id"] for c in calls()] == [call.id]
            assert call.alive()

            run("dpkg", "--remove", "corral")
            call.process.wait(timeout=60)
            assert not call.alive()
    finally:
        for name in ("corral", "corral-exec"):
            Path("/usr/local/bin", name).unlink()
    assert not ROOT.exists()
    assert not Path("/sys/fs/bpf/corral").exists()
    assert Path("/etc/corral/corral.toml").exists()  # until it is purged
    assert Path("/var/lib/corral/ledger.db").exists()
    run("dpkg", "--purge", "corral")
    for path in ("/opt/corral", "/etc/corral", "/var/lib/corral", "/run/corral", "/lib/systemd/system/agentd.service"):
        assert not Path(path).exists(), path
