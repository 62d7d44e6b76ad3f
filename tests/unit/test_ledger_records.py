"""What goes into the ledger comes out of it, table by table."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.ledger import Ledger, LedgerDamagedRecord, LedgerMisuse, LedgerReader, Sample
from agentd.ledger import schema as ledger_schema
from agentd.ledger.backlog import Batch, CallBegun, CallEnded
from agentd.ledger.batch import BatchWriter
from agentd.ledger.codec import BEGUN, DECISION, ENDED, SAMPLE, SESSION, STATE_NUMBER, TENANT
from controller.effects import Journal
from controller.model import CallId, CallState, Limits, Outcome, Usage
from tests.unit.ledger_objects import T0, call, counting, decision, ended, nothing, session, tenant, usage


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger.db")
    yield opened
    await opened.close()


@pytest.fixture
def reader(ledger: Ledger) -> Iterator[LedgerReader]:
    with LedgerReader(ledger.path) as opened:
        yield opened


def test_columns_of_the_codec_are_those_of_the_schema(tmp_path: Path) -> None:
    connection = ledger_schema.open_for_writing(tmp_path / "ledger.db")
    own = {"calls": {"seq"}, "decisions": {"seq"}}
    for table, columns in {
        "tenants": TENANT,
        "sessions": SESSION,
        "calls": ENDED,
        "decisions": DECISION,
        "samples": SAMPLE,
    }.items():
        found = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        assert found == set(columns) | own.get(table, set()), table
    assert set(BEGUN) < set(ENDED)
    assert set(STATE_NUMBER) == set(CallState)
    strict = connection.execute("SELECT name FROM pragma_table_list WHERE schema = 'main' AND NOT strict").fetchall()
    assert [name for (name,) in strict if not name.startswith("sqlite_")] == []
    connection.close()


async def test_it_is_a_journal(ledger: Ledger) -> None:
    journal: Journal = ledger  # mypy checks the shape
    seen, done = counting()
    finished = ended(call())
    journal.call_ended(finished, done(finished.id))
    await ledger.flush()
    await asyncio.sleep(0)
    assert seen == [finished.id]


async def test_tenants_and_sessions(ledger: Ledger, reader: LedgerReader) -> None:
    acme, zoo = tenant("acme"), tenant("zoo")
    ledger.tenant_set(zoo)
    ledger.tenant_set(acme)
    changed = replace(acme, limits=Limits(memory_max=1), priority=99)
    ledger.tenant_set(changed)
    first, second = session(acme, opened_at=T0), session(zoo, opened_at=T0 + 5)
    ledger.session_opened(first)
    ledger.session_opened(second)
    ledger.session_closed(first.id, T0 + 9)
    await ledger.flush()
    closed = replace(first, closed_at=T0 + 9)
    assert reader.tenants() == [changed, zoo]
    assert reader.sessions() == [second, closed]
    assert reader.sessions(open_only=True) == [second]
    assert reader.sessions(tenant_id=acme.id) == reader.sessions(session_id=first.id) == [closed]
    assert reader.sessions(since=T0 + 1) == [second]
    assert reader.sessions(until=T0 + 5) == [closed]


async def test_a_session_opened_again_stays_closed(ledger: Ledger, reader: LedgerReader) -> None:
    one = session(tenant())
    ledger.session_opened(one)
    ledger.session_closed(one.id, T0 + 1)
    await ledger.flush()
    ledger.session_opened(replace(one, name="renamed"))
    ledger.session_closed(one.id, T0 + 2)
    await ledger.flush()
    assert reader.sessions() == [replace(one, name="renamed", closed_at=T0 + 1)]


async def test_an_open_call(ledger: Ledger, reader: LedgerReader) -> None:
    owner = tenant()
    run = session(owner)
    running = call(owner.id, run.id)
    ledger.tenant_set(owner)
    ledger.session_opened(run)
    ledger.call_begun(running)
    await ledger.flush()
    record = reader.call(running.id)
    assert record is not None
    assert record.call == running
    assert (record.tenant_name, record.session_name) == (owner.name, run.name)
    assert reader.open_calls() == reader.calls(open_only=True) == [record]


async def test_a_call_that_ended(ledger: Ledger, reader: LedgerReader) -> None:
    running = call()
    taken = decision(running, T0 + 1), decision(running, T0 + 2)
    finished = ended(running, decisions=taken)
    ledger.call_begun(running)
    ledger.decision(taken[0])  # as it was taken; it comes again with the outcome
    ledger.call_ended(finished, nothing)
    await ledger.flush()
    record = reader.call(running.id)
    assert record is not None
    assert record.call == finished
    assert (record.tenant_name, record.session_name) == ("", "")
    assert reader.open_calls() == []
    assert reader.decisions(call_id=running.id) == list(taken)


async def test_what_a_host_cannot_say_stays_unsaid(ledger: Ledger, reader: LedgerReader) -> None:
    bare = replace(call(), usage=Usage(), parent_id=None)
    finished = ended(bare)
    assert finished.outcome is not None
    finished = replace(finished, usage=Usage(), outcome=replace(finished.outcome, usage=Usage(), wait_status=None))
    ledger.call_ended(finished, nothing)
    await ledger.flush()
    record = reader.call(bare.id)
    assert record is not None
    assert record.call == finished


async def test_calls_are_filtered_and_the_newest_come_first(ledger: Ledger, reader: LedgerReader) -> None:
    acme, zoo = tenant("acme"), tenant("zoo")
    ledger.tenant_set(acme)
    ledger.tenant_set(zoo)
    run = session(acme)
    calls = [
        call(owner.id, run.id if owner is acme else None, begun_at=T0 + second)
        for second, owner in enumerate([acme, zoo, acme, zoo, acme])
    ]
    for one in calls:
        ledger.call_begun(one)
    ledger.call_ended(ended(calls[0]), nothing)
    await ledger.flush()

    def found(**filters: object) -> list[int]:
        return [int(record.call.begun_at - T0) for record in reader.calls(**filters)]  # type: ignore[arg-type] # a test's filters

    assert found() == [4, 3, 2, 1, 0]
    assert found(limit=2) == [4, 3]
    assert found(since=T0 + 1, until=T0 + 3) == [2, 1]
    assert found(tenant_name="zoo") == found(tenant_id=zoo.id) == [3, 1]
    assert found(tenant_name="nobody") == []
    assert found(session_id=run.id) == [4, 2, 0]
    assert found(call_id=calls[2].id) == [2]
    assert found(tenant_name="acme", open_only=True) == [4, 2]
    assert [record.call.id for record in reader.open_calls()] == [one.id for one in calls[1:]]


async def test_more_calls_than_fit_one_query_have_their_decisions(ledger: Ledger, reader: LedgerReader) -> None:
    finished = []
    for number in range(1_201):
        running = call(begun_at=T0 + number)
        finished.append(ended(running, decisions=(decision(running),)))
        ledger.call_ended(finished[-1], nothing)
    await ledger.flush()
    assert [record.call for record in reader.calls(limit=2_000)] == finished[::-1]


async def test_decisions(ledger: Ledger, reader: LedgerReader) -> None:
    one, other = call(), call()
    odd = replace(
        decision(one, T0 + 3),
        session_id=None,
        call_id=None,
        policy="operator",
        evidence={"eta_seconds": math.inf, "floor": -math.inf},
    )
    expected = [decision(one, T0 + 1), decision(other, T0 + 2), odd]
    for taken in reversed(expected):
        ledger.decision(taken)
    await ledger.flush()
    assert reader.decisions() == expected
    assert reader.decisions(limit=2) == expected[1:]
    assert reader.decisions(since=T0 + 2, until=T0 + 3) == [expected[1]]
    assert reader.decisions(tenant_id=one.tenant_id) == [expected[0], odd]
    assert reader.decisions(session_id=other.session_id) == [expected[1]]
    assert reader.decisions(call_id=one.id) == [expected[0]]


async def test_samples(ledger: Ledger, reader: LedgerReader) -> None:
    run = session(tenant())
    one, other = call(session_id=run.id), call()
    ledger.call_begun(one)
    ledger.call_begun(other)
    usages = [usage(1_000 * number) for number in range(4)]
    for number, used in enumerate(usages):
        ledger.sample(T0 + number, one.id, CallState.RUNNING, used)
    ledger.sample(T0 + 1, other.id, CallState.BRAKED, Usage())
    await ledger.flush()
    samples = reader.samples(call_id=one.id)
    assert [sample.at for sample in samples] == [T0, T0 + 1, T0 + 2, T0 + 3]
    for sample, used in zip(samples, usages, strict=True):
        for field in fields(sample):
            if field.name not in ("call_id", "at", "state"):
                assert getattr(sample, field.name) == getattr(used, field.name)
    assert reader.samples(session_id=run.id) == samples
    assert reader.samples(since=T0 + 1, until=T0 + 2, call_id=one.id) == samples[1:2]
    (braked,) = reader.samples(call_id=other.id)
    assert (braked.state, braked.memory_now, braked.cpu_usec) == (CallState.BRAKED, None, 0)
    assert len(reader.samples()) == 5
    assert reader.samples(limit=3) == samples[:3]


async def test_samples_of_long_calls_among_others(ledger: Ledger, reader: LedgerReader) -> None:
    run = session(tenant())
    long, still = call(session_id=run.id, begun_at=T0 + 3), call(session_id=run.id, begun_at=T0 + 1_000)
    other = call(begun_at=T0 + 5)
    times = {long.id: [T0 + 3 + 7 * n for n in range(515)], still.id: [T0 + 1_000 + 61 * n for n in range(100)]}
    times[long.id].append(T0 + 3_700)  # after its end, as the clock was set
    for one in (long, still, other):
        ledger.call_begun(one)
    for call_id, moments in [*times.items(), (other.id, times[long.id])]:
        for at in moments:
            ledger.sample(at, call_id, CallState.RUNNING, Usage())
    ledger.call_ended(ended(long, after=3_600.0), nothing)
    await ledger.flush()

    def found(samples: list[Sample]) -> list[tuple[str, float]]:
        return [(sample.call_id, sample.at) for sample in samples]

    def expected(*calls: CallId, since: float = 0.0, until: float = math.inf) -> list[tuple[str, float]]:
        return [(call_id, at) for call_id in calls for at in times[call_id] if since <= at < until]

    assert found(reader.samples(call_id=long.id)) == expected(long.id)
    assert found(reader.samples(call_id=still.id)) == expected(still.id)
    assert found(reader.samples(session_id=run.id)) == expected(long.id, still.id)
    for since, until in [(T0 + 10, T0 + 10.5), (T0 + 999, T0 + 2_000), (T0 + 3_600, T0 + 1e6), (T0 - 9e5, T0 + 4)]:
        assert found(reader.samples(call_id=long.id, since=since, until=until)) == expected(
            long.id, since=since, until=until
        )
        everyone = found(reader.samples(since=since, until=until))
        assert [pair for pair in everyone if pair[0] != other.id] == expected(
            long.id, still.id, since=since, until=until
        )
    assert reader.samples(call_id=other.id, session_id=run.id) == []
    assert {sample.call_id for sample in reader.samples(session_id=run.id, downsample=5)} == {long.id, still.id}


async def test_a_sample_of_an_unknown_call_is_counted(ledger: Ledger, reader: LedgerReader) -> None:
    ledger.sample(T0, call().id, CallState.RUNNING, Usage())
    await ledger.flush()
    assert ledger.health.dropped_samples == 1
    assert reader.samples() == []


@pytest.mark.parametrize("points", [1, 7, 100, 999, 1_000, 5_000])
async def test_thinning_keeps_the_peak(ledger: Ledger, reader: LedgerReader, points: int) -> None:
    one = call()
    ledger.call_begun(one)
    for number in range(1_000):
        state = CallState.BRAKED if number == 617 else CallState.RUNNING
        used = Usage(cpu_usec=number, memory_now=9_999 if number == 617 else number % 50)
        ledger.sample(T0 + number / 10, one.id, state, used)
    await ledger.flush()
    samples = reader.samples(call_id=one.id, downsample=points)
    assert min(points, 500) <= len(samples) <= min(points, 1_000)
    assert [sample.at for sample in samples] == sorted(sample.at for sample in samples)
    assert samples[-1].cpu_usec == 999
    assert max(sample.memory_now or 0 for sample in samples) == 9_999
    assert [sample.state for sample in samples].count(CallState.BRAKED) == 1
    assert reader.samples(call_id=call().id, downsample=points) == []
    with pytest.raises(LedgerMisuse, match="downsample"):
        reader.samples(downsample=-1)


async def test_totals(ledger: Ledger, reader: LedgerReader) -> None:
    acme, zoo = tenant("acme"), tenant("zoo")
    ledger.tenant_set(acme)
    ledger.tenant_set(zoo)
    run = session(acme)
    ledger.session_opened(run)
    finished = [
        ended(call(acme.id, run.id, call_class="build")),
        ended(call(acme.id, run.id, call_class="test")),
        ended(call(zoo.id, call_class="test", begun_at=T0 + 100)),
    ]
    for one in finished:
        ledger.call_ended(one, nothing)
    ledger.call_begun(replace(call(zoo.id, call_class="test", begun_at=T0 + 101), usage=Usage()))
    await ledger.flush()
    used = [outcome(one).usage for one in finished]
    tenants = {total.name: total for total in reader.totals("tenant")}
    assert set(tenants) == {"acme", "zoo"}
    assert tenants["acme"].key == acme.id
    assert (tenants["acme"].calls, tenants["acme"].open_calls) == (2, 0)
    assert (tenants["zoo"].calls, tenants["zoo"].open_calls) == (2, 1)
    assert tenants["acme"].cpu_usec == used[0].cpu_usec + used[1].cpu_usec
    assert tenants["acme"].memory_peak == max(used[0].memory_peak or 0, used[1].memory_peak or 0)
    assert tenants["acme"].net_tx_bytes == (used[0].net_tx_bytes or 0) + (used[1].net_tx_bytes or 0)
    assert tenants["acme"].wall_seconds == 10.0
    assert tenants["acme"].held_seconds == 2.5
    assert tenants["zoo"].faults == used[2].faults
    classes = {total.key: total.calls for total in reader.totals("class")}
    assert classes == {"build": 1, "test": 3}
    assert run.name in [total.name for total in reader.totals("session")]
    assert {total.key for total in reader.totals("class", until=T0 + 1)} == {"build", "test"}
    assert [total.key for total in reader.totals("tenant", since=T0 + 100)] == [zoo.id]


def outcome(of: object) -> Outcome:
    found = getattr(of, "outcome", None)
    assert isinstance(found, Outcome)
    return found


texts = st.one_of(
    st.text(max_size=200),
    st.text(st.characters(), max_size=200),  # with lone surrogates
    st.sampled_from(["x" * 10_240, "\N{SNOWMAN}" * 10_240, "a\0b", "'; DROP TABLE calls; --", '{"a": 1}']),
)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_any_text_is_kept(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("text") / "ledger.db"
    owner = replace(tenant(), name=text)
    run = replace(session(owner, name=text), labels={text: text})
    running = replace(call(owner.id, run.id, command=text), cgroup=text)
    running = replace(running, grant=replace(running.grant, notes=(text, text)))
    taken = replace(decision(running), reason=text, policy=text, evidence={text: 1.5})
    finished = ended(running, decisions=(taken,))
    finished = replace(finished, outcome=replace(outcome(finished), summary=text, suggestions=(text,)))
    connection = ledger_schema.open_for_writing(path)
    writer = BatchWriter()
    writer.write(connection, Batch([owner, run, CallBegun(running), CallEnded(finished, nothing)]))
    connection.close()
    assert writer.rejected == 0
    kept = text.encode("utf-8", "replace").decode()
    with LedgerReader(path) as reader:
        (record,) = reader.calls()
        assert (record.tenant_name, record.session_name, record.call.command) == (kept, kept, kept)
        assert record.call.grant.notes == (kept, kept)
        assert outcome(record.call).summary == kept
        assert outcome(record.call).suggestions == (kept,)
        assert outcome(record.call).decisions == (replace(taken, reason=kept, policy=kept, evidence={kept: 1.5}),)
        assert reader.sessions()[0].labels == {kept: kept}
        assert reader.tenants()[0].name == kept


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("calls", "intent", "{"),
        ("calls", "intent", '{"memory_peak": "much"}'),
        ("calls", "intent", '{"priority": 101}'),
        ("calls", "grant", "{}"),
        ("calls", "state", "asleep"),
        ("calls", "reason", "because"),
        ("calls", "suggestions", "[1]"),
        ("decisions", "evidence", '{"a": "b"}'),
        ("decisions", "action", "shout"),
        ("samples", "state", 9),
        ("tenants", "limits", '{"memory_max": 1.5}'),
        ("sessions", "labels", "[]"),
    ],
)
async def test_a_damaged_record_is_named(ledger: Ledger, table: str, column: str, value: object) -> None:
    owner = tenant()
    run = session(owner)
    running = call(owner.id, run.id)
    ledger.tenant_set(owner)
    ledger.session_opened(run)
    ledger.call_ended(ended(running, decisions=(decision(running),)), nothing)
    await ledger.flush()
    ledger.sample(T0, running.id, CallState.RUNNING, Usage())
    await ledger.flush()
    connection = sqlite3.connect(ledger.path)
    connection.execute(f"UPDATE {table} SET {column} = ?", (value,))  # noqa: S608 (the parameters above)
    connection.commit()
    connection.close()
    with LedgerReader(ledger.path) as reader:
        questions: dict[str, Callable[[], object]] = {
            "calls": reader.calls,
            "decisions": reader.decisions,
            "samples": reader.samples,
            "tenants": reader.tenants,
            "sessions": reader.sessions,
        }
        with pytest.raises(LedgerDamagedRecord, match=rf"of {table} does not decode") as caught:
            questions[table]()
    assert str(ledger.path) in str(caught.value)
    assert caught.value.remedy


async def test_a_closed_reader_says_so(ledger: Ledger) -> None:
    reader = LedgerReader(ledger.path)
    reader.close()
    reader.close()
    with pytest.raises(LedgerMisuse, match="reader is closed"):
        reader.calls()


async def test_the_reader_serves_several_threads(ledger: Ledger, reader: LedgerReader) -> None:
    for number in range(20):
        ledger.call_begun(call(begun_at=T0 + number))
    await ledger.flush()
    answers = await asyncio.gather(*(asyncio.to_thread(reader.calls, limit=number) for number in range(1, 17)))
    assert [len(answer) for answer in answers] == list(range(1, 17))


async def test_the_reader_cannot_write(ledger: Ledger, reader: LedgerReader) -> None:
    connection = reader._connection
    assert connection is not None
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM calls")
