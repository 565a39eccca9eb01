"""`SqliteFile`: a private SQLite file with a schema of a known version, for one thread.

A commit is on disk before a method returns (write-ahead log, synchronous=FULL). Several processes may share a file.
Only its owner can read it; it is not encrypted.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm4.errors import StoreError
from glm4.system.text_encoding import well_formed

_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Schema:
    """What a file holds.

    Attributes:
        application_id: in the header of the file; another program's file is not touched.
        version: of the statements.
        statements: SQL; a statement begins on a line of its own.
        upgrades: version → statements that lead to the next one.
    """

    application_id: int
    version: int
    statements: str
    upgrades: Mapping[int, str] = field(default_factory=dict)


class SqliteFile:
    """An open file.

    Args:
        path: created if missing (with its folder); None keeps everything in memory.
        what: for errors: "the stored responses".

    Raises:
        StoreError: the file cannot be used; says why and what to do.
    """

    def __init__(self, path: Path | None, schema: Schema, what: str) -> None:
        self._path = path
        self._what = what
        if path is not None:
            self._make_private(path)
        with self.errors("opened"):
            self.connection = sqlite3.connect(path or ":memory:", timeout=_WAIT_SECONDS, isolation_level=None)
            self._closing = weakref.finalize(self, _close, self.connection)
            try:
                self._open(schema)
            except BaseException:
                self.connection.close()
                raise

    def run(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Execute one statement. In texts, what UTF-8 does not have (lone surrogates) is replaced."""
        return self.connection.execute(statement, [well_formed(v) if isinstance(v, str) else v for v in values])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything in the block is written, or nothing; a block inside of another is a part of that."""
        if self.connection.in_transaction:
            yield
            return
        with self.connection:  # commits, or rolls back
            self.connection.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def errors(self, done: str) -> Iterator[None]:
        """SQLite's errors as StoreError: the file cannot be `done`."""
        try:
            yield
        except sqlite3.Error as error:
            where = self._path or "in memory"
            if isinstance(error, sqlite3.OperationalError):
                advice = "make sure that the disk has room and that nothing else locks the file"
            else:
                advice = (
                    f"move {where} away, together with {where}-wal and {where}-shm if they exist, to start with an "
                    "empty store, or restore a backup"
                )
            raise StoreError(f"{self._what} ({where}) cannot be {done}: {error}; {advice}") from error

    def close(self) -> None:
        """Close the file; the write-ahead log is merged into it. The last reference to it does, too."""
        self.connection.close()
        self._closing.detach()

    def _open(self, schema: Schema) -> None:
        (check,) = self.run("PRAGMA quick_check(1)").fetchone()
        if check != "ok":
            raise sqlite3.DatabaseError(check)
        for setting in (
            *("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"),
            "journal_size_limit = 4194304",
        ):
            self.run(f"PRAGMA {setting}").fetchone()
        with self.transaction():
            application_id, version = (
                self.run("PRAGMA application_id").fetchone() + self.run("PRAGMA user_version").fetchone()
            )
            if self.run("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                self._apply(schema.statements, schema.version)
                self.run(f"PRAGMA application_id = {schema.application_id}")
                return
            while application_id == schema.application_id and version in schema.upgrades:
                self._apply(schema.upgrades[version], version + 1)
                version += 1
            if (application_id, version) != (schema.application_id, schema.version):
                raise sqlite3.DatabaseError("it belongs to another program or version")

    def _apply(self, statements: str, version: int) -> None:
        # One statement at a time: executescript would commit the transaction under way.
        statement = ""
        for line in statements.splitlines(keepends=True):
            statement += line
            if sqlite3.complete_statement(statement):  # not inside of a trigger
                self.run(statement)
                statement = ""
        if statement.strip():
            self.run(statement)
        self.run(f"PRAGMA user_version = {version}")

    def _make_private(self, path: Path) -> None:
        """Create the file, for its owner only; SQLite gives the files beside it the same permissions."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
        except OSError as error:
            raise StoreError(
                f"{self._what} ({path}) cannot be opened: {error.strerror}; name a file this user may read and write"
            ) from None


def _close(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.ProgrammingError):  # of another thread, which is gone
        connection.close()
