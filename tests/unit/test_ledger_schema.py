"""Opening: new files, old versions, newer ones, foreign ones, damaged ones, places that take no writes."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.ledger import (
    LedgerBusy,
    LedgerCorrupt,
    LedgerError,
    LedgerNotMigrated,
    LedgerReader,
    LedgerReadOnly,
    LedgerTooNew,
    LedgerUnopenable,
    NotALedger,
    schema,
)
from agentd.ledger.backlog import Batch, CallBegun
from agentd.ledger.batch import BatchWriter
from tests.unit.ledger_objects import call

_NOBODY = 65_534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def unprivileged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Root writes where mode bits forbid it: be somebody else for a while (the whole process; no thread runs)."""
    if os.geteuid() != 0:
        yield
        return
    closed = [
        d for d in (tmp_path_factory.getbasetemp(), *tmp_path_factory.getbasetemp().parents) if not others_enter(d)
    ]
    modes = {directory: stat.S_IMODE(directory.stat().st_mode) for directory in closed}
    for directory in closed:
        directory.chmod(modes[directory] | 0o001)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        for directory, mode in modes.items():
            directory.chmod(mode)


def others_enter(directory: Path) -> bool:
    return bool(directory.stat().st_mode & 0o001)


def fill(path: Path) -> None:
    connection = schema.open_for_writing(path)
    BatchWriter().write(connection, Batch([CallBegun(call(command=f"step {number}" * 20)) for number in range(200)]))
    connection.close()


def said(err: LedgerError, path: Path) -> None:
    """Every message has the file, a cause and a remedy."""
    assert str(err) == f"ledger {path}: {err.cause}; {err.remedy}"
    assert len(err.cause) > 5
    assert len(err.remedy) > 10


def test_a_new_file_is_ours_and_private(path: Path) -> None:
    connection = schema.open_for_writing(path)
    assert connection.execute("PRAGMA application_id").fetchone() == (schema.APPLICATION_ID,)
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.version(),)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)  # INCREMENTAL
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    connection.close()


def test_an_empty_file_becomes_a_ledger(path: Path) -> None:
    path.touch()
    schema.open_for_writing(path).close()
    LedgerReader(path).close()


