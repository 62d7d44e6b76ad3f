"""A recorded file: a past without a present. Nothing can be done to it, and nothing asked that was not recorded."""

from __future__ import annotations

import asyncio
import threading
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.recording import KINDS, Frame, Recording, RecordingError
from tui.source.protocol import Action, CallPast, Moment, NotOffered, SourceError, Update

PLOT_PICTURES: Final = 200  # that are read for a call's plots
MAX_TOLD: Final = 500  # decisions beside a moment
_KEPT: Final = 64  # pictures in memory

_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")


class FileSource:
    """Raises SourceError where ``path`` is no recording. Files are read in threads, one at a time."""

    live = False

    def __init__(self, path: Path) -> None:
        self._turn = threading.Lock()
        try:
            self._recording = Recording(path)
        except RecordingError as err:
            raise SourceError(str(err)) from None
        frames = self._recording.frames
        self._pictures = [number for number, frame in enumerate(frames) if frame.kind == KINDS["snapshot"]]
        self._times = [frames[number].at for number in self._pictures]
        self._decisions: list[pb.Decision] | None = None
        self._ended: dict[str, pb.Call] | None = None
        self._picture = lru_cache(maxsize=_KEPT)(self._read_picture)

    @property
    def name(self) -> str:
        cut = "" if self._recording.complete else " (cut off at its end)"
        return f"{self._recording.path.name}{cut}"

    async def updates(self) -> AsyncIterator[Update]:
        return
        yield  # makes this a generator: there are none

    async def moment(self, at: float | None) -> Moment:
        return await self._asked(self._moment, at)

    async def call(self, call_id: str, *, until: float | None = None) -> CallPast:
        return await self._asked(self._call, call_id, until)

    async def session_calls(self, session_id: str, *, until: float | None = None) -> Sequence[pb.Call]:
        return await self._asked(self._session_calls, session_id, until)

    async def budgets(self, session_id: str) -> Sequence[pb.Budget]:
        raise NotOffered("budgets are not in a recording")

    async def processes(self, call_id: str) -> Sequence[pb.Process]:
        raise NotOffered("processes are not in a recording")

    async def features(self) -> Sequence[pb.Feature]:
        raise NotOffered("what the host can do is not in a recording; its line above says what it cannot")

    async def act(self, action: Action) -> Sequence[str]:
        raise NotOffered("this is a recording: nothing can be done to it")

    async def close(self) -> None:
        with self._turn:
            self._recording.close()

    # --- in a thread

    async def _asked(self, question: Callable[_Given, _Answer], *given: _Given.args, **more: _Given.kwargs) -> _Answer:
        """The file's faults become the source's."""

        def work() -> _Answer:
            with self._turn:
                return question(*given, **more)

        try:
            return await asyncio.to_thread(work)
        except RecordingError as err:
            raise SourceError(str(err)) from None

    def _read(self, frame: Frame) -> pb.WatchResponse:
        return self._recording.read(frame)

    def _read_picture(self, place: int) -> pb.SnapshotResponse:
        return self._read(self._recording.frames[self._pictures[place]]).snapshot

    def _place(self, at: float) -> int:
        """Of the last picture at or before ``at``; the first where there is none."""
        return max(0, bisect_right(self._times, at) - 1)

    def _moment(self, at: float | None) -> Moment:
        frames = self._recording.frames
        first, last = self._times[0], frames[-1].at
        at = first if at is None else min(max(at, first), last)
        place = self._place(at)
        snapshot = pb.SnapshotResponse()
        snapshot.CopyFrom(self._picture(place))
        self._go_on(snapshot, self._pictures[place], at)
        times = [decision.at for decision in self._all_decisions()]
        until = bisect_right(times, at)
        earlier = [moment for moment in times[:until] if moment < at]
        return Moment(
            at=at,
            snapshot=snapshot,
            before=self._picture(place - 1) if place else None,
            decisions=self._all_decisions()[max(0, until - MAX_TOLD) : until],
            previous=earlier[-1] if earlier else None,
            next=times[until] if until < len(times) else None,
            first=first,
            last=last,
            earlier=self._times[place if at > self._times[place] else max(0, place - 1)],
            later=self._times[min(place + 1, len(self._times) - 1)],
        )

    def _go_on(self, snapshot: pb.SnapshotResponse, number: int, at: float) -> None:
        """What was said between the picture and the moment."""
        calls = {call.id: call for call in snapshot.calls}
        changed = False
        for frame in self._recording.frames[number + 1 :]:
            if frame.at > at or frame.kind == KINDS["snapshot"]:
                break
            if frame.kind == KINDS["call"]:
                call = self._read(frame).call
                calls[call.id] = call
                changed = True
            elif frame.kind == KINDS["session"]:
                snapshot.sessions.append(self._read(frame).session)
        if changed:
            made = list(calls.values())
            del snapshot.calls[:]
            snapshot.calls.extend(made)

    def _all_decisions(self) -> list[pb.Decision]:
        """By the time that they were taken. Read once: they are small, and few beside the pictures."""
        if self._decisions is None:
            frames = [frame for frame in self._recording.frames if frame.kind == KINDS["decision"]]
            self._decisions = sorted((self._read(frame).decision for frame in frames), key=lambda d: d.at)
        return self._decisions

    def _all_ended(self) -> dict[str, pb.Call]:
        if self._ended is None:
            self._ended = {}
            for frame in self._recording.frames:
                if frame.kind == KINDS["call"]:
                    call = self._read(frame).call
                    if call.state == pb.CALL_STATE_ENDED:
                        self._ended[call.id] = call
        return self._ended

    def _call(self, call_id: str, until: float | None) -> CallPast:
        until = self._recording.frames[-1].at if until is None else until
        ended = self._all_ended().get(call_id)
        if ended is not None and ended.HasField("outcome") and ended.outcome.ended_at > until:
            ended = None
        last = self._place(until)
        step = max(1, (last + 1) // PLOT_PICTURES)
        samples: list[pb.Sample] = []
        call = ended
        for place in sorted({*range(last, -1, -step)}):
            picture = self._picture(place)
            found = next((one for one in picture.calls if one.id == call_id), None)
            if found is not None:
                samples.append(pb.Sample(at=picture.at, call_id=call_id, state=found.state, usage=found.usage))
                call = ended or found
        picture = self._picture(last)
        names = {tenant.id: tenant.name for tenant in picture.tenants}
        names |= {session.id: session.name for session in picture.sessions}
        told = [d for d in self._all_decisions() if d.call_id == call_id and d.at <= until]
        return CallPast(call=call, decisions=told, samples=samples, names=names)

    def _session_calls(self, session_id: str, until: float | None) -> list[pb.Call]:
        until = self._recording.frames[-1].at if until is None else until
        ended = [call for call in self._all_ended().values() if call.outcome.ended_at <= until]
        live = [call for call in self._picture(self._place(until)).calls if call.state != pb.CALL_STATE_ENDED]
        known = {call.id: call for call in (*live, *ended) if call.session_id == session_id}
        return sorted(known.values(), key=lambda call: -call.begun_at)
