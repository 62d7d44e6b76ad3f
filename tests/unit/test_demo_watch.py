"""The demo's screens from recorded updates: lines, live table, closing table."""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator

from agentd.demo import report
from agentd.demo.watch import Lines, LiveTable, State, follow
from agentd.proto.corral.v1 import corral_pb2 as pb

MIB = 1 << 20


def call(state: pb.CallState, *, memory: int = 100 * MIB, command: str = "/usr/bin/make -j4") -> pb.Call:
    made = pb.Call(
        id="c-1",
        session_id="s-1",
        tenant_id="t-1",
        command=command,
        intent=pb.Intent(tool="make", call_class="build", memory_typical_bytes=64 * MIB, memory_peak_bytes=128 * MIB),
        grant=pb.Grant(brake_bytes=128 * MIB),
        state=state,
        usage=pb.Usage(cpu_usec=1_500_000, memory_now_bytes=memory),
    )
    if state == pb.CALL_STATE_ENDED:
        usage = pb.Usage(cpu_usec=2_000_000, memory_peak_bytes=130 * MIB, net_rx_bytes=1024, net_tx_bytes=1024)
        outcome = pb.Outcome(reason="braked", wall_seconds=4.2, usage=usage, summary="It was stopped once.")
        made.outcome.CopyFrom(outcome)
    return made


def snapshot(*calls: pb.Call, mode: str = "hybrid") -> pb.WatchResponse:
    return pb.WatchResponse(
        snapshot=pb.SnapshotResponse(
            host=pb.HostStatus(mode=mode, cpus=2, missing=["limits: not root"] if mode == "observe" else []),
            tenants=[pb.Tenant(id="t-1", name="acme")],
            sessions=[pb.Session(id="s-1", tenant_id="t-1", name="refactor")],
            calls=calls,
        )
    )


def brake() -> pb.WatchResponse:
    reason = "memory passed 128 MiB"
    return pb.WatchResponse(
        decision=pb.Decision(action="brake", reason=reason, tenant_id="t-1", session_id="s-1", call_id="c-1")
    )


UPDATES = (
    snapshot(),
    pb.WatchResponse(call=call(pb.CALL_STATE_RUNNING)),
    snapshot(call(pb.CALL_STATE_RUNNING)),
    brake(),
    pb.WatchResponse(call=call(pb.CALL_STATE_BRAKED)),
    pb.WatchResponse(call=call(pb.CALL_STATE_RUNNING)),
    pb.WatchResponse(call=call(pb.CALL_STATE_ENDED)),
)


def test_lines_tell_each_event_once() -> None:
    out = io.StringIO()
    display, state = Lines(out), State()
    for update in UPDATES:
        state.take(update)
        display.update(state, update)
    lines = [re.sub(r"^ *[0-9.]+ s +", "", line) for line in out.getvalue().splitlines()]
    assert lines == [
        "acme/refactor    make    begin   make -j4  [declares 64 MiB to 128 MiB]",
        "acme/refactor    make    brake   memory passed 128 MiB",
        "acme/refactor    make    ended   braked after 4.2 s, CPU 2 s, peak 130 MiB",
    ]


def test_lines_cannot_steer_a_terminal() -> None:
    out = io.StringIO()
    display, state = Lines(out), State()
    hostile = pb.WatchResponse(call=call(pb.CALL_STATE_RUNNING, command="make \x1b[2J\x07"))
    state.take(hostile)
    display.update(state, hostile)
    assert out.getvalue().rstrip("\n").isprintable()


async def test_follow_feeds_the_display_until_the_stream_ends() -> None:
    async def updates() -> AsyncIterator[pb.WatchResponse]:
        for update in UPDATES:
            yield update

    out = io.StringIO()
    await follow(updates(), Lines(out))
    assert len(out.getvalue().splitlines()) == 3


def test_live_table_fits_the_screen_and_shows_how_near_the_brake_is() -> None:
    table, state = LiveTable(io.StringIO(), screen=(100, 24), colour=False), State()
    state.take(snapshot(call(pb.CALL_STATE_RUNNING, memory=96 * MIB)))
    lines = table.picture(state)
    assert "hybrid host" in lines[0]
    assert "1 calls live, 0 ended" in lines[0]
    (row,) = [line for line in lines if "acme/refactor" in line]
    assert "▶ running" in row
    assert "████████░░  75 %" in row
    assert max(len(line) for line in lines) <= 100


def test_live_table_says_on_every_picture_that_it_only_observes() -> None:
    table, state = LiveTable(io.StringIO(), screen=(100, 24), colour=False), State()
    state.take(snapshot(mode="observe"))
    lines = table.picture(state)
    assert "observe host" in lines[0]
    assert "! limits: not root" in lines


def test_live_table_redraws_in_place() -> None:
    out = io.StringIO()
    table, state = LiveTable(out, screen=(100, 24), colour=False), State()
    first = snapshot(call(pb.CALL_STATE_RUNNING))
    state.take(first)
    table.update(state, first)
    drawn = out.getvalue().count("\n")
    table.update(state, first)
    assert f"\x1b[{drawn}A" in out.getvalue()


def test_closing_table_has_what_was_done_and_why() -> None:
    decisions = [
        pb.Decision(call_id="c-1", at=1.0, action="brake", reason="past 128 MiB"),
        pb.Decision(call_id="c-1", at=2.0, action="raise", reason="room for 64 MiB more"),
        pb.Decision(call_id="c-1", at=3.0, action="raise", reason="room for another 64 MiB"),
    ]
    lines = report.table(
        [call(pb.CALL_STATE_ENDED)],
        decisions,
        tenants={"t-1": "acme"},
        sessions={"s-1": "refactor"},
        width=None,
        colour=False,
    )
    assert lines[0].split()[:4] == ["TENANT", "SESSION", "TOOL", "CLASS"]
    assert lines[1].startswith("acme")
    assert "brake, raise ×2: room for another 64 MiB" in lines[1]
    assert "130 MiB" in lines[1]
    assert "2 KiB" in lines[1]
    assert len(lines) == 2


def test_closing_table_of_a_narrow_terminal_tells_what_was_done_below_the_call() -> None:
    decisions = [pb.Decision(call_id="c-1", at=1.0, action="kill", reason="no room came within three seconds")]
    lines = report.table(
        [call(pb.CALL_STATE_ENDED)],
        decisions,
        tenants={"t-1": "acme"},
        sessions={"s-1": "refactor"},
        width=36,
        colour=False,
    )
    assert lines[2:] == ["    ↳ kill: no room came within", "      three seconds"]


def test_explanations_are_those_that_agents_were_told() -> None:
    assert report.explanations([call(pb.CALL_STATE_ENDED)]) == ["make (make): It was stopped once."]
    assert report.explanations([call(pb.CALL_STATE_RUNNING)]) == []


def test_commands_are_shortened_for_people() -> None:
    assert report.command_words("/a/b/python -m pip wheel --wheel-dir /tmp/x/out /tmp/x/package") == (
        "python -m pip wheel --wheel-dir out package"
    )
    assert len(report.command_words("x" * 500)) == 72
