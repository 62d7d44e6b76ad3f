"""Moments as people write them, the player, and replays of recorded files."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.recording import RecordingWriter
from tests.tui.fixtures import BUILD, BURST, NOW, TAR, TEST, decision, moments, running, snapshot, source
from tests.tui.support import ids, make, press, settled, shown, told
from tui.app import CorralApp, DashboardError, replay, run
from tui.model.moments import MomentError, parse, when
from tui.player import SPEEDS, Player
from tui.source.file import FileSource
from tui.source.protocol import Action, NotOffered, SourceError

SIZE = (120, 40)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("10m ago", NOW - 600),
        ("1h30m", NOW - 5400),
        ("2d ago", NOW - 172_800),
        ("90s", NOW - 90),
        ("07:30", NOW - 1800),
        ("07:59:50", NOW - 10),
        ("08:00:01", NOW + 1 - 86_400),  # has not come yet today
        ("2027-01-15 07:00", NOW - 3600),
        ("2027-01-15T07:00:30", NOW - 3570),
        ("2027-01-14", NOW - 86_400 - 8 * 3600),
        ("+30s", NOW - 70),
        ("-1m", NOW - 160),
        ("now", None),
        ("", None),
    ],
)
def test_moments(text: str, at: float | None) -> None:
    assert parse(text, now=NOW, shown=NOW - 100) == at


@pytest.mark.parametrize("text", ["soon", "25:00", "10:61", "10x ago", "ago", "2026-13-01", "+", "9" * 30 + "d", "-5"])
def test_what_is_no_moment_says_what_would_be(text: str) -> None:
    with pytest.raises(MomentError, match="give 10m ago"):
        parse(text, now=NOW, shown=NOW)


def test_moments_in_words() -> None:
    assert when(NOW - 725, NOW) == "07:47:55, 12m05s ago"
    assert when(NOW - 86_400, NOW) == "2027-01-14 08:00:00, 1d00h ago"


async def test_the_keys_of_time() -> None:
    app, fixture = make(running())
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await settled(pilot)
        await press(pilot, "j", ">soon", "enter")
        assert "no moment" in shown(app, "#wrong")
        await press(pilot, "escape", "j", ">1h ago", "enter")
        assert shown(app, "#state").startswith("stopped at 07:00:00, 1h00m ago; n is now")
        assert len(ids(app)) == 9  # the call that is gone was there
        await press(pilot, "right_square_bracket")
        assert shown(app, "#state").startswith("stopped at 07:30:00")
        await press(pilot, "right_square_bracket")
        assert told(app) == ["no decision after this moment is kept"]
        await press(pilot, "left_square_bracket")
        assert shown(app, "#state").startswith("stopped at 07:00:00")
        await press(pilot, "k")
        assert "this is the past" in told(app)[1]
        await press(pilot, "greater_than_sign", "greater_than_sign", "less_than_sign")
        assert app.player.speed == 2.0
        await press(pilot, "n")
        assert "stopped" not in shown(app, "#state")
        assert len(ids(app)) == 8
        await press(pilot, "comma")
        assert app.player.in_past
        await press(pilot, "full_stop", "n", "p", "p")
        assert "paused" not in shown(app, "#state")
    assert fixture.acted == []


async def test_a_source_without_a_past_says_so() -> None:
    app, _ = make(running(), moments=[])
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await settled(pilot)
        await press(pilot, "comma")
        assert told(app) == ["fixture: there is no past"]
        assert not app.player.in_past


async def test_it_begins_where_it_is_told_to() -> None:
    app, _ = make(running(), begin="30m ago")
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        assert shown(app, "#state").startswith("stopped at 07:30:00")


async def test_the_player_plays_up_to_now() -> None:
    player = Player(source(running()), lambda: NOW)
    await player.go(NOW - 3600)
    assert (player.at, player.playing) == (NOW - 3600, False)
    await player.toggle()
    player.speed = 300.0
    await player.tick(2.0)
    assert player.at == NOW - 3000  # the picture is the older one, the moment goes on
    assert player.board.at == NOW - 3600
    await player.tick(10.0)
    assert not player.in_past
    await player.tick(1.0)
    assert not player.in_past


async def test_a_replay_stops_at_its_end() -> None:
    player = Player(source([], live=False), lambda: NOW + 1e6)
    await player.begin()
    assert (player.at, player.playing) == (NOW - 3600, True)
    player.speed = 300.0
    await player.tick(6.0)
    assert (player.at, player.playing) == (NOW - 1800, True)
    await player.tick(12.5)
    assert (player.at, player.playing) == (NOW, False)
    player.now()
    assert player.in_past


def test_speeds_have_ends() -> None:
    player = Player(source([]), lambda: NOW)
    player.faster(-99)
    assert player.speed == SPEEDS[0]
    player.faster(99)
    assert player.speed == SPEEDS[-1]


# --- recorded files


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three pictures, ten seconds apart. Between the last two a call is braked (a decision), one ends, one is new."""
    path = tmp_path / "day.corral"
    with RecordingWriter(path, begun_at=NOW, source="unix:/x") as writer:
        writer.add(NOW, pb.WatchResponse(snapshot=snapshot()))
        second = snapshot(at=NOW + 10)
        second.calls[0].usage.cpu_usec += 5_000_000
        writer.add(NOW + 10, pb.WatchResponse(snapshot=second))
        writer.add(NOW + 12, pb.WatchResponse(decision=decision(at=NOW + 12)))
        gone = pb.Call()
        gone.CopyFrom(second.calls[3])
        gone.state = pb.CALL_STATE_ENDED
        gone.outcome.MergeFrom(pb.Outcome(reason="exited", ended_at=NOW + 13))
        writer.add(NOW + 13, pb.WatchResponse(call=gone))
        writer.add(NOW + 14, pb.WatchResponse(session=pb.Session(id="s-new", tenant_id="t-idle", opened_at=NOW + 14)))
        third = snapshot(at=NOW + 20)
        del third.calls[3]
        writer.add(NOW + 20, pb.WatchResponse(snapshot=third))
    return path


