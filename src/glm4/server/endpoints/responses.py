"""/v1/responses: stored answers that a later request can continue.

A response is on disk before the client is told that it is complete; a streamed one is stored, unfinished, before its
first event. A response belongs to the key it was made with; for other keys it does not exist.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.api.responses.agent_events import AgentResponseWriter
from glm4.api.responses.answers import deleted, input_tokens, item_list
from glm4.api.responses.events import ResponseWriter
from glm4.api.responses.items import REFERENCE, Item, resolved
from glm4.api.responses.request import INCLUDABLE, ResponsesRequest, parse_input_tokens, parse_responses
from glm4.chat.chat_request import ChatRequest
from glm4.errors import InvalidRequestError, StoreError, TemplateError
from glm4.requests.input_processor import PreparedRequest
from glm4.server.agent.input_files import InputFiles
from glm4.server.agent.response_run import ToolRun
from glm4.server.errors import ApiError, as_api_error
from glm4.server.generation import Generation
from glm4.server.identity import KEY_ID
from glm4.server.memory import current_body, parse
from glm4.server.pictures import prepare_chat
from glm4.server.registry import Target
from glm4.server.state import ServerState, server_state
from glm4.server.stores.responses import StoredResponse
from glm4.server.streaming import EventStream, event, until_disconnect

log = logging.getLogger("glm4.server")

_Source = Generation | ToolRun
_Writer = ResponseWriter | AgentResponseWriter

# The name of a field in chat requests → its name in this API, for errors.
_FIELDS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "response_format": "text.format",
    "structured_outputs": "text.format",
    "reasoning_effort": "reasoning.effort",
}


async def create(request: Request) -> Response:
    """Answer, whole or as a stream of events."""
    state = server_state(request)
    body = await state.read(request)
    target = state.target(request, body)
    llm = target.llm
    if not state.config.keep_responses:
        if body.get("store"):
            raise ApiError(400, "this server keeps no responses; send store: false", "store", "invalid_value")
        body["store"] = False
    wanted = await parse(partial(parse_responses, body, llm.default_sampling_params(), thinks=llm.dialect.thinks))
    return await until_disconnect(request, _answer(request, state, target, wanted))


async def count_tokens(request: Request) -> Response:
    """The number of tokens in the prompt of such a request."""
    state = server_state(request)
    body = await state.read(request)
    target = state.target(request, body)
    llm = target.llm
    wanted = await parse(partial(parse_input_tokens, body, llm.default_sampling_params(), thinks=llm.dialect.thinks))
    if wanted.builtin:
        raise ApiError(400, "the tokens of built-in tools are not counted; leave them out", "tools", "invalid_value")
    _, prepared = await _prepare(state, target, wanted, InputFiles.of(request), runs=False)
    return JSONResponse(input_tokens(len(prepared.prompt_ids)))


async def retrieve(request: Request) -> Response:
    """A stored response."""
    _check_query(request, ("include", "include[]", "stream"))
    if request.query_params.get("stream", "false").lower() != "false":
        raise ApiError(
            400, "only responses that run in the background can be streamed later", "stream", "invalid_value"
        )
    return JSONResponse((await _stored(request)).body)


async def delete(request: Request) -> Response:
    """Delete a stored response. Responses that continue it can no longer be continued."""
    response_id = request.path_params["response_id"]
    if not await server_state(request).responses.delete(response_id, _owner(request)):
        raise _not_found(response_id)
    return JSONResponse(deleted(response_id))


async def cancel(request: Request) -> Response:
    """Nothing runs in the background, so there is nothing to cancel; a client ends a stream by closing it."""
    await _stored(request)
    raise ApiError(400, "Cannot cancel a synchronous response.", "response_id", "invalid_value")


async def list_input_items(request: Request) -> Response:
    """What a response's own request added to the conversation."""
    _check_query(request, ("include", "include[]", "after", "limit", "order"))
    query = request.query_params
    limit, order = query.get("limit", "20"), query.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= 100):
        raise ApiError(400, "limit must be a whole number between 1 and 100", "limit", "invalid_value")
    if order not in ("asc", "desc"):
        raise ApiError(400, "order must be asc or desc", "order", "invalid_value")
    items = (await _stored(request)).items
    after = query.get("after")
    if after is not None and all(item["id"] != after for item in items):
        raise ApiError(400, f"after: this response has no input item {after[:100]!r}", "after", "invalid_value")
    return JSONResponse(item_list(items, limit=int(limit), newest_first=order == "desc", after=after))


def _check_query(request: Request, known: Iterable[str]) -> None:
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise ApiError(400, f"unsupported parameter {name[:100]!r}", name[:100], "invalid_value")
        if name.startswith("include") and value not in INCLUDABLE:
            raise ApiError(400, f"include: {value[:100]!r} is not supported", "include", "invalid_value")


async def _stored(request: Request) -> StoredResponse:
    response_id = request.path_params["response_id"]
    found = await server_state(request).responses.get(response_id, _owner(request))
    if found is None:
        raise _not_found(response_id)
    return found


def _owner(request: Request) -> str:
    return str(request.scope["state"].get(KEY_ID, ""))


def _not_found(response_id: str) -> ApiError:
    return ApiError(404, f"Response with id {response_id[:100]!r} not found.", "response_id", "not_found")


async def _prepare(
    state: ServerState, target: Target, wanted: ResponsesRequest, files: InputFiles, *, runs: bool = True
) -> tuple[list[Item], PreparedRequest]:
    """The request's own items, and the prompt of the whole conversation; errors name fields of this API."""
    items, chat = await _conversation(state, wanted, files, target.llm.dialect.builtin_tools)
    try:
        return items, await prepare_chat(target, chat, runs=runs)
    except TemplateError as error:
        raise InvalidRequestError(str(error), param="input") from None
    except InvalidRequestError as error:
        error.param = _named(error.param, wanted)
        raise


