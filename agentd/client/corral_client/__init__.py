"""Run tools as tool calls of Corral, and learn how they went. Standard library only.

import corral_client as corral

with corral.open_session("acme", "fix-1234") as session:
    done = corral.run(["pytest", "-q"], session=session, tool="pytest", memory="300M:1G", capture_output=True)
    if done.outcome.acted:
        tell_the_model(done.outcome.message)

intent.py    what a call declares            session.py   sessions, over the broker's socket
process.py   run and call, blocking          aio.py       the same for asyncio
outcome.py   how a call went                 api.py       budgets and outcomes over gRPC (extra "grpc")
errors.py    the tree of errors              adapters/    agent frameworks
"""

from corral_client.errors import (
    CallFailed,
    CallTimeout,
    CorralError,
    DaemonAway,
    LauncherFailed,
    LauncherMissing,
    NotPermitted,
    ProtocolError,
    Refused,
)
from corral_client.intent import Intent
from corral_client.launcher import find_launcher
from corral_client.outcome import Outcome
from corral_client.process import Call, CompletedProcess, call, run
from corral_client.session import Session, open_session

__all__ = [
    "Call",
    "CallFailed",
    "CallTimeout",
    "CompletedProcess",
    "CorralError",
    "DaemonAway",
    "Intent",
    "LauncherFailed",
    "LauncherMissing",
    "NotPermitted",
    "Outcome",
    "ProtocolError",
    "Refused",
    "Session",
    "call",
    "find_launcher",
    "open_session",
    "run",
]
