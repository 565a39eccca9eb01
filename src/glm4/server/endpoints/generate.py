"""POST /inference/v1/generate: vLLM's token route, for routers, clusters and the remote backend of another glm4."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.api.vllm import GenerateRequest, GenerateWriter, parse_generate
from glm4.api.vllm.request import renamed
from glm4.errors import InvalidRequestError
from glm4.server.generation import Generation, whole
from glm4.server.memory import parse, prepare
from glm4.server.registry import Target
from glm4.server.state import ServerState, server_state
from glm4.server.streaming import DONE, EventStream, event, until_disconnect


async def generate(request: Request) -> Response:
    """Continue a prompt of token ids."""
    state = server_state(request)
    body = await state.read(request)
    target = state.target(request, body)
    wanted = await parse(partial(parse_generate, body, target.llm.default_sampling_params()))
    writer = GenerateWriter(wanted, wanted.request_id or request.scope["state"]["request_id"], target.name)
    return await until_disconnect(request, _answer(state, target, wanted, writer))


async def _answer(state: ServerState, target: Target, wanted: GenerateRequest, writer: GenerateWriter) -> Response:
    try:
        prepared = await prepare(
            target.longest_text,
            partial(target.llm.prepare_prompt, wanted.token_ids, wanted.params, adapter=target.adapter),
        )
        if wanted.stream is None:
            return JSONResponse(writer.whole(await whole(state, target, prepared), target.llm.tokenizer))
        # Started before the response, so that a full queue is a 429 and not a broken stream.
        generation = Generation(state, target, prepared)
        await generation.start()
    except InvalidRequestError as error:
        raise renamed(error) from None
    return EventStream(_events(generation, writer), config=state.config, on_close=generation.close)


async def _events(generation: Generation, writer: GenerateWriter) -> AsyncGenerator[bytes, None]:
    async for chunk in generation.chunks():
        body = b"".join(event(one) for one in writer.events(chunk))
        if body:
            yield body
    yield DONE