async def test_moments_of_a_file(recording: Path) -> None:
    file = FileSource(recording)
    assert (file.name, file.live) == ("day.corral", False)
    first = await file.moment(None)
    assert (first.at, first.first, first.last, first.before, first.next) == (NOW, NOW, NOW + 20, None, NOW + 12)
    between = await file.moment(NOW + 15)
    assert [call.state for call in between.snapshot.calls if call.id == TAR] == [pb.CALL_STATE_ENDED]
    assert "s-new" in [session.id for session in between.snapshot.sessions]
    assert [told.at for told in between.decisions] == [NOW + 12]
    assert (between.previous, between.next, between.earlier, between.later) == (NOW + 12, None, NOW + 10, NOW + 20)
    assert between.before is not None
    assert between.before.at == NOW
    # beyond its ends there is the end
    assert (await file.moment(NOW + 99)).at == NOW + 20
    assert (await file.moment(0.0)).at == NOW
    # a moment that was shown changes no other
    assert len((await file.moment(NOW + 11)).snapshot.calls) == 4
    assert [call.state for call in (await file.moment(NOW + 11)).snapshot.calls][3] == pb.CALL_STATE_FROZEN
    await file.close()


async def test_calls_of_a_file(recording: Path) -> None:
    file = FileSource(recording)
    past = await file.call(BURST)
    assert [sample.at for sample in past.samples] == [NOW, NOW + 10, NOW + 20]
    assert [told.at for told in past.decisions] == [NOW + 12]
    assert past.names["t-greedy"] == "greedy"
    assert (await file.call(BURST, until=NOW + 11)).decisions == []
    gone = await file.call(TAR)
    assert gone.call is not None
    assert gone.call.outcome.reason == "exited"
    early = await file.call(TAR, until=NOW + 12)
    assert early.call is not None
    assert early.call.state == pb.CALL_STATE_FROZEN
    assert (await file.call("c-none")).call is None
    assert {call.id for call in await file.session_calls("s-rollout")} == {BURST, BUILD, TAR}
    for asking in (file.budgets("s"), file.processes("c"), file.features(), file.act(Action(verb="kill", target="c"))):
        with pytest.raises(NotOffered):
            await asking
    await file.close()


async def test_a_file_on_the_screen(recording: Path) -> None:
    app = CorralApp(FileSource(recording), clock=lambda: NOW + 3600)
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await settled(pilot)
        await press(pilot, "p")
        assert not app.player.playing
        await press(pilot, "j", ">07:00", "enter")  # before its beginning
        assert app.player.at == NOW
        assert shown(app, "#state").startswith("stopped at 08:00:00, 1h00m ago")
        assert "n is now" not in shown(app, "#state")
        await press(pilot, "full_stop")
        assert app.player.at == NOW + 10
        await press(pilot, "right_square_bracket")
        assert app.player.at == NOW + 12
        assert "■ brake" in shown(app, "#ticker")
        await press(pilot, "full_stop", "comma")
        assert app.player.at == NOW + 10
        await press(pilot, "k", "d")
        assert "this is a recording" in told(app)[0]
        assert "not in a recording" in shown(app, "#text")
        await press(pilot, "escape", "n")
        assert app.player.in_past
        await press(pilot, "home", "down", "down", "enter")
        assert shown(app, "#crumbs") == "host › acme › coder › Bash"
        assert TEST in shown(app, "#text")


def test_what_is_no_recording_or_moment_keeps_the_dashboard_from_starting(tmp_path: Path) -> None:
    with pytest.raises(DashboardError, match="corral record FILE"):
        replay(tmp_path / "none")
    with pytest.raises(DashboardError, match="--at"):
        run("unix:/nowhere", begin="soon")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(SourceError, match="is no recording"):
        FileSource(tmp_path / "text")


async def test_pages_follow_the_moment() -> None:
    app, _ = make(running())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await press(pilot, "end", "up", "up", "enter")
        assert "most 129 MiB" in shown(app, "#text")
        await press(pilot, "j", ">30m ago", "enter")
        assert "nothing is kept yet" in shown(app, "#text")  # its samples are newer than that
        await press(pilot, "n")
        assert "most 129 MiB" in shown(app, "#text")
    assert len(moments()) == 2
