"""The file of recordings: written, read, cut off, damaged, hostile."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.recording import MAGIC, MAX_CONTENT, Recording, RecordingError, RecordingWriter

NOW = 1_800_000_000.0
FRAME = struct.Struct("<dB3xIII")
HEAD = MAGIC + struct.pack("<I", 2) + b"{}"  # with nothing said about it


def _snapshot(at: float) -> pb.WatchResponse:
    return pb.WatchResponse(snapshot=pb.SnapshotResponse(at=at, calls=[pb.Call(id="c-1", command="x" * 500)]))


def _write(path: Path, *updates: tuple[float, pb.WatchResponse]) -> Path:
    with RecordingWriter(path, begun_at=NOW, source="unix:/x", agentd="1.0") as writer:
        for at, update in updates:
            writer.add(at, update)
    return path


def _three(path: Path) -> Path:
    decision = pb.WatchResponse(decision=pb.Decision(at=NOW + 0.5, action="brake"))
    return _write(path, (NOW, _snapshot(NOW)), (NOW + 0.5, decision), (NOW + 1, _snapshot(NOW + 1)))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = _three(tmp_path / "a.corral")
    assert path.stat().st_mode & 0o777 == 0o600
    with Recording(path) as found:
        assert found.complete
        assert found.about == {"begun_at": NOW, "source": "unix:/x", "agentd": "1.0"}
        assert [(frame.at, frame.kind) for frame in found.frames] == [(NOW, 1), (NOW + 0.5, 3), (NOW + 1, 1)]
        assert found.read(found.frames[2]).snapshot.calls[0].command == "x" * 500
        assert found.read(found.frames[1]).decision.action == "brake"


def test_a_file_that_exists_is_not_written_over(tmp_path: Path) -> None:
    path = _three(tmp_path / "a.corral")
    before = path.read_bytes()
    with pytest.raises(RecordingError, match="exists already"):
        _write(path)
    assert path.read_bytes() == before
    with pytest.raises(RecordingError, match="No such file"):
        _write(tmp_path / "no" / "a.corral")


def test_time_never_goes_back_and_what_has_no_kind_is_left_out(tmp_path: Path) -> None:
    lost = pb.WatchResponse(lost=pb.Lost(updates=1))
    path = _write(tmp_path / "a", (NOW, _snapshot(NOW)), (NOW - 9, _snapshot(NOW - 9)), (NOW, lost))
    with Recording(path) as found:
        assert [frame.at for frame in found.frames] == [NOW, NOW]


def test_a_recording_that_was_cut_off_is_shown_up_to_there(tmp_path: Path) -> None:
    whole = _three(tmp_path / "a").read_bytes()
    with Recording(tmp_path / "a") as found:
        begins = [frame.offset - FRAME.size for frame in found.frames]
    for cut in (len(whole) - 1, begins[2] + 3, begins[1] + FRAME.size + 1):
        path = tmp_path / f"cut{cut}"
        path.write_bytes(whole[:cut])
        with Recording(path) as found:
            assert not found.complete
            assert len(found.frames) == sum(cut > begin for begin in begins) - 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no recording"),
        (b"SQLite format 3\0", "is no recording"),
        (MAGIC[:-1] + b"2", "update Corral"),
        (MAGIC, "is damaged"),
        (MAGIC + b"\xff\xff\xff\xff", "is damaged"),
        (MAGIC + struct.pack("<I", 2) + b"[]", "is damaged"),
        (HEAD, "has no picture"),
        (
            HEAD + FRAME.pack(NOW, 1, MAX_CONTENT + 1, 1, 0) + b"x",
            "is damaged at byte 14",
        ),
        (HEAD + FRAME.pack(float("nan"), 1, 1, 1, 0) + b"x", "is damaged"),
    ],
)
def test_what_is_no_recording_says_so(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=words) as raised:
        Recording(path)
    assert str(path) in str(raised.value)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="corral record FILE"):
        Recording(tmp_path / "none")


def _one_frame(path: Path, packed: bytes, size: int) -> Path:
    path.write_bytes(HEAD + FRAME.pack(NOW, 1, size, len(packed), zlib.crc32(packed)) + packed)
    return path


def test_damaged_and_hostile_frames(tmp_path: Path) -> None:
    bomb = zlib.compress(b"\0" * (1 << 24))
    for number, (packed, size) in enumerate(
        [(b"no zlib", 10), (bomb, 100), (zlib.compress(b"abc"), 4), (zlib.compress(b"\xff" * 9), 9)]
    ):
        found = Recording(_one_frame(tmp_path / str(number), packed, size))
        with found, pytest.raises(RecordingError, match="is damaged"):
            found.read(found.frames[0])
    path = _three(tmp_path / "bits")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with Recording(path) as found, pytest.raises(RecordingError, match="checksum"):
        found.read(found.frames[-1])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise_anything_else(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(HEAD + tail)
    try:
        with Recording(path) as found:
            for frame in found.frames:
                found.read(frame)
    except RecordingError:
        pass
