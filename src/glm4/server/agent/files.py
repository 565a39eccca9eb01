"""Endpoints of /v1/files: files for later requests, by ids of their own, until they are deleted."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.api.fields import read_fields
from glm4.api.files.answers import deleted, file_object, listed
from glm4.api.files.multipart import boundary_of, parse_form
from glm4.api.files.request import FILE_FIELDS, REFUSED, read_paging
from glm4.errors import InvalidRequestError
from glm4.server.agent.conversations import attachment, read_raw
from glm4.server.agent.state import AgentState, owner_of
from glm4.server.errors import ApiError
from glm4.server.memory import parse
from glm4.server.state import find_state

_FORM_NBYTES = 64 << 10
"""What a form may have beside its file."""


async def create_file(request: Request) -> Response:
    """Keep a file, sent as a form."""
    state = find_state(request.app, AgentState)
    _check_origin(request)
    boundary = boundary_of(request.headers.get("content-type", ""))
    body = await read_raw(request, state.config.max_upload_bytes + _FORM_NBYTES)
    given = read_fields(await parse(partial(parse_form, body, boundary)), FILE_FIELDS, REFUSED)
    del body
    for name in FILE_FIELDS:
        if name not in given:
            raise InvalidRequestError(f"{name} is missing", param=name)
    file = given["file"]
    return JSONResponse(file_object(await state.keep_upload(file.name, file.data, given["purpose"], owner_of(request))))


def _check_origin(request: Request) -> None:
    """Refuse a form that a web page may send to this machine without asking: those have no key of ours."""
    headers = request.headers
    if "origin" in headers and not ("authorization" in headers or "x-api-key" in headers):
        raise ApiError(415, "a page sends forms with an Authorization header; any text will do if there are no keys")


async def list_files(request: Request) -> Response:
    """The files of this key."""
    state, query = find_state(request.app, AgentState), request.query_params
    paging = read_paging(query, 10_000, 10_000, "purpose")
    found, more = await state.store.list_uploads(owner_of(request), paging, query.get("purpose"))
    return JSONResponse(listed([file_object(one) for one in found], more=more))


async def retrieve_file(request: Request) -> Response:
    """What is known of a file."""
    state = find_state(request.app, AgentState)
    return JSONResponse(file_object(await state.upload(request.path_params["file_id"], owner_of(request))))


async def file_content(request: Request) -> Response:
    """A file as it was sent. Browsers save it; nothing in it runs."""
    state = find_state(request.app, AgentState)
    file = (await state.upload(request.path_params["file_id"], owner_of(request))).file
    data = await asyncio.to_thread(partial(state.files.read, file.sha256))
    headers = {
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
        **attachment(file.name),
    }
    return Response(data, media_type="application/octet-stream", headers=headers)


async def delete_file(request: Request) -> Response:
    """Delete a file, also from its vector stores."""
    name = request.path_params["file_id"]
    await find_state(request.app, AgentState).discard(name, owner_of(request))
    return JSONResponse(deleted(name, "file"))