def test_a_start_that_was_cut_short_is_taken_up_again(path: Path) -> None:
    """Killed after the file was made and switched to WAL, before the first migration was committed."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    fill(path)
    with LedgerReader(path) as reader:
        assert len(reader.calls()) == 200


def test_opening_again_changes_nothing(path: Path) -> None:
    fill(path)
    before = path.read_bytes()
    schema.open_for_writing(path).close()
    assert path.read_bytes() == before


def test_awkward_file_names(tmp_path: Path) -> None:
    for name in ("with space.db", "q?mode=memory", "hash#1.db", "100%41.db", "größe.db"):
        schema.open_for_writing(tmp_path / name).close()
        assert (tmp_path / name).stat().st_size > 0


def step(version: int, sql: str) -> schema.Migration:
    return schema.Migration(version, f"{version:04}_test.sql", sql)


def with_migrations(monkeypatch: pytest.MonkeyPatch, *more: schema.Migration) -> None:
    known = (*schema.migrations(), *more)
    monkeypatch.setattr(schema, "migrations", lambda: known)


def test_an_old_ledger_is_brought_up_to_date(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    base = schema.version()
    more = (
        "-- a comment; with a semicolon\nALTER TABLE calls ADD COLUMN note TEXT;\nCREATE INDEX notes ON calls (note);\n"
    )
    with_migrations(monkeypatch, step(base + 1, more), step(base + 2, "UPDATE calls SET note = 'old; kept';"))
    with pytest.raises(LedgerNotMigrated, match="start agentd once") as caught:
        LedgerReader(path)
    assert (caught.value.version, caught.value.supported) == (base, base + 2)
    connection = schema.open_for_writing(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (base + 2,)
    assert connection.execute("SELECT count(*) FROM calls WHERE note = 'old; kept'").fetchone() == (200,)
    connection.close()
    with LedgerReader(path) as reader:
        assert len(reader.calls()) == 200


def test_a_migration_that_fails_leaves_the_version_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    base = schema.version()
    with monkeypatch.context() as patched:
        with_migrations(
            patched,
            step(base + 1, "CREATE TABLE kept (a INTEGER) STRICT;"),
            step(base + 2, "CREATE TABLE gone (a INTEGER) STRICT;\nINSERT INTO nowhere VALUES (1);"),
        )
        with pytest.raises(LedgerError, match="no such table: nowhere"):
            schema.open_for_writing(path)
    connection = sqlite3.connect(path)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert connection.execute("PRAGMA user_version").fetchone() == (base + 1,)
    connection.close()
    assert "kept" in tables
    assert "gone" not in tables


def test_a_newer_ledger_is_refused_and_not_touched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    newer = schema.version() + 1
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {newer}")
    connection.close()
    before = path.read_bytes()
    for opening in (schema.open_for_writing, schema.open_for_reading):
        with pytest.raises(LedgerTooNew) as caught:
            opening(path)
        said(caught.value, path)
        assert (caught.value.version, caught.value.supported) == (newer, schema.version())
    assert path.read_bytes() == before


def test_a_newer_version_that_is_only_in_the_log_is_seen(path: Path) -> None:
    """The file's own header still has the old version: the newer daemon was killed before its first checkpoint."""
    fill(path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA user_version = {schema.version() + 1}")
    left = path.parent / "left"
    left.mkdir()
    files = {left / file.name: file.read_bytes() for file in (path, path.with_name("ledger.db-wal"))}
    connection.close()
    for file, content in files.items():  # as they were when it was killed
        file.write_bytes(content)
    with pytest.raises(LedgerTooNew):
        schema.open_for_writing(left / path.name)
    assert {file: file.read_bytes() for file in files} == files


@pytest.mark.parametrize("content", [b"x", b"not a database\n" * 3, b"\0" * 600, b"tenant,calls\n" * 1_000])
def test_a_file_that_is_no_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for opening in (schema.open_for_writing, schema.open_for_reading):
        with pytest.raises(NotALedger) as caught:
            opening(path)
        said(caught.value, path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("prepare", ["CREATE TABLE songs (a)", "PRAGMA application_id = 77", "PRAGMA user_version = 1"])
def test_the_database_of_another_program(path: Path, prepare: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(prepare)
    connection.close()
    before = path.read_bytes()
    with pytest.raises(NotALedger, match="another program") as caught:
        schema.open_for_writing(path)
    said(caught.value, path)
    assert path.read_bytes() == before


def test_a_damaged_ledger(path: Path) -> None:
    fill(path)
    content = bytearray(path.read_bytes())
    content[100:4_096] = b"\xa5" * 3_996  # the first page's tree, behind a header that still looks right
    path.write_bytes(content)
    for opening in (schema.open_for_writing, schema.open_for_reading):
        with pytest.raises(LedgerCorrupt, match="damaged") as caught:
            opening(path)
        said(caught.value, path)
    assert path.read_bytes() == content


def test_damage_further_inside_is_said_when_it_is_met(path: Path) -> None:
    fill(path)
    connection = sqlite3.connect(path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'calls'").fetchone()
    connection.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4_096 : page * 4_096] = b"\xa5" * 4_096
    path.write_bytes(content)
    with LedgerReader(path) as reader, pytest.raises(LedgerCorrupt) as caught:
        reader.calls()
    said(caught.value, path)


def test_no_directory(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "ledger.db"
    with pytest.raises(LedgerUnopenable, match="there is no directory") as caught:
        schema.open_for_writing(path)
    said(caught.value, path)
    with pytest.raises(LedgerUnopenable, match="no such file"):
        schema.open_for_reading(path)


def test_not_a_plain_file(path: Path) -> None:
    path.mkdir()
    for opening in (schema.open_for_writing, schema.open_for_reading):
        with pytest.raises(LedgerUnopenable, match="not a plain file") as caught:
            opening(path)
        said(caught.value, path)


def test_a_link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere.db")
    with pytest.raises(LedgerUnopenable, match="link") as caught:
        schema.open_for_writing(path)
    said(caught.value, path)
    assert not (path.parent / "nowhere.db").exists()


def test_a_directory_that_takes_no_writes(path: Path, unprivileged: None) -> None:
    if os.getuid() != 0:  # otherwise the directory is root's
        path.parent.chmod(0o555)
    with pytest.raises(LedgerReadOnly) as caught:
        schema.open_for_writing(path)
    said(caught.value, path)
    assert "writable" in caught.value.remedy


@pytest.fixture
def read_only_ledger(path: Path) -> Path:
    """Everybody may read it, nobody may write it or its directory."""
    fill(path)
    path.chmod(0o444)
    path.parent.chmod(0o555)
    return path


def test_a_ledger_that_takes_no_writes(read_only_ledger: Path, unprivileged: None) -> None:
    with pytest.raises(LedgerReadOnly) as caught:
        schema.open_for_writing(read_only_ledger)
    said(caught.value, read_only_ledger)


def test_a_file_that_takes_no_writes_in_a_directory_that_does(path: Path, unprivileged: None) -> None:
    os.seteuid(os.getuid())
    fill(path)
    path.chmod(0o444)
    path.parent.chmod(0o777)
    if os.getuid() == 0:
        os.seteuid(_NOBODY)
    with pytest.raises(LedgerReadOnly) as caught:
        schema.open_for_writing(path)
    said(caught.value, path)


def test_a_ledger_that_another_process_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.0)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerBusy, match="locked") as caught:
        schema.open_for_writing(path)
    said(caught.value, path)
    holder.execute("ROLLBACK")
    holder.close()
    schema.open_for_writing(path).close()


def test_migrations_split_into_statements() -> None:
    table = "-- one; two\nCREATE TABLE a (b TEXT DEFAULT ';');\n\n"
    trigger = "CREATE TRIGGER t AFTER INSERT ON a BEGIN\n DELETE FROM a;\nEND;\n"
    assert list(step(1, table + trigger).statements()) == [table.rstrip() + "\n", "\n" + trigger]
    with pytest.raises(AssertionError, match="no end"):
        list(step(1, "CREATE TABLE a (b)").statements())
    assert list(step(1, "-- nothing\n\n").statements()) == []
