"""Bytes to messages. They come from hostile peers: everything is checked, nothing is guessed."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar

from agentd.wire.messages import (
    F64,
    FIELD,
    HEADER,
    MAGIC,
    MAX_ARGV,
    MAX_MESSAGE,
    MAX_NOTES,
    MAX_SUGGESTIONS,
    MAX_TOKEN,
    U8,
    U32,
    U64,
    Acted,
    BadField,
    Begin,
    Close,
    End,
    Enter,
    Grant,
    Malformed,
    Message,
    Ok,
    Open,
    Opened,
    OutcomeReply,
    Queued,
    Refused,
    Resume,
    Tag,
    Type,
    UnknownType,
)
from controller.model import EgressRule, Intent, InvalidRequest, Network, OnPressure, check_text, is_id, is_name
from controller.model.intent import MAX_EGRESS, MAX_TEXT

_CODE: Final = re.compile(r"[a-z0-9_]{1,64}")
_REPEATED: Final = {int(Tag.EGRESS): MAX_EGRESS, int(Tag.NOTE): MAX_NOTES, int(Tag.SUGGESTION): MAX_SUGGESTIONS}

_T = TypeVar("_T")
_Fields: TypeAlias = dict[int, bytes]
_Repeated: TypeAlias = dict[int, list[bytes]]


def decode(packet: bytes) -> Message:
    """The message in ``packet``. Raises WireError, or InvalidRequest where what it asks for is out of range."""
    length = len(packet)
    if length > MAX_MESSAGE:
        raise Malformed(f"a message of {length} bytes; the protocol allows {MAX_MESSAGE}")
    if length < HEADER.size:
        raise Malformed(f"a message of {length} bytes; the header alone has {HEADER.size}")
    magic, kind, flags = HEADER.unpack_from(packet)
    if magic != MAGIC:
        raise Malformed(
            f"a message that begins with {magic!r}, not with {MAGIC!r}; only launchers speak on this socket"
        )
    if flags:
        raise Malformed(f"header flags {flags:#x}, which this version does not know")
    reader = _DECODERS.get(kind)
    if reader is None:
        raise UnknownType(f"a message of type {kind}, which this version does not know; update the daemon")
    known, build = reader
    fields: _Fields = {}
    repeated: _Repeated = {}
    at = HEADER.size
    while at < length:
        if length - at < FIELD.size:
            raise Malformed(f"a field's header is cut at byte {at}")
        tag, zero, size = FIELD.unpack_from(packet, at)
        at += FIELD.size
        if zero:
            raise Malformed(f"the field at byte {at - FIELD.size} has reserved bits {zero:#x}")
        if size > length - at:
            raise Malformed(f"field {tag} claims {size} bytes where {length - at} are left")
        if tag in known:
            value = packet[at : at + size]
            if tag in _REPEATED:
                values = repeated.setdefault(tag, [])
                values.append(value)
                if len(values) > _REPEATED[tag]:
                    raise BadField(Tag(tag), f"more than {_REPEATED[tag]} times")
            elif tag in fields:
                raise BadField(Tag(tag), "given twice")
            else:
                fields[tag] = value
        at += size
    return build(fields, repeated)


# --- values of one field


def _need(fields: _Fields, tag: Tag) -> bytes:
    value = fields.get(tag)
    if value is None:
        raise BadField(tag, "missing")
    return value


def _text(tag: Tag, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as err:
        raise BadField(tag, f"not UTF-8 at byte {err.start}") from None


def _number(tag: Tag, layout: struct.Struct, value: bytes) -> float:
    if len(value) != layout.size:
        raise BadField(tag, f"{len(value)} bytes where {layout.size} belong")
    number: float = layout.unpack(value)[0]
    return number


def _integer(tag: Tag, layout: struct.Struct, value: bytes) -> int:
    return int(_number(tag, layout, value))


def _flag(tag: Tag, value: bytes) -> bool:
    number = _integer(tag, U8, value)
    if number > 1:
        raise BadField(tag, f"{number} where 0 or 1 belongs")
    return bool(number)


def _optional(fields: _Fields, tag: Tag, read: Callable[[Tag, bytes], _T]) -> _T | None:
    value = fields.get(tag)
    return None if value is None else read(tag, value)


def _id(tag: Tag, kind: str, value: bytes, name: str) -> str:
    text = _text(tag, value)
    if not (is_id(text) and text.startswith(kind)):
        raise InvalidRequest(
            f"{text[:40]!r} is not the id of a {name}",
            field=name,
            value=text,
            remedy=f"give the id that the daemon gave, '{kind}-' and 16 characters",
        )
    return text


def _token(value: bytes) -> str:
    text = _text(Tag.TOKEN, value)
    if not text:
        raise InvalidRequest("is empty", field="token", remedy="leave it out, or give the token of the session")
    # a token never appears in a message: whoever reads a log could use it
    if len(text) > MAX_TOKEN or not text.isascii() or not text.isprintable():
        raise InvalidRequest("is not a token", field="token", remedy="give it as OpenSession or OPENED returned it")
    return text


def _u32(tag: Tag, value: bytes) -> int:
    return _integer(tag, U32, value)


def _u64(tag: Tag, value: bytes) -> int:
    return _integer(tag, U64, value)


def _u8(tag: Tag, value: bytes) -> int:
    return _integer(tag, U8, value)


def _f64(tag: Tag, value: bytes) -> float:
    return _number(tag, F64, value)


def _choice(kind: type[_T], tag: Tag, value: bytes, name: str, values: str) -> _T:
    text = _text(tag, value)
    try:
        return kind(text)  # type: ignore[call-arg]  # a StrEnum, called with a value
    except ValueError:
        raise InvalidRequest(
            f"{text[:40]!r} is unknown", field=f"intent.{name}", value=text, remedy=f"choose {values}"
        ) from None


def _egress(value: bytes) -> EgressRule:
    text = _text(Tag.EGRESS, value)
    network, space, port = text.partition(" ")
    if not space:
        return EgressRule(network)
    if not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise BadField(Tag.EGRESS, f"port {port[:20]!r} is not a number")
    return EgressRule(network, int(port))


# --- messages in


def _intent(fields: _Fields, repeated: _Repeated) -> Intent:
    network = fields.get(Tag.NETWORK)
    pressure = fields.get(Tag.ON_PRESSURE)
    return Intent(
        tool=_optional(fields, Tag.TOOL, _text) or "",
        call_class=_optional(fields, Tag.CLASS, _text) or "",
        memory_typical=_optional(fields, Tag.MEMORY_TYPICAL, _u64),
        memory_peak=_optional(fields, Tag.MEMORY_PEAK, _u64),
        cpu=_optional(fields, Tag.CPU, _f64),
        pids=_optional(fields, Tag.PIDS, _u32),
        duration=_optional(fields, Tag.DURATION, _f64),
        deadline=_optional(fields, Tag.DEADLINE, _f64),
        priority=_optional(fields, Tag.PRIORITY, _u8),
        network=Network.ANY
        if network is None
        else _choice(Network, Tag.NETWORK, network, "network", "any, none or egress_list"),
        egress=tuple(_egress(value) for value in repeated.get(Tag.EGRESS, ())),
        gpu=_optional(fields, Tag.GPU, _flag) or False,
        on_pressure=OnPressure.WAIT
        if pressure is None
        else _choice(OnPressure, Tag.ON_PRESSURE, pressure, "on_pressure", "wait, degrade or fail_fast"),
        engine=_optional(fields, Tag.ENGINE, _text) or "",
        conversation=_optional(fields, Tag.CONVERSATION, _text) or "",
    )


def _begin(fields: _Fields, repeated: _Repeated) -> Begin:
    argv = _need(fields, Tag.ARGV)
    if len(argv) > MAX_ARGV:
        raise BadField(Tag.ARGV, f"{len(argv)} bytes; cut it at {MAX_ARGV}")
    session, token = fields.get(Tag.SESSION), fields.get(Tag.TOKEN)
    return Begin(
        # a file's name need not be UTF-8, and the cut may have split a character
        argv=tuple(argv.decode("utf-8", "replace").split("\0")),
        intent=_intent(fields, repeated),
        token="" if token is None else _token(token),
        session="" if session is None else _id(Tag.SESSION, "s", session, "session"),
    )


def _grant(fields: _Fields, repeated: _Repeated) -> Grant:
    return Grant(
        call_id=_id(Tag.CALL, "c", _need(fields, Tag.CALL), "call"),
        enforced=_flag(Tag.ENFORCED, _need(fields, Tag.ENFORCED)),
        notes=tuple(_text(Tag.NOTE, note) for note in repeated.get(Tag.NOTE, ())),
    )


def _refused(fields: _Fields, _: _Repeated) -> Refused:
    code = _text(Tag.CODE, _need(fields, Tag.CODE))
    if _CODE.fullmatch(code) is None:
        raise BadField(Tag.CODE, f"{code[:40]!r} is not a code of a-z, 0-9 and _")
    return Refused(code=code, message=_text(Tag.MESSAGE, _need(fields, Tag.MESSAGE)))


def _queued(fields: _Fields, _: _Repeated) -> Queued:
    eta = _f64(Tag.ETA, _need(fields, Tag.ETA))
    if math.isnan(eta):
        raise BadField(Tag.ETA, "not a number")
    return Queued(eta=None if eta < 0 else eta, message=_text(Tag.MESSAGE, _need(fields, Tag.MESSAGE)))


def _acted(_: _Fields, __: _Repeated) -> Acted:
    return Acted()


def _end(fields: _Fields, _: _Repeated) -> End:
    return End(wait_status=_u32(Tag.STATUS, _need(fields, Tag.STATUS)), want=_flag(Tag.WANT, _need(fields, Tag.WANT)))


def _outcome(fields: _Fields, repeated: _Repeated) -> OutcomeReply:
    return OutcomeReply(
        reason=_text(Tag.REASON, _need(fields, Tag.REASON)),
        paragraph=_text(Tag.MESSAGE, _need(fields, Tag.MESSAGE)),
        suggestions=tuple(_text(Tag.SUGGESTION, text) for text in repeated.get(Tag.SUGGESTION, ())),
        notes=tuple(_text(Tag.NOTE, note) for note in repeated.get(Tag.NOTE, ())),
    )


def _resume(fields: _Fields, _: _Repeated) -> Resume:
    return Resume(call_id=_id(Tag.CALL, "c", _need(fields, Tag.CALL), "call"))


def _open(fields: _Fields, _: _Repeated) -> Open:
    tenant = _text(Tag.TENANT, _need(fields, Tag.TENANT))
    if not is_name(tenant):
        raise InvalidRequest(
            f"{tenant[:40]!r} cannot name a tenant",
            field="tenant",
            value=tenant,
            remedy="1 to 63 characters of a-z 0-9 . _ -, alphanumeric at both ends",
        )
    return Open(tenant=tenant, name=check_text("name", _text(Tag.NAME, _need(fields, Tag.NAME)), MAX_TEXT))


def _opened(fields: _Fields, _: _Repeated) -> Opened:
    return Opened(
        session=_id(Tag.SESSION, "s", _need(fields, Tag.SESSION), "session"), token=_token(_need(fields, Tag.TOKEN))
    )


def _enter(fields: _Fields, _: _Repeated) -> Enter:
    session, token = fields.get(Tag.SESSION), fields.get(Tag.TOKEN)
    if (session is None) == (token is None):
        raise BadField(Tag.SESSION, "ENTER takes a session or a token, exactly one of them")
    if session is not None:
        return Enter(session=_id(Tag.SESSION, "s", session, "session"))
    return Enter(token=_token(_need(fields, Tag.TOKEN)))


def _close(fields: _Fields, _: _Repeated) -> Close:
    return Close(token=_token(_need(fields, Tag.TOKEN)), kill=_optional(fields, Tag.KILL, _flag) or False)


def _ok(_: _Fields, __: _Repeated) -> Ok:
    return Ok()


_INTENT_TAGS: Final = frozenset(int(tag) for tag in Tag if tag >= Tag.TOOL)
_DECODERS: Final[dict[int, tuple[frozenset[int], Callable[[_Fields, _Repeated], Message]]]] = {
    Type.BEGIN: (_INTENT_TAGS | {Tag.ARGV, Tag.TOKEN, Tag.SESSION}, _begin),
    Type.GRANT: (frozenset({Tag.CALL, Tag.ENFORCED, Tag.NOTE}), _grant),
    Type.REFUSED: (frozenset({Tag.CODE, Tag.MESSAGE}), _refused),
    Type.QUEUED: (frozenset({Tag.ETA, Tag.MESSAGE}), _queued),
    Type.ACTED: (frozenset(), _acted),
    Type.END: (frozenset({Tag.STATUS, Tag.WANT}), _end),
    Type.OUTCOME: (frozenset({Tag.REASON, Tag.MESSAGE, Tag.SUGGESTION, Tag.NOTE}), _outcome),
    Type.RESUME: (frozenset({Tag.CALL}), _resume),
    Type.OPEN: (frozenset({Tag.TENANT, Tag.NAME}), _open),
    Type.OPENED: (frozenset({Tag.SESSION, Tag.TOKEN}), _opened),
    Type.ENTER: (frozenset({Tag.SESSION, Tag.TOKEN}), _enter),
    Type.CLOSE: (frozenset({Tag.TOKEN, Tag.KILL}), _close),
    Type.OK: (frozenset(), _ok),
}
