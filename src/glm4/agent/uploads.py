"""Files that users sent and that have ids of their own (`file-…`), each with a purpose, until they are deleted.

Their content is in a `FileStore`, once for all files that have it; here is who has which. The functions take the
`SessionStore` in whose file they are, and run on its thread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from glm4.agent.files import StoredFile
from glm4.agent.sessions import SessionStore, new_id
from glm4.errors import InvalidRequestError

MAX_UPLOADS = 10_000
"""Files of one owner."""
Order = Literal["asc", "desc"]
_COLUMNS = "uploads.id, purpose, file, uploads.created"


@dataclass(frozen=True)
class Upload:
    """A file with an id.

    Attributes:
        created: seconds since the epoch.
    """

    id: str
    purpose: str
    file: StoredFile
    created: float


@dataclass(frozen=True)
class Paging:
    """Which part of a list is wanted.

    Attributes:
        after: id of the one before the first; None begins at the start of the order.
        before: id of the one behind the last.
    """

    limit: int
    order: Order = "desc"
    after: str | None = None
    before: str | None = None


def add_upload(store: SessionStore, file: StoredFile, purpose: str, owner: str = "") -> Upload:
    """Give a stored file an id.

    Raises:
        InvalidRequestError: the owner has too many files.
    """
    made = Upload(f"file-{new_id()}", purpose, file, store.clock())
    with store.database.errors("written"), store.database.transaction():
        (count,) = store.database.run("SELECT count(*) FROM uploads WHERE owner = ?", (owner,)).fetchone()
        if count >= MAX_UPLOADS:
            raise InvalidRequestError(f"there are {count:,} files already; delete some", param="file")
        store.database.run(
            "INSERT INTO uploads (id, owner, purpose, sha256, file, created) VALUES (?, ?, ?, ?, ?, ?)",
            (made.id, owner, purpose, file.sha256, json.dumps(asdict(file)), made.created),
        )
    return made


def find_upload(store: SessionStore, upload: str, owner: str = "") -> Upload | None:
    """A file of this owner; None if there is no such one."""
    with store.database.errors("read"):
        row = store.database.run(
            f"SELECT {_COLUMNS} FROM uploads WHERE id = ? AND owner = ?",  # noqa: S608  (names of ours)
            (upload, owner),
        ).fetchone()
    return None if row is None else as_upload(row)


def uploads(store: SessionStore, owner: str, paging: Paging, purpose: str | None = None) -> tuple[list[Upload], bool]:
    """A page of an owner's files, and whether there are more.

    Raises:
        InvalidRequestError: `after` is not one of them.
    """
    condition, values = "owner = ?", [owner]
    if purpose is not None:
        condition, values = condition + " AND purpose = ?", [*values, purpose]
    rows, more = page_of(store, "uploads", _COLUMNS, condition, values, paging)
    return [as_upload(row) for row in rows], more


def delete_upload(store: SessionStore, upload: str, owner: str = "") -> Upload | None:
    """Delete a file, also from its vector stores; returns what it was, None if there was no such one."""
    found = find_upload(store, upload, owner)
    if found is not None:
        with store.database.errors("written"), store.database.transaction():
            store.database.run("DELETE FROM uploads WHERE id = ?", (upload,))
    return found


def has_content(store: SessionStore, sha256: str) -> bool:
    """Whether a file or a conversation here has this content."""
    with store.database.errors("read"):
        (count,) = store.database.run(
            "SELECT (SELECT count(*) FROM uploads WHERE sha256 = ?) + (SELECT count(*) FROM files WHERE sha256 = ?)",
            (sha256, sha256),
        ).fetchone()
    return bool(count)


def as_upload(row: Sequence[Any]) -> Upload:
    """Of `id, purpose, file, created`."""
    return Upload(row[0], row[1], StoredFile(**json.loads(row[2])), row[3])


def page_of(
    store: SessionStore, table: str, columns: str, condition: str, values: Sequence[Any], paging: Paging,
    name: str = "id",
) -> tuple[list[tuple[Any, ...]], bool]:  # fmt: skip
    """Rows of a table in the order in which they were added, or the other way round.

    Args:
        table, columns, condition, name: written by us, never by a client; `name` is the column that pages name.

    Returns:
        The rows, and whether there are more.

    Raises:
        InvalidRequestError: `after` or `before` is not one of them.
    """
    condition, values = f"({condition})", list(values)
    whole, of_all = condition, list(values)
    with store.database.errors("read"):
        for key, sign in (("after", ">"), ("before", "<")):
            at = getattr(paging, key)
            if at is None:
                continue
            row = store.database.run(
                f"SELECT {table}.number FROM {table} WHERE {whole} AND {name} = ?",  # noqa: S608
                (*of_all, at),
            ).fetchone()
            if row is None:
                raise InvalidRequestError(f"{key}: the list has no {at[:100]!r}", param=key)
            turned = sign if paging.order == "asc" else {">": "<", "<": ">"}[sign]
            condition, values = f"{condition} AND {table}.number {turned} ?", [*values, row[0]]
        rows = store.database.run(
            f"SELECT {columns} FROM {table} WHERE {condition}"  # noqa: S608
            f" ORDER BY {table}.number {'ASC' if paging.order == 'asc' else 'DESC'} LIMIT ?",
            (*values, paging.limit + 1),
        ).fetchall()
    return rows[: paging.limit], len(rows) > paging.limit
