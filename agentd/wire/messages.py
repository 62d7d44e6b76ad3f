"""Types, tags and errors of the protocol, and one frozen class per message."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, TypeAlias

from controller.model import Intent

MAGIC: Final = b"CRL1"
MAX_MESSAGE: Final = 65_536
MAX_ARGV: Final = 32_768  # bytes; longer commands are cut: they are for people and for learning, never executed
MAX_NOTES: Final = 32
MAX_TOKEN: Final = 256
MAX_SUGGESTIONS: Final = 16

HEADER: Final = struct.Struct("<4sHH")
FIELD: Final = struct.Struct("<HHI")
U8: Final = struct.Struct("<B")
U32: Final = struct.Struct("<I")
U64: Final = struct.Struct("<Q")
F64: Final = struct.Struct("<d")


class Type(IntEnum):
    BEGIN = 1
    GRANT = 2
    REFUSED = 3
    QUEUED = 4
    ACTED = 5
    END = 6
    OUTCOME = 7
    RESUME = 8
    OPEN = 9
    OPENED = 10
    ENTER = 11
    OK = 12
    CLOSE = 13


class Tag(IntEnum):
    ARGV = 1
    TOKEN = 2
    SESSION = 3
    CALL = 4
    CODE = 5
    MESSAGE = 6
    NOTE = 7
    ETA = 8
    STATUS = 9
    WANT = 10
    REASON = 11
    TENANT = 12
    NAME = 13
    ENFORCED = 14
    SUGGESTION = 15
    KILL = 16
    TOOL = 20
    CLASS = 21
    MEMORY_TYPICAL = 22
    MEMORY_PEAK = 23
    CPU = 24
    PIDS = 25
    DURATION = 26
    DEADLINE = 27
    PRIORITY = 28
    NETWORK = 29
    EGRESS = 30
    GPU = 31
    ON_PRESSURE = 32
    ENGINE = 33
    CONVERSATION = 34


class WireError(Exception):
    """Base of all: what came is no message of this protocol."""


class Malformed(WireError):
    pass


class UnknownType(WireError):
    pass


class BadField(WireError):
    def __init__(self, tag: Tag, problem: str) -> None:
        self.tag = tag
        super().__init__(f"field {tag.name}: {problem}; see 'The broker's protocol' in docs/architecture.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """``argv`` may be cut and may hold replacement characters. ``token`` and ``session`` empty: not given."""

    argv: tuple[str, ...]
    intent: Intent = field(default_factory=Intent)
    token: str = ""
    session: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    call_id: str
    enforced: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """``eta`` in seconds; None: unknown."""

    eta: float | None
    message: str


@dataclass(frozen=True, slots=True)
class Acted:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """``wait_status`` as of waitpid(2). ``want``: the launcher waits for an OutcomeReply."""

    wait_status: int
    want: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeReply:
    """``paragraph`` ends with the suggestions in words; ``suggestions`` has them one by one. ``notes`` are not printed,
    only told to programs (``--outcome-fd``)."""

    reason: str
    paragraph: str
    suggestions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    call_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    tenant: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    session: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Enter:
    """Exactly one of the two is set."""

    session: str | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """``kill``: end the session's calls too; without, a session with running calls is refused."""

    token: str
    kill: bool = False


@dataclass(frozen=True, slots=True)
class Ok:
    pass


Message: TypeAlias = (
    Begin | Grant | Refused | Queued | Acted | End | OutcomeReply | Resume | Open | Opened | Enter | Close | Ok
)
