"""The records that groups carry as an extended attribute, and their form: JSON with a version before it.

Only the daemon (or root) can write them, but they outlive it: a record of another version or a damaged one is not
guessed at, the group is reported and left alone.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from controller.backend import CallRecord, SessionRecord
from controller.model import ControllerError, TenantView

_VERSION: Final = b"1 "
_encoder: Final = msgspec.json.Encoder()

R = TypeVar("R", TenantView, SessionRecord, CallRecord)

_decoders: Final = {
    kind: msgspec.json.Decoder(kind) for kind in (TenantView, SessionRecord, CallRecord)
}  # made once: building a decoder costs more than decoding


def encode(record: TenantView | SessionRecord | CallRecord) -> bytes:
    return _VERSION + _encoder.encode(record)


def decode(kind: type[R], data: bytes | None) -> R:
    """Raises ControllerError with what is wrong."""
    if not data:
        raise ControllerError("has no record", remedy="an older or another program made it; remove it by hand")
    if not data.startswith(_VERSION):
        raise ControllerError(
            f"its record is of another version ({data[:12]!r})", remedy="run the version of agentd that made it"
        )
    try:
        decoded: R = _decoders[kind].decode(data[len(_VERSION) :])  # type: ignore[assignment]  # keyed by its own type
    except (msgspec.DecodeError, UnicodeDecodeError, ControllerError) as err:
        raise ControllerError(f"its record is damaged: {err}", remedy="remove the group by hand") from err
    return decoded
