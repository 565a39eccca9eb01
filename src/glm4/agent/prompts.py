"""Saved system prompts: instructions that a user has given a name, for later conversations.

The functions take the `SessionStore` in whose file they are, and run on its thread. For other owners than its own a
prompt does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glm4.agent.sessions import MAX_SYSTEM, SessionStore, new_id
from glm4.errors import InvalidRequestError, NotFoundError

MAX_PROMPTS = 500
"""Of one owner."""
MAX_NAME = 80
MAX_TEXT = MAX_SYSTEM
"""Characters."""


@dataclass(frozen=True)
class SavedPrompt:
    """Instructions with a name.

    Attributes:
        created: seconds since the epoch.
    """

    id: str
    name: str
    text: str
    created: float
    updated: float


def prompts(store: SessionStore, owner: str = "") -> list[SavedPrompt]:
    """All of this owner, by name."""
    with store.database.errors("read"):
        rows = store.database.run(_SELECT + " WHERE owner = ? ORDER BY lower(name), number", (owner,)).fetchall()
    return [SavedPrompt(*row) for row in rows]


def add_prompt(store: SessionStore, name: str, text: str, owner: str = "") -> SavedPrompt:
    """Save instructions.

    Raises:
        InvalidRequestError: the owner has too many, or one is too long; `.param` names what is.
    """
    _check(name, text)
    now = store.clock()
    made = new_id()
    with store.database.errors("written"), store.database.transaction():
        (count,) = store.database.run("SELECT count(*) FROM prompts WHERE owner = ?", (owner,)).fetchone()
        if count >= MAX_PROMPTS:
            raise InvalidRequestError(f"there are {count} saved prompts already; delete some", param="name")
        store.database.run(
            "INSERT INTO prompts (id, owner, name, text, created, updated) VALUES (?, ?, ?, ?, ?, ?)",
            (made, owner, name.strip(), text, now, now),
        )
    return _get(store, made, owner)


def change_prompt(
    store: SessionStore, prompt: str, owner: str = "", *, name: str | None = None, text: str | None = None
) -> SavedPrompt:
    """Change what is given.

    Raises:
        NotFoundError: there is no such prompt; `.param` is "prompt_id".
        InvalidRequestError: see `add_prompt`.
    """
    known = _get(store, prompt, owner)
    name = known.name if name is None else name
    text = known.text if text is None else text
    _check(name, text)
    with store.database.errors("written"), store.database.transaction():
        store.database.run(
            "UPDATE prompts SET name = ?, text = ?, updated = ? WHERE id = ?",
            (name.strip(), text, store.clock(), prompt),
        )
    return _get(store, prompt, owner)


def delete_prompt(store: SessionStore, prompt: str, owner: str = "") -> None:
    """Delete one; see `change_prompt` for the error. Conversations that began with it keep their copy."""
    _get(store, prompt, owner)
    with store.database.errors("written"), store.database.transaction():
        store.database.run("DELETE FROM prompts WHERE id = ?", (prompt,))


def _get(store: SessionStore, prompt: str, owner: str) -> SavedPrompt:
    with store.database.errors("read"):
        row: tuple[Any, ...] | None = store.database.run(
            _SELECT + " WHERE id = ? AND owner = ?", (prompt, owner)
        ).fetchone()
    if row is None:
        raise NotFoundError(f"there is no saved prompt {prompt[:100]!r}", param="prompt_id")
    return SavedPrompt(*row)


def _check(name: str, text: str) -> None:
    if not 1 <= len(name.strip()) <= MAX_NAME:
        raise InvalidRequestError(f"name must have 1 to {MAX_NAME} characters", param="name")
    if len(text) > MAX_TEXT:
        raise InvalidRequestError(f"text may have {MAX_TEXT:,} characters, not {len(text):,}", param="text")


_SELECT = "SELECT id, name, text, created, updated FROM prompts"
