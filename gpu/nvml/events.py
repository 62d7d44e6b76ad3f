"""XID errors as they happen.

NVML gives events only to a thread that waits for them; this one waits in short slices and hands each event to the loop.
An event set belongs to one initialisation of NVML: after a re-initialisation the devices are registered anew.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from typing import Any, Final

from gpu.nvml.binding import SUCCESS, TIMEOUT, Binding
from gpu.nvml.devices import GONE
from gpu.nvml.sampler import Nvml
from gpu.nvml.types import Absent, DeviceInfo, GpuEvent, GpuEventKind, Why

XID: Final = 0x8  # nvmlEventTypeXidCriticalError
_SLICE_MSEC: Final = 500
_RETRY_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 2.0  # then the thread is left to the driver that holds it; it ends with the process
_NO_INSTANCE: Final = 0xFFFFFFFF
_MAX_QUEUED: Final = 1024

# From NVIDIA's catalogue of XID errors: those an operator of inference hosts meets.
MEANINGS: Final = {
    13: "graphics engine exception: usually a fault of the application (out-of-range access)",
    31: "GPU memory page fault: usually an illegal address of the application",
    32: "invalid or corrupted push buffer stream",
    38: "driver firmware error",
    43: "GPU stopped processing: reset of the faulting application's channel",
    45: "preemptive cleanup: the application was ended, or an earlier error ended it",
    48: "double bit ECC error: memory content was lost",
    61: "internal micro-controller breakpoint or warning",
    62: "internal micro-controller halt: the GPU needs a reset",
    63: "ECC page retirement or row remapping was recorded",
    64: "ECC page retirement or row remapping failed: reset, then have the card checked",
    69: "graphics engine class error",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "high rate of single bit ECC errors",
    94: "contained ECC error: only the application that used the memory is hit",
    95: "uncontained ECC error: all applications on the GPU are hit; reset it",
    119: "GPU system processor timed out: reset the GPU",
    120: "GPU system processor error: reset the GPU",
    121: "corrected error of the chip-to-chip link",
    140: "unrecovered ECC error",
}


class EventWatcher:
    """Events of all devices of ``nvml``. ``async for event in watcher``, between ``start`` and ``close``.

    The queue is bounded: past 1,024 unread events the oldest go, and ``dropped`` counts them.

    :param retry_seconds: how long to wait where events cannot be had
    """

    def __init__(self, nvml: Nvml, *, retry_seconds: float = _RETRY_SECONDS) -> None:
        self._nvml = nvml
        self._retry = retry_seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: asyncio.Queue[GpuEvent | None] = asyncio.Queue()
        self._binding: Binding | None = None
        self._set: Any = None
        self._known: dict[int, DeviceInfo] = {}
        self.dropped = 0
        #: Why events cannot be had at present; None while they can.
        self.problem: Absent | None = None

    def start(self) -> None:
        """From inside the loop."""
        if self._thread is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="corral-nvml-events", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Ends the thread (within half a second, unless the driver hangs) and the iteration."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop.set()
        await asyncio.to_thread(thread.join, _CLOSE_SECONDS)
        self._queue.put_nowait(None)

    def __aiter__(self) -> EventWatcher:
        return self

    async def __anext__(self) -> GpuEvent:
        event = await self._queue.get()
        if event is None:
            raise StopAsyncIteration
        return event

    # --- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            pause = 0.05 if self._nvml.shutting.is_set() else self._turn()
            if pause:
                self._stop.wait(pause)
        with self._nvml.events_guard:
            self._free()

    def _turn(self) -> float:
        """One wait. Returns how long to stay away from NVML afterwards (seconds)."""
        with self._nvml.events_guard:
            binding = self._nvml.binding
            if binding is not self._binding:
                # The old set died with its initialisation, unless that one is still in force.
                self._set = None
                self._binding = binding
            if binding is None:
                return self._retry
            if self._set is None and not self._register(binding):
                return self._retry
            data = binding.read("nvmlEventSetWait_v2", self._set, _SLICE_MSEC)
        if not isinstance(data, Absent):
            self._deliver(self._event(data))
            return 0.0
        if data.code in (TIMEOUT, SUCCESS):
            return 0.0
        self.problem = data
        if data.why in GONE:
            self._deliver(GpuEvent(kind=GpuEventKind.LOST, at_nsec=time.monotonic_ns(), index=None, uuid=None))
        # A set with a lost device fails at once, for ever: it is made anew, without that device.
        with self._nvml.events_guard:
            self._free()
        return self._retry

    def _register(self, binding: Binding) -> bool:
        made = binding.read("nvmlEventSetCreate")
        if isinstance(made, Absent):
            self.problem = made
            return False
        self._set = made
        self._known.clear()
        problem: Absent | None = None
        for info, handle in self._nvml.handles():
            done = binding.read("nvmlDeviceRegisterEvents", handle, XID, made)
            if isinstance(done, Absent):
                problem = done
            else:
                self._known[_address(handle)] = info
        if not self._known:
            self._free()
            self.problem = problem or Absent(Why.NO_DATA, "nvmlDeviceRegisterEvents")
            return False
        self.problem = None
        return True

    def _free(self) -> None:
        if self._set is not None and self._binding is not None and self._binding is self._nvml.binding:
            self._binding.read("nvmlEventSetFree", self._set)
        self._set = None

    def _event(self, data: Any) -> GpuEvent:
        info = self._known.get(_address(data.device))
        xid = int(data.eventData)
        return GpuEvent(
            kind=GpuEventKind.XID,
            at_nsec=time.monotonic_ns(),
            index=None if info is None else info.index,
            uuid=None if info is None else info.uuid,
            xid=xid,
            meaning=MEANINGS.get(xid, "see NVIDIA's catalogue of XID errors"),
            gpu_instance_id=None if data.gpuInstanceId == _NO_INSTANCE else int(data.gpuInstanceId),
            compute_instance_id=None if data.computeInstanceId == _NO_INSTANCE else int(data.computeInstanceId),
        )

    def _deliver(self, event: GpuEvent) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(self._put, event)
        except RuntimeError:  # the loop closed between the two lines: nobody is left to hear it
            self._stop.set()

    def _put(self, event: GpuEvent) -> None:
        if self._queue.qsize() >= _MAX_QUEUED:
            self._queue.get_nowait()
            self.dropped += 1
        self._queue.put_nowait(event)


def _address(handle: Any) -> int:
    """A device handle is an opaque pointer; the pointer is what an event carries."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
