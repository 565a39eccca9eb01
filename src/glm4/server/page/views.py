"""Endpoints of what the page shows: a turn as it happens, and conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from glm4.agent.sessions import SessionMessage, branch_to
from glm4.agent.transcript import file_dict
from glm4.errors import NotFoundError
from glm4.server.agent.conversations import message_dict, session_dict
from glm4.server.agent.state import AgentState, owner_of
from glm4.server.long_answers import long_answer
from glm4.server.page.parts import dressed
from glm4.server.page.state import NO_STORE, page_state
from glm4.server.page.turn_view import turn_view
from glm4.server.state import find_state, server_state
from glm4.server.streaming import EventStream, event, until_disconnect


async def follow_turn(request: Request) -> Response:
    """The events of a turn from now on, after a snapshot of all before."""
    turn = find_state(request.app, AgentState).turns.find(request.path_params["turn_id"], owner_of(request))
    rendering = page_state(request).rendering.of(turn.owner)

    async def events() -> AsyncGenerator[bytes, None]:
        async with aclosing(turn_view(turn, rendering)) as view:
            async for one in view:
                yield event(one, one["type"])

    return EventStream(events(), config=server_state(request).config)


async def conversation(request: Request) -> Response:
    """A conversation: the branch that is shown (or ends at `?leaf=`) as HTML, and the tree that it is a part of."""
    state, owner, name = find_state(request.app, AgentState), owner_of(request), request.path_params["conversation_id"]
    session = await state.store.get(name, owner)
    messages = await state.store.messages(name, owner)
    files = await state.store.files(name, owner)
    branch = _branch(messages, request.query_params.get("leaf") or session.leaf)
    rendering = page_state(request).rendering.of(owner)

    async def answer() -> Response:
        # One by one: turns that run get their turn of the threads between them.
        shown = [await rendering.run(partial(_shown, one, state.turns.of_message(one.id))) for one in branch]
        whole = {
            "conversation": session_dict(session),
            "tree": [_in_tree(message) for message in messages],
            "messages": shown,
            "files": [file_dict(file) for file in files],
        }
        return await long_answer(whole, NO_STORE)

    return await until_disconnect(request, answer())


def _branch(messages: Sequence[SessionMessage], leaf: str | None) -> list[SessionMessage]:
    """From the first message to a leaf."""
    known = {message.id: message for message in messages}
    if leaf is not None and leaf not in known:
        raise NotFoundError(f"this conversation has no message {leaf[:100]!r}", param="leaf")
    return branch_to(leaf, known)


def _in_tree(message: SessionMessage) -> dict[str, Any]:
    return {name: getattr(message, name) for name in ("id", "parent", "role", "status", "created")}


def _shown(message: SessionMessage, turn: str | None) -> dict[str, Any]:
    return {**message_dict(message, turn), "parts": [dressed(part) for part in message.parts]}
