"""Endpoints of saved conversations and their files."""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict, fields
from functools import partial
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from glm4.agent.session_export import digests
from glm4.agent.sessions import MAX_TITLE, Session, SessionMessage
from glm4.agent.transcript import file_dict
from glm4.api.agent.request import CHANGE_FIELDS
from glm4.api.fields import read_fields
from glm4.errors import InvalidRequestError
from glm4.server.agent.state import AgentState, owner_of
from glm4.server.body import read_body, read_json
from glm4.server.errors import ApiError
from glm4.server.long_answers import long_answer
from glm4.server.memory import BODY_MEMORY, BodyMemory
from glm4.server.state import find_state, server_state

_PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_AUDIO = ("audio/wav", "audio/mpeg", "audio/ogg", "audio/flac", "audio/mp4", "audio/aac", "audio/webm")
_INLINE = (*_PICTURES, *_AUDIO)
"""Types that a browser may show or play in place; it saves the others."""
_FROM_ANYWHERE = ("", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded")
"""Types that any web page may send to this machine without asking."""


async def list_conversations(request: Request) -> Response:
    """The conversations of this key, the last changed one first."""
    query = request.query_params
    limit = query.get("limit", "100")
    if not re.fullmatch("[1-9][0-9]{0,2}", limit):
        raise ApiError(400, "limit is a number up to 999", "limit", "invalid_value")
    found = await _state(request).store.sessions(owner_of(request), limit=int(limit), after=query.get("after") or None)
    return await long_answer({"conversations": [session_dict(session) for session in found]})


async def search(request: Request) -> Response:
    """Messages that have a text."""
    found = await _state(request).store.search(request.query_params.get("q", "")[:1000], owner_of(request))
    return JSONResponse({"results": [asdict(one) for one in found]})


async def conversation(request: Request) -> Response:
    """One conversation with all its messages: a tree, by `parent`."""
    state, owner, name = _state(request), owner_of(request), request.path_params["conversation_id"]
    session = await state.store.get(name, owner)
    messages = await state.store.messages(name, owner)
    files = await state.store.files(name, owner)
    return await long_answer(
        {
            "conversation": session_dict(session),
            "messages": [message_dict(message, state.turns.of_message(message.id)) for message in messages],
            "files": [file_dict(file) for file in files],
        }
    )


async def change_conversation(request: Request) -> Response:
    """Change its title, instructions, model, tools, options, pin, or the branch that is shown."""
    state, owner, name = _state(request), owner_of(request), request.path_params["conversation_id"]
    given = read_fields(await server_state(request).read(request), CHANGE_FIELDS)
    tools = given.pop("tools", None)
    if tools is not None:
        state.tools.check(tools)
    chosen = {"tools": None if tools is None else list(tools), "sampling": given.pop("params", None)}
    chosen = {kind: value for kind, value in chosen.items() if value is not None}
    if chosen:
        session = await state.store.get(name, owner)
        given["params"] = {**session.params, **chosen}
    return JSONResponse(session_dict(await state.store.change(name, owner, given)))


async def delete_conversation(request: Request) -> Response:
    """Delete it, with its messages and its files; a turn that runs ends."""
    state, owner, name = _state(request), owner_of(request), request.path_params["conversation_id"]
    await state.store.get(name, owner)
    await state.turns.stop_conversation(name, owner)
    async with state.changing:
        for sha256 in await state.store.delete(name, owner):
            await state.drop(sha256)
    return JSONResponse({"done": True})


async def export_conversation(request: Request) -> Response:
    """As JSON with everything, or as Markdown or HTML with the branch that is shown (`?format=markdown`, `html`)."""
    state, owner, name = _state(request), owner_of(request), request.path_params["conversation_id"]
    kind = request.query_params.get("format", "json")
    if kind == "markdown":
        text = await state.store.as_markdown(name, owner)
        return Response(text, media_type="text/markdown; charset=utf-8", headers=attachment("conversation.md"))
    if kind == "html":
        page = await _as_html(state, name, owner)
        headers = {"Content-Security-Policy": "sandbox", **attachment("conversation.html")}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)
    if kind != "json":
        raise ApiError(400, "format must be json, markdown or html", "format", "invalid_value")
    document = await state.store.as_document(name, owner, state.files)
    return await long_answer(document, attachment("conversation.json"))


