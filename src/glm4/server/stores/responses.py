"""`ResponseStore`: stored responses in SQLite, for one thread; `ThreadedResponseStore` is its asynchronous form.

What a client was told is stored survives a crash of the process or the machine (see `system.sqlite_file`).

A response belongs to the key it was made with (`owner`, see `identity.key_id`); for others it does not exist.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4.errors import InvalidRequestError, StoreError
from glm4.server.stores.thread import OwnThread, on_thread
from glm4.system.sqlite_file import Schema, SqliteFile

MAX_CHAIN = 1000
"""Responses of one conversation, each continuing the one before."""
MAX_CHAIN_BYTES = 64 << 20

_STATEMENTS = """
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

_SCHEMA = Schema(
    application_id=0x474C4D34,  # "GLM4"
    version=2,
    statements=_STATEMENTS,
    upgrades={1: "ALTER TABLE responses ADD COLUMN owner TEXT NOT NULL DEFAULT ''"},
)

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
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._clock = clock
        self._shares_old = shares_old
        self._file = SqliteFile(path, _SCHEMA, "the stored responses")
        try:
            with self._file.errors("opened"), self._file.transaction():
                self._purge()
                self._end_interrupted()
        except BaseException:
            self._file.close()
            raise

    def get(self, response_id: str, owner: str = "") -> StoredResponse | None:
        """A response, or None."""
        with self._file.errors("read"):
            row = self._row(response_id, owner)
        return None if row is None else StoredResponse(*map(json.loads, row))

    def size(self, response_id: str, owner: str = "") -> int:
        """Bytes of a response's text; 0 if there is no such response."""
        with self._file.errors("read"):
            row = self._file.run(
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
        with self._file.errors("read"):
            row = self._file.run(
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
        with self._file.errors("written"), self._file.transaction():
            self._purge()
            self._write(body, _json(items), owner)

    def finish(self, body: dict[str, Any]) -> bool:
        """Store the end of a response that was stored unfinished; False if it was deleted in the meantime."""
        with self._file.errors("written"), self._file.transaction():
            row: tuple[str, str] | None = self._file.run(
                "SELECT input, owner FROM responses WHERE id = ? AND used >= ?", (body["id"], self._oldest())
            ).fetchone()
            if row is not None:
                self._write(body, *row)
        return row is not None

    def delete(self, response_id: str, owner: str = "") -> bool:
        """Delete a response; False if it did not exist."""
        with self._file.errors("written"), self._file.transaction():
            known = self._row(response_id, owner) is not None
            if known:
                self._file.run("DELETE FROM responses WHERE id = ?", (response_id,))
        return known

    def close(self) -> None:
        """Close the file; the write-ahead log is merged into it."""
        self._file.close()

    # Inside a transaction

    def _row(self, response_id: str, owner: str) -> tuple[str, str] | None:
        row: tuple[str, str] | None = self._file.run(
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
        run, now, previous = self._file.run, self._clock(), body["previous_response_id"]
        run(_WRITE, (body["id"], previous, body["status"], now, size, given, text, owner))
        run(_TOUCH, (previous, MAX_CHAIN, now))
        rows = [(item["id"], body["id"]) for item in body["output"]]
        self._file.connection.executemany("INSERT OR IGNORE INTO items VALUES (?, ?)", rows)
        self._shrink(body["id"])

    def _purge(self) -> None:
        self._file.run("DELETE FROM responses WHERE used < ?", (self._oldest(),))

    def _shrink(self, newest: str) -> None:
        """Drop the responses unused for the longest time until the rest fits."""
        (total,) = self._file.run("SELECT bytes FROM total").fetchone()
        gone = []
        with closing(
            self._file.run("SELECT id, bytes FROM responses WHERE id != ? ORDER BY used, rowid", (newest,))
        ) as oldest:
            for response_id, size in oldest:
                if total <= self._max_bytes:
                    break
                gone.append((response_id,))
                total -= size
        self._file.connection.executemany("DELETE FROM responses WHERE id = ?", gone)

    def _end_interrupted(self) -> None:
        """Mark responses that a dead process was writing as failed."""
        reason = {"code": "server_error", "message": "the server stopped before this response was complete"}
        interrupted = self._file.run("SELECT id, body FROM responses WHERE status = 'in_progress'").fetchall()
        for response_id, text in interrupted:
            body = _json({**json.loads(text), "status": "failed", "error": reason})
            self._file.run("UPDATE responses SET status = 'failed', body = ? WHERE id = ?", (body, response_id))


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
