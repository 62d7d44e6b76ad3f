"""The codec of the broker's protocol: round trips, and what hostile bytes may raise."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import wire
from agentd.wire import Tag, Type
from controller.model import (
    EgressRule,
    Intent,
    InvalidRequest,
    Network,
    OnPressure,
    new_call_id,
    new_session_id,
)

HEADER_FILE = Path(__file__).parents[2] / "agentd" / "launcher" / "wire.h"

_line = st.text(st.characters(exclude_categories=["Cs"]).filter(str.isprintable), max_size=60)
_words = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40), min_size=1)
_memory = st.integers(1 << 20, 1 << 40)
_seconds = st.floats(0, 86_400)


@st.composite
def _intents(draw: st.DrawFn) -> Intent:
    sizes = sorted(draw(st.lists(_memory, min_size=2, max_size=2)))
    egress = draw(st.lists(st.sampled_from(["10.0.0.0/8", "2001:db8::/32", "192.0.2.1"]), max_size=3))
    network = Network.EGRESS_LIST if egress else draw(st.sampled_from([Network.ANY, Network.NONE]))
    return Intent(
        tool=draw(_line),
        call_class=draw(_line),
        memory_typical=draw(st.sampled_from([None, sizes[0]])),
        memory_peak=draw(st.sampled_from([None, sizes[1]])),
        cpu=draw(st.none() | st.floats(0.01, 64)),
        pids=draw(st.none() | st.integers(1, 4_194_304)),
        duration=draw(st.none() | _seconds),
        deadline=draw(st.none() | _seconds),
        priority=draw(st.none() | st.integers(0, 100)),
        network=network,
        egress=tuple(EgressRule(net, draw(st.integers(0, 65_535))) for net in egress),
        gpu=draw(st.booleans()),
        on_pressure=draw(st.sampled_from(OnPressure)),
        engine=draw(_line),
        conversation=draw(_line),
    )


_call = st.builds(new_call_id)
_session = st.builds(new_session_id)
_token = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
_messages: st.SearchStrategy[wire.Message] = st.one_of(
    st.builds(
        wire.Begin,
        argv=_words.map(tuple),
        intent=_intents(),
        token=st.just("") | _token,
        session=st.just("") | _session,
    ),
    st.builds(wire.Grant, call_id=_call, enforced=st.booleans(), notes=st.lists(_line, max_size=4).map(tuple)),
    st.builds(wire.Refused, code=st.from_regex(r"[a-z0-9_]{1,64}", fullmatch=True), message=_line),
    st.builds(wire.Queued, eta=st.none() | _seconds, message=_line),
    st.builds(wire.Acted),
    st.builds(wire.End, wait_status=st.integers(0, 0xFFFFFFFF), want=st.booleans()),
    st.builds(
        wire.OutcomeReply,
        reason=_line,
        paragraph=_line,
        suggestions=st.lists(_line, max_size=4).map(tuple),
        notes=st.lists(_line, max_size=4).map(tuple),
    ),
    st.builds(wire.Resume, call_id=_call),
    st.builds(wire.Open, tenant=st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True), name=_line),
    st.builds(wire.Opened, session=_session, token=_token),
    st.builds(wire.Enter, session=_session),
    st.builds(wire.Enter, token=_token),
    st.builds(wire.Close, token=_token, kill=st.booleans()),
    st.builds(wire.Ok),
)


def packet(kind: int, *fields: tuple[int, bytes], magic: bytes = b"CRL1", flags: int = 0) -> bytes:
    body = b"".join(struct.pack("<HHI", tag, 0, len(value)) + value for tag, value in fields)
    return struct.pack("<4sHH", magic, kind, flags) + body


BEGIN = (Tag.ARGV, b"true")


@given(_messages)
def test_round_trip(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == message


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_only_what_is_documented(data: bytes) -> None:
    for candidate in (data, b"CRL1" + data):
        try:
            wire.decode(candidate)
        except (wire.WireError, InvalidRequest):
            continue


@given(
    st.sampled_from(Type),
    st.lists(st.tuples(st.sampled_from(Tag), st.binary(max_size=40) | _line.map(str.encode)), max_size=6),
)
def test_arbitrary_fields_raise_only_what_is_documented(kind: Type, fields: list[tuple[Tag, bytes]]) -> None:
    try:
        message = wire.decode(packet(kind, *fields))
    except (wire.WireError, InvalidRequest):
        return
    assert type(message).__name__.removesuffix("Reply").upper() == kind.name


@given(_messages, st.data())
def test_a_damaged_message_raises_only_what_is_documented(message: wire.Message, data: st.DataObject) -> None:
    damaged = bytearray(wire.encode(message))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        wire.decode(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    except (wire.WireError, InvalidRequest):
        return


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", wire.Malformed, "the header alone"),
        (b"CRL1\1\0", wire.Malformed, "the header alone"),
        (packet(1, BEGIN, magic=b"HTTP"), wire.Malformed, "begins with"),
        (packet(1, BEGIN, flags=1), wire.Malformed, "flags"),
        (packet(99), wire.UnknownType, "type 99"),
        (packet(1, BEGIN) + b"\1", wire.Malformed, "header is cut"),
        (packet(1, BEGIN)[:-1], wire.Malformed, "claims 4 bytes where 3"),
        (packet(1) + struct.pack("<HHI", 1, 7, 0), wire.Malformed, "reserved"),
        (packet(1) + struct.pack("<HHI", 1, 0, 0xFFFFFFFF), wire.Malformed, "claims"),
        (packet(1, BEGIN, BEGIN), wire.BadField, "ARGV: given twice"),
        (packet(1), wire.BadField, "ARGV: missing"),
        (packet(1, (Tag.ARGV, b"x" * 32_769)), wire.BadField, "cut it"),
        (packet(1, BEGIN, (Tag.TOOL, b"\xff")), wire.BadField, "TOOL: not UTF-8"),
        (packet(1, BEGIN, (Tag.PIDS, b"\1")), wire.BadField, "PIDS: 1 bytes where 4"),
        (packet(1, BEGIN, (Tag.GPU, b"\2")), wire.BadField, "GPU: 2 where"),
        (packet(1, BEGIN, (Tag.EGRESS, b"10.0.0.0/8 http")), wire.BadField, "port"),
        (packet(1, BEGIN, *[(Tag.EGRESS, b"10.0.0.1")] * 65), wire.BadField, "more than 64"),
        (packet(6, (Tag.STATUS, bytes(4)), (Tag.WANT, b"\3")), wire.BadField, "WANT"),
        (packet(4, (Tag.ETA, struct.pack("<d", float("nan"))), (Tag.MESSAGE, b"")), wire.BadField, "ETA"),
        (packet(11), wire.BadField, "exactly one"),
        (packet(3, (Tag.CODE, b"A B"), (Tag.MESSAGE, b"")), wire.BadField, "CODE"),
        (packet(1, (Tag.ARGV, b"x"), (999, bytes(65_536))), wire.Malformed, "the protocol allows"),
    ],
)
def test_malformed(data: bytes, error: type[wire.WireError], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        wire.decode(data)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (packet(1, BEGIN, (Tag.SESSION, b"../../etc")), "session"),
        (packet(1, BEGIN, (Tag.SESSION, new_call_id().encode())), "session"),
        (packet(8, (Tag.CALL, b"c-")), "call"),
        (packet(1, BEGIN, (Tag.TOKEN, b"")), "token"),
        (packet(1, BEGIN, (Tag.TOKEN, b"x" * 257)), "token"),
        (packet(9, (Tag.TENANT, b"../up"), (Tag.NAME, b"n")), "tenant"),
        (packet(9, (Tag.TENANT, b"acme"), (Tag.NAME, b"n" * 10_000)), "name"),
        (packet(9, (Tag.TENANT, b"acme"), (Tag.NAME, b"\x1b[2J")), "name"),
        (packet(1, BEGIN, (Tag.CPU, struct.pack("<d", float("nan")))), "intent.cpu"),
        (packet(1, BEGIN, (Tag.MEMORY_PEAK, struct.pack("<Q", 2**64 - 1))), "intent.memory_peak"),
        (packet(1, BEGIN, (Tag.PRIORITY, b"\xc8")), "intent.priority"),
        (packet(1, BEGIN, (Tag.NETWORK, b"some")), "intent.network"),
        (packet(1, BEGIN, (Tag.NETWORK, b"egress_list")), "intent.network"),
        (packet(1, BEGIN, (Tag.EGRESS, b"10.0.0.0/99")), "intent.egress"),
        (packet(1, BEGIN, (Tag.ON_PRESSURE, b"panic")), "intent.on_pressure"),
    ],
)
def test_what_is_asked_for_out_of_range_names_its_field(data: bytes, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.decode(data)
    assert caught.value.field == field
    assert caught.value.remedy


def test_a_token_is_never_repeated_in_an_error() -> None:
    leaked = "secret\x01value"
    with pytest.raises(InvalidRequest) as caught:
        wire.decode(packet(1, BEGIN, (Tag.TOKEN, leaked.encode())))
    assert "secret" not in str(caught.value)
    assert "secret" not in caught.value.value


def test_unknown_tags_are_skipped() -> None:
    assert wire.decode(packet(1, (4000, b"new"), BEGIN, (4000, b"twice"))) == wire.Begin(argv=("true",))


def test_argv_need_not_be_utf8_and_is_cut() -> None:
    begin = wire.decode(packet(1, (Tag.ARGV, b"cat\0\xff.txt\0")))
    assert begin == wire.Begin(argv=("cat", "\N{REPLACEMENT CHARACTER}.txt", ""))
    long = wire.decode(wire.encode(wire.Begin(argv=("echo", "ä" * 40_000))))
    assert isinstance(long, wire.Begin)
    assert long.argv[0] == "echo"
    assert len("\0".join(long.argv).encode()) <= wire.MAX_ARGV + 2  # a split character became a replacement


def test_text_too_long_for_a_packet_is_refused_here() -> None:
    with pytest.raises(wire.Malformed, match="shorten"):
        wire.encode(wire.OutcomeReply(reason="exited", paragraph="x" * wire.MAX_MESSAGE))


def test_the_launchers_header_has_the_same_numbers() -> None:
    text = HEADER_FILE.read_text()
    types = {name: int(number) for name, number in re.findall(r"WIRE_([A-Z]+) = (\d+)", text)}
    tags = {name: int(number) for name, number in re.findall(r"TAG_([A-Z_]+) = (\d+)", text)}
    assert types == {kind.name: kind.value for kind in Type}
    assert tags == {tag.name: tag.value for tag in Tag}
    assert f"#define WIRE_MAX {wire.MAX_MESSAGE}" in text
    assert f"#define WIRE_ARGV_MAX {wire.MAX_ARGV}" in text
