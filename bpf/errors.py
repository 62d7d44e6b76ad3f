"""The exceptions of the kernel side.

BpfError
 ├─ Unavailable         nothing can be loaded here: no libbpf, no BTF, no privilege, no objects
 ├─ LoadFailed          one object cannot be opened or loaded
 │   └─ VerifierRejected   the kernel's verifier refused a program: names it and keeps the end of the log
 ├─ AttachFailed        a loaded program cannot be attached
 ├─ PinError            the pin directory or the bpf file system says no
 │   └─ PinsInUse          another daemon works with this pin directory
 ├─ MapError            a map operation failed
 │   └─ TooManyCalls       the maps are full
 ├─ NotRegistered       the cgroup id is not one that was registered
 └─ InvalidPolicy       a threshold, rule or port is out of range

Every message has the object, the cause and the remedy, in that order.
"""

from __future__ import annotations


class BpfError(Exception):
    """Base of all. ``remedy`` is what to do about it; ``errno`` is the kernel's number, 0 where there is none."""

    def __init__(self, message: str, *, remedy: str = "", errno: int = 0) -> None:
        self.message = message
        self.remedy = remedy
        self.errno = errno
        super().__init__(f"{message}; {remedy}" if remedy else message)

    @property
    def brief(self) -> str:
        """One line for a screen: the message without the log that may follow its first line, and the remedy."""
        first = self.message.partition("\n")[0].rstrip(" ;")
        return f"{first}; {self.remedy}" if self.remedy else first


class Unavailable(BpfError):
    pass


class LoadFailed(BpfError):
    """``log`` holds what libbpf printed, oldest line first."""

    def __init__(self, message: str, *, log: tuple[str, ...] = (), remedy: str = "", errno: int = 0) -> None:
        self.log = log
        super().__init__(message, remedy=remedy, errno=errno)


class VerifierRejected(LoadFailed):
    """``program`` is the function that was refused; the last lines of the log say why."""

    def __init__(self, message: str, *, program: str, log: tuple[str, ...], errno: int = 0) -> None:
        self.program = program
        super().__init__(
            message, log=log, remedy="the program does not suit this kernel: report it with this log", errno=errno
        )


class AttachFailed(BpfError):
    pass


class PinError(BpfError):
    pass


class PinsInUse(PinError):
    pass


class MapError(BpfError):
    pass


class TooManyCalls(MapError):
    pass


class NotRegistered(BpfError):
    pass


class InvalidPolicy(BpfError):
    pass
