"""corral-client's own codecs against the daemon's: the broker's protocol and the API's messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import wire as daemon
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.model import new_session_id
from corral_client import api, protobuf, wire
from corral_client.errors import CorralError, ProtocolError
from corral_client.outcome import parse_outcome
from corral_client.wire import Tag, Type

_T = TypeVar("_T")

_line = st.text(st.characters(exclude_categories=["Cs"]).filter(str.isprintable), max_size=60)
_token = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
_names = st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True)


def test_types_and_tags_are_the_daemons() -> None:
    assert {kind.name: int(kind) for kind in Type} == {kind.name: int(daemon.Type[kind.name]) for kind in Type}
    assert {tag.name: int(tag) for tag in Tag} == {tag.name: int(daemon.Tag[tag.name]) for tag in Tag}
    assert wire.MAX_PACKET == daemon.MAX_MESSAGE


@given(_names, _line)
def test_open(tenant: str, name: str) -> None:
    packet = wire.encode(Type.OPEN, ((Tag.TENANT, tenant.encode()), (Tag.NAME, name.encode())))
    assert daemon.decode(packet) == daemon.Open(tenant=tenant, name=name)


@given(_token, st.booleans())
def test_close_and_enter(token: str, kill: bool) -> None:
    packet = wire.encode(Type.CLOSE, ((Tag.TOKEN, token.encode()), (Tag.KILL, bytes([kill]))))
    assert daemon.decode(packet) == daemon.Close(token=token, kill=kill)
    assert daemon.decode(wire.encode(Type.ENTER, ((Tag.TOKEN, token.encode()),))) == daemon.Enter(token=token)


@given(_token, _line)
def test_answers(token: str, message: str) -> None:
    session = new_session_id()
    kind, fields = wire.decode(daemon.encode(daemon.Opened(session=session, token=token)))
    assert (kind, wire.text(fields, Tag.SESSION), wire.text(fields, Tag.TOKEN)) == (Type.OPENED, session, token)
    kind, fields = wire.decode(daemon.encode(daemon.Refused(code="not_allowed", message=message)))
    assert (kind, wire.text(fields, Tag.CODE), wire.text(fields, Tag.MESSAGE)) == (Type.REFUSED, "not_allowed", message)
    assert wire.decode(daemon.encode(daemon.Ok())) == (Type.OK, {})


@given(st.binary(max_size=200))
def test_arbitrary_answers_raise_only_what_is_documented(data: bytes) -> None:
    for packet in (data, b"CRL1" + data):
        try:
            _, fields = wire.decode(packet)
            wire.text(fields, Tag.TOKEN)
        except ProtocolError:
            continue


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="the protocol allows 65536"):
        wire.encode(Type.OPEN, ((Tag.NAME, b"x" * 65_536),))


# --- the API's messages

_double = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(_line, _line, _double, _double, _double), max_size=5))
def test_budgets(rows: list[tuple[str, str, float, float, float]]) -> None:
    message = pb.GetBudgetResponse(
        budgets=[
            pb.Budget(resource=resource, scope=scope, limit=limit, used=used, remaining=remaining)
            for resource, scope, limit, used, remaining in rows
        ]
    )
    found = api._budgets(message.SerializeToString())
    assert [(b.resource, b.scope, b.limit, b.used, b.remaining) for b in found] == rows


@given(
    _line,
    _line,
    st.none() | st.integers(0, 0xFFFFFFFF),
    _line,
    st.lists(_line.filter(bool), max_size=4),
)
def test_outcomes(call: str, reason: str, status: int | None, summary: str, suggestions: list[str]) -> None:
    at = 1732456789.125
    outcome = pb.Outcome(
        call_id=call,
        reason=reason,
        ended_at=at,
        wait_status=status,
        wall_seconds=at,
        held_seconds=0.5,
        summary=summary,
        suggestions=suggestions,
        usage=pb.Usage(cpu_usec=7, memory_peak_bytes=1 << 40),
        decisions=[pb.Decision(action="brake", evidence={"usage_bytes": 1.0})],
    )
    read = api._outcome(pb.GetOutcomeResponse(outcome=outcome).SerializeToString())
    assert read == api.CallOutcome(
        call_id=call,
        reason=reason,
        ended_at=at,
        wait_status=status,
        wall_seconds=at,
        held_seconds=0.5,
        summary=summary,
        suggestions=tuple(suggestions),
    )


@given(_line)
def test_requests(text: str) -> None:
    assert pb.GetOutcomeRequest.FromString(protobuf.put_text(1, text)).call_id == text


@given(st.binary(max_size=120))
def test_arbitrary_messages_raise_only_what_is_documented(data: bytes) -> None:
    for read in (api._budgets, api._outcome):
        try:
            read(data)
        except CorralError:
            continue


@given(
    _line,
    st.integers(0, 2**64 - 1),
    st.floats(0, 1e18),
    st.none() | st.floats(0, 1e9),
)
def test_a_turn_as_the_daemon_reads_it(engine: str, tokens: int, seconds: float, money: float | None) -> None:
    asked: list[bytes] = []
    told = pb.ReportTurnResponse(
        turns=pb.Turns(turns=1),
        budgets=[
            pb.Budget(resource="tokens", scope="session", limit=9, remaining=1, hard=True, band=pb.BUDGET_BAND_LOW),
            pb.Budget(resource="pids", scope="tenant", limit=9, period_seconds=60, refills_at=120, remaining=1),
        ],
    )

    class Answered(api.Api):
        def __init__(self) -> None:
            """Without a connection."""

        def _ask(self, method: str, request: bytes, read: Callable[[bytes], _T]) -> _T:
            asked.append(request)
            return read(told.SerializeToString())

    stock, ceiling = Answered().report_turn(
        engine=engine, prompt_tokens=tokens, cached_tokens=1, generated_tokens=2, seconds=seconds, money=money
    )
    expected = pb.ReportTurnRequest(
        engine=engine, prompt_tokens=tokens, cached_tokens=1, generated_tokens=2, seconds=seconds, money=money
    )
    assert pb.ReportTurnRequest.FromString(asked[0]) == expected
    assert (stock.resource, stock.band, stock.hard, stock.refills_at) == ("tokens", "low", True, None)
    assert (ceiling.band, ceiling.period_seconds, ceiling.refills_at) == (None, 60, 120)


def test_notes_of_an_outcome() -> None:
    told = b'{"state":"ended","call_id":"c-1","status":0,"reason":"exited","notes":["the budget is low", 7]}'
    assert parse_outcome(told, 0).notes == ("the budget is low",)
    assert parse_outcome(b'{"state":"ended","call_id":"c-1","status":0}', 0).notes == ()
