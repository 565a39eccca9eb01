"""`SessionStore`: conversations with an assistant in one SQLite file: saved, listed, searched, resumed.

A conversation is a tree of messages, so that an answer can be regenerated and a question edited without losing what was
there; `leaf` names the end of the branch that is shown. For other owners than its own a conversation does not exist.
Files are kept by content in a `FileStore`; here is which conversation has which.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from glm4.agent.files import StoredFile
from glm4.agent.session_schema import SCHEMA
from glm4.errors import InvalidRequestError, NotFoundError
from glm4.system.sqlite_file import SqliteFile

Status = Literal["running", "completed", "stopped", "limit", "error", "interrupted"]
MAX_TITLE = 80
MAX_SYSTEM = 100_000
"""Characters of instructions, and as many of the model's name and of options: lists have those of each."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_SHORTEST_INDEXED = 3  # characters of a query that the index of trigrams can find


@dataclass(frozen=True)
class Session:
    """A conversation, without its messages.

    Attributes:
        params: sampling options and names of tools, as the client gave them.
        leaf: last message of the branch that is shown; None before the first.
        created: seconds since the epoch.
        updated: when a message was last added or written.
    """

    id: str
    title: str
    system: str
    model: str
    params: Mapping[str, Any]
    leaf: str | None
    pinned: bool
    created: float
    updated: float


@dataclass(frozen=True)
class SessionMessage:
    """One message of a conversation: what a user sent, or a whole turn of the assistant with its tool calls.

    Attributes:
        messages: what the model reads of it, in OpenAI's form.
        parts: what people see of it; see `transcript`.
        sources: numbered sources that it added to the conversation.
    """

    id: str
    parent: str | None
    role: Literal["user", "assistant"]
    status: Status
    model: str
    messages: Sequence[Mapping[str, Any]]
    parts: Sequence[Mapping[str, Any]]
    sources: Sequence[Mapping[str, Any]] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    created: float = 0.0


@dataclass(frozen=True)
class Found:
    """A message that has what was searched for.

    Attributes:
        excerpt: the text around it.
    """

    conversation: str
    message: str
    title: str
    excerpt: str


def branch_to(leaf: str | None, known: Mapping[str, SessionMessage]) -> list[SessionMessage]:
    """The messages from the first to a leaf, which is among those that are known, by id."""
    branch: list[SessionMessage] = []
    while leaf is not None:
        branch.append(known[leaf])
        leaf = known[leaf].parent
    return branch[::-1]


def new_id() -> str:
    """128 random bits, in hexadecimal."""
    return secrets.token_hex(16)