async def _as_html(state: AgentState, name: str, owner: str) -> bytes:
    from glm4.agent.session_html import as_html

    session = await state.store.get(name, owner)
    branch, files = await state.store.branch(name, owner), await state.store.files(name, owner)
    return await asyncio.to_thread(lambda: as_html(session, branch, files, state.files).encode())


async def import_conversation(request: Request) -> Response:
    """Keep an exported conversation, ours or OpenAI's, under a new id; of a list, those that can be read."""
    state, owner = _state(request), owner_of(request)
    document = await read_json(request, _memory(request), limit=state.config.max_upload_bytes, lists=True,
                               seconds=server_state(request).config.body_timeout)  # fmt: skip
    if not isinstance(document, list):
        return JSONResponse(await _keep_imported(state, document, owner))
    if not document:
        raise ApiError(400, "the list has no conversations", code="invalid_value")
    kept, failed = [], []
    for index, one in enumerate(document):
        try:
            kept.append(await _keep_imported(state, one, owner))
        except InvalidRequestError as error:
            title = one.get("title") if isinstance(one, dict) else None
            named = title[:MAX_TITLE] if isinstance(title, str) else ""
            failed.append({"index": index, "title": named, "reason": str(error)})
    return JSONResponse({"conversations": kept, "failed": failed})


async def _keep_imported(state: AgentState, document: object, owner: str) -> dict[str, object]:
    async with state.changing:
        try:
            name = await state.store.from_document(document, owner, state.files)
        except BaseException:
            for sha256 in await asyncio.to_thread(digests, document):  # those that were kept before it failed
                await state.drop(sha256)
            raise
    return session_dict(await state.store.get(name, owner))


async def upload_file(request: Request) -> Response:
    """Keep a file, sent as it is; `?name=` is what it is called."""
    state, owner = _state(request), owner_of(request)
    name = request.query_params.get("name", "").strip()
    if not name:
        raise ApiError(400, "name the file in the address: ?name=report.pdf", "name", "missing")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.headers.get("origin") and kind in _FROM_ANYWHERE:
        raise ApiError(415, "send the file with Content-Type: application/octet-stream")
    data = await read_raw(request, state.config.max_upload_bytes)
    async with state.changing:
        stored = await asyncio.to_thread(partial(state.files.put, name, data))
        state.keep(owner, stored)
    return JSONResponse(file_dict(stored))


async def download_file(request: Request) -> Response:
    """A file of one of this key's conversations, or a range of it (`Range`), as players ask for it.

    Only pictures and audio are shown in place, unless `?download=1` has them saved, too; nothing in a file runs.
    """
    state = _state(request)
    file = await state.file(request.path_params["sha256"], owner_of(request))
    path = await asyncio.to_thread(state.files.path, file.sha256)
    inline = file.media_type in _INLINE
    plays = file.media_type in _AUDIO
    saved = not inline or request.query_params.get("download", "0") not in ("", "0")
    headers = {
        # In a sandbox, the browser's own player may not load the file.
        "Content-Security-Policy": "default-src 'none'; " + ("media-src 'self'" if plays else "sandbox"),
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, max-age=31536000, immutable",
        "ETag": f'"{file.sha256}"',
        **(attachment(file.name) if saved else {}),
    }
    kind = file.media_type if inline else "application/octet-stream"
    return FileResponse(path, media_type=kind, headers=headers)


def _state(request: Request) -> AgentState:
    return find_state(request.app, AgentState)


async def read_raw(request: Request, limit: int) -> bytes:
    """The body as it is; see `server.body.read_body` for the errors."""
    seconds = server_state(request).config.body_timeout
    return await read_body(request, _memory(request), limit=limit, seconds=seconds)


def _memory(request: Request) -> BodyMemory:
    memory = server_state(request).memory.body()
    request.scope["state"][BODY_MEMORY] = memory  # released at the end of the request
    return memory


def attachment(name: str) -> dict[str, str]:
    """The headers with which browsers save an answer under a name."""
    return {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }


def session_dict(session: Session) -> dict[str, object]:
    """A conversation as JSON, without its messages."""
    return asdict(session)


def message_dict(message: SessionMessage, turn: str | None) -> dict[str, object]:
    """A message as JSON; `turn` is the one that is writing it."""
    # Not `asdict`, which copies everything in it: a second for a long conversation, in which nothing else runs.
    names = [one.name for one in fields(message) if one.name not in ("messages", "sources")]
    return {name: getattr(message, name) for name in names} | ({"turn": turn} if turn else {})
