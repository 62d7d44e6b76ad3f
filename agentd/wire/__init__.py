"""The broker's protocol (docs/architecture.md): bytes to messages and back. Pure: no sockets, no clocks.

One message a packet, little endian, at most ``MAX_MESSAGE`` bytes: an 8 byte header (magic ``CRL1``, u16 type, u16
flags), then fields (u16 tag, u16 zero, u32 length, bytes). A tag that a message does not know is skipped, so that newer
launchers can talk to older daemons. ``agentd/launcher/wire.h`` is the other side.

    messages.py   types, tags, one frozen class per message, the errors
    decode.py     strict: every length, tag and range is checked
    encode.py

WireError
 ├─ Malformed      the packet is not framed as the protocol says (cut, overlong, of another protocol)
 ├─ UnknownType    framed well, but of a type that this version does not know
 └─ BadField       a field is missing, given twice, of a wrong length, not UTF-8 or out of range

What a well-formed message *asks for* is judged by ``controller.model``, whose InvalidRequest passes through.
"""

from agentd.wire.decode import decode
from agentd.wire.encode import encode
from agentd.wire.messages import (
    MAX_ARGV,
    MAX_MESSAGE,
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
    WireError,
)

__all__ = [
    "MAX_ARGV",
    "MAX_MESSAGE",
    "Acted",
    "BadField",
    "Begin",
    "Close",
    "End",
    "Enter",
    "Grant",
    "Malformed",
    "Message",
    "Ok",
    "Open",
    "Opened",
    "OutcomeReply",
    "Queued",
    "Refused",
    "Resume",
    "Tag",
    "Type",
    "UnknownType",
    "WireError",
    "decode",
    "encode",
]
