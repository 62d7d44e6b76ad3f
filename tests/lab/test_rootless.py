"""``agentd --user``: a user without root, whose manager lingers, runs a daemon of his own and limits his calls."""

from __future__ import annotations

import json
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.lab.service_tools import RELEASE, WITHIN, run, soon

NAME: Final = "corral-dev"
REPOSITORY: Final = Path(__file__).parents[2]
OUTSIDE: Final = 125  # corral-exec: the call could not be begun


class User:
    """Commands as that user, with the environment of a login."""

    def __init__(self) -> None:
        account = pwd.getpwnam(NAME)
        self.uid = account.pw_uid
        self.runtime = Path(f"/run/user/{self.uid}")
        self.calls = Path(
            f"/sys/fs/cgroup/user.slice/user-{self.uid}.slice/user@{self.uid}.service/corral.slice/corral-calls.service"
        )
        self.environment = {
            "HOME": account.pw_dir,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "XDG_RUNTIME_DIR": str(self.runtime),
            "LANG": "C.UTF-8",
        }

    def words(self, *words: str) -> list[str]:
        return ["setpriv", f"--reuid={NAME}", f"--regid={NAME}", "--init-groups", *words]

    def run(self, *words: str, status: int | None = 0) -> str:
        return run(*self.words(*words), status=status, env=self.environment)

    def systemctl(self, *words: str, status: int | None = 0) -> str:
        return self.run("systemctl", "--user", *words, status=status)

    def asked(self, *words: str, status: int | None = 0) -> Any:
        """The JSON that a command of the CLI prints to stdout."""
        done = subprocess.run(
            self.words("corral", *words, "--json"),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=WITHIN * 2,
        )
        assert status is None or done.returncode == status, done.stdout + done.stderr
        return json.loads(done.stdout)

    def inside(self, *words: str) -> list[str]:
        """A command as one that was started in the user's manager, as desktops start programs."""
        return self.words("systemd-run", "--user", "--scope", "--quiet", "--collect", "--", *words)

    def ended(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.asked("history", "--since", "1h")["calls"]
        return [call for call in found if call["outcome"] is not None]


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    if not RELEASE.exists():
        pytest.skip("no release was brought into the guest: scripts/lab test does that")
    run(REPOSITORY / "scripts" / "install", "--no-start", RELEASE)
    run("useradd", "--create-home", NAME)
    made = User()
    try:
        run("loginctl", "enable-linger", NAME)
        soon("the user's manager", (made.runtime / "systemd" / "private").exists)
        yield made
    finally:
        run("loginctl", "disable-linger", NAME, status=None)
        run("systemctl", "stop", f"user@{made.uid}.service", status=None)
        run("userdel", "--remove", NAME, status=None)
        run("/opt/corral/uninstall", "--purge", status=None)


@pytest.fixture
def daemon(user: User) -> Iterator[User]:
    user.systemctl("start", "agentd")
    yield user
    user.systemctl("stop", "corral-calls", "agentd")


def test_doctor_says_what_is_missing_before_anything_runs(user: User) -> None:
    lines = {line["name"]: line for line in user.asked("doctor", status=None)["features"]}
    assert lines["user service"]["found"] is False
    assert "corral-calls.service does not run" in lines["user service"]["detail"]
    assert "systemctl --user start corral-calls" in lines["user service"]["remedy"]


def test_started_it_enforces_and_is_found(daemon: User) -> None:
    assert daemon.systemctl("is-active", "agentd", "corral-calls").split() == ["active", "active"]
    doctor = daemon.asked("doctor", status=None)
    assert doctor["source"] == f"agentd at unix:{daemon.runtime}/corral/operator.sock"
    assert doctor["essential_missing"] == []
    lines = {line["name"]: line for line in doctor["features"]}
    for name in ("cgroup", "user service", "memory controller", "pids controller", "cpu controller", "cgroup.freeze"):
        assert lines[name]["found"] is True, lines[name]
    assert lines["cgroup attributes"]["detail"] == "user.corral"
    assert lines["io controller"]["found"] is False  # systemd hands it to no user
    assert any("eBPF is switched off" in line["detail"] for line in doctor["features"])
    assert (daemon.runtime / "corral").stat().st_uid == daemon.uid
    assert oct((daemon.runtime / "corral/operator.sock").stat().st_mode)[-3:] == "600"


def test_a_call_has_a_leaf_of_its_own_and_its_limit_holds(daemon: User) -> None:
    said = run(*daemon.inside("corral-exec", "--", "cat", "/proc/self/cgroup"), env=daemon.environment)
    assert said.strip().startswith(f"0::{str(daemon.calls).removeprefix('/sys/fs/cgroup')}/t-")
    hungry = ("corral-exec", "--memory", ":48M", "--tool", "hungry", "--", "python3", "-c", "x = bytearray(200 << 20)")
    said = run(*daemon.inside(*hungry), status=None, env=daemon.environment)
    assert "reached its memory limit of 96 MiB" in said
    [call] = [call for call in daemon.ended() if call["intent"]["tool"] == "hungry"]
    assert call["outcome"]["reason"] == "oom_call"


def test_a_call_is_frozen_thawed_outlives_the_daemon_and_is_killed(daemon: User) -> None:
    command = daemon.inside("corral-exec", "--", "sh", "-c", "echo up $$; read line; exit 7")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=daemon.environment
    ) as process:
        try:
            assert process.stdout is not None
            word, _, pid = process.stdout.readline().partition(" ")
            assert word == "up"
            [call] = daemon.asked("ps")["calls"]
            leaf = Path("/sys/fs/cgroup" + Path(f"/proc/{int(pid)}/cgroup").read_text().strip().removeprefix("0::"))

            def frozen() -> bool:
                return "frozen 1" in (leaf / "cgroup.events").read_text()

            daemon.run("corral", "freeze", call["id"])
            soon("the call is frozen", frozen)
            daemon.run("corral", "thaw", call["id"])
            soon("the call is thawed", lambda: not frozen())
            daemon.systemctl("restart", "agentd")
            assert [c["id"] for c in daemon.asked("ps")["calls"]] == [call["id"]]
            daemon.run("corral", "kill", call["id"])
            assert process.wait(timeout=WITHIN) != 7
        finally:
            process.kill()
    reasons = {c["id"]: c["outcome"]["reason"] for c in daemon.ended()}
    assert reasons[call["id"]] == "operator_killed"


