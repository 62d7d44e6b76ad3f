"""The daemon's side of systemd's notification protocol (sd_notify(3)): datagrams of NAME=value lines to NOTIFY_SOCKET.

Written out here because it is small, and so that the daemon needs no libsystemd. Outside systemd it does nothing.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import time
from collections.abc import Callable, MutableMapping, Sequence
from types import TracebackType
from typing import Final, Self

from agentd.log import get_logger

log = get_logger(__name__)

MAX_STATUS: Final = 512  # characters; `systemctl status` shows one line
MAX_FDS: Final = 253  # SCM_MAX_FD of the kernel: descriptors of one message


class NotifyError(Exception):
    """NOTIFY_SOCKET or WATCHDOG_USEC holds what systemd would never put there. The message says what to do."""


class Notifier:
    """Tells systemd how the daemon is. Sending never blocks and never fails the caller: what is lost is logged."""

    def __init__(self, address: str = "", *, watchdog_seconds: float | None = None) -> None:
        """``address``: path of a datagram socket, "@name" for an abstract one, "" for none. Raises NotifyError."""
        self.watchdog_seconds = watchdog_seconds
        self.failures = 0
        self._address: str | bytes = address
        self._socket: socket.socket | None = None
        if not address:
            return
        if not address.startswith(("/", "@")) or len(address) < 2:
            raise NotifyError(
                f"NOTIFY_SOCKET={address!r}: neither a path nor an abstract socket (@name); "
                "unset it, or start the daemon through systemd"
            )
        if address.startswith("@"):
            self._address = b"\0" + os.fsencode(address[1:])
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] | None = None) -> Self:
        """As systemd set it up. The variables are removed: programs that the daemon starts must not speak for it."""
        environ = os.environ if environ is None else environ
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        seconds = None
        if usec and pid in ("", str(os.getpid())):  # another pid: the watchdog watches our parent, not us
            if not (usec.isascii() and usec.isdigit() and int(usec) > 0):
                raise NotifyError(
                    f"WATCHDOG_USEC={usec!r}: not a positive number of microseconds; "
                    "unset it, or set WatchdogSec= of the unit"
                )
            seconds = int(usec) / 1e6
        return cls(address, watchdog_seconds=seconds)

    @property
    def enabled(self) -> bool:
        return self._socket is not None

    def ready(self, status: str = "") -> bool:
        """The daemon serves; also the end of a reload."""
        return self._send("READY=1", *_status(status))

    def status(self, text: str) -> bool:
        """One line for ``systemctl status``."""
        return self._send(*_status(text))

    def reloading(self, status: str = "") -> bool:
        """A reload begins; :meth:`ready` ends it. systemd compares the time with that of its own request."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", *_status(status))

    def stopping(self, status: str = "") -> bool:
        return self._send("STOPPING=1", *_status(status))

    def main_pid(self, pid: int) -> bool:
        return self._send(f"MAINPID={pid}")

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for this much more time, from now, for what goes on: a start that adopts many calls, say."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def store_fds(self, name: str, fds: Sequence[int]) -> bool:
        """Leave descriptors with systemd (FileDescriptorStoreMax=), which hands them to the next start."""
        if not 0 < len(fds) <= MAX_FDS:
            raise ValueError(f"{len(fds)} descriptors to store as {name!r}; give 1 to {MAX_FDS} at a time")
        if not name.isascii() or not name.isprintable() or ":" in name or not 0 < len(name) <= 255:
            raise ValueError(f"FDNAME {name!r} is not 1 to 255 printable ASCII characters without a colon")
        return self._send("FDSTORE=1", f"FDNAME={name}", fds=fds)

    def ping(self) -> bool:
        """Tell the watchdog that the event loop still turns."""
        return self._send("WATCHDOG=1")

    async def watchdog(self, healthy: Callable[[], bool] | None = None) -> None:
        """Ping at half the watchdog's interval, until cancelled; returns at once where no watchdog is set.

        It runs on the event loop on purpose: a loop that is stuck stops pinging, and systemd restarts the daemon. While
        ``healthy`` returns False no ping is sent either.
        """
        if self.watchdog_seconds is None or not self.enabled:
            return
        while True:
            if healthy is None or healthy():
                self.ping()
            else:
                log.error("watchdog ping withheld", cause="the daemon is not healthy", remedy="see the errors above")
            await asyncio.sleep(self.watchdog_seconds / 2)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, *lines: str, fds: Sequence[int] = ()) -> bool:
        """Whether it was sent. Without a socket: no, and nothing is wrong."""
        if self._socket is None or not lines:
            return False
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg(["\n".join(lines).encode()], ancillary, 0, self._address)
        except OSError as err:  # among them BlockingIOError: systemd's queue is full
            self.failures += 1
            log.warning(
                "systemd was not told",
                message=lines[0],
                socket=str(self._address),
                cause=err.strerror,
                remedy="see that NOTIFY_SOCKET is that of the unit, and that NotifyAccess= allows this process",
            )
            return False
        return True


def _status(text: str) -> tuple[str, ...]:
    """A STATUS line: what is not printable would start another assignment, so it becomes a space."""
    line = "".join(c if c.isprintable() else " " for c in text[:MAX_STATUS])
    return (f"STATUS={line}",) if line else ()
