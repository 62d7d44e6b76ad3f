"""Opening the ledger's file: is it ours, is its version known, bring it up to date, say plainly what is wrong.

Durability. The file is in WAL mode with ``synchronous=NORMAL``: a commit is a write() into the log, without an fsync.
Once a commit has returned, its pages are the kernel's: killing the daemon in any way, at any instant, loses nothing of
it. Only the loss of the whole machine (power, kernel crash) may cost the commits since the last checkpoint (one comes
with each 1,000 pages of log, 4 MB), never the file's integrity; with the machine every tool call is gone as well, so
that no leaf waits for those records.

Versions. ``migrations/NNNN_name.sql`` are applied in order, each in one transaction together with its ``PRAGMA
user_version``. A file of a newer version is refused after reading its header through a read-only connection.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from agentd.ledger.errors import (
    LedgerBusy,
    LedgerCorrupt,
    LedgerError,
    LedgerFull,
    LedgerIo,
    LedgerNotMigrated,
    LedgerReadOnly,
    LedgerTooNew,
    LedgerUnopenable,
    NotALedger,
)

APPLICATION_ID: Final = 0x434F5252  # "CORR", in the header of the file: tells a ledger from any other database
BUSY_SECONDS: Final = 5.0  # how long to wait for a lock of another process (a backup, a person with the sqlite3 shell)
_SMALLEST_DATABASE: Final = 512  # bytes: one page of the smallest size
_LOG_KEPT_BYTES: Final = 16 << 20  # a write-ahead log that has grown past this is cut back after its checkpoint

_MIGRATION: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str

    def statements(self) -> Iterator[str]:
        """One statement at a time: sqlite3.executescript would commit the transaction that it is to run in."""
        pending = ""
        for line in self.sql.splitlines(keepends=True):
            pending += line
            if sqlite3.complete_statement(pending):
                yield pending
                pending = ""
        if any(line.strip() and not line.lstrip().startswith("--") for line in pending.splitlines()):
            raise AssertionError(f"migration {self.name}: its last statement has no end: {pending.strip()[:80]!r}")


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations that this program knows, numbered 1, 2, 3, ... without a gap."""
    found = []
    for entry in files("agentd.ledger").joinpath("migrations").iterdir():
        if match := _MIGRATION.fullmatch(entry.name):
            found.append(Migration(int(match[1]), entry.name, entry.read_text("utf-8")))
    found.sort(key=lambda migration: migration.version)
    if not found or [migration.version for migration in found] != list(range(1, len(found) + 1)):
        names = [migration.name for migration in found]
        raise AssertionError(f"the ledger's migrations are not numbered 1, 2, 3, ...: {names}; the package is damaged")
    return tuple(found)


def version() -> int:
    """The version of the ledger that this program writes and reads."""
    return migrations()[-1].version


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The writer's connection: file made if there is none (mode 0600: it holds every tenant's commands), migrated,
    proven writable. Autocommit; may be handed to one other thread. Raises LedgerError."""
    if _is_new(path):
        _create(path)
    else:
        _check_version(path)
    connection = _connect(path, "rw")
    try:
        _configure(connection, path)
        _migrate(connection, path)
        # A file that takes no writes shows only with the first one (BEGIN IMMEDIATE is content with a read): ask now.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA user_version = {version()}")
        connection.execute("ROLLBACK")
    except sqlite3.Error as err:
        connection.close()
        raise explain(err, path) from err
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection that cannot write. Raises LedgerError (LedgerUnopenable where there is no file)."""
    if not path.exists():
        raise LedgerUnopenable(path, "there is no such file", "start agentd, or name the ledger that it writes")
    connection = _connect(path, "ro")
    try:
        connection.execute("PRAGMA query_only = 1")
        found = _identify(connection, path)
    except sqlite3.Error as err:
        connection.close()
        raise explain(err, path) from err
    except BaseException:
        connection.close()
        raise
    if found < version():
        connection.close()
        raise LedgerNotMigrated(path, found, version())
    return connection


