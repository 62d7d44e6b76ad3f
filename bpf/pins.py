"""The pin directory: where programs, links and maps live on while the daemon is dead.

    <pin_dir>/maps/<map>
    <pin_dir>/links/<part>-<hash of its object>/<program>

The hash says which build a link came from, so that a new daemon knows whether to adopt or to replace it. (bpffs holds
no plain files, and no name with a dot.)
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

from bpf.errors import PinError, PinsInUse
from bpf.libbpf import get_pinned, reason

DEFAULT_ROOT: Final = Path("/sys/fs/bpf")
_BPFFS_MAGIC: Final = 0xCAFE4A11  # include/uapi/linux/magic.h


def on_file_system(path: Path, magic: int) -> bool:
    """Whether ``path`` exists on a file system of that kind."""
    # struct statfs begins with f_type, a long on every 64-bit architecture that we serve.
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer):
        return False
    return (ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF) == magic


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


class PinDir:
    """Makes and reads the directories. Every failure is a PinError that names the path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.maps = path / "maps"
        self.links = path / "links"

    def prepare(self) -> None:
        """The directories exist, on a bpf file system, open to root alone. Mounts /sys/fs/bpf where nothing is."""
        if "." in "".join(self.path.parts):
            raise PinError(
                f"{self.path}: a name with a dot", remedy="the bpf file system takes none: rename the instance"
            )
        if not on_file_system(_existing(self.path), _BPFFS_MAGIC):
            if not self.path.is_relative_to(DEFAULT_ROOT):
                raise PinError(
                    f"{self.path} is not on a bpf file system", remedy=f"use a directory below {DEFAULT_ROOT}"
                )
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.mount(b"bpf", os.fsencode(DEFAULT_ROOT), b"bpf", 0, b"mode=700"):
                code = ctypes.get_errno()
                raise PinError(
                    f"{DEFAULT_ROOT}: the bpf file system cannot be mounted: {reason(code)}",
                    errno=code,
                    remedy=f"as root: mount -t bpf bpf {DEFAULT_ROOT}",
                )
        try:
            for directory in (self.path, self.maps, self.links):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as err:
            raise _pin_error(self.path, err) from err

    def lock(self) -> int:
        """A descriptor that holds the directory for one daemon until it is closed: a second one would detach the
        first one's programs, or act through its maps. Raises PinsInUse."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise _pin_error(self.path, err) from err
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise PinsInUse(
                f"{self.path}: another daemon's programs are pinned there",
                remedy="stop it (systemctl stop agentd), or give this one a bpf.pin_dir of its own",
            ) from None
        return descriptor

    def of_part(self, part: str, digest: str) -> Path:
        return self.links / f"{part}-{digest}"

    def others_of(self, part: str, digest: str) -> list[Path]:
        """Links of the same part from other builds."""
        keep = f"{part}-{digest}"
        return [d for d in self._listed(self.links) if d.name.rpartition("-")[0] == part and d.name != keep]

    def parts(self) -> list[Path]:
        return self._listed(self.links)

    def remove(self, directory: Path) -> None:
        """Unpin everything below a directory. The kernel detaches a program with the last reference to its link."""
        # When a pin is the last reference, the kernel detaches later, from a work queue; when a descriptor is, it does
        # so before close returns. So that the caller can rely on it, hold one across the removal.
        held: list[int] = []
        try:
            for path in directory.rglob("*"):
                if path.is_file():
                    held.append(get_pinned(path))
            shutil.rmtree(directory)
        except FileNotFoundError:
            return
        except OSError as err:
            raise _pin_error(directory, err) from err
        finally:
            for fd in held:
                os.close(fd)

    def clear(self) -> None:
        """Links first, so that no program looks into maps that are already gone. The directory itself (and a lock on
        it) stays."""
        for directory in (self.links, self.maps):
            self.remove(directory)

    def remove_all(self) -> None:
        self.clear()
        self.remove(self.path)

    def _listed(self, directory: Path) -> list[Path]:
        try:
            return sorted(directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as err:
            raise _pin_error(directory, err) from err


def _pin_error(path: Path, err: OSError) -> PinError:
    number = err.errno or errno.EIO
    return PinError(f"{path}: {reason(number)}", errno=number, remedy="run as root; check that nothing else uses it")
