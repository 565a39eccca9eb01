"""Endpoints of /v1/vector_stores: collections of files that are searched together, by their words."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.agent.sessions import new_id
from glm4.agent.tools.files import FileIndex
from glm4.agent.uploads import Paging
from glm4.agent.vector_stores import MAX_FILES, Member, VectorStore
from glm4.api.fields import Field, read_fields
from glm4.api.files import answers
from glm4.api.files.request import (
    BATCH_FIELDS,
    CHANGE_STORE_FIELDS,
    MEMBER_FIELDS,
    REFUSED,
    SEARCH_FIELDS,
    STORE_FIELDS,
    read_paging,
)
from glm4.errors import InvalidRequestError
from glm4.server.agent.state import AgentState, owner_of
from glm4.server.errors import ApiError
from glm4.server.memory import parse
from glm4.server.state import find_state, server_state

_STATUSES = ("in_progress", "completed", "failed", "cancelled")


async def create_store(request: Request) -> Response:
    """Make one; its files are read before it answers."""
    state, owner = _state(request), owner_of(request)
    given = await _fields(request, STORE_FIELDS)
    uploads = [await state.upload(name, owner) for name in given.get("file_ids", ())]
    made = await state.store.create_store(given.get("name", ""), given.get("metadata", {}), owner)
    for upload in uploads:
        await _add(state, made.id, owner, {"file_id": upload.id})
    return JSONResponse(answers.store_object(await state.vector_store(made.id, owner)))


async def list_stores(request: Request) -> Response:
    """Those of this key."""
    paging = read_paging(request.query_params, 100, 20)
    found, more = await _state(request).store.list_stores(owner_of(request), paging)
    return JSONResponse(answers.listed([answers.store_object(one) for one in found], more=more))


async def retrieve_store(request: Request) -> Response:
    """One of them."""
    return JSONResponse(answers.store_object(await _store(request)))


async def change_store(request: Request) -> Response:
    """Change its name or its metadata."""
    store = await _store(request)
    given = await _fields(request, CHANGE_STORE_FIELDS)
    await _state(request).store.change_store(store.id, given)
    return JSONResponse(answers.store_object(await _store(request)))


async def delete_store(request: Request) -> Response:
    """Delete it; its files stay."""
    store = await _store(request)
    await _state(request).store.delete_store(store.id)
    return JSONResponse(answers.deleted(store.id, "vector_store.deleted"))


async def add_file(request: Request) -> Response:
    """Add a file, which is read before it answers; one that cannot be read is `failed`, and says why."""
    store = await _store(request)
    given = await _fields(request, MEMBER_FIELDS)
    if "file_id" not in given:
        raise InvalidRequestError("file_id is missing", param="file_id")
    return JSONResponse(answers.member_object(await _add(_state(request), store.id, owner_of(request), given)))


async def list_files(request: Request) -> Response:
    """Its files."""
    store, query = await _store(request), request.query_params
    return JSONResponse(await _listed(request, store, query.get("filter"), ""))


async def retrieve_file(request: Request) -> Response:
    """One of its files."""
    return JSONResponse(answers.member_object(await _member(request)))


async def file_content(request: Request) -> Response:
    """The text of one of its files, as it is searched."""
    member = await _member(request)
    if member.problem:
        raise InvalidRequestError(member.problem, param="file_id")
    document = await _state(request).documents.stored(member.upload.file)
    return JSONResponse(answers.content_page(document.text))


async def remove_file(request: Request) -> Response:
    """Take a file out; it stays in /v1/files."""
    store, name = await _store(request), request.path_params["file_id"]
    if not await _state(request).store.remove_member(store.id, name):
        raise _no_member(name)
    return JSONResponse(answers.deleted(name, "vector_store.file.deleted"))


async def create_batch(request: Request) -> Response:
    """Add several files, which are read before it answers."""
    state, store, owner = _state(request), await _store(request), owner_of(request)
    given = await _fields(request, BATCH_FIELDS)
    if ("file_ids" in given) == ("files" in given):
        raise InvalidRequestError("send file_ids or files", param="file_ids")
    common = {"attributes": given.get("attributes", {})}
    wanted = given.get("files") or [{"file_id": name, **common} for name in given.get("file_ids", ())]
    if not wanted:
        raise InvalidRequestError("file_ids is empty", param="file_ids")
    for one in wanted:
        await state.upload(one["file_id"], owner)
    batch = f"vsfb_{new_id()}"
    members = [await _add(state, store.id, owner, one, batch) for one in wanted]
    return JSONResponse(answers.batch_object(batch, store.id, members))


async def retrieve_batch(request: Request) -> Response:
    """What became of several files."""
    store, batch = await _store(request), request.path_params["batch_id"]
    members, _ = await _state(request).store.members(store.id, Paging(MAX_FILES, "asc"), batch=batch)
    if not members:
        raise ApiError(404, f"there is no batch {batch[:100]!r} in this vector store", "batch_id", "not_found")
    return JSONResponse(answers.batch_object(batch, store.id, members))


async def list_batch(request: Request) -> Response:
    """The files that were added together."""
    store = await _store(request)
    return JSONResponse(await _listed(request, store, request.query_params.get("filter"),
                                      request.path_params["batch_id"]))  # fmt: skip


async def search(request: Request) -> Response:
    """The passages that have the words of a query, the best first."""
    state, store = _state(request), await _store(request)
    given = await _fields(request, SEARCH_FIELDS)
    if "query" not in given:
        raise InvalidRequestError("query is missing", param="query")
    members = await state.readable(store.id)
    index = await state.documents.index([member.upload.file for member in members])
    await state.store.change_store(store.id, {})
    most, least = given.get("max_num_results", 10), given.get("ranking_options", 0.0)
    found = await asyncio.to_thread(_found, index, given["query"], members)
    shown = [answers.found_object(*one) for one in found if one[1] >= least][:most]
    return JSONResponse(answers.found_page(given["query"], shown))


def _found(index: FileIndex, queries: Sequence[str], members: Sequence[Member]) -> list[tuple[Member, float, str]]:
    """The file, the score and the text of each passage with a word of the queries.

    The score of BM25, of any size, is given as s / (s + 1): from 0 to 1, in the same order.
    """
    scores = [max(row) for row in zip(*(index.words.scores(query) for query in queries), strict=True)]
    order = sorted((at for at, score in enumerate(scores) if score > 0), key=lambda at: -scores[at])
    by_file = {(member.upload.file.sha256, member.upload.file.name): member for member in reversed(members)}
    passages = index.all()
    return [
        (by_file[passages[at][0].digest, passages[at][0].name], scores[at] / (scores[at] + 1), passages[at][2])
        for at in order
    ]


async def _add(
    state: AgentState, store: str, owner: str, given: Mapping[str, Any], batch: str = ""
) -> Member:  # fmt: skip
    """Read a file, and add it."""
    upload = await state.upload(given["file_id"], owner)
    problem = ""
    try:
        await state.documents.stored(upload.file)
    except InvalidRequestError as error:
        problem = str(error)
    await state.store.add_member(store, upload.id, given.get("attributes", {}), problem, batch)
    added = await state.store.find_member(store, upload.id)
    if added is None:  # deleted in the meantime
        raise _no_member(upload.id)
    return added


async def _listed(request: Request, store: VectorStore, status: str | None, batch: str) -> dict[str, Any]:
    paging = read_paging(request.query_params, 100, 20, "filter")
    if status is not None and status not in _STATUSES:
        raise InvalidRequestError(f"filter must be one of {', '.join(_STATUSES)}", param="filter")
    if status in ("in_progress", "cancelled"):
        return answers.listed([], more=False)
    failed = None if status is None else status == "failed"
    found, more = await _state(request).store.members(store.id, paging, failed=failed, batch=batch)
    return answers.listed([answers.member_object(one) for one in found], more=more)


async def _fields(request: Request, table: Mapping[str, Field]) -> dict[str, Any]:
    body = await server_state(request).read(request)
    return await parse(lambda: read_fields(body, table, REFUSED))


async def _store(request: Request) -> VectorStore:
    return await _state(request).vector_store(request.path_params["vector_store_id"], owner_of(request))


async def _member(request: Request) -> Member:
    store, name = await _store(request), request.path_params["file_id"]
    found = await _state(request).store.find_member(store.id, name)
    if found is None:
        raise _no_member(name)
    return found


def _no_member(name: str) -> ApiError:
    return ApiError(404, f"there is no file {name[:100]!r} in this vector store", "file_id", "not_found")


def _state(request: Request) -> AgentState:
    return find_state(request.app, AgentState)