def test_from_outside_the_users_manager_a_call_is_refused_with_a_remedy(daemon: User) -> None:
    """As from a login over ssh: the group of a session is root's, and the kernel lets nobody else move out of it."""
    said = daemon.run("corral-exec", "--", "true", status=OUTSIDE)
    assert f"is not delegated to uid {daemon.uid}" in said
    assert "systemd-run --user --scope" in said


def test_stopping_the_calls_ends_everything(user: User) -> None:
    user.systemctl("start", "agentd")
    with subprocess.Popen(
        user.inside("corral-exec", "--", "sh", "-c", "echo up; sleep 600"),
        stdout=subprocess.PIPE,
        text=True,
        env=user.environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        user.systemctl("stop", "corral-calls")
        assert process.wait(timeout=WITHIN) != 0
    assert user.systemctl("is-active", "agentd", status=None).strip() != "active"
    assert not user.calls.exists()


def test_without_the_unit_it_observes_and_says_so(user: User) -> None:
    done = subprocess.Popen(
        user.words("/opt/corral/bin/agentd", "--user"), stderr=subprocess.PIPE, text=True, env=user.environment
    )
    try:
        assert done.stderr is not None
        assert done.stderr.readline().startswith("agentd: only observing, no limits: ")
        soon("its socket", (user.runtime / "corral" / "operator.sock").exists)
        assert user.asked("ps")["host"]["mode"] == "observe"
    finally:
        done.terminate()
        done.communicate(timeout=WITHIN)
    assert done.returncode == 0
