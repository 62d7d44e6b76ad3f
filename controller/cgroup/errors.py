"""Why the cgroup layer could not do what it was asked: one class per thing that a caller may want to handle.

CgroupError (controller.model)
 ├─ NoUsableCgroups   no cgroup v2, read-only, not permitted: only observing is possible
 ├─ NoSuchGroup       the group is not there, or was removed meanwhile     (ENOENT, ENODEV)
 ├─ GroupExists       made twice                                           (EEXIST)
 ├─ GroupBusy         it still holds processes or groups, or memory that cannot be reclaimed  (EBUSY, ENOTEMPTY)
 ├─ NoSuchProcess     the process ended meanwhile                          (ESRCH)
 ├─ KnobMissing       the kernel or the host offers no such file           (ENOENT, EOPNOTSUPP)
 ├─ ValueRefused      out of range here, or for the kernel                 (EINVAL, ERANGE, EOVERFLOW, E2BIG)
 ├─ NotPermitted      privilege or a read-only mount                       (EPERM, EACCES, EROFS)
 ├─ FormatError       a file's text is not what its documentation says
 └─ KernelRefused     any other errno

Each has ``path`` (the file or directory) and ``errno`` (0 where the kernel was not asked).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from controller.model import CgroupError


class CgroupFileError(CgroupError):
    """A CgroupError about one file or directory. ``errno`` is 0 where the kernel was not asked."""

    def __init__(self, path: str, cause: str, *, number: int = 0, value: str = "", remedy: str = "") -> None:
        self.path = path
        self.errno = number
        written = f" (writing {value[:120]!r})" if value else ""
        super().__init__(f"{path}{written}: {cause}", value=value, remedy=remedy)


class NoUsableCgroups(CgroupFileError):
    pass


class NoSuchGroup(CgroupFileError):
    pass


class GroupExists(CgroupFileError):
    pass


class GroupBusy(CgroupFileError):
    pass


class NoSuchProcess(CgroupFileError):
    pass


class KnobMissing(CgroupFileError):
    pass


class ValueRefused(CgroupFileError):
    pass


class NotPermitted(CgroupFileError):
    pass


class FormatError(CgroupFileError):
    pass


class KernelRefused(CgroupFileError):
    pass


_BY_ERRNO: dict[int, tuple[type[CgroupFileError], str]] = {
    errno.ENODEV: (NoSuchGroup, "the group was removed meanwhile; look it up again"),
    errno.EEXIST: (GroupExists, "use the group that is there, or remove it first"),
    errno.EBUSY: (
        GroupBusy,
        "end or move its processes and remove its child groups first; a memory limit below what is "
        "in use and cannot be reclaimed is also answered so",
    ),
    errno.ENOTEMPTY: (GroupBusy, "remove its child groups first"),
    errno.ESRCH: (NoSuchProcess, "the process has ended; nothing is left to do for it"),
    errno.EOPNOTSUPP: (KnobMissing, "this kernel was built or booted without it; see `corral doctor`"),
    errno.EINVAL: (ValueRefused, "give a value within the range that the kernel documents for this file"),
    errno.ERANGE: (ValueRefused, "give a value within the range that the kernel documents for this file"),
    errno.EOVERFLOW: (ValueRefused, "give a smaller value"),
    errno.E2BIG: (ValueRefused, "give a shorter value"),
    errno.ENOSPC: (KernelRefused, "the kernel is out of room for it: fewer groups, watches or attributes"),
    errno.EPERM: (NotPermitted, "run agentd as root, or delegate this group to it"),
    errno.EACCES: (NotPermitted, "run agentd as root, or delegate this group to it"),
    errno.EROFS: (NotPermitted, "mount the cgroup file system writable"),
    errno.EMFILE: (KernelRefused, "raise the limit of open files (LimitNOFILE=)"),
}


def from_os(err: OSError, path: str, value: str = "") -> CgroupFileError:
    """The typed error for what the kernel said about ``path``. ENOENT is a missing knob where the group is there."""
    number = err.errno or 0
    reason = f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
    if number == errno.ENOENT:
        file = Path(path)
        if not file.is_dir() and file.parent.is_dir() and "." in file.name:
            return KnobMissing(
                path,
                f"the group has no such file: {reason}",
                number=number,
                value=value,
                remedy="its controller is not enabled here or the kernel is too old; see `corral doctor`",
            )
        return NoSuchGroup(path, reason, number=number, value=value, remedy="the group was never made, or was removed")
    if number == errno.EOPNOTSUPP and path.endswith("/cgroup.procs"):
        return KernelRefused(
            path,
            reason,
            number=number,
            value=value,
            remedy="it is threaded, or below one that is: not our making",
        )
    kind, remedy = _BY_ERRNO.get(number, (KernelRefused, "see the kernel's log"))
    return kind(path, reason, number=number, value=value, remedy=remedy)
