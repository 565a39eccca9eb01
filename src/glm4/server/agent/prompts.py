"""Endpoints of saved system prompts."""

from __future__ import annotations

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.api.agent.request import PROMPT_FIELDS
from glm4.api.fields import read_fields
from glm4.errors import InvalidRequestError
from glm4.server.agent.state import AgentState, owner_of
from glm4.server.agent.store import ThreadedSessionStore
from glm4.server.long_answers import long_answer
from glm4.server.state import find_state, server_state


async def list_prompts(request: Request) -> Response:
    """The prompts of this key, by name."""
    found = await _store(request).list_prompts(owner_of(request))
    return await long_answer({"prompts": [asdict(one) for one in found]})


async def add_prompt(request: Request) -> Response:
    """Save one."""
    given = read_fields(await server_state(request).read(request), PROMPT_FIELDS)
    for name in PROMPT_FIELDS:
        if name not in given:
            raise InvalidRequestError(f"{name} is missing", param=name)
    return JSONResponse(asdict(await _store(request).add_prompt(**given, owner=owner_of(request))))


async def change_prompt(request: Request) -> Response:
    """Change its name or its text; what is left out stays."""
    given = read_fields(await server_state(request).read(request), PROMPT_FIELDS)
    changed = await _store(request).change_prompt(request.path_params["prompt_id"], owner_of(request), **given)
    return JSONResponse(asdict(changed))


async def delete_prompt(request: Request) -> Response:
    """Delete one."""
    await _store(request).delete_prompt(request.path_params["prompt_id"], owner_of(request))
    return JSONResponse({"done": True})


def _store(request: Request) -> ThreadedSessionStore:
    return find_state(request.app, AgentState).store
