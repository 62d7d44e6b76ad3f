"""PSI triggers: the kernel wakes us when tasks waited too long for a resource (Documentation/accounting/psi.rst)."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from typing import Final

from controller.cgroup.errors import ValueRefused, from_os

_MIN_WINDOW: Final = 500_000  # microseconds; the kernel's WINDOW_MIN_US and WINDOW_MAX_US
_MAX_WINDOW: Final = 10_000_000


class PressureTrigger:
    """Calls ``callback`` on the running loop when tasks have stalled for ``stall_usec`` within ``window_usec``.

    ``path``: /proc/pressure/{cpu,memory,io} or a group's ``*.pressure``. ``full``: all tasks at once, not some. The
    kernel fires at most once in a window. Without CAP_SYS_RESOURCE the window must be a multiple of 2 s (since 6.5; an
    error before). ``on_gone`` is called once when the group was removed; the trigger is closed then. Raises
    ValueRefused, NotPermitted, KnobMissing (PSI is off: boot with psi=1), NoSuchGroup.
    """

    def __init__(
        self,
        path: str,
        callback: Callable[[], None],
        *,
        stall_usec: int,
        window_usec: int,
        full: bool = False,
        on_gone: Callable[[], None] | None = None,
    ) -> None:
        if not _MIN_WINDOW <= window_usec <= _MAX_WINDOW or not 0 < stall_usec <= window_usec:
            raise ValueRefused(
                path,
                "threshold or window of the trigger is out of range",
                value=f"{stall_usec} {window_usec}",
                remedy=f"a window of {_MIN_WINDOW} to {_MAX_WINDOW} µs, and a threshold within it",
            )
        self.path = path
        self._callback = callback
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        request = f"{'full' if full else 'some'} {stall_usec} {window_usec}"
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as err:
            raise from_os(err, path) from err
        try:
            os.write(self._fd, request.encode() + b"\0")
        except OSError as err:
            os.close(self._fd)
            raise from_os(err, path, request) from err
        # The loop waits for readability alone, a trigger signals POLLPRI: an epoll descriptor stands between them.
        self._epoll = select.epoll()
        self._epoll.register(self._fd, select.EPOLLPRI)
        self._loop.add_reader(self._epoll.fileno(), self._fired)

    @property
    def closed(self) -> bool:
        return self._epoll.closed

    def close(self) -> None:
        """Disarm; may be called again."""
        if self._epoll.closed:
            return
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        os.close(self._fd)

    def _fired(self) -> None:
        # The loop's own look at our epoll descriptor consumes the trigger's event (psi_trigger_poll clears it), so that
        # this poll may come back empty: being called is the event. The poll clears the ready list and shows errors.
        if any(events & select.EPOLLERR for _, events in self._epoll.poll(0)):
            self.close()
            if self._on_gone is not None:
                self._on_gone()
            return
        self._callback()
