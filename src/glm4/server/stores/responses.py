"""`ResponseStore`: stored responses in SQLite, for one thread; `ThreadedResponseStore` is its asynchronous form.

A commit is on disk before a method returns (write-ahead log, synchronous=FULL): what a client was told is stored
survives a crash of the process or the machine. Several processes may share a file. Anyone who can read the file can
read the conversations, so only its owner can read it; it is not encrypted.

A response belongs to the key it was made with (`owner`, see `identity.key_id`); for others it does not exist.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4.errors import InvalidRequestError, StoreError
from glm4.server.stores.thread import OwnThread, on_thread

_APPLICATION_ID = 0x474C4D34  # "GLM4", in the header of the file
_VERSION = 2
MAX_CHAIN = 1000
"""Responses of one conversation, each continuing the one before."""
MAX_CHAIN_BYTES = 64 << 20
_WAIT_SECONDS = 30.0

_SCHEMA = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY,
    previous TEXT,           -- the response this one continues
    status TEXT NOT NULL,
    used REAL NOT NULL,      -- when it, or a response that continues it, was stored last
    bytes INTEGER NOT NULL,
    input TEXT NOT NULL,     -- JSON: what its request added to the conversation
    body TEXT NOT NULL,      -- JSON: the response object
    owner TEXT NOT NULL DEFAULT ''
);
CREATE INDEX responses_by_use ON responses (used);
CREATE TABLE items (         -- where an output item is to be found
    id TEXT NOT NULL,
    response TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    PRIMARY KEY (id, response)
) WITHOUT ROWID;
CREATE INDEX items_by_response ON items (response);
CREATE TABLE total (bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
CREATE TRIGGER stored AFTER INSERT ON responses BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER changed AFTER UPDATE OF bytes ON responses
    BEGIN UPDATE total SET bytes = bytes + new.bytes - old.bytes; END;
CREATE TRIGGER removed AFTER DELETE ON responses BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
"""

_WRITE = """
INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE
SET status = excluded.status, used = excluded.used, bytes = excluded.bytes, body = excluded.body
"""
# A conversation that continues is kept as a whole. UNION ends in a circle, too.
_TOUCH = """
WITH RECURSIVE chain (id) AS (
    VALUES (?) UNION SELECT previous FROM responses JOIN chain USING (id) WHERE previous IS NOT NULL LIMIT ?
)
UPDATE responses SET used = ? WHERE id IN (SELECT id FROM chain)
"""


@dataclass(frozen=True)
class StoredResponse:
    """A response and what its request added to the conversation."""

    body: dict[str, Any]
    items: list[dict[str, Any]]

    @property
    def status(self) -> str:
        """As in the response object."""
        return str(self.body["status"])


