"""Messages to bytes."""

from __future__ import annotations

from agentd.wire.messages import (
    F64,
    FIELD,
    HEADER,
    MAGIC,
    MAX_ARGV,
    MAX_MESSAGE,
    MAX_NOTES,
    MAX_SUGGESTIONS,
    U8,
    U32,
    U64,
    Acted,
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
)
from controller.model import Intent, Network, OnPressure


class _Writer:
    __slots__ = ("parts",)

    def __init__(self, kind: Type) -> None:
        self.parts = [HEADER.pack(MAGIC, kind, 0)]

    def add(self, tag: Tag, value: bytes) -> None:
        self.parts.append(FIELD.pack(tag, 0, len(value)))
        self.parts.append(value)

    def text(self, tag: Tag, text: str) -> None:
        # lone surrogates (of a file's name) have no UTF-8 form
        self.add(tag, text.encode("utf-8", "replace"))

    def done(self) -> bytes:
        packet = b"".join(self.parts)
        if len(packet) > MAX_MESSAGE:
            raise Malformed(f"a message of {len(packet)} bytes; the protocol allows {MAX_MESSAGE}; shorten its texts")
        return packet


def _write_intent(out: _Writer, intent: Intent) -> None:
    for tag, text in (
        (Tag.TOOL, intent.tool),
        (Tag.CLASS, intent.call_class),
        (Tag.ENGINE, intent.engine),
        (Tag.CONVERSATION, intent.conversation),
    ):
        if text:
            out.text(tag, text)
    for tag, layout, number in (
        (Tag.MEMORY_TYPICAL, U64, intent.memory_typical),
        (Tag.MEMORY_PEAK, U64, intent.memory_peak),
        (Tag.CPU, F64, intent.cpu),
        (Tag.PIDS, U32, intent.pids),
        (Tag.DURATION, F64, intent.duration),
        (Tag.DEADLINE, F64, intent.deadline),
        (Tag.PRIORITY, U8, intent.priority),
    ):
        if number is not None:
            out.add(tag, layout.pack(number))
    if intent.network is not Network.ANY:
        out.text(Tag.NETWORK, intent.network.value)
    for rule in intent.egress:
        out.text(Tag.EGRESS, f"{rule.network} {rule.port}" if rule.port else rule.network)
    if intent.gpu:
        out.add(Tag.GPU, b"\1")
    if intent.on_pressure is not OnPressure.WAIT:
        out.text(Tag.ON_PRESSURE, intent.on_pressure.value)


def encode(message: Message) -> bytes:
    """``message`` as one packet. Raises Malformed where its texts are longer than a packet can hold."""
    match message:
        case Begin() | End() | Resume() | Open() | Enter() | Close():
            out = _from_launcher(message)
        case _:
            out = _from_daemon(message)
    return out.done()


def _from_launcher(message: Begin | End | Resume | Open | Enter | Close) -> _Writer:
    match message:
        case Begin():
            out = _Writer(Type.BEGIN)
            out.add(Tag.ARGV, "\0".join(message.argv).encode("utf-8", "replace")[:MAX_ARGV])
            if message.token:
                out.text(Tag.TOKEN, message.token)
            if message.session:
                out.text(Tag.SESSION, message.session)
            _write_intent(out, message.intent)
        case End():
            out = _Writer(Type.END)
            out.add(Tag.STATUS, U32.pack(message.wait_status))
            out.add(Tag.WANT, b"\1" if message.want else b"\0")
        case Resume():
            out = _Writer(Type.RESUME)
            out.text(Tag.CALL, message.call_id)
        case Open():
            out = _Writer(Type.OPEN)
            out.text(Tag.TENANT, message.tenant)
            out.text(Tag.NAME, message.name)
        case Enter():
            out = _Writer(Type.ENTER)
            if message.session is not None:
                out.text(Tag.SESSION, message.session)
            if message.token is not None:
                out.text(Tag.TOKEN, message.token)
        case Close():
            out = _Writer(Type.CLOSE)
            out.text(Tag.TOKEN, message.token)
            out.add(Tag.KILL, b"\1" if message.kill else b"\0")
    return out


def _from_daemon(message: Grant | Refused | Queued | Acted | OutcomeReply | Opened | Ok) -> _Writer:
    match message:
        case Grant():
            out = _Writer(Type.GRANT)
            out.text(Tag.CALL, message.call_id)
            out.add(Tag.ENFORCED, b"\1" if message.enforced else b"\0")
            for note in message.notes[:MAX_NOTES]:
                out.text(Tag.NOTE, note)
        case Refused():
            out = _Writer(Type.REFUSED)
            out.text(Tag.CODE, message.code)
            out.text(Tag.MESSAGE, message.message)
        case Queued():
            out = _Writer(Type.QUEUED)
            out.add(Tag.ETA, F64.pack(-1.0 if message.eta is None else message.eta))
            out.text(Tag.MESSAGE, message.message)
        case Acted():
            out = _Writer(Type.ACTED)
        case OutcomeReply():
            out = _Writer(Type.OUTCOME)
            out.text(Tag.REASON, message.reason)
            out.text(Tag.MESSAGE, message.paragraph)
            for suggestion in message.suggestions[:MAX_SUGGESTIONS]:
                out.text(Tag.SUGGESTION, suggestion)
            for note in message.notes[:MAX_NOTES]:
                out.text(Tag.NOTE, note)
        case Opened():
            out = _Writer(Type.OPENED)
            out.text(Tag.SESSION, message.session)
            out.text(Tag.TOKEN, message.token)
        case Ok():
            out = _Writer(Type.OK)
    return out
