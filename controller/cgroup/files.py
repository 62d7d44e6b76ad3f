"""Reading and writing cgroup files, and the formats that several of them share.

Paths are plain strings: these functions lie on the path of every call, where building a ``Path`` costs more than the
system call. A file is opened without O_CREAT, so that a directory that is no cgroup can never fake success.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Final

from controller.cgroup.errors import FormatError, from_os
from controller.model import UNLIMITED

_READ: Final = os.O_RDONLY | os.O_CLOEXEC
_WRITE: Final = os.O_WRONLY | os.O_CLOEXEC
_SMALL: Final = 1024  # bytes: every file of numbers but memory.stat fits
LARGE: Final = 16_384  # bytes: memory.stat (about 2 KiB in 6.18), io.stat with many devices

# v1 shows "no limit" as the largest multiple of the page size below 2^63: 9223372036854771712 with pages of 4 KiB.
_V1_UNLIMITED: Final = 2**63 - 65_536  # the same with the largest pages in use, 64 KiB


def read(path: str, size: int = _SMALL) -> bytes:
    """The whole of a small file. Raises the typed error of controller.cgroup.errors."""
    try:
        fd = os.open(path, _READ)
        try:
            data = os.read(fd, size)
            if len(data) == size:  # larger than expected: the rest, rather than a number cut in half
                while more := os.read(fd, LARGE):
                    data += more
            return data
        finally:
            os.close(fd)
    except OSError as err:
        raise from_os(err, path) from err


def read_all(path: str) -> bytes:
    """A file of any length (cgroup.procs): the kernel hands it out in pieces."""
    try:
        fd = os.open(path, _READ)
        try:
            pieces = []
            while piece := os.read(fd, LARGE):
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            os.close(fd)
    except OSError as err:
        raise from_os(err, path) from err


def read_optional(path: str, size: int = _SMALL) -> bytes | None:
    """As ``read``; None where this kernel or host has no such file (also PSI that is switched off)."""
    try:
        fd = os.open(path, _READ)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.EOPNOTSUPP):
            return None
        raise from_os(err, path) from err
    try:
        return os.read(fd, size)
    except OSError as err:
        if err.errno == errno.EOPNOTSUPP:
            return None
        raise from_os(err, path) from err
    finally:
        os.close(fd)


def write(path: str, value: str, *, wait: bool = True) -> None:
    """Write a knob in one system call. Never makes a file. Raises the typed error of controller.cgroup.errors.

    ``wait`` False: memory.high and memory.max of kernels from 6.16 on are set without reclaiming first, which the
    processes of the group then do themselves (O_NONBLOCK; other files and kernels know no difference)."""
    try:
        fd = os.open(path, _WRITE if wait else _WRITE | os.O_NONBLOCK)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as err:
        raise from_os(err, path, value) from err


def open_for_writing(path: str) -> int:
    try:
        return os.open(path, _WRITE)
    except OSError as err:
        raise from_os(err, path) from err


def make_directory(path: str) -> None:
    """mkdir. Raises GroupExists, NoSuchGroup (the parent is missing), NotPermitted."""
    try:
        os.mkdir(path, 0o755)  # noqa: PTH102 - hot path, no Path objects
    except OSError as err:
        raise from_os(err, path) from err


def remove_directory(path: str) -> bool:
    """rmdir; False when it was not there. Raises GroupBusy while it holds processes or groups."""
    try:
        os.rmdir(path)  # noqa: PTH106 - hot path, no Path objects
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENODEV):
            return False
        raise from_os(err, path) from err
    return True


def is_directory(path: str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - hot path, no Path objects


def inode(path: str) -> int:
    """The inode number; of a cgroup v2 directory that is the cgroup's id, as eBPF reports it."""
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - hot path, no Path objects
    except OSError as err:
        raise from_os(err, path) from err


def subdirectories(path: str) -> list[str]:
    """Names of the child groups, sorted; none when the group was removed meanwhile."""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENODEV):
            return []
        raise from_os(err, path) from err


def remove_below(path: str) -> None:
    """rmdir of every group below, the deepest first. Raises GroupBusy while one holds processes."""
    for name in subdirectories(path):
        remove_below(f"{path}/{name}")
        remove_directory(f"{path}/{name}")


def parse_number(data: bytes, path: str) -> int:
    """One integer; ``max`` and v1's largest number are UNLIMITED."""
    text = data.strip()
    if text == b"max":
        return UNLIMITED
    try:
        number = int(text)
    except ValueError:
        raise _format(path, data, "one integer or 'max'") from None
    return UNLIMITED if number >= _V1_UNLIMITED else number


def parse_flat(data: bytes, path: str) -> dict[bytes, int]:
    """A flat keyed file: lines of a name and an integer. Names that this version does not know are kept."""
    values: dict[bytes, int] = {}
    try:
        for line in data.splitlines():
            key, value = line.split()
            values[key] = int(value) if value != b"max" else UNLIMITED
    except ValueError:
        raise _format(path, data, "lines of a name and an integer") from None
    return values


def parse_processes(data: bytes, path: str) -> list[int]:
    """cgroup.procs: one pid a line. The kernel writes 0 for a process of another pid namespace: left out."""
    try:
        return [pid for line in data.split() if (pid := int(line)) > 0]
    except ValueError:
        raise _format(path, data, "one process id a line") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """PSI of one resource. Totals in microseconds since the group was made (or boot), averages over 10 s in %.

    ``some``: at least one task waited for the resource; ``full``: all did (None: the kernel does not say, as for the
    host's CPU before 5.13).
    """

    some_usec: int
    some_avg10: float
    full_usec: int | None = None
    full_avg10: float | None = None


def parse_pressure(data: bytes, path: str) -> Pressure:
    rows: dict[bytes, tuple[int, float]] = {}
    try:
        for line in data.splitlines():
            name, *pairs = line.split()
            values = dict(pair.split(b"=", 1) for pair in pairs)
            rows[name] = int(values[b"total"]), float(values[b"avg10"])
        some_usec, some_avg10 = rows[b"some"]
    except (ValueError, KeyError):
        raise _format(path, data, "lines 'some' and 'full' with avg10= and total=") from None
    full = rows.get(b"full")
    return Pressure(
        some_usec=some_usec,
        some_avg10=some_avg10,
        full_usec=full[0] if full else None,
        full_avg10=full[1] if full else None,
    )


def read_pressure(path: str) -> Pressure | None:
    """PSI of ``path``; None where PSI is off or not built in."""
    data = read_optional(path)
    return parse_pressure(data, path) if data else None


def key_of(values: dict[bytes, int], key: bytes, path: str) -> int:
    """A key that must be there."""
    try:
        return values[key]
    except KeyError:
        raise FormatError(
            path, f"has no line {key.decode()!r}", remedy="this kernel's format is not known; please report it"
        ) from None


def _format(path: str, data: bytes, wanted: str) -> FormatError:
    return FormatError(
        path,
        f"expected {wanted}, found {data[:80]!r}",
        remedy="this kernel's format is not known, or the path is no cgroup; please report it",
    )
