"""The exceptions of the ledger.

LedgerError
 ├─ LedgerUnopenable    the file cannot be opened or made: no directory, no permission, not a plain file
 ├─ LedgerReadOnly      the file, its directory or its file system takes no writes
 ├─ LedgerFull          no space is left (disk, quota, or the size that a file may have)
 ├─ LedgerBusy          another process keeps the file locked
 ├─ LedgerIo            the disk or its driver answers with errors
 ├─ NotALedger          the file is something else: another program's database, or no database
 ├─ LedgerTooNew        written by a newer version of Corral; left as it is
 ├─ LedgerNotMigrated   written by an older version, and opened for reading only
 ├─ LedgerCorrupt       the database's own structure is damaged
 ├─ LedgerDamagedRecord one record does not decode
 ├─ LedgerUnwritten     flush or close gave up with records still in memory
 └─ LedgerMisuse        a record that cannot be one, or a ledger that was closed: a mistake in the caller

Every message has the file, the cause and the remedy, in that order.
"""

from __future__ import annotations

from pathlib import Path


class LedgerError(Exception):
    """Base of all. ``path`` is the ledger's file, ``cause`` what went wrong, ``remedy`` what to do about it."""

    def __init__(self, path: Path, cause: str, remedy: str) -> None:
        self.path = path
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"ledger {path}: {cause}; {remedy}")


class LedgerUnopenable(LedgerError):
    pass


class LedgerReadOnly(LedgerError):
    pass


class LedgerFull(LedgerError):
    pass


class LedgerBusy(LedgerError):
    pass


class LedgerIo(LedgerError):
    pass


class NotALedger(LedgerError):
    pass


class LedgerTooNew(LedgerError):
    """``version`` is the file's, ``supported`` the newest that this program knows."""

    def __init__(self, path: Path, version: int, supported: int) -> None:
        self.version = version
        self.supported = supported
        super().__init__(
            path,
            f"has version {version}, and this program knows versions up to {supported}; it was not touched",
            "install the newer Corral again, or set another ledger file",
        )


class LedgerNotMigrated(LedgerError):
    """``version`` is the file's, ``supported`` the one that this program reads."""

    def __init__(self, path: Path, version: int, supported: int) -> None:
        self.version = version
        self.supported = supported
        super().__init__(
            path,
            f"has version {version}, and this program reads version {supported}",
            "start agentd once: it brings the file up to date",
        )


class LedgerCorrupt(LedgerError):
    pass


class LedgerDamagedRecord(LedgerError):
    pass


class LedgerUnwritten(LedgerError):
    pass


class LedgerMisuse(LedgerError):
    pass
