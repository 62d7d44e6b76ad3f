"""Files that one event leaves for a later one, in a directory of the user's own.

    outcome-USE    what corral-exec told of the command with that tool_use_id; read once, then removed
    last-SESSION   the last of them, for ``explain_last_call`` of the MCP server
    intent-SESSION what the agent declared for its next command; taken by the first command that it fits

The directory is ``corral-hook`` in XDG_RUNTIME_DIR, else /tmp/corral-hook-UID. It must be ours and ours alone: in /tmp
anybody may make a directory of that name, or a link.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Mapping
from typing import Any, Final

MAX_AGE: Final = 86_400.0  # seconds after which a file that nobody fetched is removed
INTENT_AGE: Final = 900.0  # seconds for which a declared intent waits for its command
MAX_BYTES: Final = 65_536
_SWEPT_MOST: Final = 200  # entries looked at in one sweep


class StateError(Exception):
    """Names the path, the cause and the remedy."""


class State:
    def __init__(self, directory: str) -> None:
        self.directory = directory

    @classmethod
    def open(cls, environment: Mapping[str, str] = os.environ) -> State:
        """Makes the directory where it is missing. Raises StateError where it is not safe."""
        runtime = environment.get("XDG_RUNTIME_DIR", "")
        if runtime and os.path.isdir(runtime) and os.access(runtime, os.W_OK):  # noqa: PTH112 - no pathlib: see main.py
            path = f"{runtime}/corral-hook"
        else:
            path = f"/tmp/corral-hook-{os.getuid()}"  # noqa: S108 - checked below
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)  # noqa: PTH102
            status = os.lstat(path)
        except OSError as err:
            raise StateError(f"{path}: {err.strerror}; set XDG_RUNTIME_DIR to a directory of yours") from None
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise StateError(
                f"{path} is not a directory of this user alone; remove it, or set XDG_RUNTIME_DIR to one that is"
            )
        return cls(path)

    def outcome_path(self, use_id: str) -> str:
        """Where the outcome of a command is to be written; "" where ``use_id`` cannot name a file."""
        return f"{self.directory}/outcome-{use_id}" if _is_plain(use_id) else ""

    def take_outcome(self, use_id: str) -> dict[str, Any] | None:
        path = self.outcome_path(use_id)
        return self._take(path) if path else None

    def keep_last(self, session: str, outcome: dict[str, Any]) -> None:
        self._write(f"last-{_session(session)}", outcome)

    def last(self, session: str) -> dict[str, Any] | None:
        return self._read(f"{self.directory}/last-{_session(session)}")

    def declare(self, session: str, intent: dict[str, Any]) -> None:
        """Replaces what was declared before and has not been taken."""
        self._write(f"intent-{_session(session)}", {**intent, "at": time.time()})

    def take_intent(self, session: str, call_class: str, tool: str) -> dict[str, Any] | None:
        """What was declared for the next command, if this is one that it is meant for."""
        path = f"{self.directory}/intent-{_session(session)}"
        declared = self._read(path)
        if declared is None:
            return None
        at = declared.get("at")
        if not isinstance(at, (int, float)) or time.time() - at > INTENT_AGE:
            self._remove(path)
            return None
        if (declared.get("call_class") or call_class) != call_class or (declared.get("tool") or tool) != tool:
            return None
        # of two commands that begin at once, one gets it
        return declared if self._remove(path) else None

    def sweep(self) -> None:
        """Removes what nobody fetched: commands that were cancelled, agents that ended."""
        before = time.time() - MAX_AGE
        with os.scandir(self.directory) as entries:
            for _, entry in zip(range(_SWEPT_MOST), entries, strict=False):
                if entry.stat(follow_symlinks=False).st_mtime < before:
                    self._remove(entry.path)

    # --- files

    def _take(self, path: str) -> dict[str, Any] | None:
        found = self._read(path)
        self._remove(path)
        return found

    @staticmethod
    def _read(path: str) -> dict[str, Any] | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        with open(descriptor, "rb") as file:
            data = file.read(MAX_BYTES)
        try:
            found = json.loads(data.decode("utf-8", "replace"))
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _write(self, name: str, content: dict[str, Any]) -> None:
        """Whole or not at all, for a reader at the same time."""
        path = f"{self.directory}/{name}"
        temporary = f"{path}.{os.getpid()}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(json.dumps(content).encode())
            os.replace(temporary, path)  # noqa: PTH105
        except OSError as err:
            raise StateError(f"{path}: {err.strerror}; free some space, or set XDG_RUNTIME_DIR") from None

    @staticmethod
    def _remove(path: str) -> bool:
        try:
            os.unlink(path)  # noqa: PTH108
        except OSError:
            return False
        return True


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= 128 and name.isascii() and name.replace("-", "").replace("_", "").isalnum()


def _session(session: str) -> str:
    return session if _is_plain(session) else "default"
