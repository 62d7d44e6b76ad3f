"""The day that ``scripts/bench tui`` makes up fits the ledger of this version."""

from __future__ import annotations

import time
from pathlib import Path

from agentd.api.history import LedgerHistory
from agentd.api.ports import HistoryQuery
from agentd.ledger import Ledger, LedgerReader
from tests.bench.tui import fill


async def test_the_made_day_is_read_back(tmp_path: Path) -> None:
    now, path = time.time(), tmp_path / "ledger.db"
    ledger = Ledger.open(path)
    await ledger.close()
    assert fill(path, now, 1_000) == 20
    with LedgerReader(path) as reader:
        page = await LedgerHistory(reader).history(HistoryQuery(limit=100, with_samples=True, with_decisions=True))
    assert len(page.calls) == 20
    assert len(page.samples) == 1_000
    assert len(page.decisions) == 1
