"""Identifiers that the daemon makes.

Only these reach a path below the cgroup root: a user's own names (tenants, sessions, tools) are kept as text and never
become part of a path. An id is a letter that says what it names, a dash, and 16 characters of Crockford's base 32:
9 of them the milliseconds since the epoch (so that ids sort by time), 7 random (34e9 possibilities a millisecond).
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Final, NewType

TenantId = NewType("TenantId", str)
SessionId = NewType("SessionId", str)
CallId = NewType("CallId", str)

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_ID: Final = re.compile(r"[tsc]-[0-9a-hjkmnp-tv-z]{16}")
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")


def _base32(value: int, width: int) -> str:
    return "".join(_ALPHABET[(value >> (5 * i)) & 31] for i in reversed(range(width)))


def _new(kind: str) -> str:
    return f"{kind}-{_base32(time.time_ns() // 1_000_000, 9)}{_base32(secrets.randbits(35), 7)}"


def new_tenant_id() -> TenantId:
    return TenantId(_new("t"))


def new_session_id() -> SessionId:
    return SessionId(_new("s"))


def new_call_id() -> CallId:
    return CallId(_new("c"))


def is_id(text: str) -> bool:
    """Whether ``text`` has the form of an id made here (and so may be part of a path)."""
    return _ID.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether ``text`` may name a tenant: 1 to 63 characters of ``a-z 0-9 . _ -``, alphanumeric at both ends."""
    return _NAME.fullmatch(text) is not None
