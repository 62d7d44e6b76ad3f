"""Recordings: what an operator's Watch stream said, in a file that can be sent to a colleague and replayed.

Version 1. Numbers are little endian. The file begins with

    8 bytes   magic, b"CORRALR1" (the digit is the version)
    u32       length of the next, at most 64 KiB
    JSON      an object: "begun_at" (unix seconds), "source" (which daemon), "agentd" (its version); more may come

and goes on with frames, each

    f64       unix seconds, never less than those before
    u8        kind: 1 snapshot, 2 call, 3 decision, 4 session, others are skipped;   then 3 zero bytes
    u32 u32   length of the content, unpacked and packed
    u32       CRC-32 of the packed content
    bytes     a corral.v1.WatchResponse, packed with zlib

A frame that is cut off at the end is what a recorder that was killed leaves: it is dropped, and ``complete`` says so.

RecordingError   the file cannot be written or is none: names it, the cause and the remedy
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from google.protobuf.message import DecodeError

from agentd.proto.corral.v1 import corral_pb2 as pb

MAGIC: Final = b"CORRALR1"
KINDS: Final = {"snapshot": 1, "call": 2, "decision": 3, "session": 4}
MAX_ABOUT: Final = 64 * 1024
MAX_CONTENT: Final = 64 * 1024 * 1024  # of one frame, unpacked: beyond it the file is hostile or damaged
MAX_FRAMES: Final = 10_000_000
_LENGTH: Final = struct.Struct("<I")
_FRAME: Final = struct.Struct("<dB3xIII")
_LEVEL: Final = 1  # zlib's: a picture every second must not cost the machine that it is of


class RecordingError(Exception):
    pass


class RecordingWriter:
    """A new file; one that exists is never written over. A context manager. Raises RecordingError."""

    def __init__(self, path: Path, *, begun_at: float, source: str, agentd: str = "") -> None:
        self._path = path
        self._last = -math.inf
        self.frames = 0
        about = json.dumps({"begun_at": begun_at, "source": source[:1000], "agentd": agentd[:100]}).encode()
        try:
            # for its owner alone: commands of agents stand in it
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        except FileExistsError:
            raise RecordingError(f"{path}: exists already; name a new file, or remove it") from None
        except OSError as err:
            raise RecordingError(f"{path}: {err.strerror}; name a file where you may write") from err
        self._write(MAGIC + _LENGTH.pack(len(about)) + about)

    def add(self, at: float, update: pb.WatchResponse) -> None:
        """``at`` unix seconds; a clock that was set back stands still here. What is of no kind is left out."""
        kind = KINDS.get(update.WhichOneof("update") or "")
        if kind is None:
            return
        self._last = at = max(at, self._last)
        content = update.SerializeToString()
        packed = zlib.compress(content, _LEVEL)
        self._write(_FRAME.pack(at, kind, len(content), len(packed), zlib.crc32(packed)) + packed)
        self.frames += 1

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as err:
            raise RecordingError(f"{self._path}: {err.strerror}; what was recorded until now can be replayed") from err

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as err:
            raise RecordingError(f"{self._path}: {err.strerror}") from err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Frame:
    at: float
    kind: int
    offset: int  # of its content
    size: int
    packed: int
    crc: int


class Recording:
    """A file that exists, with its frames in order. ``read`` unpacks one. Not for several threads at once. Raises
    RecordingError for what is no recording, and for a frame that is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.complete = True
        self.frames: list[Frame] = []
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as err:
            raise RecordingError(f"{path}: {err.strerror}; corral record FILE makes one") from err
        try:
            self.about = self._about()
            self._index()
        except OSError as err:
            self._file.close()
            raise RecordingError(f"{path}: {err.strerror}") from err
        except RecordingError:
            self._file.close()
            raise
        if not any(frame.kind == KINDS["snapshot"] for frame in self.frames):
            self._file.close()
            raise RecordingError(f"{path}: has no picture: the recording was ended too early; record again")

    def _about(self) -> dict[str, Any]:
        magic = self._file.read(len(MAGIC))
        if magic[:-1] != MAGIC[:-1]:
            raise RecordingError(f"{self.path}: is no recording; corral record FILE makes one")
        if magic != MAGIC:
            raise RecordingError(f"{self.path}: is of version {magic[-1:]!r}, and this is 1; update Corral")
        head = self._file.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else MAX_ABOUT + 1
        try:
            if length > MAX_ABOUT:
                raise ValueError("its head is too long")
            about = json.loads(self._file.read(length))
            if not isinstance(about, dict):
                raise ValueError("its head is no object")
        except (ValueError, RecursionError) as err:
            raise RecordingError(f"{self.path}: is damaged ({err}); record again") from None
        return about

    def _index(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        offset = len(MAGIC) + _LENGTH.size
        self._file.seek(len(MAGIC))
        offset += _LENGTH.unpack(self._file.read(_LENGTH.size))[0]
        last = -math.inf
        while offset < end:
            self._file.seek(offset)
            head = self._file.read(_FRAME.size)
            if len(head) < _FRAME.size:
                self.complete = False
                return
            at, kind, size, packed, crc = _FRAME.unpack(head)
            if not (math.isfinite(at) and at >= last) or size > MAX_CONTENT or packed > MAX_CONTENT:
                raise RecordingError(f"{self.path}: is damaged at byte {offset}; record again")
            last = at
            offset += _FRAME.size
            if offset + packed > end:
                self.complete = False
                return
            if len(self.frames) >= MAX_FRAMES:
                raise RecordingError(f"{self.path}: has more than {MAX_FRAMES} frames; record for less time")
            self.frames.append(Frame(at, kind, offset, size, packed, crc))
            offset += packed

    def read(self, frame: Frame) -> pb.WatchResponse:
        try:
            self._file.seek(frame.offset)
            packed = self._file.read(frame.packed)
            if zlib.crc32(packed) != frame.crc:
                raise ValueError("its checksum is another")
            unpacker = zlib.decompressobj()
            # never more than was announced: a few packed bytes can be gigabytes
            content = unpacker.decompress(packed, frame.size + 1)
            if len(content) != frame.size:
                raise ValueError("its length is another")
            return pb.WatchResponse.FromString(content)
        except (ValueError, zlib.error, DecodeError) as err:
            raise RecordingError(f"{self.path}: the frame at byte {frame.offset} is damaged ({err})") from None
        except OSError as err:
            raise RecordingError(f"{self.path}: {err.strerror}") from err

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
