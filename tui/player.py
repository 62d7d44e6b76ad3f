"""Time travel: the present goes on underneath, the screen shows it or a moment of the past.

Knows no widgets: pages show ``board`` and say ``words``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tui.model.board import Board
from tui.model.moments import when
from tui.source.protocol import Moment, Source, SourceError, Update

STEP: Final = 10.0  # seconds, where the source does not say better
SPEEDS: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_BEHIND: Final = 1e-3  # seconds: floats of neighbouring moments differ by less only if they are the same


class Player:
    """``clock`` gives unix seconds. Coroutines raise SourceError and leave the screen as it was."""

    def __init__(self, source: Source, clock: Callable[[], float]) -> None:
        self._source = source
        self._clock = clock
        self._live = Board()
        self._past: Board | None = None
        self._turn = asyncio.Lock()  # one question for the past at a time: the last answer is the one to show
        self.moment: Moment | None = None
        self.at: float | None = None  # None: now
        self.playing = False
        self.speed = 1.0

    @property
    def board(self) -> Board:
        return self._past if self._past is not None else self._live

    @property
    def in_past(self) -> bool:
        return self._past is not None

    def apply(self, update: Update) -> None:
        self._live.apply(update)

    def pause(self) -> None:
        """The present, held."""
        if self._past is None and self._live.at is not None:
            self._past, self.at, self.moment, self.playing = self._live.frozen(), self._live.at, None, False

    async def toggle(self) -> None:
        """Pauses the present; in the past plays and stops. What was paused and not moved is the present again."""
        if self._past is None:
            self.pause()
        elif self.moment is None and self._source.live:
            self.now()
        else:
            self.playing = not self.playing

    def now(self) -> None:
        if self._source.live:
            self._past, self.at, self.moment, self.playing = None, None, None, False

    async def begin(self) -> None:
        """The first moment of a source without a present, played."""
        await self.go(None)
        self.playing = True

    async def go(self, at: float | None) -> None:
        """Shows the moment ``at`` (None: the first)."""
        async with self._turn:
            moment = await self._source.moment(at)
            board = Board() if self._past is None else self._past
            board.show(moment)
            self._past, self.moment, self.at = board, moment, moment.at

    async def step(self, direction: int) -> None:
        self.playing = False
        moment = self.moment
        near = None
        if moment is not None:
            near = moment.earlier if direction < 0 else moment.later
        await self.go(near if near is not None else self._here() + direction * STEP)

    async def decision(self, direction: int) -> None:
        """To the decision before or after the moment. Raises SourceError where there is none."""
        self.playing = False
        if self.moment is None:
            await self.go(self._here())
        moment = self.moment
        found = (moment.previous if direction < 0 else moment.next) if moment is not None else None
        if found is None:
            raise SourceError(f"no decision {'before' if direction < 0 else 'after'} this moment is kept")
        # a moment shows what was decided up to it: that of the decision itself is the first that has it
        await self.go(found)

    def faster(self, by: int) -> None:
        place = min(range(len(SPEEDS)), key=lambda number: abs(SPEEDS[number] - self.speed))
        self.speed = SPEEDS[max(0, min(len(SPEEDS) - 1, place + by))]

    async def tick(self, seconds: float) -> None:
        """Playing goes on by ``seconds`` of real time. At the end it stops, or is the present again."""
        if not self.playing or self._turn.locked():
            return
        at = self._here() + seconds * self.speed
        last = self.moment.last if self.moment is not None else None
        if self._source.live and at >= self._clock() - _BEHIND:
            self.now()
            return
        if not self._source.live and last is not None and at >= last:
            self.playing = False
            at = last
        await self.go(at)
        self.at = at  # the moment may be a picture a little before: playing must not stand still on it

    def _here(self) -> float:
        return self.at if self.at is not None else self._live.at if self._live.at is not None else self._clock()

    @property
    def words(self) -> str:
        """Where in time the screen is; empty: now."""
        if self._past is None or self.at is None:
            return ""
        if self.moment is None:
            return f"paused at {when(self.at, self._clock())}: p goes on, n is now"
        speed = f" at {self.speed:g}x" if self.speed != 1 else ""
        doing = f"playing{speed}" if self.playing else "stopped"
        back = "; n is now" if self._source.live else ""
        return f"{doing} at {when(self.at, self._clock())}{back}"
