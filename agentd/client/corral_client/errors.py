"""What can go wrong. Every message names the object, the cause and the remedy.

CorralError
 ├─ DaemonAway         nobody answers on the broker's or the API's socket
 ├─ NotPermitted       this user, or this token, may not
 ├─ Refused            the daemon said no; ``code`` is stable: invalid_request, not_found, budget_exhausted, ...
 ├─ LauncherMissing    there is no corral-exec
 ├─ LauncherFailed     corral-exec could not do its work; the tool did not run
 ├─ ProtocolError      what answers on the socket is no broker, or one of another version
 ├─ CallFailed         the tool ended with a status other than 0 and ``check`` was set (a CalledProcessError, too)
 └─ CallTimeout        the tool took longer than ``timeout`` (a TimeoutExpired, too)
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corral_client.outcome import Outcome


class CorralError(Exception):
    """Base of all."""


class DaemonAway(CorralError):
    pass


class NotPermitted(CorralError):
    pass


class Refused(CorralError):
    def __init__(self, message: str, *, code: str) -> None:
        self.code = code
        super().__init__(message or f"refused: {code}")


class LauncherMissing(CorralError):
    pass


class LauncherFailed(CorralError):
    pass


class ProtocolError(CorralError):
    pass


class CallFailed(CorralError, subprocess.CalledProcessError):
    """``returncode`` negative: the signal. The text ends with what Corral has to say about it."""

    def __init__(self, returncode: int, cmd: list[str], output: Any, stderr: Any, outcome: Outcome) -> None:
        subprocess.CalledProcessError.__init__(self, returncode, cmd, output, stderr)
        self.outcome = outcome

    def __str__(self) -> str:
        text = subprocess.CalledProcessError.__str__(self)
        return f"{text} {self.outcome.message}" if self.outcome.message else text


class CallTimeout(CorralError, subprocess.TimeoutExpired):
    """``timeout`` in seconds. The tool was ended; ``outcome`` is what was still to be learnt of it."""

    def __init__(self, cmd: list[str], timeout: float, output: Any, stderr: Any, outcome: Outcome) -> None:
        subprocess.TimeoutExpired.__init__(self, cmd, timeout, output, stderr)
        self.outcome = outcome

    def __str__(self) -> str:
        return f"{subprocess.TimeoutExpired.__str__(self)}; give a longer timeout, or split the work"
