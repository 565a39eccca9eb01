"""Endpoints of turns: start, follow, stop, approve."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.agent.files import StoredFile
from glm4.agent.toolbox import TOOLS
from glm4.api.agent.request import APPROVAL_FIELDS, TurnRequest, parse_turn
from glm4.api.fields import read_fields
from glm4.errors import InvalidRequestError
from glm4.server.agent.config import AgentConfig
from glm4.server.agent.state import AgentState, owner_of
from glm4.server.agent.turn import Turn
from glm4.server.errors import ApiError
from glm4.server.memory import parse
from glm4.server.state import find_state, server_state
from glm4.server.streaming import EventStream, event


async def start_turn(request: Request) -> Response:
    """Start a turn, and return at once."""
    turn = await _start(request)
    return JSONResponse(_about(turn))


async def chat(request: Request) -> Response:
    """Start a turn, and follow it. It goes on if the client hangs up."""
    return _followed(request, await _start(request), 0)


async def follow_turn(request: Request) -> Response:
    """The events of a turn, from a number on."""
    after = request.query_params.get("after", request.headers.get("last-event-id"))
    if after is not None and not (after.isascii() and after.isdigit() and len(after) < 16):
        raise ApiError(400, "after must be the number of an event", "after", "invalid_value")
    turn = _turns(request).find(request.path_params["turn_id"], owner_of(request))
    return _followed(request, turn, None if after is None else int(after))


async def stop_turn(request: Request) -> Response:
    """End a turn within a step; one that has ended stays as it is."""
    turn = _turns(request).find(request.path_params["turn_id"], owner_of(request))
    turn.end()
    return JSONResponse({"done": True})


async def approve(request: Request) -> Response:
    """Say whether a call may run."""
    turn = _turns(request).find(request.path_params["turn_id"], owner_of(request))
    given = read_fields(await server_state(request).read(request), APPROVAL_FIELDS)
    if "decision" not in given:
        raise InvalidRequestError("decision is missing", param="decision")
    return JSONResponse({"done": turn.decide(request.path_params["call_id"], given["decision"])})


async def list_turns(request: Request) -> Response:
    """The turns that run."""
    turns = _turns(request).running(owner_of(request))
    return JSONResponse({"turns": [_about(turn) for turn in turns]})


async def list_tools(request: Request) -> Response:
    """The tools that turns may use."""
    return JSONResponse({"tools": offered(find_state(request.app, AgentState).config)})


def offered(config: AgentConfig) -> list[dict[str, str]]:
    """The tools that an operator lets turns use, with a line on each."""
    return [{"name": name, "summary": TOOLS[name].summary if name in TOOLS else ""} for name in config.tools]


def _turns(request: Request):  # type: ignore[no-untyped-def]
    return find_state(request.app, AgentState).turns


async def _start(request: Request) -> Turn:
    state, agent, owner = server_state(request), find_state(request.app, AgentState), owner_of(request)
    body = await state.read(request)
    wanted: TurnRequest = await parse(partial(parse_turn, body))
    name = wanted.model
    if name is None and wanted.conversation is not None:
        name = (await agent.store.get(wanted.conversation, owner)).model
    target = state.target(request, {"model": name} if name else {})
    files: list[StoredFile] = [await agent.file(digest, owner) for digest in wanted.files]
    turn: Turn = await agent.turns.start(state, target, wanted, owner, files)
    for digest in wanted.files:  # the conversation has them now
        agent.uploads.pop((owner, digest), None)
    return turn


def _about(turn: Turn) -> dict[str, object]:
    return {
        "turn": turn.id,
        "conversation": turn.conversation,
        "user_message": turn.about["parent"],
        "message": turn.message,
    }


def _followed(request: Request, turn: Turn, after: int | None) -> Response:
    async def events() -> AsyncGenerator[bytes, None]:
        async for one in turn.follow(after):
            yield f"id: {one.seq}\n".encode() + event(one.data, str(one.data["type"]))

    return EventStream(events(), config=server_state(request).config)