async def _conversation(
    state: ServerState, wanted: ResponsesRequest, files: InputFiles, raw: Sequence[str]
) -> tuple[list[Item], ChatRequest]:
    """The request's own items, and the whole conversation; see `ResponsesRequest.chat` for `raw`."""
    references = [item["id"] for item in wanted.items if item["type"] == REFERENCE]
    known = await state.responses.output_items(references, files.owner) if references else {}
    items = resolved(wanted.items, known)
    earlier = await _earlier(state, wanted.previous_response_id, files.owner)
    read = await files.items(earlier, earlier=True), await files.items(items)
    try:
        return items, wanted.chat(*read, raw)
    except InvalidRequestError as error:
        error.param = _named(error.param, wanted)
        raise


def _named(param: str | None, wanted: ResponsesRequest) -> str | None:
    """The field of this API that a field of a chat request stands for."""
    if param is not None and param.startswith("tools["):  # which are written flat here
        narrowed = isinstance(wanted.echo["tool_choice"], Mapping) and "tools" in wanted.echo["tool_choice"]
        return "tools" if narrowed else param.replace(".function", "", 1)
    return _FIELDS.get(param or "", param)


async def _earlier(state: ServerState, response_id: str | None, owner: str) -> list[Item]:
    """The earlier conversation, up to and including the response to be continued."""
    if response_id is None:
        return []
    memory = current_body()
    chain = await state.responses.conversation(response_id, owner)
    if chain is None:
        problem = f"Previous response with id {response_id[:100]!r} not found"
        if await state.responses.get(response_id, owner) is not None:
            problem = f"A response that {response_id!r} continues was deleted, or is too old"
        raise ApiError(400, f"{problem}; send the conversation as input.", "previous_response_id",
                       "previous_response_not_found")  # fmt: skip
    if chain[-1].status not in ("completed", "incomplete"):
        raise ApiError(
            400, f"Response {response_id!r} is {chain[-1].status}, so it cannot be continued.", "previous_response_id",
            "invalid_value",
        )  # fmt: skip
    if memory is not None:
        await memory.add(sum([await state.responses.size(one.body["id"], owner) for one in chain]))
    return [item for one in chain for item in (*one.items, *one.body["output"])]


async def _answer(request: Request, state: ServerState, target: Target, wanted: ResponsesRequest) -> Response:
    owner, files = _owner(request), InputFiles.of(request)
    generation: Generation | ToolRun
    writer: ResponseWriter | AgentResponseWriter
    tokenizer = target.llm.tokenizer
    if wanted.builtin:
        # What is wrong with the request is found here, and not when the answer has begun.
        await _prepare(state, target, wanted, files, runs=False)
        items, chat = await _conversation(state, wanted, InputFiles.of(request), target.llm.dialect.builtin_tools)
        generation = await ToolRun.open(request.app, state, target, wanted, chat, owner)
        writer = AgentResponseWriter(
            wanted, target.name, tokenizer, generation.kinds, generation.listed, generation.file_ids
        )
    else:
        items, prepared = await _prepare(state, target, wanted, files)
        generation = Generation(state, target, prepared)
        writer = ResponseWriter(wanted, target.name, tokenizer)
    if wanted.stream:
        return await _stream(state, generation, writer, items, owner if wanted.store else None)
    try:
        await generation.start()
        writer.begin()  # lists what stands before the answer
        async for chunk in generation.chunks():
            writer.push(chunk)  # type: ignore[arg-type]  # each writer gets what its source gives
    finally:
        await generation.close()
    if wanted.store:
        await state.responses.insert(writer.response, items, owner)
    return JSONResponse(writer.response)


async def _stream(
    state: ServerState, generation: _Source, writer: _Writer, items: list[Item], owner: str | None
) -> Response:
    """Answer as a stream, and store that for its owner; None does not store it."""
    store = owner is not None

    async def close() -> None:
        await generation.close()
        if not writer.ended:
            writer.cancel()
            if store:
                await _finish_quietly(state, writer)

    # Before the response begins, so that a full queue is a 429 and not a broken stream.
    await generation.start()
    if owner is not None:
        try:
            await state.responses.insert(writer.response, items, owner)
        except BaseException:  # the response may be stored already, unfinished; `close` ends it
            await close()
            raise
    return EventStream(
        _events(state, generation, writer, store=store),
        config=state.config,
        on_close=close,
    )


async def _events(
    state: ServerState, generation: _Source, writer: _Writer, *, store: bool
) -> AsyncGenerator[bytes, None]:
    yield _written(writer.begin())
    try:
        async for chunk in generation.chunks():
            events = writer.push(chunk)  # type: ignore[arg-type]  # see `_answer`
            if events:
                yield _written(events)
        if store:
            await state.responses.finish(writer.response)
        yield _written(writer.last())
    except Exception as error:  # the client is told, as `failed`; the log says more
        told = as_api_error(error)
        ending = writer.fail(told.message, code=told.code, param=told.param)
        if store:
            await _finish_quietly(state, writer)
        yield _written(ending)


async def _finish_quietly(state: ServerState, writer: _Writer) -> None:
    """Store the end of a response without raising. If its output cannot be stored, store the rest."""
    for response in (writer.response, {**writer.response, "output": []}):
        try:
            await state.responses.finish(response)
            return
        except StoreError as error:
            log.error("the end of a response was not stored: %s", error)


def _written(events: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(event(one, one["type"]) for one in events)
