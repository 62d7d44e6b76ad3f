"""``agentd --user``: a daemon for one user without root, on the groups that systemd delegates to that user.

Everything lies in the user's own directories: sockets below $XDG_RUNTIME_DIR/corral, the ledger in
$XDG_STATE_HOME/corral, the configuration in $XDG_CONFIG_HOME/corral/corral.toml. The calls live in the group of the
user's corral-calls.service. eBPF takes privilege, so there is none. The configuration file's keys win over all that.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_CALLS: Final = "corral.slice/corral-calls.service"
CGROUP_MOUNTS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


class NoUserPlaces(Exception):
    """This user has no directories for a daemon. Names the variable and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserPlaces:
    config: Path
    runtime: Path
    state: Path
    group: str | None  # of corral-calls.service, below the v2 mount; None: not there, so nothing can be limited
    problem: str = ""  # why ``group`` is None, and the remedy


def user_places(environment: Mapping[str, str], uid: int, mounts: tuple[Path, ...] = CGROUP_MOUNTS) -> UserPlaces:
    """Where the daemon of ``uid`` keeps things. Raises NoUserPlaces."""
    runtime = _directory(environment, "XDG_RUNTIME_DIR")
    if runtime is None:
        raise NoUserPlaces(
            "XDG_RUNTIME_DIR is not set, so there is no place for the sockets; start it with `systemctl --user start "
            f"agentd` in a login session, or set XDG_RUNTIME_DIR=/run/user/{uid} where that exists"
        )
    home = _directory(environment, "HOME")
    config, state = _directory(environment, "XDG_CONFIG_HOME"), _directory(environment, "XDG_STATE_HOME")
    if home is None and (config is None or state is None):
        raise NoUserPlaces("HOME is not set, so there is no place for the ledger; set HOME or XDG_STATE_HOME")
    group, problem = _delegated(uid, mounts)
    return UserPlaces(
        config=(config or _below(home, ".config")) / "corral" / "corral.toml",
        runtime=runtime / "corral",
        state=(state or _below(home, ".local/state")) / "corral",
        group=group,
        problem=problem,
    )


def user_defaults(places: UserPlaces, text: str) -> dict[str, object]:
    """Dotted keys and values for what the configuration ``text`` leaves open. A text that cannot be parsed leaves all
    open: loading it will say what is wrong with it."""
    defaults: dict[str, object] = {
        "daemon.runtime_dir": str(places.runtime),
        "daemon.state_dir": str(places.state),
        "daemon.instance": "corral-user",
        "api.operator_group": "",
        "api.operator_mode": 0o600,
        "bpf.enabled": False,
    }
    if places.group is not None:
        defaults["cgroup.root"] = places.group
    else:
        defaults["daemon.mode"] = "observe"
    try:
        said: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return defaults
    return {key: value for key, value in defaults.items() if not _has(said, key.split("."))}


def _delegated(uid: int, mounts: tuple[Path, ...]) -> tuple[str | None, str]:
    """The group of the user's corral-calls.service, as a path below the v2 mount; or None, and why."""
    manager = f"user.slice/user-{uid}.slice/user@{uid}.service"
    remedy = "systemctl --user start corral-calls (docs: Installing, without root)"
    for mount in mounts:
        if not (mount / manager).is_dir():
            continue
        group = mount / manager / _CALLS
        if not (group / "cgroup.procs").exists():
            return None, f"{group} is not there: the user's corral-calls.service does not run; {remedy}"
        if not os.access(group, os.W_OK | os.X_OK):
            return None, f"{group} is not writable for uid {uid}: it is not delegated; {remedy}"
        return f"{manager}/{_CALLS}", ""
    return None, (
        f"no {manager} in the cgroup v2 hierarchy: systemd runs no manager for uid {uid}; log in, or have root run "
        f"loginctl enable-linger {uid}"
    )


def _directory(environment: Mapping[str, str], name: str) -> Path | None:
    """As the XDG specification has it: a relative path counts as not set."""
    path = Path(environment.get(name) or ".")
    return path if path.is_absolute() else None


def _below(home: Path | None, name: str) -> Path:
    assert home is not None  # noqa: S101 - the caller has looked
    return home / name


def _has(said: Any, path: list[str]) -> bool:
    for part in path:
        if not isinstance(said, dict) or part not in said:
            return False
        said = said[part]
    return True
