"""Proof that a call met a full disk: when the kernel is asked to watch for it, and what is known at the end."""

from __future__ import annotations

import asyncio
import os
from functools import partial

import structlog

from bpf import BpfError
from controller.backends.disks import Disks
from controller.backends.kernelside import KernelSide

log = structlog.get_logger("corral.fulldisk")


class FullDisk:
    """On while a file system is nearly full and calls run: see disks.py. All on the event loop, but for the
    first time, which takes 50 ms in a thread; ``problem`` is set when the kernel will not."""

    def __init__(self, kernel: KernelSide | None) -> None:
        self._kernel = kernel
        self._disks = Disks()
        self._on = False
        self._ready = False
        self._loading: asyncio.Future[None] | None = None
        self.problem = ""

    def round(self, *, calls: bool) -> None:
        """Once a second or so. ``calls``: whether any run."""
        self._want(self._disks.look() and calls)

    def begin(self) -> None:
        """A call begins. Cheap: what the last round saw counts."""
        if self._disks.nearly_full:
            self._want(True)

    def in_words(self, device: int) -> str:
        """Which file system has no room: that with ``device``, else the fullest of those nearly full."""
        return self._disks.full(device) or self._disks.most_wanting()

    def hint(self, device: int) -> str:
        """That the file system with ``device`` has no room now; empty where it has."""
        return self._disks.full(device) if device else ""

    def close(self) -> None:
        self._disks.close()

    def _want(self, on: bool) -> None:
        if on == self._on or self.problem or self._loading is not None:
            return
        if self._kernel is None:
            self.problem = "whether a call met a full disk is told as a hint only: there is no eBPF"
            return
        if on and not self._ready:
            loop = asyncio.get_running_loop()
            self._loading = loop.run_in_executor(None, partial(self._kernel.trace_disk, True))
            self._loading.add_done_callback(self._loaded)
            return
        try:
            self._kernel.trace_disk(on)
        except BpfError as err:
            self._failed(err)
        else:
            self._on = on

    def _loaded(self, done: asyncio.Future[None]) -> None:
        self._loading = None
        err = done.exception() if not done.cancelled() else None
        if isinstance(err, BpfError):
            self._failed(err)
        elif err is not None:
            raise err
        elif not done.cancelled():
            self._ready = self._on = True

    def _failed(self, err: BpfError) -> None:
        self.problem = f"whether a call met a full disk is told as a hint only: {err}"
        log.warning("full disks are not proven", error=str(err))


def device_of(pid: int) -> int:
    """st_dev of the directory in which a process works; 0 where it cannot be said."""
    try:
        return os.stat(f"/proc/{pid}/cwd").st_dev  # noqa: PTH116 - hot path, no Path objects
    except OSError:
        return 0
