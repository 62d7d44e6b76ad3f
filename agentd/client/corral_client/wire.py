"""The broker's protocol, as far as a client speaks it: one message a packet of at most 64 KiB, little endian.

An 8 byte header (magic ``CRL1``, u16 type, u16 flags), then fields (u16 tag, u16 zero, u32 length, bytes). A tag that
this version does not know is skipped. docs/architecture.md of Corral, "The broker's protocol".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from corral_client.errors import ProtocolError

MAX_PACKET: Final = 65_536

_MAGIC: Final = b"CRL1"
_HEADER: Final = struct.Struct("<4sHH")
_FIELD: Final = struct.Struct("<HHI")


class Type(IntEnum):
    REFUSED = 3
    OPEN = 9
    OPENED = 10
    ENTER = 11
    OK = 12
    CLOSE = 13


class Tag(IntEnum):
    TOKEN = 2
    SESSION = 3
    CODE = 5
    MESSAGE = 6
    TENANT = 12
    NAME = 13
    KILL = 16


def encode(kind: Type, fields: Iterable[tuple[Tag, bytes]]) -> bytes:
    parts = [_HEADER.pack(_MAGIC, kind, 0)]
    for tag, value in fields:
        parts += (_FIELD.pack(tag, 0, len(value)), value)
    packet = b"".join(parts)
    if len(packet) > MAX_PACKET:
        raise ProtocolError(f"a message of {len(packet)} bytes; the protocol allows {MAX_PACKET}; shorten its texts")
    return packet


def decode(packet: bytes) -> tuple[int, dict[int, bytes]]:
    """Type and fields (the first of each tag). Raises ProtocolError."""
    if len(packet) < _HEADER.size:
        raise ProtocolError(f"an answer of {len(packet)} bytes; is it a broker of Corral?")
    magic, kind, _ = _HEADER.unpack_from(packet)
    if magic != _MAGIC:
        raise ProtocolError(f"an answer that begins with {magic!r}, not {_MAGIC!r}; is it a broker of Corral?")
    fields: dict[int, bytes] = {}
    at = _HEADER.size
    while at < len(packet):
        if len(packet) - at < _FIELD.size:
            raise ProtocolError(f"an answer whose field at byte {at} is cut; is the daemon of another version?")
        tag, _, size = _FIELD.unpack_from(packet, at)
        at += _FIELD.size
        if size > len(packet) - at:
            raise ProtocolError(f"an answer whose field {tag} is cut; is the daemon of another version?")
        fields.setdefault(tag, packet[at : at + size])
        at += size
    return kind, fields


def text(fields: dict[int, bytes], tag: Tag) -> str:
    """Raises ProtocolError where the field is missing or not UTF-8."""
    try:
        return fields[tag].decode()
    except KeyError:
        raise ProtocolError(f"an answer without {tag.name}; is the daemon of another version?") from None
    except UnicodeDecodeError as err:
        raise ProtocolError(f"{tag.name} is not UTF-8 at byte {err.start}; is it a broker of Corral?") from None
