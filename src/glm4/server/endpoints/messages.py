"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API over the same models."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.api.anthropic import MessageEvents, MessageRequest, parse_count, parse_message
from glm4.api.anthropic.events import PING
from glm4.api.anthropic.fields import REFUSED_HEADERS
from glm4.chat.pictures import images_of
from glm4.errors import InvalidRequestError, PromptTooLongError
from glm4.requests.input_processor import PreparedRequest
from glm4.server.agent.input_files import InputFiles
from glm4.server.errors import ApiError
from glm4.server.generation import Generation
from glm4.server.memory import parse, prepare
from glm4.server.pictures import encoded_nbytes, prepare_chat
from glm4.server.registry import Target
from glm4.server.state import ServerState, server_state
from glm4.server.streaming import EventStream, anthropic_failure, event, until_disconnect


async def messages(request: Request) -> Response:
    """Answer a conversation. `anthropic-version` and `anthropic-beta` are ignored: the body's fields decide."""
    state = server_state(request)
    body = await state.read(request)
    _check_headers(request)
    target = state.target(request, body)
    await InputFiles.of(request).anthropic(body)
    wanted = await parse(lambda: parse_message(body, target.llm.default_sampling_params()))
    return await until_disconnect(request, _answer(state, target, wanted))


async def count_tokens(request: Request) -> Response:
    """The number of tokens in a conversation's prompt, which may exceed the context."""
    state = server_state(request)
    body = await state.read(request)
    _check_headers(request)
    target = state.target(request, body)
    await InputFiles.of(request).anthropic(body)
    wanted = await parse(lambda: parse_count(body, target.llm.default_sampling_params()))
    count = await _count(target, wanted)
    counts: dict[str, object] = {"input_tokens": count}
    if wanted.manages_context:
        counts["context_management"] = {"original_input_tokens": count}
    return JSONResponse(counts)


def _check_headers(request: Request) -> None:
    for name, text in REFUSED_HEADERS.items():
        if name in request.headers:
            raise InvalidRequestError(text, param=name)


async def _count(target: Target, wanted: MessageRequest) -> int:
    sent = await parse(lambda: encoded_nbytes(images_of(wanted.chat.messages)))
    return len(await prepare(target.longest_text, lambda: target.llm.render(wanted.chat), aside=sent))


async def _prepare(target: Target, wanted: MessageRequest) -> PreparedRequest:
    try:
        return await prepare_chat(target, wanted.chat)
    except PromptTooLongError as error:
        # Anthropic's wording, from which Claude Code knows that it must shorten the conversation.
        count = error.at_least or await _count(target, wanted)
        limit = target.llm.context(target.adapter) - 1
        raise ApiError(400, f"prompt is too long: {count} tokens > {limit} maximum", "messages") from None


async def _answer(state: ServerState, target: Target, wanted: MessageRequest) -> Response:
    prepared = await _prepare(target, wanted)
    generation = Generation(state, target, prepared)
    answer = MessageEvents(target.name, wanted, len(prepared.prompt_ids))
    if wanted.stream:
        await generation.start()
        return EventStream(
            _events(generation, answer),
            failure=anthropic_failure,
            silence=event(PING, "ping"),
            config=state.config,
            on_close=generation.close,
        )
    try:
        await generation.start()
        async for chunk in generation.chunks():
            answer.push(chunk)
    finally:
        await generation.close()
    return JSONResponse(answer.message())


async def _events(generation: Generation, answer: MessageEvents) -> AsyncGenerator[bytes, None]:
    yield b"".join(event(one, one["type"]) for one in answer.first())
    async for chunk in generation.chunks():
        body = b"".join(event(one, one["type"]) for one in answer.push(chunk))
        if body:
            yield body
