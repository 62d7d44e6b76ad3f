"""The ledger behind History: read in a thread, because it blocks on the disk."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

from agentd.api.ports import HistoryPage, HistoryQuery, MomentPage, SampleView
from agentd.ledger import LedgerError, LedgerReader, Sample
from controller.model import CallState, ControllerError, Decision, Usage

MAX_SAMPLES: Final = 100_000  # of one answer: some 15 MB
MOMENT_DECISIONS: Final = 200

_COUNTED: Final = tuple(
    field.name for field in fields(Usage) if field.name in {sampled.name for sampled in fields(Sample)}
)


class LedgerHistory:
    """A HistoryPort. A fault of the ledger becomes a ControllerError with its file, cause and remedy.

    ``source``: a reader, or the ledger's file, which is then opened by the first question that finds it: a daemon on a
    full disk has none yet. ``trouble``: why the ledger cannot be written at the moment, empty when it can.
    """

    def __init__(self, source: LedgerReader | Path, *, trouble: Callable[[], str] = str) -> None:
        self._path = source if isinstance(source, Path) else None
        self._opened = source if isinstance(source, LedgerReader) else None
        self._trouble = trouble
        self._turn = threading.Lock()  # questions come in threads

    @property
    def _reader(self) -> LedgerReader:
        with self._turn:
            if self._opened is None:
                assert self._path is not None  # noqa: S101 - one of both was given
                self._opened = LedgerReader(self._path)
            return self._opened

    def close(self) -> None:
        """Of a ledger that was opened here."""
        if self._path is not None and self._opened is not None:
            self._opened.close()

    async def history(self, query: HistoryQuery) -> HistoryPage:
        return await asyncio.to_thread(self._read, query)

    def _read(self, query: HistoryQuery) -> HistoryPage:
        with self._in_words():
            records = self._reader.calls(
                since=query.since,
                until=query.until,
                tenant_name=query.tenant or None,
                session_id=query.session_id,
                call_id=query.call_id,
                limit=query.limit,
            )
            calls = [record.call for record in records]
            decisions = self._decisions(query) if query.with_decisions else []
            samples: list[Sample] = []
            if query.with_samples:
                for call in calls:
                    samples += self._reader.samples(
                        call_id=call.id, downsample=query.sample_points, limit=MAX_SAMPLES - len(samples)
                    )
                    if len(samples) >= MAX_SAMPLES:
                        break
        names: dict[str, str] = {}
        for record in records:
            names[record.call.tenant_id] = record.tenant_name
            names[record.call.session_id] = record.session_name
        return HistoryPage(
            calls=calls, decisions=decisions, samples=[_sample(sample) for sample in samples], names=names
        )

    async def moment(self, at: float | None) -> MomentPage:
        return await asyncio.to_thread(self._moment, at)

    def _moment(self, at: float | None) -> MomentPage:
        with self._in_words():
            reader = self._reader
            first = reader.first_begin()
            if at is None:
                at = first if first is not None else 0.0
            samples = reader.latest_samples(at)
            calls = []
            for record in reader.alive_at(at):
                call, sample = replace(record.call, outcome=None), samples.get(record.call.id)
                if sample is not None:
                    call = replace(call, state=sample.state, usage=_sample(sample).usage)
                elif record.call.outcome is not None:
                    # its row has what it used in the end: not yet known at this moment
                    call = replace(call, state=CallState.RUNNING, usage=Usage())
                calls.append(replace(call, held_since=None))
            previous, following = reader.decisions_beside(at)
            return MomentPage(
                at=at,
                tenants=reader.tenants(),
                sessions=reader.sessions_open_at(at),
                calls=calls,
                decisions=reader.decisions(until=math.nextafter(at, math.inf), limit=MOMENT_DECISIONS),
                previous_decision=previous,
                next_decision=following,
                first=first,
            )

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """A LedgerError as a ControllerError."""
        try:
            yield
        except LedgerError as err:
            if trouble := self._trouble():  # what the reader met is a consequence of it
                raise ControllerError(
                    f"the history cannot be read before it can be written: {trouble}",
                    remedy="what has ended since the start is kept in memory meanwhile (corral ps --all)",
                ) from err
            raise ControllerError(f"ledger {err.path}: {err.cause}", remedy=err.remedy) from err

    def _decisions(self, query: HistoryQuery) -> list[Decision]:
        """Of the time and the objects asked for; those about a session or a tenant as a whole are among them."""
        if not query.tenant:
            return self._reader.decisions(
                since=query.since, until=query.until, session_id=query.session_id, call_id=query.call_id
            )
        # a name that was used again has had several ids
        found = [
            decision
            for tenant in self._reader.tenants()
            if tenant.name == query.tenant
            for decision in self._reader.decisions(
                since=query.since,
                until=query.until,
                tenant_id=tenant.id,
                session_id=query.session_id,
                call_id=query.call_id,
            )
        ]
        return sorted(found, key=lambda decision: decision.at)


def _sample(sample: Sample) -> SampleView:
    usage = Usage(**{name: getattr(sample, name) for name in _COUNTED})
    return SampleView(at=sample.at, call_id=sample.call_id, state=sample.state, usage=usage)
