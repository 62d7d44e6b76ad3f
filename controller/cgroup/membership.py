"""Moving processes between groups, in every hierarchy or in none."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
from typing import Final

from controller.cgroup import core, files
from controller.cgroup.errors import CgroupFileError, KernelRefused, NoSuchGroup, NoSuchProcess, NotPermitted, from_os
from controller.cgroup.layout import Layout

_PASSES: Final = 64
_UNIFIED: Final = re.compile(rb"^0::(.*)$", re.MULTILINE)  # no group's name can hold a line feed: cgroup_mkdir


def move(layout: Layout, relative: str, pid: int, pidfd: int | None = None) -> None:
    """Move a process, all of its threads, into the group ``relative``.

    All files are opened before the first write, and v2 comes last: it is what says where a process belongs. When a
    write fails the process is taken back to where it was, as far as the kernel lets us; a note on the error says where
    that was not possible.
    """
    mounts = [*layout.eager, *layout.lazy_in_use, layout.v2]
    opened: list[tuple[str, str, int]] = []
    try:
        for mount in mounts:
            path = nearest(layout, mount, relative) if mount in layout.lazy else f"{mount}/{relative}/cgroup.procs"
            opened.append((mount, path, files.open_for_writing(path)))
        # where it is now can only be asked before the first write; what it says is read only when that fails
        before = _read(pid) if len(opened) > 1 or pidfd is not None else b""
        done: list[str] = []
        for mount, path, fd in opened:
            try:
                os.write(fd, b"%d" % pid)
            except OSError as err:
                error = _out_of_reach(err, path, pid) or from_os(err, path, str(pid))
                if err.errno != errno.ESRCH:
                    _take_back(layout, pid, before, done, error)
                raise error from err
            done.append(mount)
        if pidfd is not None and _has_ended(pidfd):
            ended = NoSuchProcess(
                f"{layout.v2}/{relative}/cgroup.procs", "the process ended while it was moved", value=str(pid)
            )
            _take_back(layout, pid, before, done, ended)
            raise ended
    finally:
        for _, _, fd in opened:
            os.close(fd)


def _out_of_reach(err: OSError, path: str, pid: int) -> CgroupFileError | None:
    """Without root the kernel moves a process only where both its groups lie below one that we may write: not out of a
    login session, whose group is root's."""
    if err.errno not in (errno.EACCES, errno.EPERM) or not os.geteuid():
        return None
    with contextlib.suppress(CgroupFileError):
        return NotPermitted(
            path,
            f"process {pid} is in {read_membership(pid).get('', '?')}, which is not delegated to uid {os.geteuid()}",
            number=err.errno,
            value=str(pid),
            remedy="start the agent, or the shell that it is started from, with systemd-run --user --scope -- COMMAND",
        )
    return None


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def nearest(layout: Layout, mount: str, relative: str) -> str:
    """cgroup.procs of the group's twin in a lazily made hierarchy, or of the nearest group above that has one."""
    while len(relative) > len(layout.root) and not files.is_directory(f"{mount}/{relative}"):
        relative = relative.rpartition("/")[0]
    return f"{mount}/{relative}/cgroup.procs"


def fill_twin(layout: Layout, mount: str, relative: str) -> None:
    """Move the processes of a group and of those below it into their nearest twin in ``mount``, which was just made.

    A child forked before its parent was moved shows up in the next pass; one forked after is born in the twin.
    """
    for _ in range(_PASSES):
        if _fill_once(layout, mount, relative, f"{mount}/{relative}") == 0:
            return
    raise KernelRefused(
        f"{mount}/{relative}/cgroup.procs",
        "new processes appear faster than they can be moved",
        remedy="freeze the group or set its pids_max first",
    )


def _fill_once(layout: Layout, mount: str, relative: str, twin: str) -> int:
    deeper = f"{mount}/{relative}"
    if files.is_directory(deeper):
        twin = deeper
    try:
        wanted = set(core.processes(f"{layout.v2}/{relative}")) - set(core.processes(twin))
    except NoSuchGroup:
        return 0  # a group below was removed meanwhile
    moved = 0
    for pid in wanted:
        with contextlib.suppress(NoSuchProcess):
            files.write(f"{twin}/cgroup.procs", str(pid))
            moved += 1
    for name in files.subdirectories(f"{layout.v2}/{relative}"):
        moved += _fill_once(layout, mount, f"{relative}/{name}", twin)
    return moved


def parse_membership(data: bytes) -> dict[str, str]:
    """/proc/PID/cgroup: the path by controller, as the kernel names it; the v2 hierarchy's name is empty."""
    found: dict[str, str] = {}
    for line in data.decode(errors="surrogateescape").splitlines():
        _, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if colon:
            for name in names.split(","):
                found[name] = path
    return found


def read_membership(pid: int) -> dict[str, str]:
    """Where a process is. Raises NoSuchProcess."""
    return parse_membership(_read(pid))


def unified_path(pid: int) -> str:
    """Where a process is in the v2 hierarchy alone, as the kernel names it; empty where there is none. On the path of a
    call. Raises NoSuchProcess."""
    found = _UNIFIED.search(_read(pid))
    return found[1].decode(errors="surrogateescape") if found is not None else ""


def _read(pid: int) -> bytes:
    path = f"/proc/{pid}/cgroup"
    try:
        return files.read(path)
    except CgroupFileError as err:
        if err.errno in (errno.ENOENT, errno.ESRCH):
            raise NoSuchProcess(path, "no such process", number=errno.ESRCH, remedy="it has ended") from err
        raise


def home(layout: Layout, mount: str, membership: dict[str, str]) -> str | None:
    """cgroup.procs, below ``mount``, of the group that a membership names; None when the mount does not show it."""
    name, shown = layout.kernel_names[mount]
    path = membership.get(name)
    if path is None:
        return None
    if shown != "/":
        if path != shown and not path.startswith(f"{shown}/"):
            return None
        path = path[len(shown) :]
    return f"{mount}{path.rstrip('/')}/cgroup.procs"


def _take_back(layout: Layout, pid: int, before: bytes, mounts: list[str], error: CgroupFileError) -> None:
    membership = parse_membership(before)
    for mount in mounts:
        target = home(layout, mount, membership)
        if target is None:
            error.add_note(f"process {pid} stays where it is in {mount}: where it was before cannot be reached")
            continue
        try:
            files.write(target, str(pid))
        except NoSuchProcess:
            return
        except CgroupFileError as err:
            error.add_note(f"process {pid} could not be taken back: {err}")
