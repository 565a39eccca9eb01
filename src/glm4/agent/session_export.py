"""Conversations as files: JSON with everything, Markdown with the branch that is shown; and back from JSON."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from glm4.agent.files import FileStore
from glm4.agent.openai_export import from_openai, is_openai
from glm4.agent.session_checks import (
    as_date,
    as_list,
    as_object,
    as_text,
    check_params,
    check_part,
    check_source,
    file_content,
)
from glm4.agent.sessions import SessionMessage, SessionStore, new_id
from glm4.chat.messages import as_messages
from glm4.errors import InvalidRequestError

FORMAT = "glm4-conversation"
VERSION = 1
_STATUSES = ("completed", "stopped", "limit", "error", "interrupted")


def as_document(
    store: SessionStore, conversation: str, owner: str = "", files: FileStore | None = None
) -> dict[str, Any]:
    """A conversation with all its branches as a JSON object.

    Args:
        files: where its files are, to put their contents in; None leaves them out.
    """
    session = store.get(conversation, owner)
    listed = [asdict(file) for file in store.files(conversation, owner)]
    if files is not None:
        for file in listed:
            file["data"] = base64.b64encode(files.read(file["sha256"])).decode("ascii")
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": session.title,
        "system": session.system,
        "model": session.model,
        "params": dict(session.params),
        "leaf": session.leaf,
        "created": session.created,
        "updated": session.updated,
        "messages": [asdict(message) for message in store.messages(conversation, owner)],
        "files": listed,
    }


def from_document(store: SessionStore, document: object, owner: str = "", files: FileStore | None = None) -> str:
    """Store a conversation from `as_document`, under new ids; returns its id. Nothing is stored of a malformed one.

    A conversation of OpenAI's data export is taken, too; see `openai_export`.

    Raises:
        InvalidRequestError: it is not such a document; says where.
    """
    given = from_openai(document) if is_openai(document) else as_object(document, "the file")
    if given.get("format") != FORMAT or given.get("version") != VERSION:
        raise InvalidRequestError(
            f"this is neither a conversation that glm4 exported (format {FORMAT}, version {VERSION}) nor one of"
            " OpenAI's data export (conversations.json)"
        )
    texts = {name: as_text(given.get(name, ""), name) for name in ("title", "system", "model")}
    params = check_params(as_object(given.get("params", {}), "params"))
    dates = {name: as_date(given[name], name) for name in ("created", "updated") if given.get(name) is not None}
    dates = {name: min(date, store.clock()) for name, date in dates.items()}
    ids: dict[str, str] = {}
    messages = []
    for index, raw in enumerate(as_list(given.get("messages"), "messages")):
        message = _read_message(as_object(raw, f"messages[{index}]"), f"messages[{index}]", ids)
        messages.append(message)
    leaf = given.get("leaf")
    if leaf is not None and (not isinstance(leaf, str) or leaf not in ids):
        raise InvalidRequestError("leaf is not one of the messages", param="leaf")
    contents = [
        file_content(raw, f"files[{index}]") for index, raw in enumerate(as_list(given.get("files", []), "files"))
    ]
    with store.together():
        made = store.create(owner, **texts, params=params)
        for message in messages:
            store.add(made.id, message, owner)
        for name, data, alt in contents if files is not None else ():
            assert files is not None  # noqa: S101  (for the type checker)
            store.add_file(made.id, files.put(name, data, alt=alt), owner)
        store.change(made.id, owner, dates | ({} if leaf is None else {"leaf": ids[leaf]}))
    return made.id


def digests(document: object) -> list[str]:
    """The sha256 of the files in a document, as far as it can be read."""
    found = []
    files = document.get("files") if isinstance(document, Mapping) else None
    for raw in files if isinstance(files, list) else ():
        with suppress(InvalidRequestError):
            found.append(hashlib.sha256(file_content(raw, "files")[1]).hexdigest())
    return found


def as_markdown(store: SessionStore, conversation: str, owner: str = "") -> str:
    """The branch that is shown, for people."""
    session = store.get(conversation, owner)
    lines = [f"# {' '.join(session.title.split()) or 'Conversation'}", ""]
    for message in store.branch(conversation, owner):
        lines += [f"## {'You' if message.role == 'user' else message.model or 'Assistant'}", ""]
        for part in message.parts:
            lines += _part_lines(part)
    return "\n".join(lines).rstrip() + "\n"


def _part_lines(part: Mapping[str, Any]) -> Iterable[str]:
    kind, text = part.get("kind"), str(part.get("text") or "")
    if kind == "text" and text:
        return [text.rstrip(), ""]
    if kind == "tool":
        code = str(part.get("arguments") or "").rstrip()
        fence = "`" * max(3, _longest_run(code) + 1)
        return [f"*{part.get('tool')}*", "", fence, code, fence, ""]
    return []


def _longest_run(text: str) -> int:
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    return longest


def _read_message(raw: Mapping[str, Any], where: str, ids: dict[str, str]) -> SessionMessage:
    old, parent = as_text(raw.get("id"), f"{where}.id"), raw.get("parent")
    if old in ids or (parent is not None and (not isinstance(parent, str) or parent not in ids)):
        raise InvalidRequestError(f"{where} has the id of another message, or a parent that does not precede it")
    role, status = raw.get("role"), raw.get("status")
    if role not in ("user", "assistant") or status not in (*_STATUSES, "running"):
        raise InvalidRequestError(f"{where}.role or {where}.status is not a known one", param=where)
    for index, one in enumerate(as_list(raw.get("messages"), f"{where}.messages")):
        at = f"{where}.messages[{index}]"
        if as_messages([as_object(one, at)])[0].role == "system":  # which nobody would see
            raise InvalidRequestError(f"{at} is a system message; a conversation has its own", param=at)
    lists = {}
    for name in ("messages", "parts", "sources"):
        at = f"{where}.{name}"
        lists[name] = [as_object(one, at) for one in as_list(raw.get(name, []), at)]
    for part in lists["parts"]:
        check_part(part, f"{where}.parts")
    for source in lists["sources"]:
        check_source(source, f"{where}.sources")
    ids[old] = new_id()
    return SessionMessage(
        ids[old],
        None if parent is None else ids[parent],
        role,
        "interrupted" if status == "running" else status,
        as_text(raw.get("model", ""), f"{where}.model"),
        lists["messages"],
        lists["parts"],
        lists["sources"],
        usage=as_object(raw.get("usage", {}), f"{where}.usage"),
        created=as_date(raw.get("created", 0.0), f"{where}.created"),
    )
