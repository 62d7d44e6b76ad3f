"""Lines about limits of this host that many calls at once would meet, and the state directory."""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path
from typing import Final

from agentd.doctor.attempt import Absent, tried
from bpf import Feature

_WATCHES_EACH: Final = 3  # inotify watches of a call, at most
_FILES_EACH: Final = 3  # descriptors of a call: its launcher's connection, its pidfd, and on v1 an eventfd
_CALLS_WANTED: Final = 1000  # at once, before a limit counts as too low
_FREE_WANTED: Final = 64 << 20  # bytes


def lines(state_dir: Path) -> list[Feature]:
    return [
        tried(
            "inotify watches",
            _watches,
            "more calls at once than that are not told when they empty: their ends come late",
            f"sysctl -w fs.inotify.max_user_watches={_CALLS_WANTED * _WATCHES_EACH * 20}",
        ),
        tried(
            "open files",
            _files,
            "more calls at once than that are refused",
            "LimitNOFILE=65536 in agentd.service, or ulimit -Hn 65536",
        ),
        tried(
            "state directory",
            lambda: _state(state_dir),
            "the ledger cannot be written: history is kept in memory, and lost when agentd stops",
            "make it a directory of agentd's user on a disk with room, or set daemon.state_dir",
        ),
    ]


def _watches() -> str:
    watches = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text(encoding="ascii"))
    return _enough(f"{watches} watches", watches // _WATCHES_EACH)


def _files() -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return "no limit"
    return _enough(f"{hard} descriptors (hard limit)", hard // _FILES_EACH)


def _enough(what: str, calls: int) -> str:
    text = f"{what}: some {calls} calls at once"
    if calls < _CALLS_WANTED:
        raise Absent(text)
    return text


def _state(directory: Path) -> str:
    """Written to where it is there; else whether it could be made."""
    nearest = directory
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    with tempfile.TemporaryFile(dir=nearest) as file:  # without a name: nothing to leave behind
        file.write(b"x")
        file.flush()
    room = os.statvfs(nearest)
    free = room.f_bavail * room.f_frsize
    text = f"{directory}, {free >> 20} MiB free" + ("" if nearest == directory else f" (to be made in {nearest})")
    if free < _FREE_WANTED:
        raise Absent(text)
    return text
