"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.api.openai import CompletionRequest, parse_completion
from glm4.api.openai.answers import text_completions
from glm4.api.openai.events import TextChunks
from glm4.outputs import StreamChunk
from glm4.requests.input_processor import PreparedRequest, PromptOptions
from glm4.server.generation import Generation, interleaved, whole_many
from glm4.server.memory import parse, prepare
from glm4.server.registry import Target
from glm4.server.state import ServerState, server_state
from glm4.server.streaming import DONE, EventStream, event, until_disconnect


async def completions(request: Request) -> Response:
    """Continue one raw prompt or several."""
    state = server_state(request)
    body = await state.read(request)
    target = state.target(request, body)
    completion = await parse(partial(parse_completion, body, target.llm.default_sampling_params()))
    return await until_disconnect(request, _answer(state, target, completion))


async def _answer(state: ServerState, target: Target, completion: CompletionRequest) -> Response:
    def prepare_all() -> list[PreparedRequest]:
        options: PromptOptions = {"parse_special": state.config.parse_special, **completion.options}
        one = partial(target.llm.prepare_prompt, params=completion.params, adapter=target.adapter, **options)
        return [one(prompt) for prompt in completion.prompts]

    batch = await prepare(target.longest_text, prepare_all)
    if completion.stream is None:
        outputs = await whole_many(state, target, batch)
        return JSONResponse(
            text_completions(
                outputs,
                target.name,
                target.llm.tokenizer,
                completion.response,
                echo=completion.echo,
                generate=completion.generate,
                skip_special_tokens=completion.params.skip_special_tokens,
            )
        )
    if len(batch) > 1:
        return _stream(state, target, completion, batch, interleaved(state, target, batch), None)
    # Started before the response, so that a full queue is a 429 and not a broken stream.
    generation = Generation(state, target, batch[0])
    await generation.start()
    chunks = ((0, chunk) async for chunk in generation.chunks())
    return _stream(state, target, completion, batch, chunks, generation.close)


def _stream(
    state: ServerState,
    target: Target,
    completion: CompletionRequest,
    batch: Sequence[PreparedRequest],
    chunks: AsyncGenerator[tuple[int, StreamChunk], None],
    on_close: Callable[[], Awaitable[None]] | None,
) -> EventStream:
    return EventStream(
        _events(target, completion, batch, chunks),
        config=state.config,
        on_close=on_close,
    )


async def _events(
    target: Target,
    completion: CompletionRequest,
    batch: Sequence[PreparedRequest],
    chunks: AsyncGenerator[tuple[int, StreamChunk], None],
) -> AsyncGenerator[bytes, None]:
    writer = TextChunks(target.name, target.llm.tokenizer, completion)
    for position, prepared in enumerate(batch):
        writer.started(position, prepared.text, prepared.prompt_ids, prepared.num_added_ids)
    try:
        async for position, chunk in chunks:
            body = b"".join(event(one) for one in writer.push(position, chunk))
            if body:
                yield body
    finally:
        await chunks.aclose()
    for last in writer.last():
        yield event(last)
    yield DONE