class SessionStore:
    """Conversations, for one thread.

    Args:
        path: the file, created if missing; None keeps everything in memory.
        clock: seconds since the epoch.

    Attributes:
        database: of this file; `uploads` and `vector_stores` have tables there, too.

    Raises:
        StoreError: the file cannot be used; so does every method.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._clock = self.clock = clock
        self._path = path
        self._serving: int | None = None
        self.database = self._file = SqliteFile(path, SCHEMA, "the saved conversations")

    def end_interrupted(self) -> None:
        """Mark turns that a process which is gone was running; for servers, when they begin.

        While another process that has asked has the file open, nothing is marked: the turns may be its own.
        """
        if not self._is_first():
            return
        with self._file.errors("written"), self._file.transaction():
            self._file.run("UPDATE messages SET status = 'interrupted' WHERE status = 'running'")

    def _is_first(self) -> bool:
        """Whether no other process that serves has the file open; from now on this one has."""
        if self._path is None or self._serving is not None:
            return True
        try:
            self._serving = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._serving, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                return False
            finally:
                fcntl.flock(self._serving, fcntl.LOCK_SH)
        except OSError:  # a file system without locks
            return True

    @contextmanager
    def together(self) -> Iterator[None]:
        """Everything in the block is stored at once, or nothing."""
        with self._file.errors("written"), self._file.transaction():
            yield

    def create(
        self,
        owner: str = "",
        *,
        title: str = "",
        system: str = "",
        model: str = "",
        params: Mapping[str, Any] | None = None,
    ) -> Session:
        """A new, empty conversation.

        Raises:
            InvalidRequestError: `system`, `model` or `params` is too long; `.param` names it. So does `change`.
        """
        _check({"system": system, "model": model, "params": _json(params or {})})
        now = self._clock()
        made = Session(new_id(), title[:MAX_TITLE], system, model, dict(params or {}), None, False, now, now)
        with self._file.errors("written"), self._file.transaction():
            self._file.run(
                "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, NULL, 0, ?, ?)",
                (made.id, owner, made.title, made.system, model, _json(made.params), now, now),
            )
        return made

    def get(self, conversation: str, owner: str = "") -> Session:
        """A conversation.

        Raises:
            NotFoundError: there is no such one; `.param` is "conversation". So do all methods that take an id.
        """
        with self._file.errors("read"):
            row = self._file.run(_SELECT + " WHERE id = ? AND owner = ?", (conversation, owner)).fetchone()
        if row is None:
            raise NotFoundError(f"there is no conversation {conversation[:100]!r}", param="conversation")
        return _session(row)

    def sessions(self, owner: str = "", *, limit: int = 100, after: str | None = None) -> list[Session]:
        """Conversations, pinned ones first, then the last changed one first.

        Args:
            after: only those that follow this one, for the next page.
        """
        if after is not None:
            self.get(after, owner)
        with self._file.errors("read"):
            rows = self._file.run(
                _SELECT
                + " WHERE owner = ?"
                + (_FOLLOWING if after is not None else "")
                + " ORDER BY pinned DESC, updated DESC, id DESC LIMIT ?",
                (owner, *([after] if after is not None else []), limit),
            ).fetchall()
        return [_session(row) for row in rows]

    def change(self, conversation: str, owner: str = "", changes: Mapping[str, Any] = _NOTHING) -> Session:
        """Change `title`, `system`, `model`, `params`, `pinned` or `leaf`; returns the changed conversation.

        Its place in the list stays: only messages change `updated`.

        Args:
            changes: also `created` and `updated`, of a conversation that comes from elsewhere.

        Raises:
            InvalidRequestError: `leaf` is not one of its messages.
        """
        unknown = set(changes) - {"title", "system", "model", "params", "pinned", "leaf", "created", "updated"}
        if unknown:
            raise TypeError(f"unknown change {sorted(unknown)[0]!r}")
        self.get(conversation, owner)
        changes = dict(changes)
        if changes.get("leaf") is not None:
            self._message(conversation, changes["leaf"], "leaf")
        if "title" in changes:
            changes["title"] = changes["title"][:MAX_TITLE]
        if "params" in changes:
            changes["params"] = _json(changes["params"])
        _check(changes)
        with self._file.errors("written"), self._file.transaction():
            for name, value in changes.items():
                statement = f"UPDATE conversations SET {name} = ? WHERE id = ?"  # noqa: S608  (a name of ours)
                self._file.run(statement, (value, conversation))
        return self.get(conversation, owner)

    def delete(self, conversation: str, owner: str = "") -> list[str]:
        """Delete a conversation with all its messages; returns the sha256 of its files that nothing else has."""
        self.get(conversation, owner)
        with self._file.errors("written"), self._file.transaction():
            files = [sha256 for (sha256,) in self._file.run(_OWN_FILES, (conversation, conversation)).fetchall()]
            self._file.run("DELETE FROM conversations WHERE id = ?", (conversation,))
        return files

    # Messages

    def add(self, conversation: str, message: SessionMessage, owner: str = "") -> SessionMessage:
        """Add a message below `message.parent`; it becomes the leaf. An id and a time are given if it has none.

        Raises:
            InvalidRequestError: the parent is not a message of this conversation.
        """
        session = self.get(conversation, owner)
        if message.parent is not None:
            self._message(conversation, message.parent, "parent")
        values = {"id": message.id or new_id(), "created": message.created or self._clock()}
        added = SessionMessage(**{**_shallow(message), **values})
        with self._file.errors("written"), self._file.transaction():
            self._file.run(
                "INSERT INTO messages (id, conversation, parent, role, status, model, messages, parts, sources, usage,"
                " body, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (added.id, conversation, added.parent, added.role, added.status, added.model, *_texts(added),
                 added.created),
            )  # fmt: skip
            self._file.run("UPDATE conversations SET leaf = ? WHERE id = ?", (added.id, conversation))
            if not session.title and added.role == "user":
                self._file.run("UPDATE conversations SET title = ? WHERE id = ?", (title_of(added.parts), conversation))
            self._touch(conversation)
        return added

    def write(self, message: SessionMessage) -> bool:
        """Store what became of a message; False if its conversation was deleted in the meantime."""
        with self._file.errors("written"), self._file.transaction():
            changed = self._file.run(
                "UPDATE messages SET status = ?, messages = ?, parts = ?, sources = ?, usage = ?, body = ?"
                " WHERE id = ?",
                (message.status, *_texts(message), message.id),
            ).rowcount
            (row,) = self._file.run(
                "SELECT max(conversation) FROM messages WHERE id = ?", (message.id,)
            ).fetchone() or (None,)
            if row is not None:
                self._touch(row)
        return changed > 0

    def messages(self, conversation: str, owner: str = "") -> list[SessionMessage]:
        """All messages of a conversation, in the order in which they were added: parents before children."""
        self.get(conversation, owner)
        with self._file.errors("read"):
            rows = self._file.run(
                "SELECT id, parent, role, status, model, messages, parts, sources, usage, created FROM messages"
                " WHERE conversation = ? ORDER BY number",
                (conversation,),
            ).fetchall()
        return [_message(row) for row in rows]

    def branch(self, conversation: str, owner: str = "", leaf: str | None = None) -> list[SessionMessage]:
        """The messages from the first to a leaf; to the one that is shown if none is named."""
        at = leaf or self.get(conversation, owner).leaf
        known = {message.id: message for message in self.messages(conversation, owner)}
        if at is not None and at not in known:
            raise InvalidRequestError(f"this conversation has no message {at[:100]!r}", param="parent")
        return branch_to(at, known)

    def search(self, query: str, owner: str = "", *, limit: int = 50) -> list[Found]:
        """Messages whose text has the query, in any language, the latest first."""
        query = query.replace("\0", "").strip()  # at which SQLite would end it
        if not query:
            return []
        indexed = (
            len(query) >= _SHORTEST_INDEXED
        )  # the index has no shorter text, and two Chinese characters are a word
        condition = _INDEXED if indexed else "instr(lower(body), lower(?)) > 0"
        value = '"' + query.replace('"', '""') + '"' if indexed else query
        with self._file.errors("read"):
            rows = self._file.run(
                _SEARCHED + condition + " ORDER BY number DESC LIMIT ?", (owner, value, limit)
            ).fetchall()
        return [Found(at, message, title, _excerpt(body, query)) for at, message, title, body in rows]

    # Files

    def add_file(self, conversation: str, file: StoredFile, owner: str = "") -> None:
        """Note that a conversation has a file."""
        self.get(conversation, owner)
        with self._file.errors("written"), self._file.transaction():
            self._file.run(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (file.sha256, conversation, _json(asdict(file)))
            )

    def files(self, conversation: str, owner: str = "") -> list[StoredFile]:
        """The files of a conversation."""
        self.get(conversation, owner)
        with self._file.errors("read"):
            rows = self._file.run("SELECT file FROM files WHERE conversation = ?", (conversation,)).fetchall()
        return [StoredFile(**json.loads(text)) for (text,) in rows]

    def file(self, sha256: str, owner: str = "") -> StoredFile | None:
        """A file of any of the owner's conversations; None if none has it."""
        with self._file.errors("read"):
            row = self._file.run(
                "SELECT file FROM files JOIN conversations ON conversations.id = conversation"
                " WHERE sha256 = ? AND owner = ? LIMIT 1",
                (sha256, owner),
            ).fetchone()
        return None if row is None else StoredFile(**json.loads(row[0]))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._serving is not None:
            os.close(self._serving)
            self._serving = None

    def _message(self, conversation: str, message: str, param: str) -> None:
        with self._file.errors("read"):
            row = self._file.run(
                "SELECT 1 FROM messages WHERE id = ? AND conversation = ?", (message, conversation)
            ).fetchone()
        if row is None:
            raise InvalidRequestError(f"this conversation has no message {message[:100]!r}", param=param)

    def _touch(self, conversation: str) -> None:
        self._file.run("UPDATE conversations SET updated = ? WHERE id = ?", (self._clock(), conversation))


