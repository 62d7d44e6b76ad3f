"""Before anything starts: the daemon's directories, its limits, and that no other daemon has the same state."""

from __future__ import annotations

import fcntl
import os
import resource
from pathlib import Path
from typing import Final

from agentd.config import Config

_WANTED_FILES: Final = 65_536  # descriptors: each running call holds a connection, a pidfd and on v1 an eventfd
_FILES_A_CALL: Final = 3
_FEW_FILES: Final = 16_384  # below it is said: hosts are packed with hundreds of agents


class CannotStart(Exception):
    """The daemon's own directories cannot be had. Names the key, the path, the cause and the remedy."""


def make_directories(config: Config) -> None:
    """State is the daemon's alone; the sockets' directory can be entered by all. Raises CannotStart."""
    for key, directory, mode in (
        ("state_dir", config.daemon.state_dir, 0o700),
        ("runtime_dir", config.daemon.runtime_dir, 0o755),
    ):
        try:
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as err:
            raise CannotStart(
                f"daemon.{key} {directory} cannot be made: {err.filename}: {err.strerror}; make it for user "
                f"{os.geteuid()}, or set daemon.{key} to a directory that this user may write"
            ) from err


def lock_state(directory: Path) -> int:
    """A descriptor that holds the state directory: a second daemon would end this one's calls in the ledger, as lost.
    Raises CannotStart."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            # not the directory itself, which other users may be able to open, and so to lock
            descriptor = os.open(directory / "agentd.lock", flags | os.O_CREAT, 0o600)
        except OSError:  # a full or read-only disk
            descriptor = os.open(directory, flags | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise CannotStart(
                f"daemon.state_dir {directory}: another daemon keeps its ledger there; stop it (systemctl stop "
                "agentd), or set a daemon.state_dir for this one"
            ) from None
    except OSError as err:
        raise CannotStart(
            f"daemon.state_dir {directory}: {err.strerror}; make it a directory of user {os.geteuid()}"
        ) from err
    return descriptor


def pressure_problems() -> list[str]:
    """What is said where the kernel reports no pressure; empty where it does."""
    try:
        Path("/proc/pressure/memory").read_bytes()
    except OSError as err:
        return [
            f"no pressure readings (PSI): {err.filename}: {err.strerror}; boot with psi=1 on a kernel with CONFIG_PSI "
            "(what calls wait for is not seen)"
        ]
    return []


def raise_file_limit() -> list[str]:
    """As far as this user may. What is said where that is not far; empty otherwise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted >= _FEW_FILES:
        return []
    return [
        f"only {wanted:,} open files are allowed, enough for some {wanted // _FILES_A_CALL:,} calls at once; "
        f"set LimitNOFILE={_WANTED_FILES} in the unit, or ulimit -n"
    ]