class ResponseStore:
    """Responses by id, within bounds of size and age.

    Args:
        path: the file, created if missing (with its folder); None keeps everything in memory.
        max_bytes: maximum bytes of JSON text; beyond that the responses unused for the longest time are dropped.
        max_age: seconds a response is kept after it, or a response that continues it, was stored.
        shares_old: every owner may also read responses that have none, as servers without keys store them.
        clock: seconds since the epoch.

    Raises:
        StoreError: the file cannot be used; says why and what to do.
    """

    def __init__(
        self,
        path: Path | None,
        max_bytes: int,
        max_age: float,
        clock: Callable[[], float] = time.time,
        *,
        shares_old: bool = True,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._clock = clock
        self._shares_old = shares_old
        if path is not None:
            _make_private(path)
        with self._errors("opened"):
            self._connection = sqlite3.connect(path or ":memory:", timeout=_WAIT_SECONDS, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._connection.close()
                raise

    def _open(self) -> None:
        run = self._connection.execute
        (check,) = run("PRAGMA quick_check(1)").fetchone()
        if check != "ok":
            raise sqlite3.DatabaseError(check)
        for setting in (
            *("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"),
            "journal_size_limit = 4194304",
        ):
            run(f"PRAGMA {setting}").fetchone()
        with self._transaction():
            belongs = run("PRAGMA application_id").fetchone() + run("PRAGMA user_version").fetchone()
            if run("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                # One statement at a time: executescript would commit the transaction under way.
                for statement in _SCHEMA.split(";\n"):
                    run(statement)
                run(f"PRAGMA application_id = {_APPLICATION_ID}")
                run(f"PRAGMA user_version = {_VERSION}")
            elif belongs == (_APPLICATION_ID, 1):
                run("ALTER TABLE responses ADD COLUMN owner TEXT NOT NULL DEFAULT ''")
                run(f"PRAGMA user_version = {_VERSION}")
            elif belongs != (_APPLICATION_ID, _VERSION):
                raise sqlite3.DatabaseError("it belongs to another program or version")
            self._purge()
            self._end_interrupted()

    def get(self, response_id: str, owner: str = "") -> StoredResponse | None:
        """A response, or None."""
        with self._errors("read"):
            row = self._row(response_id, owner)
        return None if row is None else StoredResponse(*map(json.loads, row))

    def size(self, response_id: str, owner: str = "") -> int:
        """Bytes of a response's text; 0 if there is no such response."""
        with self._errors("read"):
            row = self._connection.execute(
                "SELECT length(CAST(body AS BLOB)) + length(CAST(input AS BLOB)) FROM responses"
                " WHERE id = ? AND used >= ? AND owner IN (?, ?)",
                (response_id, self._oldest(), *self._owners(owner)),
            ).fetchone()
        return 0 if row is None else int(row[0])

    def get_within(self, response_id: str, owner: str, room: int) -> tuple[StoredResponse | None, int]:
        """A response (None if there is no such one, or it is longer than `room` bytes), and its length in bytes."""
        size = self.size(response_id, owner)
        return (self.get(response_id, owner) if 0 < size <= room else None), size

    def output_item(self, item_id: str, owner: str = "") -> dict[str, Any] | None:
        """An item of a response's output, or None."""
        with self._errors("read"):
            row = self._connection.execute(
                "SELECT body FROM items JOIN responses ON responses.id = response"
                " WHERE items.id = ? AND used >= ? AND owner IN (?, ?)",
                (item_id, self._oldest(), *self._owners(owner)),
            ).fetchone()
        if row is None:
            return None
        output: list[dict[str, Any]] = json.loads(row[0])["output"]
        return next((item for item in output if item["id"] == item_id), None)

    def insert(self, body: dict[str, Any], items: Sequence[dict[str, Any]], owner: str = "") -> None:
        """Store a new response; it is on disk when this returns.

        Raises:
            StoreError: it cannot be written, or is larger than the whole store may be.
        """
        with self._errors("written"), self._transaction():
            self._purge()
            self._write(body, _json(items), owner)

    def finish(self, body: dict[str, Any]) -> bool:
        """Store the end of a response that was stored unfinished; False if it was deleted in the meantime."""
        with self._errors("written"), self._transaction():
            row: tuple[str, str] | None = self._connection.execute(
                "SELECT input, owner FROM responses WHERE id = ? AND used >= ?", (body["id"], self._oldest())
            ).fetchone()
            if row is not None:
                self._write(body, *row)
        return row is not None

    def delete(self, response_id: str, owner: str = "") -> bool:
        """Delete a response; False if it did not exist."""
        with self._errors("written"), self._transaction():
            known = self._row(response_id, owner) is not None
            if known:
                self._connection.execute("DELETE FROM responses WHERE id = ?", (response_id,))
        return known

    def close(self) -> None:
        """Close the file; the write-ahead log is merged into it."""
        self._connection.close()

    # Inside a transaction

    def _row(self, response_id: str, owner: str) -> tuple[str, str] | None:
        row: tuple[str, str] | None = self._connection.execute(
            "SELECT body, input FROM responses WHERE id = ? AND used >= ? AND owner IN (?, ?)",
            (response_id, self._oldest(), *self._owners(owner)),
        ).fetchone()
        return row

    def _owners(self, owner: str) -> tuple[str, str]:
        return owner, "" if self._shares_old else owner

    def _oldest(self) -> float:
        return self._clock() - self._max_age

    def _write(self, body: dict[str, Any], given: str, owner: str) -> None:
        """Store a response, new or changed, and enforce the limits."""
        text = _json(body)
        size = len(given.encode()) + len(text.encode())
        if size > self._max_bytes:
            raise StoreError(
                f"a response of {size} bytes is larger than the store's limit ({self._max_bytes} bytes); "
                "raise the limit, or send store: false"
            )
        run, now, previous = self._connection.execute, self._clock(), body["previous_response_id"]
        run(_WRITE, (body["id"], previous, body["status"], now, size, given, text, owner))
        run(_TOUCH, (previous, MAX_CHAIN, now))
        rows = [(item["id"], body["id"]) for item in body["output"]]
        self._connection.executemany("INSERT OR IGNORE INTO items VALUES (?, ?)", rows)
        self._shrink(body["id"])

    def _purge(self) -> None:
        self._connection.execute("DELETE FROM responses WHERE used < ?", (self._oldest(),))

    def _shrink(self, newest: str) -> None:
        """Drop the responses unused for the longest time until the rest fits."""
        (total,) = self._connection.execute("SELECT bytes FROM total").fetchone()
        gone = []
        with closing(
            self._connection.execute("SELECT id, bytes FROM responses WHERE id != ? ORDER BY used, rowid", (newest,))
        ) as oldest:
            for response_id, size in oldest:
                if total <= self._max_bytes:
                    break
                gone.append((response_id,))
                total -= size
        self._connection.executemany("DELETE FROM responses WHERE id = ?", gone)

    def _end_interrupted(self) -> None:
        """Mark responses that a dead process was writing as failed."""
        reason = {"code": "server_error", "message": "the server stopped before this response was complete"}
        interrupted = self._connection.execute("SELECT id, body FROM responses WHERE status = 'in_progress'").fetchall()
        for response_id, text in interrupted:
            body = _json({**json.loads(text), "status": "failed", "error": reason})
            self._connection.execute(
                "UPDATE responses SET status = 'failed', body = ? WHERE id = ?", (body, response_id)
            )

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        with self._connection:  # commits, or rolls back
            self._connection.execute(f"BEGIN {kind}")
            yield

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
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
            raise StoreError(f"the stored responses ({where}) cannot be {done}: {error}; {advice}") from error


def _make_private(path: Path) -> None:
    """Create the file, for its owner only; SQLite gives the files beside it the same permissions."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise StoreError(
            f"the stored responses ({path}) cannot be opened: {error.strerror}; "
            "name a file this user may read and write"
        ) from None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class ThreadedResponseStore(OwnThread[ResponseStore]):
    """A `ResponseStore` on a thread of its own. Each call does little, so that none delays the others for long."""

    get = on_thread(ResponseStore.get)
    size = on_thread(ResponseStore.size)
    get_within = on_thread(ResponseStore.get_within)
    output_item = on_thread(ResponseStore.output_item)
    insert = on_thread(ResponseStore.insert)
    finish = on_thread(ResponseStore.finish)
    delete = on_thread(ResponseStore.delete)

    async def output_items(self, ids: Sequence[str], owner: str = "") -> dict[str, dict[str, Any]]:
        """Those of these output items that exist."""
        found = {item_id: await self.output_item(item_id, owner) for item_id in ids}
        return {item_id: item for item_id, item in found.items() if item is not None}

    async def conversation(self, response_id: str, owner: str = "") -> list[StoredResponse] | None:
        """A response and all it continues, oldest first; None if one of them is missing.

        Raises:
            InvalidRequestError: they continue each other, are too many or too long.
        """
        chain: dict[str, StoredResponse] = {}
        at: str | None = response_id
        room = MAX_CHAIN_BYTES
        while at is not None:
            if at in chain:
                raise _not_continued("its stored responses continue each other; the store was altered")
            if len(chain) == MAX_CHAIN:
                raise _not_continued(f"it has more than {MAX_CHAIN} responses")
            found, size = await self.get_within(at, owner, room)
            room -= size
            if room < 0:
                raise _not_continued(f"it is longer than {MAX_CHAIN_BYTES >> 20} MB")
            if found is None:
                return None
            chain[at] = found
            at = found.body["previous_response_id"]
        return list(chain.values())[::-1]


def _not_continued(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"this conversation cannot be continued: {reason}. Send what matters of it as input",
        param="previous_response_id",
    )