_SELECT = "SELECT id, title, system, model, params, leaf, pinned, created, updated FROM conversations"
_FOLLOWING = (
    " AND (pinned, updated, id) < (SELECT later.pinned, later.updated, later.id FROM conversations later WHERE id = ?)"
)
_SEARCHED = (
    "SELECT conversation, messages.id, title, body FROM messages JOIN conversations ON conversations.id = conversation"
    " WHERE owner = ? AND "
)
_OWN_FILES = (
    "SELECT sha256 FROM files WHERE conversation = ?"
    " AND sha256 NOT IN (SELECT sha256 FROM files WHERE conversation != ?)"
    " AND sha256 NOT IN (SELECT sha256 FROM uploads)"
)
_INDEXED = "number IN (SELECT rowid FROM found WHERE found MATCH ?)"


def _check(given: Mapping[str, Any]) -> None:
    for name in ("system", "model", "params"):
        if len(given.get(name, "")) > MAX_SYSTEM:
            raise InvalidRequestError(
                f"{name} may have {MAX_SYSTEM:,} characters, not {len(given[name]):,}", param=name
            )


def title_of(parts: Sequence[Mapping[str, Any]]) -> str:
    """A title for a conversation: the first words of its first question. No model is asked."""
    text = next((str(part["text"]) for part in parts if part.get("text")), "")
    line = " ".join(text.split())
    return line if len(line) <= MAX_TITLE else line[: MAX_TITLE - 1] + "…"