def explain(err: sqlite3.Error, path: Path) -> LedgerError:
    """What SQLite's error means for this file, with its remedy."""
    code = getattr(err, "sqlite_errorcode", 0) & 0xFF
    cause = f"{err} ({getattr(err, 'sqlite_errorname', type(err).__name__)})"
    if code == sqlite3.SQLITE_NOTADB:
        return NotALedger(path, f"not a database: {err}", "name another ledger file, or move this one away")
    if code == sqlite3.SQLITE_CORRUPT:
        return LedgerCorrupt(
            path,
            f"damaged: {cause}",
            "move it, its -wal and its -shm away (agentd makes a new one); `sqlite3 FILE .recover` saves what it can",
        )
    if code == sqlite3.SQLITE_READONLY:
        return LedgerReadOnly(path, cause, _remedy_writable(path))
    if code == sqlite3.SQLITE_FULL:
        return LedgerFull(path, cause, _remedy_space(path))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LedgerBusy(path, cause, "end the other program that holds it (`fuser -v FILE` names it)")
    if code == sqlite3.SQLITE_CANTOPEN and path.exists() and not _writable(path.parent):
        return LedgerReadOnly(
            path, f"{path.parent} takes no writes, which the log needs: {cause}", _remedy_writable(path)
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return LedgerUnopenable(path, cause, f"check that {path.parent} exists and that this user may write in it")
    if code == sqlite3.SQLITE_IOERR:
        return LedgerIo(path, cause, "check the disk, its space and the kernel's log (dmesg)")
    return LedgerError(path, cause, "report this with the agentd log")


def _is_new(path: Path) -> bool:
    try:
        return path.stat().st_size == 0 and path.is_file()
    except FileNotFoundError:
        return True
    except OSError as err:
        raise _explain_os(err, path) from err


def _create(path: Path) -> None:
    # Never opened here when it exists: closing any descriptor of a file drops the POSIX locks that SQLite holds on it
    # for another connection of this process.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if not path.exists():  # a dangling link
            raise LedgerUnopenable(path, "is a link to a file that is not there", "remove the link") from None
    except OSError as err:
        raise _explain_os(err, path) from err


def _explain_os(err: OSError, path: Path) -> LedgerError:
    cause = f"{err.strerror} ({errno.errorcode.get(err.errno or 0, '?')})"
    if err.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return LedgerReadOnly(path, cause, _remedy_writable(path))
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return LedgerFull(path, cause, _remedy_space(path))
    if err.errno == errno.ENOENT:
        return LedgerUnopenable(path, f"there is no directory {path.parent}", "create it, or set another ledger file")
    return LedgerUnopenable(path, cause, "set another ledger file")


def _writable(directory: Path) -> bool:
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=True)


def _remedy_writable(path: Path) -> str:
    return f"make {path.parent} and the file writable for this user, or set another ledger file"


def _remedy_space(path: Path) -> str:
    return f"free space on the file system of {path.parent}, or lower the ledger's max_bytes"


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    if path.exists() and not path.is_file():
        raise LedgerUnopenable(path, "is not a plain file", "set another ledger file")
    if 0 < path.stat().st_size < _SMALLEST_DATABASE:
        # SQLite takes some of these for empty, and would write over them.
        raise NotALedger(path, f"not a database: {path.stat().st_size} bytes", "name another ledger file")
    try:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.Error as err:
        raise explain(err, path) from err


def _check_version(path: Path) -> None:
    """Refuse what is not ours through a connection that cannot change it: closing a writable one would checkpoint."""
    connection = _connect(path, "ro")
    try:
        _identify(connection, path)
    except sqlite3.Error as err:
        raise explain(err, path) from err
    finally:
        connection.close()


def _identify(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the ledger (0: an empty database). Raises NotALedger or LedgerTooNew, and sqlite3.Error."""
    application = _number(connection, "PRAGMA application_id")
    found = _number(connection, "PRAGMA user_version")
    objects = _number(connection, "SELECT count(*) FROM sqlite_schema")
    if application != APPLICATION_ID and (application or found or objects):
        raise NotALedger(
            path,
            f"a database of another program (application id {application & 0xFFFFFFFF:#010x}, {objects} objects)",
            "set another ledger file",
        )
    if found > version():
        raise LedgerTooNew(path, found, version())
    return found


def _configure(connection: sqlite3.Connection, path: Path) -> None:
    if not _identify(connection, path):
        # Before the first table: afterwards it would need a full VACUUM to give space back to the file system.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise LedgerUnopenable(
            path, f"its file system takes no write-ahead log (got {mode!r})", "keep the ledger on a local file system"
        )
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_KEPT_BYTES}")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA trusted_schema = 0")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    for migration in migrations():
        if migration.version <= _identify(connection, path):
            continue
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Read again, under the lock: another process may have been faster.
            if _identify(connection, path) < migration.version:
                for statement in migration.statements():
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {migration.version}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _number(connection: sqlite3.Connection, query: str) -> int:
    value = connection.execute(query).fetchone()[0]
    if not isinstance(value, int):
        raise AssertionError(f"{query} gave {value!r}")
    return value
