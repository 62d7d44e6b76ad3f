"""For the tests of Corral as a service: systemctl, the installed commands, and calls that wait until they are told."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

RELEASE: Final = Path("/payload/release.tar.gz")
CONFIG: Final = Path("/etc/corral/corral.toml")
VERSIONS: Final = Path("/opt/corral/versions")
ROOT: Final = Path("/sys/fs/cgroup/corral.slice/corral-calls.service")
WITHIN: Final = 60.0  # seconds; the guest is emulated
T = TypeVar("T")


def run(*command: str | Path, status: int | None = 0, env: dict[str, str] | None = None, user: str = "") -> str:
    """Output of both kinds. Fails the test where it ends with another status (None: any will do)."""
    words = [str(word) for word in command]
    if user:
        words = ["setpriv", f"--reuid={user}", "--init-groups", "--regid", user, *words]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=env,
        timeout=4 * WITHIN,
    )
    if status is not None and done.returncode != status:
        pytest.fail(f"{' '.join(words)}: status {done.returncode}, not {status}:\n{done.stdout}\n{journal()}")
    return done.stdout


def systemctl(*words: str, status: int | None = 0) -> str:
    return run("systemctl", *words, status=status)


def show(unit: str, name: str) -> str:
    """One property of a unit."""
    return systemctl("show", unit, "--property", name, "--value").strip()


def main_pid() -> int:
    return int(show("agentd.service", "MainPID"))


def journal(unit: str = "agentd.service", lines: int = 25) -> str:
    done = subprocess.run(
        ["journalctl", "-u", unit, "-n", str(lines), "-o", "cat", "--no-pager"],
        capture_output=True,
        text=True,
        check=False,
        timeout=WITHIN,
    )
    return done.stdout


def corral(*words: str, user: str = "", status: int | None = 0, env: dict[str, str] | None = None) -> str:
    return run("/usr/local/bin/corral", *words, user=user, status=status, env=env)


def asked(*words: str) -> Any:
    """The JSON that a command of the CLI prints."""
    return json.loads(corral(*words, "--json"))


def calls() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = asked("ps")["calls"]
    return found


def soon(what: str, value: Callable[[], T | None], within: float = WITHIN) -> T:
    """For what nobody tells us of: asks until the answer is true."""
    deadline = time.monotonic() + within
    while not (found := value()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within:g} s: {what}\n{journal()}")
        time.sleep(0.2)
    return found


def configure(text: str) -> None:
    """What every test of the service runs with, and ``text`` after it."""
    CONFIG.write_text(
        f'[daemon]\nmode = "enforce"\n[cgroup]\nroot = "{ROOT.relative_to("/sys/fs/cgroup")}"\n'
        f'[tenants.lab]\nuids = [0]\nmemory_max = "1G"\n{text}'
    )


class Call:
    """A tool that says "up", waits for a line, and ends with status 7."""

    def __init__(self) -> None:
        opened = asked("session", "open", "--tenant", "lab", "--name", "service")
        self.session: str = opened["session"]
        self.process = subprocess.Popen(
            ["/usr/local/bin/corral-exec", "--", "/bin/sh", "-c", "echo up $$; read line; exit 7"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "CORRAL_SESSION": self.session, "CORRAL_TOKEN": opened["token"]},
        )
        assert self.process.stdout is not None
        word, _, pid = self.process.stdout.readline().partition(" ")
        assert word == "up", journal()
        self.pid = int(pid)
        self.id: str = next(call["id"] for call in calls() if call["session_id"] == self.session)

    @property
    def group(self) -> str:
        """Of its process, in the v2 hierarchy."""
        return Path(f"/proc/{self.pid}/cgroup").read_text().strip().removeprefix("0::")

    def alive(self) -> bool:
        return Path(f"/proc/{self.pid}").exists() and self.process.poll() is None

    def end(self) -> int:
        """Let it end by itself; the launcher's status."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        return self.process.wait(timeout=WITHIN)

    def recorded(self) -> dict[str, Any]:
        """What the ledger has, once it has the end."""

        def found() -> dict[str, Any] | None:
            for call in asked("history", "--since", "1h")["calls"]:
                if call["id"] == self.id and call["outcome"] is not None:
                    kept: dict[str, Any] = call
                    return kept
            return None

        return soon(f"the end of {self.id} in the ledger", found)


@contextlib.contextmanager
def live_call() -> Iterator[Call]:
    call = Call()
    try:
        yield call
    finally:
        call.process.kill()
        call.process.communicate()


def with_changes(release: Path, version: str, into: Path, change: Callable[[Path], object]) -> Path:
    """A release of another version: unpacked, ``change`` applied to its environment, packed again."""
    tree = into / version
    tree.mkdir(parents=True)
    subprocess.run(["tar", "-C", str(tree), "-xf", str(release)], check=True)
    old = (tree / "VERSION").read_text().strip()
    (tree / "VERSION").write_text(f"{version}\n")
    for script in (tree / "version" / "bin").iterdir():
        if not script.is_symlink():
            script.write_text(script.read_text().replace(f"/versions/{old}/", f"/versions/{version}/"))
    change(tree / "version")
    archive = into / f"{version}.tar"
    subprocess.run(["tar", "-C", str(tree), "-cf", str(archive), "."], check=True)
    return archive