def body_of(parts: Sequence[Mapping[str, Any]]) -> str:
    """The visible text of a message."""
    return "\n".join(str(part["text"]) for part in parts if part.get("kind") == "text" and part.get("text"))


def _session(row: tuple[Any, ...]) -> Session:
    conversation, title, system, model, params, leaf, pinned, created, updated = row
    return Session(conversation, title, system, model, json.loads(params), leaf, bool(pinned), created, updated)


def _message(row: tuple[Any, ...]) -> SessionMessage:
    message, parent, role, status, model, *texts, created = row
    messages, parts, sources, usage = map(json.loads, texts)
    return SessionMessage(message, parent, role, status, model, messages, parts, sources, usage, created)


def _shallow(message: SessionMessage) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__dataclass_fields__}


def _texts(message: SessionMessage) -> tuple[str, ...]:
    columns = (message.messages, message.parts, message.sources, message.usage)
    return (*map(_json, columns), body_of(message.parts))


def _excerpt(body: str, query: str, around: int = 60) -> str:
    at = max(0, body.lower().find(query.lower()))
    start, end = max(0, at - around), at + len(query) + around
    return ("…" if start else "") + " ".join(body[start:end].split()) + ("…" if end < len(body) else "")


def _json(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False, separators=(",", ":"))
