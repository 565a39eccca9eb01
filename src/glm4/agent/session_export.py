"""Conversations as files: JSON with everything, Markdown with the branch that is shown; and back from JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from glm4.agent.files import FileStore
from glm4.agent.sessions import SessionMessage, SessionStore, new_id
from glm4.chat.messages import as_messages
from glm4.documents.citations import Source
from glm4.errors import InvalidRequestError

FORMAT = "glm4-conversation"
VERSION = 1
_LATEST = 253402300799  # the end of the year 9999, which is the last that programs can show
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

    Raises:
        InvalidRequestError: it is not such a document; says where.
    """
    given = _object(document, "the file")
    if given.get("format") != FORMAT or given.get("version") != VERSION:
        raise InvalidRequestError(f"this is not a conversation that glm4 exported (format {FORMAT}, version {VERSION})")
    texts = {name: _text(given.get(name, ""), name) for name in ("title", "system", "model")}
    params = _params(_object(given.get("params", {}), "params"))
    dates = {name: _date(given[name], name) for name in ("created", "updated") if given.get(name) is not None}
    dates = {name: min(date, store.clock()) for name, date in dates.items()}
    ids: dict[str, str] = {}
    messages = []
    for index, raw in enumerate(_list(given.get("messages"), "messages")):
        message = _read_message(_object(raw, f"messages[{index}]"), f"messages[{index}]", ids)
        messages.append(message)
    leaf = given.get("leaf")
    if leaf is not None and (not isinstance(leaf, str) or leaf not in ids):
        raise InvalidRequestError("leaf is not one of the messages", param="leaf")
    contents = [_content(raw, f"files[{index}]") for index, raw in enumerate(_list(given.get("files", []), "files"))]
    with store.together():
        made = store.create(owner, **texts, params=params)
        for message in messages:
            store.add(made.id, message, owner)
        for name, data, alt in contents if files is not None else ():
            assert files is not None  # noqa: S101  (for the type checker)
            store.add_file(made.id, files.put(name, data, alt=alt), owner)
        store.change(made.id, owner, dates | ({} if leaf is None else {"leaf": ids[leaf]}))
    return made.id


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
    old, parent = _text(raw.get("id"), f"{where}.id"), raw.get("parent")
    if old in ids or (parent is not None and (not isinstance(parent, str) or parent not in ids)):
        raise InvalidRequestError(f"{where} has the id of another message, or a parent that does not precede it")
    role, status = raw.get("role"), raw.get("status")
    if role not in ("user", "assistant") or status not in (*_STATUSES, "running"):
        raise InvalidRequestError(f"{where}.role or {where}.status is not a known one", param=where)
    for index, one in enumerate(_list(raw.get("messages"), f"{where}.messages")):
        at = f"{where}.messages[{index}]"
        if as_messages([_object(one, at)])[0].role == "system":  # which nobody would see
            raise InvalidRequestError(f"{at} is a system message; a conversation has its own", param=at)
    lists = {}
    for name in ("messages", "parts", "sources"):
        at = f"{where}.{name}"
        lists[name] = [_object(one, at) for one in _list(raw.get(name, []), at)]
    for part in lists["parts"]:
        _check_texts(part, ("kind",), ("text", "tool", "arguments"), f"{where}.parts")
    for source in lists["sources"]:
        _check_source(source, f"{where}.sources")
    ids[old] = new_id()
    return SessionMessage(
        ids[old],
        None if parent is None else ids[parent],
        role,
        "interrupted" if status == "running" else status,
        _text(raw.get("model", ""), f"{where}.model"),
        lists["messages"],
        lists["parts"],
        lists["sources"],
        usage=_object(raw.get("usage", {}), f"{where}.usage"),
        created=_date(raw.get("created", 0.0), f"{where}.created"),
    )


def _params(given: dict[str, Any]) -> dict[str, Any]:
    """Options as `Session.params` has them; their values are checked when they are used."""
    for one in _list(given.get("tools", []), "params.tools"):
        _text(one, "params.tools")
    _object(given.get("sampling", {}), "params.sampling")
    return given


def _check_texts(given: Mapping[str, Any], needed: Iterable[str], others: Iterable[str], where: str) -> None:
    for name in (*needed, *(name for name in others if name in given)):
        _text(given.get(name), f"{where}.{name}")


def _check_source(source: Mapping[str, Any], where: str) -> None:
    n, page = source.get("n"), source.get("page")
    if set(source) - {one.name for one in fields(Source)} or type(n) is not int or type(page) not in (int, type(None)):
        raise InvalidRequestError(f"{where} is not a list of numbered sources", param=where)
    optional = [name for name in ("url", "file", "section") if source.get(name) is not None]
    _check_texts(source, ("title",), ("text", *optional), where)


def _content(raw: object, where: str) -> tuple[str, bytes, str | None]:
    given = _object(raw, where)
    try:
        data = base64.b64decode(_text(given.get("data", ""), f"{where}.data"), validate=True)
    except binascii.Error:
        raise InvalidRequestError(f"{where}.data is not base64", param=where) from None
    alt = given.get("alt")
    return _text(given.get("name"), f"{where}.name"), data, None if alt is None else _text(alt, f"{where}.alt")


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{where} must be an object", param=where)
    return dict(value)


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{where} must be a list", param=where)
    return value


def _date(value: object, where: str) -> float:
    """Seconds since the epoch; 0 if it is not known."""
    if type(value) not in (int, float) or not 0 <= value <= _LATEST:  # type: ignore[operator]
        raise InvalidRequestError(f"{where} must be seconds since 1970", param=where)
    return float(value)  # type: ignore[arg-type]


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{where} must be a string", param=where)
    return value
