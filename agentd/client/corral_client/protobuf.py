"""As much of the protobuf encoding as three messages of the API need, so that no agent has to take on a version of the
protobuf package (they clash). https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from corral_client.errors import ProtocolError

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5

Value = int | bytes  # a varint, or the bytes of everything else


def put_text(number: int, text: str) -> bytes:
    """A string field; nothing where it is empty, as proto3 has it."""
    data = text.encode()
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data if data else b""


def put_int(number: int, value: int) -> bytes:
    """An unsigned integer field."""
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{value} does not fit field {number}: give 0 to 2^64 - 1")
    return _varint(number << 3 | _VARINT) + _varint(value)


def put_double(number: int, value: float) -> bytes:
    return _varint(number << 3 | _FIXED64) + struct.pack("<d", value)


def fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Numbers and values, in order. Raises ProtocolError where ``message`` is cut."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _read_varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(message, at)
        elif kind in {_FIXED64, _FIXED32}:
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ProtocolError(f"a message of wire type {kind}; does another service answer there?")
        if size > len(message) - at:
            raise ProtocolError("a message that is cut; does another service answer there?")
        yield key >> 3, message[at : at + size]
        at += size


def as_text(value: Value) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def as_double(value: Value) -> float:
    if not isinstance(value, bytes) or len(value) != 8:
        raise ProtocolError("a field that is no double; is the daemon of another version?")
    number: float = struct.unpack("<d", value)[0]
    return number


def as_int(value: Value) -> int:
    if not isinstance(value, int):
        raise ProtocolError("a field that is no number; is the daemon of another version?")
    return value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ProtocolError("a number that is cut; does another service answer there?")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
