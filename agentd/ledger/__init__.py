"""The durable history in SQLite: ``Ledger`` writes it, ``LedgerReader`` answers from it."""

from agentd.ledger.errors import (
    LedgerBusy,
    LedgerCorrupt,
    LedgerDamagedRecord,
    LedgerError,
    LedgerFull,
    LedgerIo,
    LedgerMisuse,
    LedgerNotMigrated,
    LedgerReadOnly,
    LedgerTooNew,
    LedgerUnopenable,
    LedgerUnwritten,
    NotALedger,
)
from agentd.ledger.reader import LedgerReader
from agentd.ledger.records import CallRecord, Health, Sample, Switch, Total
from agentd.ledger.retention import RetentionPolicy
from agentd.ledger.writer import Ledger, LedgerSettings

__all__ = [
    "CallRecord",
    "Health",
    "Ledger",
    "LedgerBusy",
    "LedgerCorrupt",
    "LedgerDamagedRecord",
    "LedgerError",
    "LedgerFull",
    "LedgerIo",
    "LedgerMisuse",
    "LedgerNotMigrated",
    "LedgerReadOnly",
    "LedgerReader",
    "LedgerSettings",
    "LedgerTooNew",
    "LedgerUnopenable",
    "LedgerUnwritten",
    "NotALedger",
    "RetentionPolicy",
    "Sample",
    "Switch",
    "Total",
]
