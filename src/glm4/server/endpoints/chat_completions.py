"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.api.openai import ChatBody, chat_completion, parse_chat
from glm4.api.openai.events import ChatChunks
from glm4.server.agent.input_files import InputFiles
from glm4.server.generation import Generation, whole
from glm4.server.memory import parse
from glm4.server.pictures import prepare_chat
from glm4.server.registry import Target
from glm4.server.state import ServerState, server_state
from glm4.server.streaming import DONE, EventStream, event, until_disconnect


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    state = server_state(request)
    body = await state.read(request)
    target = state.target(request, body)
    await InputFiles.of(request).chat(body)
    chat = await parse(partial(parse_chat, body, target.llm.default_sampling_params()))
    return await until_disconnect(request, _answer(state, target, chat))


async def _answer(state: ServerState, target: Target, chat: ChatBody) -> Response:
    prepared = await prepare_chat(target, chat.request)
    if chat.stream is None:
        output = await whole(state, target, prepared)
        return JSONResponse(chat_completion(output, target.name, target.llm.tokenizer, chat.response))
    generation = Generation(state, target, prepared)
    await generation.start()
    return EventStream(
        _events(generation, chat),
        config=state.config,
        on_close=generation.close,
    )


async def _events(generation: Generation, chat: ChatBody) -> AsyncGenerator[bytes, None]:
    assert chat.stream is not None  # noqa: S101 (called for streams only)
    target, prepared = generation.target, generation.prepared
    chunks = ChatChunks(target.name, target.llm.tokenizer, prepared.prompt_ids, chat.stream, chat.response)
    for first in chunks.first(prepared.params.n):
        yield event(first)
    async for chunk in generation.chunks():
        body = b"".join(event(one) for one in chunks.push(chunk))
        if body:
            yield body
    for last in chunks.last():
        yield event(last)
    yield DONE
