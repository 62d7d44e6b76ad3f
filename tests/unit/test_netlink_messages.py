"""Messages of the process connector and of taskstats, as bytes: what is understood, and what is passed over."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.taskstats import tcmd

from controller.processes.events import Kind, ProcEvent, decode, request
from controller.processes.group import printable
from controller.processes.stats import NOTHING, TaskUse, ask_for
from controller.processes.stats import decode as decode_stats


def connector(what: int, *numbers: int) -> bytes:
    """struct nlmsghdr, struct cn_msg and struct proc_event (include/uapi/linux/cn_proc.h)."""
    body = struct.pack("=IIQ", what, 3, 1_000) + struct.pack("=6I", *numbers, *[0] * (6 - len(numbers)))
    return struct.pack("=IHHII", 36 + len(body), 3, 0, 0, 0) + struct.pack("=IIIIHH", 1, 1, 0, 0, len(body), 0) + body


def test_events_of_the_connector() -> None:
    assert decode(connector(1, 10, 11, 12, 13)) == ProcEvent(Kind.FORK, 1_000, 10, 11, 12, 13)
    assert decode(connector(2, 10, 11)) == ProcEvent(Kind.EXEC, 1_000, 10, 11, 0, 0)
    assert decode(connector(0x8000_0000, 10, 11, 9, 17)) == ProcEvent(Kind.EXIT, 1_000, 10, 11, 0, 0, status=9)
    for other in (0, 4, 0x40, 0x200, 0x4000_0000):
        assert decode(connector(other, 1, 2)) is None
    assert decode(connector(1, 10, 11, 12, 13)[:60]) is None


def test_the_request_is_what_the_kernel_reads() -> None:
    for payload in (struct.pack("=I", 1), struct.pack("=II", 1, 7)):
        message = request(payload)
        length, kind, _, _, _ = struct.unpack_from("=IHHII", message)
        index, value, _, _, size, _ = struct.unpack_from("=IIIIHH", message, 16)
        assert (length, kind, index, value, size) == (len(message), 3, 1, 1, len(payload))
        assert message[36:] == payload


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_none(data: bytes) -> None:
    event = decode(data)
    assert event is None or event.kind in Kind


USE = TaskUse(faults=107, major_faults=7, read=1, written=2, disk_read=3, disk_written=4, run_wait=55, switches=11)


def taskstats(version: int, *, tid: int = 42, cut: int = 0, kind: int = 4) -> bytes:
    """A record as the kernel sends it: struct genlmsghdr, AGGR_PID { PID, STATS }."""
    shift = 48 if version == 15 else 0
    stats = bytearray(540)
    struct.pack_into("=H", stats, 0, version)
    struct.pack_into("=Q", stats, 24, 55)
    struct.pack_into("=QQ", stats, 168 + shift, 100, 7)
    struct.pack_into("=QQ", stats, 216 + shift, 1, 2)
    struct.pack_into("=QQ", stats, 248 + shift, 3, 4)
    struct.pack_into("=QQ", stats, 272 + shift, 5, 6)
    inner = struct.pack("=HHI", 8, 1, tid) + struct.pack("=HH", 4 + len(stats), 3) + stats
    whole = struct.pack("=BBH", 2, 1, 0) + struct.pack("=HH", 4 + len(inner), kind) + inner
    message = struct.pack("=IHHII", 16 + len(whole), 31, 0, 0, 0) + whole
    return message[: len(message) - cut]


@pytest.mark.parametrize("version", [8, 10, 14, 15, 16, 17])
def test_a_record_of_every_layout(version: int) -> None:
    ended = decode_stats(taskstats(version))
    assert ended is not None
    assert ended == (42, USE)


def test_what_is_no_record_of_a_task_is_passed_over() -> None:
    assert decode_stats(taskstats(16, kind=5)) is None  # of a whole process: its threads were told one by one
    assert decode_stats(taskstats(1)) is None
    for cut in range(1, 550, 7):
        assert decode_stats(taskstats(16, cut=cut)) is None


@given(st.binary(max_size=700))
def test_any_bytes_are_a_record_or_none(data: bytes) -> None:
    assert decode_stats(data) is None or len(data) > 300


def test_the_question_is_what_pyroute2_would_ask() -> None:
    message = tcmd()
    message["cmd"], message["version"] = 1, 1
    message["attrs"].append(["TASKSTATS_CMD_ATTR_PID", 4321])
    message["header"]["type"], message["header"]["flags"] = 31, 1
    message.encode()
    ours, theirs = ask_for(31, 4321), bytes(message.data)
    assert ours[:8] == theirs[:8]
    assert ours[16:] == theirs[16:]  # between them: a sequence and a port, which the kernel gives back unread


def test_uses_add_up_and_never_go_below_nothing() -> None:
    assert NOTHING.plus(USE) == USE
    assert USE.plus(USE).beyond(USE) == USE
    assert NOTHING.beyond(USE) == NOTHING


def test_an_agent_s_words_are_made_printable() -> None:
    assert printable("a\x1b[2Jb") == "a\N{REPLACEMENT CHARACTER}[2Jb"
    assert len(printable("x" * 1000)) == 127
