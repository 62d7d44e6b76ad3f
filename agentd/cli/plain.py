"""Messages of the API as plain values, for ``--json``.

Keys are the proto's field names and never change their meaning. Numbers stay numbers (protobuf's own JSON turns 64-bit
integers into strings); an optional field that is not set is null; enums are their words in lower case ("braked").
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    from google.protobuf.message import Message

    # protobuf has two descriptor classes (C and Python) that share no base: only their common attributes are used.
    FieldDescriptor: TypeAlias = Any

Plain: TypeAlias = bool | int | float | str | list["Plain"] | dict[str, "Plain"] | None


def to_plain(message: Message) -> dict[str, Plain]:
    plain: dict[str, Plain] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            entry = field.message_type
            if entry is not None and entry.GetOptions().map_entry:
                plain[field.name] = {str(key): _scalar(entry.fields_by_name["value"], v) for key, v in value.items()}
            else:
                plain[field.name] = [_scalar(field, item) for item in value]
        elif field.has_presence and not message.HasField(field.name):
            plain[field.name] = None
        else:
            plain[field.name] = _scalar(field, value)
    return plain


def _scalar(field: FieldDescriptor, value: object) -> Plain:
    if field.message_type is not None:
        return to_plain(cast("Message", value))
    if field.enum_type is not None:
        return enum_word(field, value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON has no NaN
    assert isinstance(value, bool | int | str)  # noqa: S101  # protobuf has no other scalars
    return value


def enum_word(field: FieldDescriptor, value: object) -> str:
    """``CALL_STATE_BRAKED`` as ``braked``; a number that this version does not know as ``unknown_7``."""
    kind = field.enum_type
    assert isinstance(value, int)  # noqa: S101  # protobuf's enums are
    known = kind.values_by_number.get(value)
    if known is None:
        return f"unknown_{value}"
    prefix = "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(kind.name)).upper() + "_"
    return str(known.name).removeprefix(prefix).lower()


def dump(value: Plain) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
