"""The trace of writes that find no space: attached on demand, since it makes every system call of the host dearer.

Measured on 6.18 (docs/decisions.md): 80 ns for each system call of each process while it is attached; to attach takes
0.2 ms, to detach 0.1 ms, to load, once, 50 ms. The link is not pinned: it goes with the daemon.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from bpf.errors import BpfError, Unavailable
from bpf.libbpf import Link, Object
from bpf.loader import KERNEL_TYPES
from bpf.pins import PinDir

_PROGRAM: Final = "corral_sys_exit"


class DiskTrace:
    def __init__(self, objects: Path, pins: PinDir) -> None:
        self._path = objects / "disk.bpf.o"
        self._pins = pins
        self._object: Object | None = None
        self._link: Link | None = None
        self._lock = threading.Lock()  # the first trace takes long, and may run in a thread while all is closed
        self._closed = False

    def trace(self, on: bool) -> None:
        """Raises BpfError where this kernel cannot."""
        with self._lock:
            if not on:
                self._detach()
            elif self._link is None and not self._closed:
                if self._object is None:
                    self._object = self._load()
                self._link = self._object.attach(_PROGRAM)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._detach()
            if self._object is not None:
                self._object.close()
                self._object = None

    def _detach(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _load(self) -> Object:
        if not KERNEL_TYPES.exists():
            raise Unavailable(
                f"the kernel tells no types (BTF): there is no {KERNEL_TYPES}",
                remedy="boot a kernel built with CONFIG_DEBUG_INFO_BTF",
            )
        if not self._path.is_file():
            raise Unavailable(f"{self._path}: no compiled object", remedy="run scripts/build-bpf")
        loaded = Object(self._path)
        try:
            loaded.pin_maps(self._pins.maps)
            loaded.load()
        except BaseException:
            with suppress(BpfError):
                loaded.close()
            raise
        return loaded
