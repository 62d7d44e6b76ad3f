"""A process that a caller names by its number: whose it is, and that it is still the same one.

gRPC cannot see who is at the other end of a socket, so AttachProcess takes a pid. It moves only processes of the
session's own user, else an agent could put another user's process into its own call and have it frozen or killed.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controller.model import NotAllowed, NotFound


@contextmanager
def same_process(pid: int, *, uid: int | None) -> Iterator[None]:
    """Around moving ``pid``: it exists, all its user ids are ``uid`` (None: anyone's), and it lived until the end.

    A pid is reused only after its process has ended, and that this one has not is checked after the move: so nothing
    else was moved in its place. Raises NotFound or NotAllowed.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as err:
        if err.errno in (errno.ESRCH, errno.EINVAL):  # EINVAL: the number of a thread
            raise _gone(pid) from None
        raise
    try:
        if pid == os.getpid():
            raise NotAllowed("this is the daemon itself", field="pid", value=str(pid), remedy="give the tool's process")
        if uid is not None and (owners := _uids(pid)) != {uid}:
            raise NotAllowed(
                f"runs as uid {', '.join(map(str, sorted(owners)))}, and the session is of uid {uid}",
                field="pid",
                value=str(pid),
                remedy="attach a process of the session's own user",
            )
        if _ended(descriptor):  # then what _uids read may have been another process's
            raise _gone(pid)
        yield
        if _ended(descriptor):
            raise _gone(pid)
    finally:
        os.close(descriptor)


def _uids(pid: int) -> set[int]:
    """Real, effective, saved and file system uid."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None
    line = next(line for line in status.splitlines() if line.startswith("Uid:"))
    return {int(word) for word in line.split()[1:]}


def _ended(descriptor: int) -> bool:
    """A pidfd is readable once its process has ended."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


def _gone(pid: int) -> NotFound:
    return NotFound(
        "no such process (it may have ended)",
        field="pid",
        value=str(pid),
        remedy="attach a running process, by its number in the host's pid namespace; its launcher may use corral-exec",
    )
