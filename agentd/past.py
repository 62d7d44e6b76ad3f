"""What the ledger has of the calls that an earlier daemon left in the tree; controller.effects.Past."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from agentd.ledger import LedgerError, LedgerReader
from controller.model import CallId, Decision

_log: Final = structlog.get_logger("corral.past")


class LedgerPast:
    """A context manager, for the time of the start. A ledger that cannot be read knows nothing: calls go on all the
    same, and their ends are written again, which does no harm."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: LedgerReader | None = None
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        if self._reader is not None:
            self._reader.close()

    def has_ended(self, call_id: CallId, /) -> bool:
        try:
            record = self._open().call(call_id)
        except LedgerError as err:
            self._cannot(err)
            return False
        return record is not None and record.call.outcome is not None

    def decisions(self, call_id: CallId, /) -> Sequence[Decision]:
        """What was done to it, oldest first."""
        try:
            return self._open().decisions(call_id=call_id)
        except LedgerError as err:
            self._cannot(err)
            return ()

    def _open(self) -> LedgerReader:
        if self._reader is None:
            self._reader = LedgerReader(self._path)
        return self._reader

    def _cannot(self, err: LedgerError) -> None:
        if not self._failed:
            _log.warning("what was done to the calls so far is not known to this run", error=str(err))
        self._failed = True
