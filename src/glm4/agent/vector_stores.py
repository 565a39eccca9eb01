"""Named collections of uploaded files (`vs_…`), which are searched together.

OpenAI calls them vector stores; here they have no vectors: words are searched, with BM25. The functions take the
`SessionStore` in whose file they are, and run on its thread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glm4.agent.sessions import SessionStore, new_id
from glm4.agent.uploads import Paging, Upload, as_upload, page_of
from glm4.errors import InvalidRequestError

MAX_STORES = 1000
"""Of one owner."""
MAX_FILES = 100
"""Of one vector store."""


@dataclass(frozen=True)
class VectorStore:
    """A collection, without its files.

    Attributes:
        created, active: seconds since the epoch: when it was made, and last changed or searched.
        completed, failed: numbers of files that could be read, and that could not.
        nbytes: of all its files.
    """

    id: str
    name: str
    metadata: Mapping[str, str]
    created: float
    active: float
    completed: int = 0
    failed: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class Member:
    """A file of a vector store.

    Attributes:
        problem: why it could not be read; "" if it was.
    """

    store: str
    upload: Upload
    attributes: Mapping[str, Any]
    problem: str
    created: float


def create_store(store: SessionStore, name: str, metadata: Mapping[str, str], owner: str = "") -> VectorStore:
    """A new, empty one.

    Raises:
        InvalidRequestError: the owner has too many.
    """
    now = store.clock()
    made = VectorStore(f"vs_{new_id()}", name, dict(metadata), now, now)
    with store.database.errors("written"), store.database.transaction():
        (count,) = store.database.run("SELECT count(*) FROM vector_stores WHERE owner = ?", (owner,)).fetchone()
        if count >= MAX_STORES:
            raise InvalidRequestError(f"there are {count:,} vector stores already; delete some")
        store.database.run(
            "INSERT INTO vector_stores (id, owner, name, metadata, created, active) VALUES (?, ?, ?, ?, ?, ?)",
            (made.id, owner, name, json.dumps(dict(metadata)), now, now),
        )
    return made


def find_store(store: SessionStore, name: str, owner: str = "") -> VectorStore | None:
    """A vector store of this owner, by its id; None if there is no such one."""
    with store.database.errors("read"):
        row = store.database.run(
            f"SELECT {_COLUMNS} FROM vector_stores WHERE id = ? AND owner = ?",  # noqa: S608  (names of ours)
            (name, owner),
        ).fetchone()
    return None if row is None else _counted(store, row)


def stores(store: SessionStore, owner: str, paging: Paging) -> tuple[list[VectorStore], bool]:
    """A page of an owner's vector stores, and whether there are more; see `uploads`."""
    rows, more = page_of(store, "vector_stores", _COLUMNS, "owner = ?", [owner], paging)
    return [_counted(store, row) for row in rows], more


def change_store(store: SessionStore, name: str, changes: Mapping[str, Any]) -> None:
    """Change its name or metadata, and note that it was used."""
    with store.database.errors("written"), store.database.transaction():
        if "name" in changes:
            store.database.run("UPDATE vector_stores SET name = ? WHERE id = ?", (changes["name"], name))
        if "metadata" in changes:
            text = json.dumps(dict(changes["metadata"]))
            store.database.run("UPDATE vector_stores SET metadata = ? WHERE id = ?", (text, name))
        store.database.run("UPDATE vector_stores SET active = ? WHERE id = ?", (store.clock(), name))


def delete_store(store: SessionStore, name: str) -> None:
    """Delete it; its files stay."""
    with store.database.errors("written"), store.database.transaction():
        store.database.run("DELETE FROM vector_stores WHERE id = ?", (name,))


def add_member(
    store: SessionStore, name: str, upload: str, attributes: Mapping[str, Any], problem: str, batch: str = ""
) -> None:
    """Add a file; one that it has already is replaced.

    Raises:
        InvalidRequestError: it has too many files, or one of the two was deleted meanwhile.
    """
    with store.database.errors("written"), store.database.transaction():
        exists = (
            "SELECT (SELECT count(*) FROM vector_stores WHERE id = ?) * (SELECT count(*) FROM uploads WHERE id = ?)"
        )
        if store.database.run(exists, (name, upload)).fetchone() != (1,):
            raise InvalidRequestError("the vector store or the file has been deleted", param="file_id")
        others = "SELECT count(*) FROM vector_store_files WHERE store = ? AND upload != ?"
        (count,) = store.database.run(others, (name, upload)).fetchone()
        if count >= MAX_FILES:
            raise InvalidRequestError(f"a vector store has at most {MAX_FILES} files here", param="file_id")
        store.database.run(
            "INSERT OR REPLACE INTO vector_store_files (store, upload, batch, attributes, problem, created)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (name, upload, batch, json.dumps(dict(attributes)), problem, store.clock()),
        )
        store.database.run("UPDATE vector_stores SET active = ? WHERE id = ?", (store.clock(), name))


def remove_member(store: SessionStore, name: str, upload: str) -> bool:
    """Take a file out, which stays by itself; False if it was not in."""
    with store.database.errors("written"), store.database.transaction():
        removed = store.database.run("DELETE FROM vector_store_files WHERE store = ? AND upload = ?", (name, upload))
    return removed.rowcount > 0


def members(
    store: SessionStore, name: str, paging: Paging, *, failed: bool | None = None, batch: str = ""
) -> tuple[list[Member], bool]:
    """A page of its files, and whether there are more.

    Args:
        failed: only those that could not be read, or only those that could.
        batch: only those that came with it.

    Raises:
        InvalidRequestError: `after` or `before` is not one of them.
    """
    condition, values = "store = ?", [name]
    if failed is not None:
        condition += f" AND problem {'!=' if failed else '='} ''"
    if batch:
        condition, values = condition + " AND batch = ?", [*values, batch]
    rows, more = page_of(store, "vector_store_files", _MEMBER, condition, values, paging, "upload")
    return [_member(store, row) for row in rows], more


def find_member(store: SessionStore, name: str, upload: str) -> Member | None:
    """One of its files; None if it is not in."""
    with store.database.errors("read"):
        row = store.database.run(
            f"SELECT {_MEMBER} FROM vector_store_files WHERE store = ? AND upload = ?",  # noqa: S608
            (name, upload),
        ).fetchone()
    return None if row is None else _member(store, row)


_COLUMNS = "id, name, metadata, created, active"
_MEMBER = "store, upload, attributes, problem, created"


def _counted(store: SessionStore, row: Sequence[Any]) -> VectorStore:
    rows = store.database.run(
        "SELECT problem = '', file FROM vector_store_files JOIN uploads ON uploads.id = upload WHERE store = ?",
        (row[0],),
    ).fetchall()
    completed = sum(read for read, _ in rows)
    nbytes = sum(json.loads(text)["nbytes"] for _, text in rows)
    return VectorStore(row[0], row[1], json.loads(row[2]), row[3], row[4], completed, len(rows) - completed, nbytes)


def _member(store: SessionStore, row: Sequence[Any]) -> Member:
    upload = store.database.run("SELECT id, purpose, file, created FROM uploads WHERE id = ?", (row[1],)).fetchone()
    return Member(row[0], as_upload(upload), json.loads(row[2]), row[3], row[4])
