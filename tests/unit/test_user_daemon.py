"""``agentd --user``: where it keeps things, what it takes for granted, and how clients find it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentd.config import loads
from agentd.sockets import BROKER, OPERATOR, default_socket
from agentd.userdaemon import NoUserPlaces, UserPlaces, user_defaults, user_places
from corral_client import broker

UID = os.geteuid()
MANAGER = f"user.slice/user-{UID}.slice/user@{UID}.service"
CALLS = f"{MANAGER}/corral.slice/corral-calls.service"


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run"), **more}


def delegated(tmp_path: Path) -> Path:
    mount = tmp_path / "cgroup"
    (mount / CALLS).mkdir(parents=True)
    (mount / CALLS / "cgroup.procs").touch()
    return mount


def places(tmp_path: Path, **more: str) -> UserPlaces:
    return user_places(environment(tmp_path, **more), UID, (delegated(tmp_path),))


def test_everything_lies_in_the_users_own_directories(tmp_path: Path) -> None:
    found = places(tmp_path)
    assert found.config == tmp_path / "home/.config/corral/corral.toml"
    assert found.state == tmp_path / "home/.local/state/corral"
    assert found.runtime == tmp_path / "run/corral"
    assert (found.group, found.problem) == (CALLS, "")


def test_the_variables_of_the_xdg_specification_are_followed(tmp_path: Path) -> None:
    found = places(tmp_path, XDG_CONFIG_HOME="/c", XDG_STATE_HOME="/s")
    assert (found.config, found.state) == (Path("/c/corral/corral.toml"), Path("/s/corral"))
    assert places(tmp_path / "other", XDG_STATE_HOME="relative").state == tmp_path / "other/home/.local/state/corral"


@pytest.mark.parametrize("missing", ["XDG_RUNTIME_DIR", "HOME"])
def test_without_a_place_it_says_which_variable_is_missing(tmp_path: Path, missing: str) -> None:
    given = environment(tmp_path)
    del given[missing]
    with pytest.raises(NoUserPlaces, match=missing):
        user_places(given, UID, (delegated(tmp_path),))


def test_without_a_manager_it_names_the_remedy(tmp_path: Path) -> None:
    found = user_places(environment(tmp_path), UID, (tmp_path,))
    assert found.group is None
    assert f"loginctl enable-linger {UID}" in found.problem


def test_without_the_unit_of_the_calls_it_names_the_unit(tmp_path: Path) -> None:
    (tmp_path / "cgroup" / MANAGER).mkdir(parents=True)
    found = user_places(environment(tmp_path), UID, (tmp_path / "cgroup",))
    assert found.group is None
    assert "systemctl --user start corral-calls" in found.problem


def test_the_defaults_make_a_configuration(tmp_path: Path) -> None:
    config = loads("", overrides=user_defaults(places(tmp_path), ""))
    assert config.broker_socket == tmp_path / "run/corral/broker.sock"
    assert config.ledger_path == tmp_path / "home/.local/state/corral/ledger.db"
    assert config.cgroup.root == CALLS
    assert not config.bpf.enabled
    assert (config.api.operator_group, config.api.operator_mode) == ("", 0o600)
    assert config.daemon.mode == "auto"


def test_without_a_group_it_only_observes(tmp_path: Path) -> None:
    found = user_places(environment(tmp_path), UID, (tmp_path,))
    assert loads("", overrides=user_defaults(found, "")).daemon.mode == "observe"


def test_the_file_wins(tmp_path: Path) -> None:
    text = '[daemon]\nstate_dir = "/mine"\n[bpf]\nenabled = true\n'
    config = loads(text, overrides=user_defaults(places(tmp_path), text))
    assert (config.daemon.state_dir, config.bpf.enabled) == (Path("/mine"), True)
    assert config.daemon.runtime_dir == tmp_path / "run/corral"


def test_a_damaged_file_is_for_the_loader_to_report(tmp_path: Path) -> None:
    assert user_defaults(places(tmp_path), "[daemon\n")["daemon.instance"] == "corral-user"


def test_clients_find_the_users_own_daemon_and_else_the_hosts(tmp_path: Path) -> None:
    given = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert default_socket(BROKER, given) == "/run/corral/broker.sock"
    (tmp_path / "corral").mkdir()
    (tmp_path / "corral" / BROKER).touch()
    assert default_socket(BROKER, given) == f"{tmp_path}/corral/broker.sock"
    assert default_socket(OPERATOR, given) == "/run/corral/operator.sock"
    assert default_socket(BROKER, {}) == "/run/corral/broker.sock"
    assert default_socket(BROKER, {"XDG_RUNTIME_DIR": "relative"}) == "/run/corral/broker.sock"


def test_a_daemon_of_another_user_is_nobodys_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`su` keeps XDG_RUNTIME_DIR: root would speak to a daemon of whoever it was before."""
    given = {"XDG_RUNTIME_DIR": str(tmp_path)}
    (tmp_path / "corral").mkdir()
    (tmp_path / "corral" / BROKER).touch()
    assert broker.default_socket(BROKER, given) == f"{tmp_path}/corral/broker.sock"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert default_socket(BROKER, given) == "/run/corral/broker.sock"
    assert broker.default_socket(BROKER, given) == "/run/corral/broker.sock"
